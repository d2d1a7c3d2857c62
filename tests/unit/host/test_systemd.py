"""What systemd hears, on real datagram sockets."""

from __future__ import annotations

import os
import socket
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from devwatch.host.systemd import Notifier, watchdog_interval

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Systemd:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        """Listen at `address`, an abstract one where it begins with `@`."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(5)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.env = {"NOTIFY_SOCKET": address}

    def heard(self) -> str:
        """Return the next message."""
        return self.socket.recv(65536).decode()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    """Listen on either kind of address."""
    receiver = Systemd(str(tmp_path / "notify") if request.param == "path" else f"@devwatch-test-{uuid.uuid4()}")
    yield receiver
    receiver.socket.close()


def test_every_state_reaches_systemd_in_its_own_words(systemd: Systemd) -> None:
    """The words are those of sd_notify(3)."""
    notifier = Notifier.from_env(systemd.env)
    sent = [notifier.ready(), notifier.status("2 devices"), notifier.watchdog(), notifier.stopping()]
    assert sent == [True] * 4
    assert [systemd.heard() for _ in sent] == ["READY=1", "STATUS=2 devices", "WATCHDOG=1", "STOPPING=1"]


def test_a_reload_carries_the_monotonic_time(systemd: Systemd) -> None:
    """Type=notify-reload ignores a RELOADING=1 without the time at which it was sent, in microseconds."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert Notifier.from_env(systemd.env).reloading()
    state, stamp = systemd.heard().split("\n")
    assert state == "RELOADING=1"
    key, usec = stamp.split("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(usec) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\nREADY=1", "a READY=1"), ("\x1b[31mred\r\ud800", " [31mred  "), ("😀" * 2000, "😀" * 500)],
    ids=["a second assignment", "controls and a surrogate", "too long"],
)
def test_a_status_can_carry_no_other_assignment(systemd: Systemd, text: str, line: str) -> None:
    """A device's string in the status is text: it can say neither READY=1 nor colour a terminal."""
    assert Notifier.from_env(systemd.env).status(text)
    assert systemd.heard() == f"STATUS={line}"


@pytest.mark.parametrize("env", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_systemd_nothing_is_left_to_be_told(env: dict[str, str]) -> None:
    """The daemon runs in a container or a shell all the same, and tells nobody again and again."""
    assert Notifier.from_env(env).ready()


@pytest.mark.parametrize("address", ["/nowhere/at/all", "@devwatch-nobody-listens", "/" + "x" * 300])
def test_a_message_that_cannot_be_sent_does_not_raise(address: str) -> None:
    """Systemd gone, a wrong path, a path too long for an address: the daemon goes on."""
    assert not Notifier.from_env({"NOTIFY_SOCKET": address}).watchdog()


def test_a_receiver_that_does_not_read_does_not_block(systemd: Systemd) -> None:
    """The queue of a datagram socket is short; when it is full the message is lost, not the daemon."""
    notifier = Notifier.from_env(systemd.env)
    assert not all(notifier.watchdog() for _ in range(10_000))


def test_the_watchdog_is_fed_twice_in_its_time() -> None:
    """sd_watchdog_enabled(3) advises half of the time; the result is in seconds."""
    assert watchdog_interval({"WATCHDOG_USEC": "30000000"}) == 15
    assert watchdog_interval({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}) == 1.5


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "²"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
    ],
)
def test_no_watchdog_where_none_waits_for_this_process(env: dict[str, str]) -> None:
    """Unset, malformed, or meant for another process."""
    assert watchdog_interval(env) is None
