"""Record Events about devices, on the Node and on pods: best effort and bounded in rate, but the last state is always recorded."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from devwatch.core.errors import ApiError, Conflict, Forbidden
from devwatch.core.listing import listed_path
from devwatch.core.task import Task
from devwatch.core.text import escape
from devwatch.kube.pods import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.agent.report import Log
    from devwatch.core.device import Device
    from devwatch.core.incidents import Loss, Return
    from devwatch.core.pods import Pod

PERMISSION_INTERVAL = 60.0
"""Seconds until Events are tried again after the permission to write them was missing."""
INTERVAL = 60.0
"""Seconds between two Events about the same device on the same object, at least."""
MAX_WAITING = 32
"""Events that wait to be sent, at most; the oldest are dropped."""

Subject = tuple[str, ...]
"""An object and a device: the unit of the rate limit."""


class EventApi(Protocol):
    """The API for Events."""

    async def record(self, event: Event) -> None:
        """Write an Event. Raises an `ApiError`."""


@dataclass(slots=True, kw_only=True)
class _SentEvent:
    """The last Event about a subject, and a different one that came within `INTERVAL` after it (`later`)."""

    at: float
    event: Event
    later: Event | None = None


@dataclass(slots=True, kw_only=True)
class EventRecorder:
    """Sends at most one Event a minute for each device and object; the newest state is sent at the end of that minute."""

    api: EventApi
    log: Log
    node: str
    clock: Callable[[], float]
    _unsent_events: deque[Event] = field(default_factory=lambda: deque(maxlen=MAX_WAITING))
    _sent_events: dict[Subject, _SentEvent] = field(default_factory=dict)
    _events_forbidden_until: float = float("-inf")

    def device(self, reason: str, device: Device, resource: str) -> None:
        """Record on the Node that a device of a resource arrived (`DeviceAdded`) or departed (`DeviceRemoved`)."""
        serial = f" serial {_printable(device.serial)}" if device.serial else ""
        ids = f"{_printable(device.vendor or 'no id')}:{_printable(device.product or '')}"
        message = f"{_printable(device.devnode)} ({ids}{serial}) of {resource}"
        which = (device.vendor or "", device.product or "", device.serial) if device.serial else (device.body,)
        self._enqueue((resource, *which), Event(reason=reason, message=message, warning=reason == "DeviceRemoved"))

    def pod(self, pod: Pod, incident: Loss | Return, outcome: str) -> None:
        """Record on a pod that its device is lost, or has returned under another number, with the outcome for the pod."""
        paths = {listed_path(path) for path in pod.host_paths}
        named = [entry for entry in incident.entries if paths & entry.paths] or incident.entries
        names = _printable(", ".join(entry.devnode for entry in named))
        lost = incident.key[0] == "loss"
        happened = "is no longer on" if lost else "was away, and is back on"
        message = f"{names} of {incident.resource} {happened} node {self.node}: {outcome}"
        reason = "DeviceLost" if lost else "DeviceReplugged"
        event = Event(reason=reason, message=message, warning=True, pod=pod)
        self._enqueue((pod.namespace, pod.name, incident.resource, names), event)

    def _enqueue(self, subject: Subject, event: Event) -> None:
        now = self.clock()
        self._sent_events = {
            each: sent for each, sent in self._sent_events.items() if sent.later or now < sent.at + INTERVAL
        }
        if now < self._events_forbidden_until:
            return
        sent = self._sent_events.get(subject)
        if sent is None:
            self._sent_events[subject] = _SentEvent(at=now, event=event)
            self._unsent_events.append(event)
        else:
            sent.later = None if event == sent.event else event

    def action(self, now: float) -> Task | None:
        """Return the request that is due, None for none."""
        for sent in self._sent_events.values():
            if sent.later is not None and now >= sent.at + INTERVAL:
                self._unsent_events.append(sent.later)
                sent.at, sent.event, sent.later = now, sent.later, None
        return Task(run=self._send) if self._unsent_events else None

    def due(self, now: float) -> float | None:
        """Return when the next Event is to be sent, None for never."""
        if self._unsent_events:
            return now
        return min((sent.at + INTERVAL for sent in self._sent_events.values() if sent.later is not None), default=None)

    async def _send(self) -> None:
        event = self._unsent_events.popleft()
        try:
            await self.api.record(event)
        except asyncio.CancelledError:
            # Cancelled for a patch. If it was stored all the same, sending it again is a Conflict.
            self._unsent_events.appendleft(event)
            raise
        except Conflict:
            pass
        except Forbidden as error:
            self._unsent_events.clear()
            self._sent_events.clear()
            first = self._events_forbidden_until == float("-inf")
            self._events_forbidden_until = self.clock() + PERMISSION_INTERVAL
            if first:
                self.log.info(
                    "event.refused",
                    error=str(error),
                    hint=error.hint,
                    lost="Events only; everything else works without them",
                )
        except ApiError as error:
            self._unsent_events.clear()
            self.log.debug("event.failed", error=str(error))


def _printable(text: str) -> str:
    return escape(text)[:128]
