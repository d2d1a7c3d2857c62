"""Find the proxy for a server in the environment, by the rules of Go's clients such as kubectl (golang.org/x/net/http/httpproxy)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

if TYPE_CHECKING:
    from collections.abc import Mapping

_PORTS = {"http": 80, "https": 443}


def proxy_of(url: str, environ: Mapping[str, str]) -> str | None:
    """Return the URL of the proxy for a server, None where requests go to it directly, or where the URL is invalid."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):  # the request itself reports what is wrong with the URL
        return None
    proxy = _proxy_variable(f"{parts.scheme}_proxy", environ)
    if not host or not proxy or _is_excluded(host, port, _proxy_variable("no_proxy", environ)):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _proxy_variable(name: str, environ: Mapping[str, str]) -> str:
    return environ.get(name.upper()) or environ.get(name) or ""


def _is_excluded(host: str, port: int, no_proxy: str) -> bool:
    """Return whether requests to a server bypass the proxy: those to this host always, others according to NO_PROXY."""
    address = _address(host)
    entries = [entry.strip() for entry in no_proxy.split(",")]
    if host == "localhost" or (address is not None and address.is_loopback) or "*" in entries:
        return True
    if address is not None and any(_contains(entry, address) for entry in entries):
        return True
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # For Go, .example.com and *.example.com mean all subdomains. urllib does not know the second form, and includes the domain itself in
    # the first.
    below = (entry.removeprefix("*") for entry in entries)
    names = ",".join(entry for entry in below if entry.partition(":")[0].lower() != f".{host}")
    return bool(proxy_bypass(place, {"no": names}))


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _contains(entry: str, address: IPv4Address | IPv6Address) -> bool:
    try:
        return address in ip_network(entry, strict=False)  # host bits are ignored, as in 192.0.2.2/8
    except ValueError:
        return False
