"""Kubeconfigs and the credentials of a pod, read as client-go reads them."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from devwatch.config import files
from devwatch.kube import program
from devwatch.kube.library import ConfigException, Configuration, ExecProvider, copy_to_memory, kube_config
from devwatch.kube.responses import MAX_ANSWER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet mounts the credentials of a pod (ServiceAccount admission plugin)."""
SERVICE_HOST, SERVICE_PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"
_EXPIRY_DELTA = 10.0
"""Seconds before its end at which an ID token counts as expired (client-go, oidc `expiryDelta`)."""
TOKEN_REFRESH = 60.0
"""Seconds after which the token of a pod is read again (client-go, `BearerTokenFile`)."""


class ExecPlugin(ExecProvider):
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
        return _require_credentials(answer["status"])


def _require_credentials(status: Any) -> Any:  # noqa: ANN401 - as a plugin prints it
    """Return what a plugin hands out; the library would go on without credentials where there are none in it, or empty ones."""
    status = {name: value for name, value in status.items() if value}
    if "token" not in status and "clientCertificateData" not in status:
        raise ConfigException("exec: missing token or clientCertificateData field in plugin output")
    if "token" not in status and "clientKeyData" not in status:
        raise ConfigException("exec: missing clientKeyData field in plugin output")
    return status


kube_config.ExecProvider = ExecPlugin  # type: ignore[attr-defined]  # the library offers no other way


_LISTS = ("clusters", "contexts", "users")
"""What the kubeconfigs of a list are joined by."""


def _read_file(path: str | Path) -> bytes:
    """Return the content of a file of the credentials. May block for good, so call it in a thread. Raises `OSError`."""
    return files.read(path, MAX_ANSWER, patience=files.patience_for(path))


class KubeconfigMerger(kube_config.KubeConfigMerger):
    """The kubeconfigs of a list as one; an empty file is passed over, as kubectl does."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Read them all. Raises `OSError`, and what the content makes the library raise."""
        # The library takes them as one text, in which a colon always separates.
        self.config_files: dict[str, Any] = {}
        self.config_merged: kube_config.ConfigNode | None = None
        for path in paths:
            self.load_config(path)

    def load_config(self, path: str) -> None:
        """Add a file. Raises `OSError`, and what the content makes the library raise."""
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


class KubeconfigLoader(kube_config.KubeConfigLoader):
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
class PodCredentials:
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
        host, port = self.environ.get(SERVICE_HOST), self.environ.get(SERVICE_PORT)
        if not port:
            raise ConfigException(f"{SERVICE_PORT} is not set")
        configuration.host = f"https://[{host}]:{port}" if ":" in str(host) else f"https://{host}:{port}"
        configuration.api_key["BearerToken"] = f"Bearer {self.token}"
        configuration.ssl_ca_cert = copy_to_memory(self.authority)
        configuration.refresh_api_key_hook, self._renewed_at = self._renew, time.monotonic()

    async def _renew(self, configuration: Configuration) -> None:
        """Read the token again after a minute, since the kubelet replaces it. Where that fails the held one goes on."""
        if time.monotonic() < self._renewed_at + self.refresh:
            return
        self._renewed_at = time.monotonic()
        with contextlib.suppress(OSError, ValueError, ConfigException):
            configuration.api_key["BearerToken"] = f"Bearer {await self._reader.run(self._read_token)}"
