"""Read kubeconfigs and the credentials of a pod as client-go does."""

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
"""The directory in which the kubelet mounts the credentials of a pod (ServiceAccount admission plugin)."""
SERVICE_HOST, SERVICE_PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"
_EXPIRY_DELTA = 10.0
"""Seconds before its expiry at which an ID token counts as expired (client-go, oidc `expiryDelta`)."""
TOKEN_REFRESH = 60.0
"""Seconds after which the token of a pod is read again (client-go, `BearerTokenFile`)."""


_TOLD = "told"
"""The key that `KubeconfigLoader` adds to a plugin's settings, for what its request says beyond the usual."""
_CLUSTER_KEYS = ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url")
"""What a plugin with `provideClusterInfo` is told of the cluster, under the same keys (client.authentication.k8s.io/v1, `Cluster`)."""
_CLUSTER_CONFIG = "client.authentication.k8s.io/exec"
"""The extension of the cluster that is told to such a plugin (client-go, `ConfigToExecCluster`)."""


class ExecPlugin(ExecProvider):
    """The credential plugin of a kubeconfig (`exec`). When its request is cancelled, no process of the plugin is left running."""

    def __init__(self, exec_config: kube_config.ConfigNode) -> None:
        """Take the settings of the plugin, with what it is told of the cluster. Raises `ConfigException` where one is missing."""
        super().__init__(exec_config)
        self._told: dict[str, Any] = exec_config.value.get(_TOLD) or {}

    async def run(self, previous_response: str | None = None) -> Any:  # noqa: ANN401, ARG002 - the signature of the library
        """Return the credentials that the plugin prints. Raises `ConfigException` where it prints none, `OSError` where it cannot start."""
        info = {"apiVersion": self.api_version, "kind": "ExecCredential", "spec": {"interactive": False, **self._told}}
        environ = {**self.env, "KUBERNETES_EXEC_INFO": json.dumps(info)}
        status, printed, complaint = await program.run(self.args, environ)
        if status:
            stderr = complaint.decode("utf-8", "replace").strip()
            raise ConfigException(f"exec: process returned {status}" + (f". {stderr}" if stderr else ""))
        return self._credentials(printed)

    def _credentials(self, printed: bytes) -> Any:  # noqa: ANN401 - the library checks it
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
    """Return the non-empty credentials of a plugin. The library would send requests without credentials where there are none."""
    status = {name: value for name, value in status.items() if value}
    if "token" not in status and "clientCertificateData" not in status:
        raise ConfigException("exec: missing token or clientCertificateData field in plugin output")
    if "token" not in status and "clientKeyData" not in status:
        raise ConfigException("exec: missing clientKeyData field in plugin output")
    return status


kube_config.ExecProvider = ExecPlugin  # type: ignore[attr-defined]  # the library has no setting for it


_MERGED_LISTS = ("clusters", "contexts", "users")
"""The lists of several kubeconfigs that are merged by name."""


def _read_file(path: str | Path) -> bytes:
    """Return the content of a credentials file. May block forever, so call it in a thread. Raises `OSError`."""
    return files.read(path, MAX_ANSWER, patience=files.patience_for(path))


class KubeconfigMerger(kube_config.KubeConfigMerger):
    """Merges the kubeconfigs of a list; an empty file is skipped, as by kubectl."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Read all files. Raises `OSError`, and what the content makes the library raise."""
        # The library's own constructor takes one text and splits it at colons, also inside the name of a file.
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
            self.config_merged = kube_config.ConfigNode(path, {**config, **{item: [] for item in _MERGED_LISTS}}, path)
        for item in _MERGED_LISTS:
            self._merge(item, config.get(item) or [], path)
        if "current-context" in config:
            self.config_merged.value["current-context"] = config["current-context"]

    @property
    def first_context(self) -> str | None:
        """The first current-context that is not empty, as for kubectl (clientcmd, `Load`); the library takes the last, even if empty."""
        return next((name for file in self.config_files.values() if (name := file.get("current-context"))), None)


