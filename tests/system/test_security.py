"""What an attacker sees, and what one can do, from outside: secrets stay secret, clients cannot hold the daemon up."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from base64 import b64encode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from system.apiserver import PATCH_ONLY, WATCH
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from system.apiserver import ApiServer
    from system.daemon import Daemon
    from system.udevd import Sticks

    StartDaemon = Callable[..., Daemon]

pytestmark = pytest.mark.system

TOKEN = "opaque/SECRET+of-no-form.that=anybody~knows"  # noqa: S105 - of no server
CONFIG = """
resources:
  - name: example.com/stick
    match: [{vendor: "0658", product: "0200"}]
    removalGrace: 0s
sweep: 1s
resync: 1s
"""


@dataclass(slots=True)
class Echo:
    """A server that answers with whatever it was sent, in every place where an answer has room for it."""

    status: int
    heard: list[str] = field(default_factory=list)
    url: str = ""

    def text(self, headers: str) -> tuple[bytes, dict[str, str]]:
        """Return body and headers of the answer."""
        token = headers.partition("Bearer ")[2].partition("\n")[0].strip()
        self.heard.append(token)
        said = f"who are you? {token} \x1b[31m{b64encode(token.encode()).decode()}? {headers}"
        return json.dumps({"kind": "Status", "message": said, "reason": token}).encode(), {"X-Echo": token}


@contextlib.contextmanager
def echo(status: int) -> Iterator[Echo]:
    """Run such a server."""
    made = Echo(status)

    class Handler(BaseHTTPRequestHandler):
        def _echo(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body, headers = made.text(str(self.headers))
            self.send_response(made.status, headers["X-Echo"] if made.status == 500 else None)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is there
            """Write nothing."""

        do_GET = do_PATCH = do_POST = _echo  # noqa: N815 - the names that http.server calls

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def kubeconfig(folder: Path, server: str) -> Path:
    """Write a kubeconfig that names a file with the token."""
    token, path = folder / "token", folder / "kubeconfig"
    token.write_text(TOKEN)
    content: dict[str, Any] = {
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"tokenFile": str(token)}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(content))
    return path


def config(folder: Path) -> Path:
    """Write a configuration."""
    path = folder / "config.yaml"
    path.write_text(CONFIG)
    return path


def get(port: int, path: str) -> str:
    """Return what the daemon answers to a GET, status line and headers included."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return f"{answer.status} {answer.headers} {answer.read().decode()}"


def port_of(daemon: Daemon) -> int:
    """Return where the daemon serves."""
    return int(str(daemon.wait_log("daemon.started")["listen"]).rpartition(":")[2])


def everything(daemon: Daemon, port: int) -> str:
    """Return all that the daemon tells anybody on this host."""
    told = [get(port, path) for path in ("/metrics", "/readyz", "/healthz")]
    process = Path(f"/proc/{daemon.process.pid}")
    return "\n".join((daemon.stderr, daemon.stdout, *told, (process / "cmdline").read_text("utf-8", "replace")))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500])
