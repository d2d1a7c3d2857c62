"""The edge to the API server. The only importer of kubernetes_asyncio and aiohttp; no exception of theirs leaves it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import importlib
import importlib.util
import json
import logging
import math
import os
import re
import shlex
import shutil
import ssl
import sys
import time
import types
import warnings
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

import yaml

from devwatch import files, program
from devwatch.errors import ApiError, Conflict, CredentialsError, Forbidden, Gone, Missing, NodeMissing, Refused, Retry
from devwatch.node import ANNOTATION, FIELD_MANAGER, MAPS, WHOLE, Changes, NodeState, Writer, patch_body
from devwatch.proxy import proxy_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    import aiohttp

    Query = Sequence[tuple[str, str]]

REQUEST_TIMEOUT = 10.0
"""Seconds for one request, from the connection to the last byte of the answer."""
WATCH_TIMEOUT = 240
"""Seconds after which the server is asked to end a watch; the next one goes on where it ended."""
MAX_ANSWER = 8 * 1024 * 1024
"""Bytes of an answer that are read; etcd holds no object of more than 1.5 MiB."""
MAX_MESSAGE = 500
"""Characters of a server's message that are passed on: a 422 can quote the whole Node."""
LONGEST_DELAY = 86_400.0
"""Seconds that a Retry-After counts for at most, however many digits it has; who waits has a lower limit of its own."""
DEFAULT_KUBECONFIG = ".kube/config"
"""Below HOME, as kubectl has it (client-go, `homedir.HomeDir`)."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet mounts the credentials of a pod (ServiceAccount admission plugin)."""
_SERVICE_HOST, _SERVICE_PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"
_EXPIRY_DELTA = 10.0
"""Seconds before its end at which an ID token counts as expired (client-go, oidc `expiryDelta`)."""
TOKEN_REFRESH = 60.0
"""Seconds after which the token of a pod is read again (client-go, `BearerTokenFile`)."""