class KubeconfigLoader(kube_config.KubeConfigLoader):
    """Loads a kubeconfig as client-go does (clientcmd). A field that is not supported, or not safely, is refused and never ignored."""

    _token: bytes | OSError | None = None
    """The content of the tokenFile, or the error of reading it."""

    def read_files(self) -> None:
        """Replace the files that the kubeconfig names by their content. May block forever, so call it in a thread. Raises `OSError`."""
        if self._user and (file := self._user.value.get("tokenFile")):
            try:
                self._token = _read_file(self._path(self._user, str(file)))
            except OSError as error:
                self._token = error
        if (plugin := self._plugin()) is not None:
            shutil.which(
                plugin["command"]
            )  # may block on a hung mount: find out here, since the loop's thread starts the plugin
        if self._cluster and str(self._cluster.value.get("server")).startswith("https"):
            self._embed(self._cluster, "certificate-authority")
            self._embed(self._user, "client-certificate", "client-key")
        if plugin is not None and plugin.get("provideClusterInfo"):
            plugin[_TOLD] = {"cluster": self._cluster_info()}

    def _cluster_info(self) -> dict[str, Any]:
        """Return what a plugin is told of the cluster."""
        cluster: dict[str, Any] = getattr(self._cluster, "value", {})
        told = {key: cluster[key] for key in _CLUSTER_KEYS if key in cluster}
        for extension in cluster.get("extensions") or ():
            if extension.get("name") == _CLUSTER_CONFIG:
                told["config"] = extension.get("extension")
        return told

    def _embed(self, node: kube_config.ConfigNode | None, *names: str) -> None:
        """Replace files by their content in base64. Data that is embedded already takes precedence over a file, as in client-go."""
        values = node.value if node else {}
        for name in names:
            if isinstance(file := values.get(name), str) and f"{name}-data" not in values:
                del values[name]
                values |= (
                    {f"{name}-data": base64.b64encode(_read_file(self._path(node, file))).decode()} if file else {}
                )

    def _plugin(self) -> dict[str, Any] | None:
        """Return the user's `exec`, None without one. A command with a slash is relative to the kubeconfig, any other is found in PATH."""
        plugin = self._user.value.get("exec") if self._user else None
        if not isinstance(plugin, dict) or not isinstance(command := plugin.get("command"), str):
            return None
        if "/" in command:
            plugin["command"] = os.path.join(self._get_base_path(self._user and self._user.path), command)  # noqa: PTH118 - pathlib drops the `.` of `./x`
        return plugin

    def _path(self, node: kube_config.ConfigNode | None, file: str) -> Path:
        """Return the path of a file, which is relative to the kubeconfig that names it."""
        return Path(self._get_base_path(node and node.path), file)

    async def _load_authentication(self) -> None:
        if self._user is None:
            self._user = self._anonymous_user()
        assumed = sorted(key for key in ("as", "as-uid", "as-groups", "as-user-extra") if self._user.safe_get(key))
        if assumed:
            raise ConfigException(
                f"its user impersonates another ({', '.join(assumed)}), which devwatch does not support: use one that has the permissions"
            )
        if "auth-provider" in self._user:
            if self._load_user_token():
                return
            if self.provider != kube_config.PROVIDER_TYPE_OIDC:
                raise ConfigException(
                    f"devwatch does not support auth-provider {self.provider}: use the plugin that replaced it"
                )
        await super()._load_authentication()

    def _anonymous_user(self) -> kube_config.ConfigNode:
        """Return a user without credentials: the API server may authenticate it by other means. Raises for a named user that is missing."""
        context = self._current_context and self._current_context["context"]
        if isinstance(context, kube_config.ConfigNode) and (name := context.safe_get("user")):
            raise ConfigException(f"there is no user {name} in it")
        return kube_config.ConfigNode("user", {})

    def _load_user_token(self) -> bool:
        """Use the token of tokenFile, which is kept up to date, else the one in the kubeconfig (client-go, `BearerTokenFile`)."""
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
        """Use the ID token of an OpenID Connect provider while it is valid. Raises `ConfigException` where there is no valid one.

        The library's own method reads the clock by deprecated functions, and refreshes an expired token unsafely: it sends client secret
        and refresh token to a server whose certificate it does not verify, and does not store the result.
        """
        user: dict[str, Any] = self._user.value if self._user else {}
        token = (user["auth-provider"].get("config") or {}).get("id-token")
        if not token or _expiry(str(token)) < time.time() + _EXPIRY_DELTA:
            raise ConfigException(
                "oidc: there is no valid id-token, and devwatch does not refresh it: use an exec plugin"
            )
        self.token = f"Bearer {token}"
        return self.token


def _expiry(token: str) -> float:
    """Return when an ID token expires, in Unix time (RFC 7519, `exp`), infinity without `exp`. Raises `ConfigException`."""
    try:
        _, payload, _ = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims.get("exp", math.inf))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigException("oidc: its id-token is not a JSON Web Token (header.payload.signature)") from error


@dataclass(slots=True, kw_only=True)
class PodCredentials:
    """The credentials that the kubelet mounts into a pod (client-go, `InClusterConfig`)."""

    environ: Mapping[str, str]
    folder: Path
    token: str = ""
    authority: bytes = b""
    refresh: float = TOKEN_REFRESH
    """Seconds after which the token is read again."""
    _renewed_at: float = 0.0
    _reader: files.Reader[str] = field(default_factory=files.Reader)

    def read_files(self) -> None:
        """Read the files. May block forever, so call it in a thread. Raises `OSError` and `ConfigException`."""
        self.token, self.authority = self._read_token(), _read_file(self.folder / "ca.crt")
        if not self.authority:
            raise ConfigException(f"{self.folder / 'ca.crt'} is empty")

    def _read_token(self) -> str:
        if not (token := _read_file(self.folder / "token").decode().strip()):
            raise ConfigException(f"{self.folder / 'token'} is empty")
        return token

    async def load_and_set(self, configuration: Configuration) -> None:
        """Write the credentials into a configuration of the library."""
        host, port = self.environ.get(SERVICE_HOST), self.environ.get(SERVICE_PORT)
        if not port:
            raise ConfigException(f"{SERVICE_PORT} is not set")
        configuration.host = f"https://[{host}]:{port}" if ":" in str(host) else f"https://{host}:{port}"
        configuration.api_key["BearerToken"] = f"Bearer {self.token}"
        configuration.ssl_ca_cert = copy_to_memory(self.authority)
        configuration.refresh_api_key_hook, self._renewed_at = self._renew, time.monotonic()

    async def _renew(self, configuration: Configuration) -> None:
        """Read the token again after `refresh` seconds, since the kubelet rotates it. Where that fails, the current one stays in use."""
        if time.monotonic() < self._renewed_at + self.refresh:
            return
        self._renewed_at = time.monotonic()
        with contextlib.suppress(OSError, ValueError, ConfigException):
            configuration.api_key["BearerToken"] = f"Bearer {await self._reader.run(self._read_token)}"
