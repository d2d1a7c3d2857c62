"""The daemon in its container: the DaemonSet's pod, as a kubelet and containerd would run it, by runc.

What is not as on a node: no SELinux and no AppArmor; no share of the CPU, which means something only below the cgroup of all
pods, whose own share is the node's; no pause container (a pod with a network of its own has a relay in its place, which also
leads to the API server on the host's loopback).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from system.daemon import Daemon
from system.process import Process
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from system.containerfile import Image

Object = dict[str, Any]

SECCOMP = Path("/usr/share/containers/seccomp.json")
"""The default profile of podman and CRI-O (Debian: golang-github-containers-common), written in the format of docker's."""
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
TIMEOUT = 60.0

_RUNC = ("runc", "--root", "/run/devwatch-test-runc")
_MIB = 1024 * 1024
_UNITS = {"Ki": 1024, "Mi": _MIB, "Gi": 1024 * _MIB}

_CRITICAL = -997
"""What the kubelet gives a node-critical pod (pkg/kubelet/qos/policy.go); no less than our own is set, as with `restrict_oom_score_adj`."""

# capabilities(7), in the order of their numbers
_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
# containerd, pkg/oci/spec.go, `defaultUnixCaps`
_DEFAULT_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
)
# Kubernetes, pkg/securitycontext/util.go, `defaultMaskedPaths` and `defaultReadonlyPaths`
_MASKED = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
_READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
# containerd, pkg/oci/mounts.go, `defaultMounts`, without /run (`WithoutRunMount`); the cgroup is added by `WithMounts`
_MOUNTS: Sequence[tuple[str, str, str, str]] = (
    ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
    ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),  # noqa: S108  a mount point
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
    ("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
)
# containerd, pkg/oci/spec.go; runc adds the devices that every container may use (libcontainer/specconv, `AllowedDevices`)
_DENY_ALL: Object = {"allow": False, "access": "rwm"}
_NOT_DEVICES = {"pts", "shm", "fd", "mqueue", "console"}
# Go's names of the architectures, as the profile has them
_ARCHITECTURES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}


def missing() -> str | None:
    """Return what keeps this machine from running the container, in a few words, or None."""
    if shutil.which("runc") is None:
        return "needs runc"
    if not SECCOMP.exists():
        return f"needs {SECCOMP} (golang-github-containers-common)"
    if platform.machine() not in _ARCHITECTURES:
        return f"knows the system calls of no {platform.machine()}"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What the kubelet decides and the pod's template does not say."""

    node: str
    env: Mapping[str, str]
    """What it adds to the environment: the address of the API server."""
    volumes: Mapping[str, Path]
    """The folder behind every volume that is no hostPath."""
    files: Mapping[str, Path]
    """Further mounts of single files and folders, by their place in the container; those below /etc are writable there."""
    cgroup: str
    network: Path | None = None
    """The network namespace of a pod without hostNetwork."""


def oci_config(pod: Object, image: Image, sandbox: Sandbox) -> Object:
    """Return the config.json of the only container of a pod.

    As containerd's CRI plugin does from what the kubelet asks: `buildLinuxSpec` in internal/cri/server/container_create.go,
    `WithMounts` in internal/cri/opts/spec_linux_opts.go, `WithPrivileged` in pkg/oci/spec_opts.go (the last word: every
    capability, nothing masked, /sys and cgroups writable, all devices, no seccomp); and in the kubelet
    `GetContainerOOMScoreAdjust` (a node-critical pod has -997) and `determineEffectiveSecurityContext`.
    """
    (container,) = pod["containers"]
    security = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
    privileged = security.get("privileged", False)
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(image.root), "readonly": security.get("readOnlyRootFilesystem", False)},
        "process": _process(container, security, image, sandbox),
        "mounts": _mounts(pod, container, sandbox, privileged=privileged),
        "linux": {
            "cgroupsPath": sandbox.cgroup,
            "namespaces": _namespaces(pod, sandbox, privileged=privileged),
            "resources": {"devices": _devices(privileged=privileged), "memory": {"limit": memory_limit(container)}},
            "devices": list(_host_devices()) if privileged else [],
            "maskedPaths": [] if privileged else list(_MASKED),
            "readonlyPaths": [] if privileged else _READONLY,
            **_seccomp(security),
        },
    }


def _process(container: Object, security: Object, image: Image, sandbox: Sandbox) -> Object:
    user, group = _user(security, image)
    environ = {"HOSTNAME": socket.gethostname(), **image.env, **sandbox.env}
    environ |= {item["name"]: _value(item, sandbox) for item in container.get("env", [])}
    return {
        "args": [*container.get("command", image.entrypoint), *container.get("args", [])],
        "cwd": container.get("workingDir", image.workdir),
        "env": [f"{key}={value}" for key, value in environ.items()],
        "user": {"uid": user, "gid": group, "additionalGids": [group]},
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities(security)),
        "noNewPrivileges": not security.get("allowPrivilegeEscalation", True),
        "oomScoreAdj": max(_CRITICAL, int(Path("/proc/self/oom_score_adj").read_text())),
    }