def test_a_server_that_echoes_the_token_does_not_get_it_into_the_log(
    status: int, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """Not at debug level, not in systemd's status line, metrics or health, and not on a terminal, whatever form the token has."""
    address = f"\0devwatch-test-{uuid.uuid4()}"
    with echo(status) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(0)
        path = kubeconfig(tmp_path, server.url)
        daemon = start_daemon(
            *("--config", str(config(tmp_path)), "--node-name", f"n-{uuid.uuid4().hex[:8]}", "--kubeconfig", str(path)),
            *("--listen=127.0.0.1:0", "--log-format=json", "--log-level=debug"),
            env={"NOTIFY_SOCKET": f"@{address[1:]}"},
        )
        port = port_of(daemon)
        daemon.wait_for(lambda: len(server.heard) >= 2, what="two requests")
        eventually(lambda: "patch_failed" in daemon.stderr or "node.missing" in daemon.stderr)
        told = everything(daemon, port) + status_lines(systemd)
        shown = subprocess.run(
            [sys.executable, "-m", "devwatch", "status", "--kubeconfig", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert TOKEN in server.heard
    assert shown.returncode == 1
    for text in (told, shown.stdout, shown.stderr):
        assert TOKEN not in text
        assert "\x1b" not in text


def status_lines(systemd: socket.socket) -> str:
    """Return all that systemd was told."""
    lines = []
    with contextlib.suppress(BlockingIOError):
        while True:
            lines.append(systemd.recv(8192).decode())
    return "\n".join(lines)


@pytest.mark.parametrize("credential", ["token", "key"])
def test_a_full_run_gives_no_secret_away(
    credential: str, apiserver: ApiServer, sticks: Sticks, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """Start, plug, reload, an outage, a lost right, unplug, end: at debug level, in log, metrics, Node and Events."""
    node = f"n-{uuid.uuid4().hex[:8]}"
    apiserver.create_node(node)
    events = [{"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}]
    account = apiserver.service_account("secretive", rules=[*PATCH_ONLY, *WATCH, *events])
    secrets, path = credentials(apiserver, credential, account, tmp_path)
    daemon = start_daemon(
        *("--config", str(config(tmp_path)), "--node-name", node, "--kubeconfig", str(path)),
        *("--listen=127.0.0.1:0", "--log-format=json", "--log-level=debug"),
    )
    port = port_of(daemon)
    daemon.wait_log("node.patched")
    sticks.plug("tty40", vendor="0658", product="0200", serial="A1")
    daemon.wait_log("device.added")
    daemon.signal(signal.SIGHUP)
    daemon.wait_log("config.reloaded")
    apiserver.stop()
    daemon.wait_log("node.patch_failed")
    sticks.unplug("tty40")
    daemon.wait_log("device.removed")
    apiserver.start()
    daemon.wait_for(lambda: apiserver.node(node)["status"]["capacity"].get("example.com/stick") == "0")
    told = everything(daemon, port)
    daemon.terminate()
    stored = json.dumps([apiserver.node(node), apiserver.request("GET", "/api/v1/events")])
    for secret in secrets:
        assert secret not in told + daemon.stderr
        assert secret not in stored


def credentials(apiserver: ApiServer, kind: str, account: Path, folder: Path) -> tuple[list[str], Path]:
    """Return what must stay secret, and the kubeconfig that holds it or names its file."""
    if kind == "token":
        token = json.loads(account.read_text())["users"][0]["user"]["token"]
        (folder / "token").write_text(token)
        return [token, token.rpartition(".")[2]], apiserver.kubeconfig("by-file", token_file=folder / "token")
    pair = apiserver.client_certificate("admin", groups=["system:masters"])
    lines = [line for line in pair.key.read_text().splitlines() if "-----" not in line]
    return lines[:1], apiserver.kubeconfig("by-key", certificate=pair)


def test_a_crowd_of_idle_slow_and_greedy_clients_holds_nothing_up(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """400 connections of five kinds, none of which ends: descriptors and memory stay bounded, and a probe is answered."""
    daemon = start_daemon(
        *("--config", str(config(tmp_path)), "--node-name", f"n-{uuid.uuid4().hex[:8]}", "--dry-run"),
        *("--listen=127.0.0.1:0", "--log-format=json"),
    )
    port = port_of(daemon)
    get(port, "/metrics")
    before = memory(daemon)
    with contextlib.ExitStack() as crowd:
        for number in range(400):
            client = crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.settimeout(0)
            with contextlib.suppress(OSError):
                client.sendall(GREEDY[number % len(GREEDY)])
            assert descriptors(daemon) < 120
        eventually(lambda: healthy(port))
        assert memory(daemon) < before + 8 * 1024
    eventually(lambda: descriptors(daemon) < 20)
    assert "Traceback" not in daemon.stderr
    assert daemon.terminate() == 0


def healthy(port: int) -> bool:
    """Return whether a probe is answered; in the moment of a burst it may be turned away."""
    with contextlib.suppress(ConnectionResetError):
        return get(port, "/healthz").startswith("200")
    return False


GREEDY = (
    b"",
    b"GET /metrics HTTP/1.1\r\nX:",
    b"GET /metrics HTTP/1.1\r\n\r\n" * 2000,
    b"A" * 1_000_000,
    b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n" + b"B" * 500_000,
)


def memory(daemon: Daemon) -> int:
    """Return the resident memory in KiB."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def descriptors(daemon: Daemon) -> int:
    """Return how many descriptors the daemon has open."""
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))  # noqa: PTH208 - a number is all that is wanted
