"""Foreign input of every kind, a little of each in every run; `python -m fuzz` goes on from here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from fuzz import uevent
from fuzz.__main__ import NAMES
from fuzz.targets import TARGETS

if TYPE_CHECKING:
    from fuzz.target import Target

EXAMPLES = {
    "annotation": 300,
    "answer": 60,
    "claims": 150,
    "configuration": 200,
    "kubelet": 250,
    "plugin": 200,
    "record": 60,
    "uevent": 150,
}
"""By target: as many as take two seconds."""
CRASHERS = {
    "answer": (
        (b'\2HTTP/1.1 200 OK\r\n\r\n{"items": [{"metadata": {"namespace": 5, "name": "p", "uid": "u"}, "spec": {}}]}'),
    ),
    "claims": (b'\0{"claims": [{"reference": {"namespace": "home", "name": "\\ud800", "uid": "1"}, "devices": []}]}',),
    "kubelet": (b"\x0c\x06\r\nerror: all is lost",),
    "plugin": (
        b"\1\n\x0b\n\1a\x12\x011\x1a\3ccc",
        b"\1\n\x0d\n\1a\x12\x011\x1a\5\x1b[31m",
    ),
    "record": (
        "ID_MODEL=\U0001f4a9".encode(),
        b"ID_VENDOR_ID=0x8086\0ID_MODEL_ID=0xA0E0\0ID_BUS=pci",
    ),
    "uevent": (
        b"\0ACTION=add\0ACTION=add",
        b"\0DEVPATH=\0SUBSYSTEM=change\0SEQNUMremove",
        b"\1add@/devices/x\0SEQNUM=-1\0x",
        b"\1",
    ),
}
"""Inputs that broke a promise once."""


def available(name: str) -> Target:
    """Return a target, or skip the test where it cannot run."""
    if name == "uevent" and (reason := uevent.missing()):
        pytest.skip(reason)
    return TARGETS[name]


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_in_devwatch_keeps_its_promises(name: str) -> None:
    """A configuration, an annotation, a udev record, a uevent, an answer: a value or an error of our own, harmless to read."""
    target = available(name)
    with target.open() as feed:

        @settings(
            max_examples=EXAMPLES[name],
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(target.grammar)
        def check(data: bytes) -> None:
            feed(data)

        check()


@pytest.mark.parametrize("name", TARGETS)
def test_what_broke_a_promise_once_keeps_it_now(name: str) -> None:
    """Every input that a fuzzer found, and those that fuzzers begin with."""
    target = available(name)
    with target.open() as feed:
        for data in (*target.seeds, *CRASHERS.get(name, ())):
            feed(data)


def test_every_target_can_be_named() -> None:
    """The command line offers them before it has imported them, so that their coverage can be measured from the start."""
    assert set(NAMES) == set(TARGETS)