def _user(security: Object, image: Image) -> tuple[int, int]:
    # A user of the pod without a group has the root group: the image's own belongs to the image's user.
    user, _, group = image.user.partition(":")
    if "runAsUser" in security:
        user, group = str(security["runAsUser"]), "0"
    return int(user or 0), int(security.get("runAsGroup", group or 0))


def _value(item: Object, sandbox: Sandbox) -> str:
    if "value" in item:
        return str(item["value"])
    known = {"spec.nodeName": sandbox.node, "status.hostIP": "127.0.0.1", "status.podIP": "127.0.0.1"}
    return known[item["valueFrom"]["fieldRef"]["fieldPath"]]


def capabilities(security: Object) -> list[str]:
    """Return the capabilities of a security context, `ALL` in its lists included."""
    if security.get("privileged", False):
        return _held()
    lists = security.get("capabilities", {})
    added, dropped = set(lists.get("add", [])), set(lists.get("drop", []))
    kept = set(_CAPABILITIES if "ALL" in added else _DEFAULT_CAPABILITIES) - (
        set(_CAPABILITIES) if "ALL" in dropped else dropped
    )
    return [f"CAP_{name}" for name in _CAPABILITIES if name in kept | added]


def _held() -> list[str]:
    """Return the capabilities that we have to give, by their bits in proc_pid_status(5); containerd asks the same way."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    mask = int(line.split()[1], 16)
    return [f"CAP_{name}" for bit, name in enumerate(_CAPABILITIES) if mask >> bit & 1]


def _mounts(pod: Object, container: Object, sandbox: Sandbox, *, privileged: bool) -> list[Object]:
    volumes = {volume["name"]: _volume(volume, sandbox) for volume in pod.get("volumes", [])}
    asked = {
        mount["mountPath"]: _bind(volumes[mount["name"]], mount["mountPath"], writable=not mount.get("readOnly", False))
        for mount in container.get("volumeMounts", [])
    }
    given = {place: _bind(path, place, writable=place != ACCOUNT) for place, path in sandbox.files.items()}
    own = [
        {"destination": place, "type": kind, "source": source, "options": _writable(options, privileged=privileged)}
        for place, kind, source, options in _MOUNTS
        if place not in asked and not ("/dev" in asked and place.startswith("/dev/"))
    ]
    # High ones first, so that none shadows another.
    return own + sorted({**given, **asked}.values(), key=lambda mount: str(mount["destination"]).count("/"))


def _writable(options: str, *, privileged: bool) -> list[str]:
    return ["rw" if option == "ro" and privileged else option for option in options.split(",")]


def _bind(source: Path, destination: str, *, writable: bool) -> Object:
    options = ["rbind", "rprivate", "rw" if writable else "ro"]
    return {"destination": destination, "type": "bind", "source": str(source), "options": options}


def _volume(volume: Object, sandbox: Sandbox) -> Path:
    if "hostPath" not in volume:
        return sandbox.volumes[volume["name"]]
    path, kind = Path(volume["hostPath"]["path"]), volume["hostPath"].get("type", "")
    if kind == "DirectoryOrCreate":
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    assert kind not in {"Directory", "DirectoryOrCreate"} or path.is_dir(), f"the kubelet would wait for {path}"
    return path


def _namespaces(pod: Object, sandbox: Sandbox, *, privileged: bool) -> list[Object]:
    kinds = ["pid", "ipc", "mount"]
    # Hidden only in the unified hierarchy, and never from the privileged.
    if Path("/sys/fs/cgroup/cgroup.controllers").exists() and not privileged:
        kinds.append("cgroup")
    plain: list[Object] = [{"type": kind} for kind in kinds]
    if pod.get("hostNetwork", False):
        return plain
    return [*plain, {"type": "uts"}, {"type": "network", "path": str(sandbox.network)}]


def memory_limit(container: Object) -> int:
    """Return the memory limit of a container in bytes."""
    text = container["resources"]["limits"]["memory"]
    return int(text[:-2]) * _UNITS[text[-2:]]


def _devices(*, privileged: bool) -> list[Object]:
    return [{**_DENY_ALL, "allow": True}] if privileged else [_DENY_ALL]


def _host_devices() -> Iterator[Object]:
    """Yield the host's devices of this moment (containerd, pkg/oci/utils_unix.go, `getDevices`)."""
    for path in sorted(Path("/dev").rglob("*")):
        if _NOT_DEVICES & set(path.parts):
            continue
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                yield _host_device(path, status)


