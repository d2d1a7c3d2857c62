"""Where the API server is, and who asks it."""

from __future__ import annotations

import copy
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from devwatch.config import files
from devwatch.core.errors import CredentialsError
from devwatch.kube.kubeconfig import (
    SERVICE_ACCOUNT,
    SERVICE_HOST,
    TOKEN_REFRESH,
    KubeconfigLoader,
    KubeconfigMerger,
    PodCredentials,
)
from devwatch.kube.library import ApiClient, ConfigException, Configuration, remove_copies
from devwatch.kube.proxy import proxy_of
from devwatch.kube.responses import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import aiohttp


DEFAULT_KUBECONFIG = ".kube/config"
"""Below HOME, as kubectl has it (client-go, `homedir.HomeDir`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Where to find the API server and the right to talk to it: the flag, `KUBECONFIG`, in-cluster, the default file, in this order."""

    kubeconfig: str | None = None
    environ: Mapping[str, str]
    service_account: Path = SERVICE_ACCOUNT
    token_refresh: float = TOKEN_REFRESH
    """Seconds after which the token of the service account is read again."""
    _reader: files.Reader[KubeconfigLoader | PodCredentials] = field(
        default_factory=files.Reader, repr=False, compare=False
    )

    @property
    def file(self) -> str | None:
        """The kubeconfig to read, None for the in-cluster credentials."""
        given = self.kubeconfig or self.environ.get("KUBECONFIG")
        default = str(Path(self.environ.get("HOME") or "/", DEFAULT_KUBECONFIG))
        return given or (None if self.environ.get(SERVICE_HOST) else default)

    @property
    def name(self) -> str:
        """What they are called in messages."""
        return f"the kubeconfig {self.file}" if self.file else "the service account of this pod"

    async def connect(self) -> ApiClient:
        """Read them now and return a client that uses them, which has sent nothing yet. Raises `CredentialsError` with the reason."""
        configuration = Configuration(host="")
        # Strict RFC 5280 checks refuse certificates that k3s and others issue and every Go client accepts; the chain is
        # verified all the same.
        configuration.disable_strict_ssl_verification = True
        try:
            await self._fill(configuration)
            _ask_for_no_passphrase(configuration)
            proxy = _proxy_of(configuration, self.environ)
            return _set_proxy(ApiClient(configuration), proxy)
        except CredentialsError:
            raise
        except Exception as error:  # the loaders and ssl raise whatever the content makes them raise
            raise CredentialsError(f"cannot use {self.name}: {reason_of(error)}") from error
        finally:
            remove_copies()

    async def _fill(self, configuration: Configuration) -> None:
        # A copy: another request may have waited for the same reading, and loads itself.
        loader = copy.copy(await self._reader.run(self._load))
        await loader.load_and_set(configuration)
        if not configuration.host:
            raise CredentialsError(f"cannot use {self.name}: the cluster of its current context has no server")
        # Editors and `kubectl create token` end a file with a line end, which no header may hold; client-go cuts it too.
        configuration.api_key = {name: key.strip() for name, key in configuration.api_key.items()}

    def _load(self) -> KubeconfigLoader | PodCredentials:
        """Read every file that they consist of. May block for good, so it is called in a thread."""
        loader: KubeconfigLoader | PodCredentials
        if self.file is None:
            loader = PodCredentials(environ=self.environ, folder=self.service_account, refresh=self.token_refresh)
        elif paths := _existing([self.kubeconfig] if self.kubeconfig else self.file.split(os.pathsep)):
            merged = KubeconfigMerger(paths)
            loader = KubeconfigLoader(merged.config, active_context=merged.first_context, config_base_path=None)
        else:
            raise CredentialsError(
                f"there is no kubeconfig {self.file} (--kubeconfig, KUBECONFIG or a service account name another)"
            )
        loader.read_files()
        return loader


def _ask_for_no_passphrase(configuration: Configuration) -> None:
    """Raise for a client key that has a passphrase: OpenSSL would ask for it on the terminal, and the whole program would wait."""

    def refuse() -> str:
        raise ConfigException("its client key has a passphrase, and nobody is there to enter it")

    if configuration.cert_file:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(configuration.cert_file, configuration.key_file, password=refuse)


def _proxy_of(configuration: Configuration, environ: Mapping[str, str]) -> str | None:
    """Return the proxy of the kubeconfig, else that of the environment. Raises `CredentialsError` for one that no HTTP client speaks to."""
    proxy = configuration.proxy or proxy_of(str(configuration.host), environ)
    if proxy and urlsplit(proxy).scheme not in {"http", "https"}:
        place, source = proxy.rpartition("@")[2], "proxy-url" if configuration.proxy else "HTTPS_PROXY or HTTP_PROXY"
        raise CredentialsError(f"cannot use the proxy {place} of {source}: it has to begin with http:// or https://")
    return proxy


def _set_proxy(client: ApiClient, proxy: str | None) -> ApiClient:
    """Let each request go by this proxy, or straight, as kubectl's would.

    aiohttp, told to trust the environment, sends what is meant for this host to the proxy too. It asks anew for every request, in two
    threads, also for a password in ~/.netrc, which it then refuses to combine with our token.
    """
    session = client.rest_client.pool_manager
    session._trust_env = False  # noqa: SLF001 - the client offers no setting for it
    client.rest_client.proxy = proxy  # type: ignore[assignment]  # None is what it is without one
    client.rest_client.pool_manager = _NoRedirects(session)  # type: ignore[assignment]  # the client calls these two methods
    return client


class _NoRedirects:
    """A session that follows no redirect: a body is for the server that the credentials name, and so is its answer."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, **arguments: Any) -> aiohttp.ClientResponse:  # noqa: ANN401 - as it is there
        return await self._session.request(**arguments, allow_redirects=False)

    async def close(self) -> None:
        await self._session.close()


def _existing(paths: Iterable[str]) -> list[str]:
    """Return the files that are there. The flag names one file, whatever is in its name, and `KUBECONFIG` a list, as with kubectl."""
    # pathlib raises where nobody has such a home; to the loader the file is then not there.
    expanded = (os.path.expanduser(path) for path in paths if path)  # noqa: PTH111 - as above
    return [path for path in expanded if Path(path).exists()]
