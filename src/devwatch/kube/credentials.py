"""Find the API server and the credentials for it, as kubectl does."""

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
"""Below HOME, as for kubectl (client-go, `homedir.HomeDir`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The source of server and credentials, in this order: the flag, `KUBECONFIG`, in-cluster, the default file."""

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
        """The name of these credentials in messages."""
        return f"the kubeconfig {self.file}" if self.file else "the service account of this pod"

    async def connect(self) -> ApiClient:
        """Read the credentials and return a client that uses them and has sent nothing yet. Raises `CredentialsError` with the reason."""
        configuration = Configuration(host="")
        # The strict checks of RFC 5280 refuse certificates that k3s and others issue and that every Go client accepts. The chain is
        # verified in any case.
        configuration.disable_strict_ssl_verification = True
        try:
            await self._fill(configuration)
            _refuse_passphrase(configuration)
            proxy = _choose_proxy(configuration, self.environ)
            return _set_proxy(ApiClient(configuration), proxy)
        except CredentialsError:
            raise
        except Exception as error:  # the loaders and ssl raise whatever the content makes them raise
            raise CredentialsError(f"cannot use {self.name}: {reason_of(error)}") from error
        finally:
            remove_copies()

    async def _fill(self, configuration: Configuration) -> None:
        # A copy: another request may have waited for the same read, and loads from the result too.
        loader = copy.copy(await self._reader.run(self._load))
        await loader.load_and_set(configuration)
        if not configuration.host:
            raise CredentialsError(f"cannot use {self.name}: the cluster of its current context has no server")
        # Editors and `kubectl create token` end a file with a line end, which an HTTP header may not contain; client-go cuts it too.
        configuration.api_key = {name: key.strip() for name, key in configuration.api_key.items()}

    def _load(self) -> KubeconfigLoader | PodCredentials:
        """Read all files of the credentials. May block forever, so it runs in a thread."""
        loader: KubeconfigLoader | PodCredentials
        if self.file is None:
            loader = PodCredentials(environ=self.environ, folder=self.service_account, refresh=self.token_refresh)
        # As for kubectl, the flag names one file, even with a colon in its name, and KUBECONFIG a list.
        elif paths := _existing_files([self.kubeconfig] if self.kubeconfig else self.file.split(os.pathsep)):
            merged = KubeconfigMerger(paths)
            loader = KubeconfigLoader(merged.config, active_context=merged.first_context, config_base_path=None)
        else:
            raise CredentialsError(
                f"there is no kubeconfig {self.file} (--kubeconfig, KUBECONFIG or a service account name another)"
            )
        loader.read_files()
        return loader


def _refuse_passphrase(configuration: Configuration) -> None:
    """Raise for a client key with a passphrase: OpenSSL would ask for it on the terminal, and block the whole program."""

    def refuse() -> str:
        raise ConfigException("its client key has a passphrase, which devwatch cannot ask for")

    if configuration.cert_file:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(configuration.cert_file, configuration.key_file, password=refuse)


def _choose_proxy(configuration: Configuration, environ: Mapping[str, str]) -> str | None:
    """Return the proxy of the kubeconfig, else that of the environment. Raises `CredentialsError` for one that is not an HTTP proxy."""
    proxy = configuration.proxy or proxy_of(str(configuration.host), environ)
    if proxy and urlsplit(proxy).scheme not in {"http", "https"}:
        place, source = proxy.rpartition("@")[2], "proxy-url" if configuration.proxy else "HTTPS_PROXY or HTTP_PROXY"
        raise CredentialsError(f"cannot use the proxy {place} of {source}: it has to begin with http:// or https://")
    return proxy


def _set_proxy(client: ApiClient, proxy: str | None) -> ApiClient:
    """Send every request through this proxy, or directly without one, as kubectl does.

    The client lets aiohttp trust the environment. Then aiohttp sends requests to this host through the proxy too, looks the proxy up in
    a thread for every request, and a password in ~/.netrc, which it refuses to combine with our token.
    """
    session = client.rest_client.pool_manager
    session._trust_env = False  # noqa: SLF001 - the client offers no setting for it
    client.rest_client.proxy = proxy  # type: ignore[assignment]  # None is what it is without one
    client.rest_client.pool_manager = _NoRedirects(session)  # type: ignore[assignment]  # the client calls these two methods
    return client


class _NoRedirects:
    """A session that does not follow redirects: request and response are only for the server that the credentials name."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, **arguments: Any) -> aiohttp.ClientResponse:  # noqa: ANN401 - the signature of aiohttp
        return await self._session.request(**arguments, allow_redirects=False)

    async def close(self) -> None:
        await self._session.close()


def _existing_files(paths: Iterable[str]) -> list[str]:
    """Return the paths that exist, with `~` expanded."""
    # Path.expanduser raises for an unknown user; here the file then does not exist.
    expanded = (os.path.expanduser(path) for path in paths if path)  # noqa: PTH111 - as above
    return [path for path in expanded if Path(path).exists()]