def _host_device(path: Path, status: os.stat_result) -> Object:
    return {
        "path": str(path),
        "type": "c" if stat.S_ISCHR(status.st_mode) else "b",
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }


def _seccomp(security: Object) -> Object:
    kind = security.get("seccompProfile", {}).get("type", "Unconfined")
    if security.get("privileged", False) or kind == "Unconfined":
        return {}
    assert kind == "RuntimeDefault", kind
    return {"seccomp": seccomp_profile(json.loads(SECCOMP.read_text()), capabilities(security), platform.machine())}


def seccomp_profile(profile: Object, held: Sequence[str], machine: str) -> Object:
    """Return a profile of docker's format in OCI's: its conditions decided for these capabilities and this machine.

    The conditions are those of github.com/containers/common, pkg/seccomp/conversion.go (`specConfigFromProfile`).
    """
    arch, name = _ARCHITECTURES[machine]
    more = [entry["subArchitectures"] for entry in profile["archMap"] if entry["architecture"] == name]
    calls = [
        {key: call[key] for key in ("names", "action", "args", "errnoRet") if call.get(key) is not None}
        for call in profile["syscalls"]
        if _applies(call.get("includes") or {}, held, arch) and not _excluded(call.get("excludes") or {}, held, arch)
    ]
    default: Object = {key: profile[key] for key in ("defaultAction", "defaultErrnoRet") if key in profile}
    return {**default, "architectures": [name, *(more[0] if more else [])], "syscalls": calls}


def _applies(condition: Object, held: Sequence[str], arch: str) -> bool:
    return arch in condition.get("arches", [arch]) and set(condition.get("caps", [])) <= set(held)


def _excluded(condition: Object, held: Sequence[str], arch: str) -> bool:
    return arch in condition.get("arches", []) or bool(set(condition.get("caps", [])) & set(held))


# Running


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the API server gives a pod: its address, its certificate, and a token that may do what the ServiceAccount may."""

    url: str
    authority: Path
    token: str
    namespace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod on a node: the spec of its template, the data of its ConfigMaps, and its account."""

    spec: Object
    config_maps: Mapping[str, Mapping[str, str]]
    account: Account
    node: str
    env: Mapping[str, str] = field(default_factory=dict)
    """What a test adds to the environment of the container."""

    @property
    def container(self) -> Object:
        """The only container."""
        (found,) = self.spec["containers"]
        result: Object = found
        return result


