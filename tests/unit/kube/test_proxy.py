"""The proxy of the environment, by the rules of Go's clients: whoever can reach the API server with kubectl can do it with devwatch."""

from __future__ import annotations

import pytest

from devwatch.kube.proxy import proxy_of

PROXY = "http://proxy:3128"
SERVER = "https://api.example.com:6443"


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": PROXY}, PROXY),
        ({"https_proxy": PROXY}, PROXY),
        ({"HTTPS_PROXY": PROXY, "https_proxy": "http://other"}, PROXY),
        ({"HTTPS_PROXY": "", "https_proxy": PROXY}, PROXY),
        ({"HTTP_PROXY": PROXY, "ALL_PROXY": PROXY}, None),
        ({"HTTPS_PROXY": "proxy:3128"}, PROXY),
        ({"HTTPS_PROXY": "user:word@proxy:3128"}, "http://user:word@proxy:3128"),
        ({"HTTPS_PROXY": "https://proxy"}, "https://proxy"),
    ],
)
def test_the_variable_of_the_scheme_names_the_proxy(environ: dict[str, str], proxy: str | None) -> None:
    """In capitals first; an empty one is none, and one without a scheme is spoken to in HTTP."""
    assert proxy_of(SERVER, environ) == proxy


def test_a_server_without_tls_has_a_variable_of_its_own() -> None:
    """A proxy may serve one and not the other."""
    assert proxy_of("http://api.example.com", {"HTTP_PROXY": PROXY}) == PROXY
    assert proxy_of("http://api.example.com", {"HTTPS_PROXY": PROXY}) is None


@pytest.mark.parametrize(
    "server",
    [
        *("https://localhost:6443", "https://LOCALHOST", "https://127.0.0.1:6443", "https://127.9.9.9"),
        *("https://[::1]:6443", "https://[::ffff:127.0.0.1]"),
    ],
)
def test_this_host_is_asked_without_a_proxy(server: str) -> None:
    """To the proxy, this host is another one: k3s writes 127.0.0.1 into its kubeconfig."""
    assert proxy_of(server, {"HTTPS_PROXY": PROXY}) is None


@pytest.mark.parametrize(
    ("no_proxy", "server"),
    [
        *(("10.0.0.0/8", "10.1.2.3"), ("10.9.9.9/8", "10.1.2.3"), ("example.org, 10.0.0.0/8", "10.1.2.3")),
        *(("10.1.2.3", "10.1.2.3"), ("10.1.2.3:6443", "10.1.2.3"), ("10.0.0.0/8", "[::ffff:10.1.2.3]")),
        *(("fd00::/8", "[fd00::1]"), ("fd00:0::1", "[fd00::1]"), ("[fd00::1]:6443", "[fd00::1]")),
        *(("api.example.com", "api.example.com"), ("API.example.com", "api.Example.com")),
        *(("api.example.com:6443", "api.example.com"), ("example.com", "api.example.com")),
        *((".example.com", "api.example.com"), ("*.example.com", "api.example.com")),
        *(("*", "api.example.com"), ("*", "10.1.2.3"), ("example.org,*", "api.example.com")),
    ],
)
def test_no_proxy_names_servers_networks_and_domains(no_proxy: str, server: str) -> None:
    """Each with a port or without, `*` for all of them."""
    assert proxy_of(f"https://{server}:6443", {"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy}) is None
    assert proxy_of(f"https://{server}:6443", {"HTTPS_PROXY": PROXY, "no_proxy": no_proxy}) is None


@pytest.mark.parametrize(
    ("no_proxy", "server"),
    [
        *(("", "api.example.com"), (",", "api.example.com"), (" ,/8,", "api.example.com")),
        *(("10.0.0.0/8", "11.1.2.3"), ("10.0.0.0/8", "[fd00::1]"), ("10.0.0.0/8", "api.example.com")),
        *(("10.1.2.3:443", "10.1.2.3"), ("10.1.2.3", "10.1.2.30"), ("10.0.0.0/99", "10.1.2.3")),
        *(("api.example.com:443", "api.example.com"), ("ample.com", "api.example.com")),
        *(("www.example.com", "api.example.com"), ("api.*", "api.example.com")),
        *((".example.com", "example.com"), ("*.example.com", "example.com"), (".example.com:6443", "example.com")),
    ],
)
def test_what_no_proxy_does_not_name_goes_by_the_proxy(no_proxy: str, server: str) -> None:
    """An entry of no form is passed over, and no part of a name stands for the whole."""
    assert proxy_of(f"https://{server}:6443", {"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy}) == PROXY


def test_a_port_that_is_not_written_is_that_of_the_scheme() -> None:
    """So NO_PROXY may name it."""
    assert proxy_of("https://10.1.2.3", {"HTTPS_PROXY": PROXY, "NO_PROXY": "10.1.2.3:443"}) is None
    assert proxy_of("http://10.1.2.3", {"HTTP_PROXY": PROXY, "NO_PROXY": "10.1.2.3:80"}) is None


@pytest.mark.parametrize(
    "server", ["", "api", "10.1.2.3:1", "ftp://api", "https://", "https://[::1", "https://api:99999"]
)
def test_what_is_no_server_has_no_proxy(server: str) -> None:
    """Whoever sends a request to it says what is wrong."""
    assert proxy_of(server, {"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY, "FTP_PROXY": PROXY, "_PROXY": PROXY}) is None