_ANONYMOUS = "system:anonymous"
_UNSHAPELY = (AssertionError, AttributeError, IndexError, KeyError, TypeError)
_SECRET = re.compile(r"(?<=//)\S*@|\{.*\}", re.DOTALL)
"""What an exception can quote of a kubeconfig: the user and password of a URL, and a whole user as a dict."""
_REFUSALS = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRIES: Mapping[int, type[Retry]] = {HTTPStatus.CONFLICT: Conflict, HTTPStatus.GONE: Gone}
_RBAC = re.compile(r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"')
_UNLISTED = re.compile(
    r"ValidatingAdmissionPolicy '(?P<policy>[^']+)'.*"
    r"status\.(?:capacity|allocatable)\[(?P<name>[^\]]+)\] is not among the resources that the policy allows"
)
"""What deploy/components/admission-policy says of a name that is not in its list, as the API server passes it on."""


def _lean_import() -> None:
    """Let kubernetes_asyncio be imported without its generated models.

    Its packages import 700 model classes and every API group, 40 MiB that no request of ours uses: the bodies are
    plain dicts and the answers are read as JSON. With empty packages in their place the three modules that matter
    import as they are. `_import_client` falls back to the ordinary import.
    """
    spec = None if "kubernetes_asyncio" in sys.modules else importlib.util.find_spec("kubernetes_asyncio")
    if spec is None or spec.origin is None:
        return
    root = Path(spec.origin).parent
    for name in ("kubernetes_asyncio", "kubernetes_asyncio.client", "kubernetes_asyncio.client.models"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    client = sys.modules["kubernetes_asyncio.client"]
    sys.modules["kubernetes_asyncio"].client = client  # type: ignore[attr-defined]  # what the import system does for a real package
    client.models = sys.modules["kubernetes_asyncio.client.models"]  # type: ignore[attr-defined]  # as above
    from kubernetes_asyncio.client.api_client import ApiClient  # noqa: PLC0415 - only now can it be imported alone
    from kubernetes_asyncio.client.configuration import Configuration  # noqa: PLC0415 - as above

    client.ApiClient, client.Configuration = ApiClient, Configuration  # type: ignore[attr-defined]  # what kubernetes_asyncio.config imports


@contextlib.contextmanager
def _without_certificates() -> Iterator[None]:
    """Hide the machine's certificates from what reads them on import.

    aiohttp makes a TLS context with all of them, 2 MiB and a tenth of the start; every client of ours brings its own context.
    """
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    held = {name: os.environ.get(name) for name in names}
    os.environ |= dict.fromkeys(names, os.devnull)
    try:
        yield
    finally:
        for name, value in held.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _have_home() -> None:
    """Let a uid without a name and without HOME, as containers have, import what asks for its home on import."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def _import_client() -> None:
    _have_home()
    try:
        with _without_certificates():
            _lean_import()
            importlib.import_module("kubernetes_asyncio.config")
    except MemoryError:  # the ordinary import needs more of it
        raise
    except Exception as error:  # noqa: BLE001 - whatever a release breaks, its ordinary import comes next and raises itself
        for name in [name for name in sys.modules if name.partition(".")[0] == "kubernetes_asyncio"]:
            del sys.modules[name]
        warnings.warn(
            f"this kubernetes_asyncio cannot be imported without its models ({error}): 40 MiB more", stacklevel=2
        )


_import_client()

from kubernetes_asyncio.client.api_client import ApiClient  # noqa: E402 - after the packages were put in place
from kubernetes_asyncio.client.configuration import Configuration  # noqa: E402 - as above
from kubernetes_asyncio.config import ConfigException, kube_config  # noqa: E402 - as above
from kubernetes_asyncio.config.exec_provider import ExecProvider  # noqa: E402 - as above


class _Plugin(ExecProvider):
    """The program of a kubeconfig that hands out credentials (`exec`); a request that gives up leaves nothing of it running."""

    async def run(self, previous_response: str | None = None) -> Any:  # noqa: ANN401, ARG002 - as it is there
        """Return the credentials that it prints. Raises `ConfigException` where it prints none, `OSError` where it cannot be started."""
        info = {"apiVersion": self.api_version, "kind": "ExecCredential", "spec": {"interactive": False}}
        environ = {**self.env, "KUBERNETES_EXEC_INFO": json.dumps(info)}
        status, printed, complaint = await program.run(self.args, environ)
        if status:
            said = complaint.decode("utf-8", "replace").strip()
            raise ConfigException(f"exec: process returned {status}" + (f". {said}" if said else ""))
        return self._credentials(printed)

    def _credentials(self, printed: bytes) -> Any:  # noqa: ANN401 - the library looks at it
        try:
            answer = json.loads(printed)
        except ValueError as error:
            raise ConfigException(f"exec: failed to decode process output: {error}") from error
        for key in ("apiVersion", "kind", "status"):
            if key not in answer:
                raise ConfigException(f"exec: malformed response. missing key '{key}'")
        if answer["apiVersion"] != self.api_version:
            raise ConfigException(f"exec: plugin api version {answer['apiVersion']} does not match {self.api_version}")
        return _complete(answer["status"])


def _complete(status: Any) -> Any:  # noqa: ANN401 - as a plugin prints it
    """Return what a plugin hands out; the library would go on without credentials where there are none in it, or empty ones."""
    status = {name: value for name, value in status.items() if value}
    if "token" not in status and "clientCertificateData" not in status:
        raise ConfigException("exec: missing token or clientCertificateData field in plugin output")
    if "token" not in status and "clientKeyData" not in status:
        raise ConfigException("exec: missing clientKeyData field in plugin output")
    return status


_LISTS = ("clusters", "contexts", "users")
"""What the kubeconfigs of a list are joined by."""


def _read_file(path: str | Path) -> bytes:
    """Return the content of a file of the credentials. May block for good, so call it in a thread. Raises `OSError`."""
    return files.read(path, MAX_ANSWER, patience=files.patience_for(path))


class _Merger(kube_config.KubeConfigMerger):
    """The kubeconfigs of a list as one; an empty file is passed over, as kubectl does."""

    def load_config(self, path: str) -> None:
        if (config := yaml.safe_load(_read_file(path).decode())) is None:
            return
        self.config_files[path] = config
        if self.config_merged is None:
            self.config_merged = kube_config.ConfigNode(path, {**config, **{item: [] for item in _LISTS}}, path)
        for item in _LISTS:
            self._merge(item, config.get(item) or [], path)
        if "current-context" in config:
            self.config_merged.value["current-context"] = config["current-context"]

    @property
    def first_context(self) -> str | None:
        """The first current context that is named, as with kubectl (clientcmd, `Load`); the library takes the last, also an empty one."""
        return next((name for file in self.config_files.values() if (name := file.get("current-context"))), None)


class _Loader(kube_config.KubeConfigLoader):
    """A kubeconfig as client-go reads it (clientcmd); what cannot be done, or not safely, is refused by its name and never passed over."""

    _token: bytes | OSError | None = None
    """The content of the tokenFile, or why it could not be read."""

    def read_files(self) -> None:
        """Put their content in place of the files that it names. May block for good, so call it in a thread. Raises `OSError`."""
        if self._user and (file := self._user.value.get("tokenFile")):
            try:
                self._token = _read_file(self._path(self._user, str(file)))
            except OSError as error:
                self._token = error
        if (plugin := self._plugin()) is not None:
            shutil.which(plugin["command"])  # to see that it answers: it is started in the thread of the loop
        if self._cluster and str(self._cluster.value.get("server")).startswith("https"):
            self._embed(self._cluster, "certificate-authority")
            self._embed(self._user, "client-certificate", "client-key")

    def _embed(self, node: kube_config.ConfigNode | None, *names: str) -> None:
        """Put base64 of their content in place of files; what is there in base64 already comes before a file, as in client-go."""
        values = node.value if node else {}
        for name in names:
            if isinstance(file := values.get(name), str) and f"{name}-data" not in values:
                del values[name]
                values |= (
                    {f"{name}-data": base64.b64encode(_read_file(self._path(node, file))).decode()} if file else {}
                )

    def _plugin(self) -> dict[str, Any] | None:
        """Return the `exec` of the user with a command for PATH, or one whose path leads from the kubeconfig; None where it has none."""
        plugin = self._user.value.get("exec") if self._user else None
        if not isinstance(plugin, dict) or not isinstance(command := plugin.get("command"), str):
            return None
        if "/" in command:
            plugin["command"] = os.path.join(self._get_base_path(self._user and self._user.path), command)  # noqa: PTH118 - it keeps the `.` of `./x`
        return plugin

    def _path(self, node: kube_config.ConfigNode | None, file: str) -> Path:
        """Return the path of a file, which leads from the kubeconfig that names it."""
        return Path(self._get_base_path(node and node.path), file)

    async def _load_authentication(self) -> None:
        if self._user is None:
            self._user = self._nobody()
        assumed = sorted(key for key in ("as", "as-uid", "as-groups", "as-user-extra") if self._user.safe_get(key))
        if assumed:
            raise ConfigException(
                f"its user acts as another ({', '.join(assumed)}), which devwatch cannot: name one with rights of its own"
            )
        if "auth-provider" in self._user:
            if self._load_user_token():
                return
            if self.provider != kube_config.PROVIDER_TYPE_OIDC:
                raise ConfigException(
                    f"devwatch knows no auth-provider {self.provider}: use the plugin that replaced it"
                )
        await super()._load_authentication()

    def _nobody(self) -> kube_config.ConfigNode:
        """Return a user without credentials, whom the API server may take for somebody all the same."""
        context = self._current_context and self._current_context["context"]
        if isinstance(context, kube_config.ConfigNode) and (name := context.safe_get("user")):
            raise ConfigException(f"there is no user {name} in it")
        return kube_config.ConfigNode("user", {})

    def _load_user_token(self) -> bool:
        """Take the token of the file, which somebody keeps up to date, else the other (client-go, `BearerTokenFile`)."""
        user: dict[str, Any] = self._user.value if self._user else {}
        token, file = user.get("token"), user.get("tokenFile")
        if file:
            token = self._read_token(str(file), otherwise=token)
        if token:
            self.token = f"Bearer {token}"
        return bool(token)

    def _read_token(self, file: str, *, otherwise: str | None) -> str:
        if isinstance(self._token, OSError):
            if not otherwise:
                raise self._token.with_traceback(None)
            return otherwise
        content = (self._token or b"").decode().strip()
        if not (content or otherwise):
            raise ConfigException(f"its tokenFile {file} is empty")
        return content or str(otherwise)

    async def _load_oid_token(self) -> str:
        """Take the ID token of an OpenID Connect provider while it is valid. Raises `ConfigException` where there is none.

        The library's own function reads the time by functions that Python deprecates, and fetches the next token: it would show client
        secret and refresh token to a server whose certificate nobody verifies, and forget what it was given.
        """
        user: dict[str, Any] = self._user.value if self._user else {}
        token = (user["auth-provider"].get("config") or {}).get("id-token")
        if not token or _expiry(str(token)) < time.time() + _EXPIRY_DELTA:
            raise ConfigException("oidc: there is no valid id-token, and devwatch fetches none: use an exec plugin")
        self.token = f"Bearer {token}"
        return self.token


def _expiry(token: str) -> float:
    """Return when an ID token expires, in Unix time (RFC 7519, `exp`), infinity where it does not say. Raises `ConfigException`."""
    try:
        _, payload, _ = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims.get("exp", math.inf))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigException("oidc: its id-token is not a JSON Web Token (header.payload.signature)") from error


@dataclass(slots=True, kw_only=True)
class _Pod:
    """What a kubelet mounts into a pod (client-go, `InClusterConfig`)."""

    environ: Mapping[str, str]
    folder: Path
    token: str = ""
    authority: bytes = b""
    refresh: float = TOKEN_REFRESH
    """Seconds after which the token is read again."""
    _renewed_at: float = 0.0
    _reader: files.Reader[str] = field(default_factory=files.Reader)

    def read_files(self) -> None:
        """Read the files. May block for good, so call it in a thread. Raises `OSError` and `ConfigException`."""
        self.token, self.authority = self._read_token(), _read_file(self.folder / "ca.crt")
        if not self.authority:
            raise ConfigException(f"{self.folder / 'ca.crt'} is empty")

    def _read_token(self) -> str:
        if not (token := _read_file(self.folder / "token").decode().strip()):
            raise ConfigException(f"{self.folder / 'token'} is empty")
        return token

    async def load_and_set(self, configuration: Configuration) -> None:
        """Put them into a configuration of the library."""
        host, port = self.environ.get(_SERVICE_HOST), self.environ.get(_SERVICE_PORT)
        if not port:
            raise ConfigException(f"{_SERVICE_PORT} is not set")
        configuration.host = f"https://[{host}]:{port}" if ":" in str(host) else f"https://{host}:{port}"
        configuration.api_key["BearerToken"] = f"Bearer {self.token}"
        configuration.ssl_ca_cert = _copy(self.authority)
        configuration.refresh_api_key_hook, self._renewed_at = self._renew, time.monotonic()

    async def _renew(self, configuration: Configuration) -> None:
        """Read the token again after a minute, since the kubelet replaces it. Where that fails the held one goes on."""
        if time.monotonic() < self._renewed_at + self.refresh:
            return
        self._renewed_at = time.monotonic()
        with contextlib.suppress(OSError, ValueError, ConfigException):
            configuration.api_key["BearerToken"] = f"Bearer {await self._reader.run(self._read_token)}"


def _copy(content: str | bytes) -> str:
    """Return the path of a copy in memory, for what takes files only; where devwatch runs, no disk need be writable."""
    descriptor = os.memfd_create("devwatch")
    path = f"/proc/self/fd/{descriptor}"
    kube_config._temp_files[path] = path  # noqa: SLF001 - what `_remove_copies` removes
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def _write_copy(self: kube_config.FileOrData, content: str | bytes) -> str:  # noqa: ARG001 - as it is there
    return _copy(content)


def _mend() -> None:
    """Put what is ours in place of what the library does wrong."""
    # The library leaves its copies open, and on the disk (kubernetes-client/python issue 1531).
    kube_config.FileOrData._create_temp_file_with_content = _write_copy  # type: ignore[method-assign]  # noqa: SLF001 - it offers no other way
    kube_config.ExecProvider = _Plugin  # type: ignore[attr-defined]  # as above
    # It logs whole users of a kubeconfig, environment of their plugin included. What is wrong is raised as well.
    logger = logging.getLogger("kubernetes_asyncio")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


_mend()


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Where to find the API server and the right to talk to it: the flag, `KUBECONFIG`, in-cluster, the default file, in this order."""

    kubeconfig: str | None = None
    environ: Mapping[str, str]
    service_account: Path = SERVICE_ACCOUNT
    token_refresh: float = TOKEN_REFRESH
    """Seconds after which the token of the service account is read again."""
    _reader: files.Reader[_Loader | _Pod] = field(default_factory=files.Reader, repr=False, compare=False)

    @property
    def file(self) -> str | None:
        """The kubeconfig to read, None for the in-cluster credentials."""
        given = self.kubeconfig or self.environ.get("KUBECONFIG")
        default = str(Path(self.environ.get("HOME") or "/", DEFAULT_KUBECONFIG))
        return given or (None if self.environ.get(_SERVICE_HOST) else default)

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
            proxy = _proxy(configuration, self.environ)
            return _direct(ApiClient(configuration), proxy)
        except CredentialsError:
            raise
        except Exception as error:  # the loaders and ssl raise whatever the content makes them raise
            raise CredentialsError(f"cannot use {self.name}: {_reason(error)}") from error
        finally:
            _remove_copies()

    async def _fill(self, configuration: Configuration) -> None:
        # A copy: another request may have waited for the same reading, and loads itself.
        loader = copy.copy(await self._reader.run(self._load))
        await loader.load_and_set(configuration)
        if not configuration.host:
            raise CredentialsError(f"cannot use {self.name}: the cluster of its current context has no server")
        # Editors and `kubectl create token` end a file with a line end, which no header may hold; client-go cuts it too.
        configuration.api_key = {name: key.strip() for name, key in configuration.api_key.items()}

    def _load(self) -> _Loader | _Pod:
        """Read every file that they consist of. May block for good, so it is called in a thread."""
        loader: _Loader | _Pod
        if self.file is None:
            loader = _Pod(environ=self.environ, folder=self.service_account, refresh=self.token_refresh)
        elif _any_exists(self.file.split(os.pathsep)):
            merged = _Merger(self.file)
            loader = _Loader(merged.config, active_context=merged.first_context, config_base_path=None)
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


def _proxy(configuration: Configuration, environ: Mapping[str, str]) -> str | None:
    """Return the proxy of the kubeconfig, else that of the environment. Raises `CredentialsError` for one that no HTTP client speaks to."""
    proxy = configuration.proxy or proxy_of(str(configuration.host), environ)
    if proxy and urlsplit(proxy).scheme not in {"http", "https"}:
        place, source = proxy.rpartition("@")[2], "proxy-url" if configuration.proxy else "HTTPS_PROXY or HTTP_PROXY"
        raise CredentialsError(f"cannot use the proxy {place} of {source}: it has to begin with http:// or https://")
    return proxy


def _direct(client: ApiClient, proxy: str | None) -> ApiClient:
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


def _remove_copies() -> None:
    """Remove the copies of keys and certificates: a client has read them for good."""
    copies = kube_config._temp_files  # noqa: SLF001 - where `_copy` puts them
    while copies:
        os.close(int(copies.popitem()[0].rpartition("/")[2]))


def _any_exists(paths: list[str]) -> bool:
    # pathlib raises where nobody has such a home; to the loader the file is then not there.
    return any(path and Path(os.path.expanduser(path)).exists() for path in paths)  # noqa: PTH111 - as above


def _reason(error: BaseException, hide: Callable[[str], str] = lambda text: text) -> str:
    """Return what an exception of a library says, in one line, without secrets, and the same whenever it is the same."""
    if (mark := getattr(error, "problem_mark", None)) is not None:  # the words of PyYAML quote the content
        return f"it is no YAML (line {mark.line + 1}, column {mark.column + 1})"
    if isinstance(error, _UNSHAPELY):
        return f"it is not complete, or of another form ({type(error).__name__})"
    if isinstance(error, TimeoutError) and error.strerror:  # of a file, in our own words
        return ": ".join(filter(None, (error.filename, error.strerror)))
    # aiohttp adds the address of an object in memory to what the system says.
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    text = _SECRET.sub("", hide(" ".join(str(cause).split())))[:MAX_MESSAGE]
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A request as it is sent, and sent again."""

    method: str
    path: str
    query: Query = ()
    body: object = None
    content_type: str = "application/json"
    sent_to: list[str] = field(default_factory=list)
    """The servers that it was sent to: other requests may have dropped the connection since."""


class Connection:
    """A connection to the API server that reads its credentials anew whenever they are of no use any more."""

    def __init__(self, credentials: Credentials, *, version: str, timeout: float = REQUEST_TIMEOUT) -> None:
        """Connect to nothing yet."""
        self._credentials = credentials
        self._agent = f"devwatch/{version}"
        self._timeout = timeout
        self._client: ApiClient | None = None
        self._in_use: Counter[ApiClient] = Counter()
        self.date = ""
        """The API server's time in its last answer (RFC 3339, seconds), empty before one."""

    @property
    def origin(self) -> str:
        """Where the server is, without credentials; empty before the first request."""
        return _origin(self._client) if self._client else ""

    async def request(
        self, method: str, path: str, *, query: Query = (), body: object = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """Send a request and return the object of the answer.

        Raises an `ApiError`: of its kinds, the caller has to repeat, to ask for a right, to wait for the object, or to send
        another content.
        """
        call = _Call(method=method, path=path, query=query, body=body, content_type=content_type)
        try:
            async with asyncio.timeout(self._timeout):
                return await self._authorized(call)
        except TimeoutError as error:
            await self.close()
            raise self._late(call) from error

    async def _authorized(self, call: _Call) -> dict[str, Any]:
        """Send it, and once more with credentials read anew when the server knows the held ones no longer."""
        fresh = self._client is None
        try:
            return await self._send(call)
        except Forbidden:
            await self.close()  # the file may name another user the next time
            raise
        except CredentialsError:
            await self.close()
            if fresh:
                raise
        return await self._send(call)

    def _late(self, call: _Call) -> Retry:
        if not call.sent_to:
            return CredentialsError(f"cannot use {self._credentials.name}: it took more than {self._timeout:g} s")
        return Retry(f"the API server {call.sent_to[-1]} did not answer within {self._timeout:g} s")

    async def _send(self, call: _Call) -> dict[str, Any]:
        client = await self._connected()
        origin = _origin(client)
        call.sent_to.append(origin)
        async with self._answer(client, call, self._timeout) as response:
            content = _checked(client, response, await _read(response, origin))
            self.date = _date(response.headers.get("Date", ""))
            return content

    async def patch_node(self, name: str, changes: Changes, *, dry_run: bool = False) -> NodeState:
        """Send a strategic-merge patch of a Node's status; without changes it is a read that needs no other right.

        With `dry_run` the server checks everything and stores nothing (`dryRun=All`). Raises as `request` does.
        """
        path = f"/api/v1/nodes/{quote(name, safe='')}/status"
        query = (("fieldManager", FIELD_MANAGER), *((("dryRun", "All"),) if dry_run else ()))
        kind = "application/strategic-merge-patch+json"
        try:
            content = await self.request("PATCH", path, query=query, body=patch_body(changes), content_type=kind)
        except Missing as error:
            raise NodeMissing(str(error)) from error
        except Refused as error:
            raise Refused(str(error), hint=list_hint(str(error), changes)) from error
        return node_state(content, origin=self.origin)

    async def stream(self, path: str, *, query: Query, idle: float) -> AsyncIterator[dict[str, Any]]:
        """Yield the objects of a watch until the server ends it, or sends nothing for `idle` seconds. Raises as `request` does."""
        call = _Call(method="GET", path=path, query=query)
        client = await self._connected_in_time(call)
        async with self._answer(client, call, (self._timeout, idle)) as response:
            if response.status != HTTPStatus.OK:
                _checked(client, response, await _read(response, _origin(client)))
            while line := await response.content.readline():
                yield _event(client, line)

    @asynccontextmanager
    async def _answer(
        self,
        client: ApiClient,
        call: _Call,
        timeout: float | tuple[float, float],  # noqa: ASYNC109 - aiohttp's, not a scope's
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a call and give its answer, which is dropped in the end: what nobody reads must not keep its connection."""
        self._in_use[client] += 1
        try:
            response = await client.call_api(
                call.path,
                call.method,
                query_params=list(call.query),
                header_params={"Accept": "application/json", "Content-Type": call.content_type},
                body=call.body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=timeout,  # type: ignore[arg-type]  # a pair of numbers is documented, one is annotated
            )
            async with response:
                yield response
        except (ApiError, asyncio.CancelledError, GeneratorExit):
            raise
        except TimeoutError as error:
            if isinstance(timeout, tuple):
                raise Retry(f"the watch of {_origin(client)} went silent") from error
            raise
        except (
            Exception
        ) as error:  # aiohttp, ssl and the token files raise many kinds; all mean that there is no answer
            self._client = None if self._client is client else self._client
            reason = _reason(error, hide=lambda text: _without_token(client, text))
            raise Retry(f"no answer from the API server {_origin(client)}: {reason}") from error
        finally:
            self._in_use[client] -= 1
            await self._drop_unused(client)

    async def _drop_unused(self, client: ApiClient) -> None:
        """Close a client that is no longer ours when its last request has ended: a refused one must not end the others."""
        if client is not self._client and not self._in_use[client]:
            del self._in_use[client]
            await client.close()

    async def _connected(self) -> ApiClient:
        if self._client is not None:
            return self._client
        client = await self._credentials.connect()
        client.user_agent = self._agent
        if (held := self._adopt(client)) is not client:
            await client.close()
        return held

    async def _connected_in_time(self, call: _Call) -> ApiClient:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._connected()
        except TimeoutError as error:
            raise self._late(call) from error

    def _adopt(self, client: ApiClient) -> ApiClient:
        """Hold a new client and return it, or the one of another request that was faster."""
        self._client = self._client or client
        return self._client

    async def close(self) -> None:
        """Drop the connection and the credentials; the next request reads them again."""
        client, self._client = self._client, None
        if client is not None:
            await self._drop_unused(client)


class KubeNode(Connection):
    """One Node of the API server."""

    def __init__(
        self,
        name: str,
        credentials: Credentials,
        *,
        version: str,
        dry_run: bool = False,
        timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        """Connect to nothing yet. With `dry_run` the server checks everything and stores nothing (`dryRun=All`)."""
        super().__init__(credentials, version=version, timeout=timeout)
        self._name = name
        self._dry_run = dry_run

    async def patch(self, changes: Changes) -> NodeState:
        """Send a patch of the Node's status, or read it without changes. Raises as `request` does."""
        return await self.patch_node(self._name, changes, dry_run=self._dry_run)

    async def watch(self) -> AsyncIterator[NodeState | None]:
        """Yield the Node, and again whenever somebody has written to it, until the server ends the watch after `WATCH_TIMEOUT`.

        Yields None where there is no Node, or no longer. Raises as `request` does; `Gone` where the server has forgotten the version to
        begin at.
        """
        selector = ("fieldSelector", f"metadata.name={self._name}")
        listing = await self.request("GET", "/api/v1/nodes", query=(selector,))
        items, version = _listed(listing, self.origin)
        for item in items:
            yield node_state({"kind": "Node", **item}, origin=self.origin)
        if not items:
            yield None
        options = (("watch", "1"), ("timeoutSeconds", str(WATCH_TIMEOUT)), ("resourceVersion", version))
        async for event in self.stream("/api/v1/nodes", query=(selector, *options), idle=WATCH_TIMEOUT + self._timeout):
            item = _watched(event)
            if event["type"] in {"ADDED", "MODIFIED"}:
                yield node_state(item, origin=self.origin)
            elif event["type"] == "DELETED":
                yield None


def _listed(listing: Mapping[str, Any], origin: str) -> tuple[list[dict[str, Any]], str]:
    """Return the objects of a list and the version that it shows. Raises `Retry` for anything else than a list."""
    items, metadata = listing.get("items") or [], listing.get("metadata")
    if (
        not isinstance(items, list)
        or not isinstance(metadata, dict)
        or not all(isinstance(item, dict) for item in items)
    ):
        raise Retry(f"the answer of {origin} is no list: something else than the API server may have answered")
    return items, str(metadata.get("resourceVersion") or "0")


def _watched(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object of a watch event. Raises `Gone` for an expired version, `Retry` for anything else that is none."""
    kind, item = event.get("type"), event.get("object")
    if not isinstance(kind, str) or not isinstance(item, dict):
        raise Retry("the watch answered with something else than an event")
    if kind == "ERROR":
        message = str(item.get("message"))[:MAX_MESSAGE]
        raise Gone(message) if item.get("code") == HTTPStatus.GONE else Retry(message)
    return item


def _origin(client: ApiClient) -> str:
    return _SECRET.sub("", str(client.configuration.host))


def _without_token(client: ApiClient, text: str) -> str:
    """Return what a server said without the token that it was shown: some proxies answer with all that they were sent."""
    for key in client.configuration.api_key.values():
        token = key.partition(" ")[2]  # after Bearer or Basic
        text = text.replace(token, "[redacted]") if token else text
    return text


async def _read(response: aiohttp.ClientResponse, origin: str) -> bytes:
    """Read an answer to its end, or fail: a half one says nothing."""
    parts, size = [], 0
    async for part in response.content.iter_chunked(65536):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER:
            raise Retry(f"the answer of {origin} is larger than {MAX_ANSWER} bytes")
    return b"".join(parts)


def _event(client: ApiClient, line: bytes) -> dict[str, Any]:
    """Return the object of a line of a watch; what an error says goes on to the log, or to a terminal."""
    event = _json(line)
    item = event.get("object")
    if event.get("type") != "ERROR" or not isinstance(item, dict):
        return event
    return {**event, "object": {**item, "message": _without_token(client, str(item.get("message")))}}


def _checked(client: ApiClient, response: aiohttp.ClientResponse, text: bytes) -> dict[str, Any]:
    """Return the object of an answer, or raise what the caller has to do."""
    status, content = response.status, _json(text)
    if status in {HTTPStatus.OK, HTTPStatus.CREATED}:
        return content
    if status in _REDIRECTS and (location := response.headers.get("Location")):
        raise Retry(_redirected(_origin(client), status, location))
    message = f"{_message(client, content, text)} ({status} from {_origin(client)})"
    if status == HTTPStatus.UNAUTHORIZED:
        raise CredentialsError(f"the API server does not accept the credentials: {message}")
    if status == HTTPStatus.FORBIDDEN:
        raise _forbidden(message)
    if status == HTTPStatus.NOT_FOUND and content.get("reason") == "NotFound":  # and not by a proxy
        raise Missing(message)
    if status in _REFUSALS:
        raise Refused(message)
    kind = _RETRIES.get(status, Retry)
    raise kind(message, after=_retry_after(response.headers.get("Retry-After", "")))


def _redirected(origin: str, status: int, location: str) -> str:
    """Return where a redirect leads, without what may be secret in it, and what to do."""
    try:
        parts, own = urlsplit(urljoin(origin, location)), urlsplit(origin)
        target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"[:MAX_MESSAGE]
        where = "another path of its own" if parts[:2] == own[:2] else target
    except ValueError:
        where = "what is not a URL"
    return (
        f"{origin} redirects to {where} ({status}), and devwatch follows no redirect: let the server of the kubeconfig be the "
        "API server itself, not a proxy or a login page"
    )


def _json(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _message(client: ApiClient, content: Mapping[str, object], text: bytes) -> str:
    """Return what a refusal says; it goes on to the log, or to a terminal."""
    message = content.get("message")
    told = f"{message}{_causes(content)}" if isinstance(message, str) else text.decode("utf-8", "replace")
    return " ".join(_without_token(client, told).split())[:MAX_MESSAGE] or "no message"


def _causes(content: Mapping[str, object]) -> str:
    """Return which budgets refuse an eviction, which the message itself does not say (registry/core/pod/storage/eviction.go)."""
    details = content.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    found = [cause for cause in causes if isinstance(cause, dict)] if isinstance(causes, list) else []
    return "".join(f" {cause.get('message')}" for cause in found if cause.get("reason") == "DisruptionBudget")


def _date(value: str) -> str:
    """Return the time of a Date header (RFC 9110, 6.6.1) as the API writes times; empty for anything else."""
    try:
        return parsedate_to_datetime(value).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        return ""


def _retry_after(value: str) -> float | None:
    return min(float(value), LONGEST_DELAY) if value.isascii() and value.isdigit() else None


def _forbidden(message: str) -> ApiError:
    """Tell a missing right, which no other content helps, from a policy that dislikes this content."""
    if (refused := _RBAC.search(message)) is not None:
        if refused["user"] == _ANONYMOUS:  # whom nobody should grant anything
            return Forbidden(
                message, hint="the credentials name nobody: the kubeconfig needs a token or a client certificate"
            )
        return Forbidden(message, hint=_grant(refused["user"], refused["verb"], refused["resource"]))
    if "is not allowed to modify node" in message:
        return Forbidden(message, hint="a kubelet's credential may change its own Node only: check --node-name")
    return Refused(message)


def list_hint(message: str, changes: Changes) -> str:
    """Return which list of a policy to change, empty where the refusal of these changes is not about a list."""
    refused = _UNLISTED.search(message)
    if refused is None:
        return ""
    place = f"spec.variables[0] of ValidatingAdmissionPolicy {refused['policy']} (admissionPolicy.allowed in the chart's values)"
    if changes.get(refused["name"], "") is None:
        return f"a removal needs the name as well: keep {refused['name']} in {place} until it has been removed from the Node"
    return f"add {refused['name']} to {place}"


def _grant(user: str, verb: str, resource: str) -> str:
    """Return the commands that grant a right to the user of an RBAC message."""
    parts = user.split(":")
    account = parts[:2] == ["system", "serviceaccount"] and len(parts) == 4  # noqa: PLR2004 - system:serviceaccount:NAMESPACE:NAME
    subject = f"--serviceaccount={':'.join(parts[2:])}" if account else f"--user={user}"
    role = f"devwatch-{verb}-{resource.replace('/', '-')}"
    # Users share the role, so it may exist; each has a binding of its own, whose name holds no / and no % (RBAC, ValidatePathSegmentName).
    binding = f"{role}:{re.sub('[/%]', '-', user)}"
    return (
        f"kubectl create clusterrole {shlex.quote(role)} --verb={shlex.quote(verb)} --resource={shlex.quote(resource)}; "
        f"kubectl create clusterrolebinding {shlex.quote(binding)} --clusterrole={shlex.quote(role)} {shlex.quote(subject)}"
    )


def node_state(content: Mapping[str, Any], *, origin: str) -> NodeState:
    """Read a Node object. Raises `Retry` for anything else: a proxy's page is no Node without resources."""
    if content.get("kind") != "Node":
        raise Retry(f"the answer of {origin} is no Node: something else than the API server may have answered")
    try:
        metadata, status = content["metadata"], content.get("status") or {}
        version = str(metadata.get("resourceVersion") or "0")
        annotation = (metadata.get("annotations") or {}).get(ANNOTATION)
        return NodeState(
            uid=str(metadata["uid"]),
            version=int(version) if version.isdecimal() else 0,
            capacity=_strings(status.get("capacity")),
            allocatable=_strings(status.get("allocatable")),
            annotation=annotation if isinstance(annotation, str) else None,
            writers=_writers(metadata.get("managedFields") or ()),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Retry(f"the answer of {origin} is no Node: {_reason(error)}") from error


def _strings(content: object) -> dict[str, str]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise TypeError(content)
    return {str(name): str(value) for name, value in content.items()}


def _writers(managed: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Writer, ...]]:
    """Return who has written each extended resource and the annotation last (metav1.ManagedFieldsEntry), as far as that is recorded."""
    recorded = any(
        "subresource" in entry for entry in managed
    )  # from 1.22 on; a kubelet writes the status all the time
    writers: dict[str, tuple[Writer, ...]] = {}
    for entry in managed:
        for name, maps in _written(entry.get("fieldsV1") or {}).items():
            writer = Writer(
                manager=str(entry.get("manager")),
                time=str(entry.get("time") or ""),
                operation=str(entry.get("operation")),
                subresource=str(entry.get("subresource") or "") if recorded else "status",
                maps=frozenset(maps),
            )
            writers[name] = (*writers.get(name, ()), writer)
    return writers


def _written(fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return in which maps an entry has which extended resources, and under `WHOLE` whether it has the annotation."""
    status, annotations = fields.get("f:status") or {}, (fields.get("f:metadata") or {}).get("f:annotations") or {}
    written: dict[str, list[str]] = {WHOLE: []} if f"f:{ANNOTATION}" in annotations else {}
    for part in MAPS:
        for key in status.get(f"f:{part}") or ():
            if "/" in key:
                written.setdefault(key.removeprefix("f:"), []).append(part)
    return written