class Container(Daemon):
    """The daemon in its container, as a context manager that removes it at the end; its log is that of the daemon."""

    def __init__(self, pod: Pod, image: Image, home: Path) -> None:
        """Start it, with all its files in a new folder in `home`."""
        self._id = f"devwatch-test-{uuid.uuid4().hex[:8]}"
        self._pod, self._undo = pod, contextlib.ExitStack()
        self.bundle = home / self._id
        self.bundle.mkdir()
        try:
            self._prepare(image)
            super().__init__(home=home, command=self._command(image.root))
        except BaseException:
            self._undo.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the container, running or not."""
        subprocess.run([*_RUNC, "delete", "--force", self._id], capture_output=True, check=False, timeout=TIMEOUT)
        super().__exit__(kind, error, trace)
        self._undo.close()

    def get(self, probe: Object) -> tuple[int, str]:
        """Return status and body of a GET as a probe of the pod makes it; status 0 while nobody answers."""
        address = probe["httpGet"]
        connection = http.client.HTTPConnection(address["host"], address["port"], timeout=10)
        if not self._pod.spec.get("hostNetwork", False):
            connection = _UnixConnection(str(self.bundle / "daemon.sock"))
        with contextlib.closing(connection):
            try:
                connection.request("GET", address["path"])
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except OSError:
                return 0, ""

    def metric(self, name: str) -> float:
        """Return the value of a metric, with its labels as they are printed; 0 where it is not there (yet)."""
        probe = {"httpGet": {**self._pod.container["livenessProbe"]["httpGet"], "path": "/metrics"}}
        lines = self.get(probe)[1].splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), 0.0)

    def memory(self) -> Object:
        """Return the accounts of the container's memory cgroup, as runc reads them: `usage`, `raw`."""
        done = subprocess.run(
            [*_RUNC, "events", "--stats", self._id], capture_output=True, text=True, check=True, timeout=TIMEOUT
        )
        found: Object = json.loads(done.stdout)["data"]["memory"]
        return found

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program beside the daemon, as `kubectl exec` does: its user, environment and limits are those of the container."""
        return subprocess.run(
            [*_RUNC, "exec", self._id, *command], capture_output=True, text=True, check=False, timeout=TIMEOUT
        )

    def write_config(self, text: str) -> None:
        """Change the ConfigMap's file as the kubelet does, in one step."""
        _write_volume(self.bundle / "volumes" / "devwatch-config", {"config.yaml": text})

    # Preparations

    def _prepare(self, image: Image) -> None:
        config = oci_config(self._pod.spec, image, self._sandbox())
        config["root"]["path"] = str(self.bundle / "root")
        config["process"]["env"] += [f"{key}={value}" for key, value in self._pod.env.items()]
        (self.bundle / "config.json").write_text(json.dumps(config))

    def _command(self, lower: Path) -> list[str]:
        """Return what mounts the image below a layer of the container's own, where mount points are made, and runs the container.

        As containerd's snapshotter has it, but in a mount namespace that ends with the container.
        """
        upper, work, root = (self.bundle / name for name in ("upper", "work", "root"))
        for folder in (upper, work, root):
            folder.mkdir()
        layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
        mount = 'mount -t overlay overlay -o "$1" "$2" && shift 2 && exec "$@"'
        shell = ["unshare", "--mount", "--", "sh", "-c", mount, "sh", layers, str(root)]
        return [*shell, *_RUNC, "run", "--bundle", str(self.bundle), self._id]

    def _sandbox(self) -> Sandbox:
        files = self._files()
        server = urlsplit(self._pod.account.url)
        return Sandbox(
            node=self._pod.node,
            env={"KUBERNETES_SERVICE_HOST": str(server.hostname), "KUBERNETES_SERVICE_PORT": str(server.port)},
            volumes=self._volumes(),
            files=files,
            cgroup=f"/{self._id}",
            network=None
            if self._pod.spec.get("hostNetwork", False)
            else self._network(f"{server.hostname}:{server.port}"),
        )

    def _volumes(self) -> dict[str, Path]:
        found = {}
        for volume in self._pod.spec.get("volumes", []):
            if "configMap" in volume:
                name = volume["configMap"]["name"]
                found[volume["name"]] = _write_volume(self.bundle / "volumes" / name, self._pod.config_maps[name])
        return found

    def _files(self) -> dict[str, Path]:
        log = self.bundle / "termination-log"
        log.touch()
        log.chmod(0o666)
        names = self.bundle / "hosts"
        names.write_text("127.0.0.1 localhost\n")
        places = {"/etc/hosts": names, self._pod.container["terminationMessagePath"]: log}
        return {**places, ACCOUNT: self._account()}

    def _account(self) -> Path:
        """Write what the admission plugin ServiceAccount has mounted: the token is the user's alone (kubelet, pkg/volume/projected)."""
        account = self._pod.account
        data = {"token": account.token, "ca.crt": account.authority.read_text(), "namespace": account.namespace}
        folder = _write_volume(self.bundle / "volumes" / "account", data)
        if user := self._pod.container.get("securityContext", {}).get("runAsUser"):
            token = (folder / "token").resolve()
            token.chmod(0o600)
            os.chown(token, user, -1)
        return folder

    def _network(self, server: str) -> Path:
        """Make a network namespace with ways to the API server and, for probes, to the daemon; return its path."""
        out, into = self.bundle / "server.sock", self.bundle / "daemon.sock"
        probe = self._pod.container["livenessProbe"]["httpGet"]
        script = [sys.executable, str(Path(__file__).with_name("relay.py"))]
        self._relay("outer", [*script, f"unix:{out}", f"tcp:{server}"])
        inner = [f"tcp:{server}", f"unix:{out}", f"unix:{into}", f"tcp:127.0.0.1:{probe['port']}"]
        process = self._relay("inner", ["unshare", "--net", "--", *script, *inner])
        eventually(lambda: out.exists() and into.exists() and process.status is None, timeout=TIMEOUT)
        return Path(f"/proc/{process.pid}/ns/net")

    def _relay(self, name: str, command: Sequence[str]) -> Process:
        process = Process(command, self.bundle / name)
        self._undo.callback(process.kill)
        return process


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def clear_leftovers() -> None:
    """Remove the containers of a test run that was killed before its finalisers; no other may run meanwhile."""
    listed = subprocess.run([*_RUNC, "list", "--quiet"], capture_output=True, text=True, check=False, timeout=TIMEOUT)
    for name in listed.stdout.split():
        subprocess.run([*_RUNC, "delete", "--force", name], check=False, timeout=TIMEOUT)


def _write_volume(folder: Path, data: Mapping[str, str]) -> Path:
    """Write files as the kubelet does: in a folder of their own, behind a link that is replaced at once (atomic_writer.go)."""
    fresh = folder / f"..{uuid.uuid4().hex}"
    fresh.mkdir(parents=True)
    for name, text in data.items():
        (fresh / name).write_text(text)
        with contextlib.suppress(FileExistsError):
            (folder / name).symlink_to(f"..data/{name}")
    link = folder / "..data_tmp"
    link.symlink_to(fresh.name)
    link.replace(folder / "..data")
    return folder
