"""Events about devices, on the Node and on pods: best effort, bounded, and at last always the state that lasted."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from devwatch.core.errors import ApiError, Conflict, Forbidden
from devwatch.core.listing import listed_path
from devwatch.core.task import Task
from devwatch.kube.pods import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from devwatch.agent.report import Log
    from devwatch.core.device import Device
    from devwatch.core.incidents import Loss, Return
    from devwatch.core.pods import Pod

PERMISSION_INTERVAL = 60.0
"""Seconds for which no Event is tried without the permission to write them."""
INTERVAL = 60.0
"""Seconds between two Events about one device on one object, at least."""
MAX_WAITING = 32
"""Events that wait to be sent; of more the oldest are dropped."""

Subject = tuple[str, ...]
"""An object and a device."""


class EventApi(Protocol):
    """Where Events go."""

    async def record(self, event: Event) -> None:
        """Write an Event. Raises an `ApiError`."""


@dataclass(slots=True, kw_only=True)
class _Told:
    """What was last sent about a device on an object, and what became of it since."""

    at: float
    event: Event
    later: Event | None = None


@dataclass(slots=True, kw_only=True)
class EventRecorder:
    """Sends at most one Event a minute for each device and object; what holds at the end of that minute is sent then."""

    api: EventApi
    log: Log
    node: str
    clock: Callable[[], float]
    _waiting: deque[Event] = field(default_factory=lambda: deque(maxlen=MAX_WAITING))
    _told: dict[Subject, _Told] = field(default_factory=dict)
    _closed_until: float = float("-inf")
    _complained: bool = False

    def device(self, reason: str, device: Device, resource: str) -> None:
        """Record on the Node that a device of a resource came (`DeviceAdded`) or went (`DeviceRemoved`)."""
        serial = f" serial {_shown(device.serial)}" if device.serial else ""
        ids = f"{_shown(device.vendor or 'no id')}:{_shown(device.product or '')}"
        message = f"{_shown(device.devnode)} ({ids}{serial}) of {resource}"
        which = (device.vendor or "", device.product or "", device.serial) if device.serial else (device.body,)
        self._add((resource, *which), Event(reason=reason, message=message, warning=reason == "DeviceRemoved"))

    def pod(self, pod: Pod, incident: Loss | Return, outcome: str) -> None:
        """Record on a pod that its device is lost, or has returned under another number, and what becomes of the pod."""
        paths = {listed_path(path) for path in pod.host_paths}
        named = [entry for entry in incident.entries if paths & entry.paths] or incident.entries
        names = _shown(", ".join(entry.devnode for entry in named))
        lost = incident.key[0] == "loss"
        happened = "is no longer on" if lost else "was away, and is back on"
        message = f"{names} of {incident.resource} {happened} node {self.node}: {outcome}"
        reason = "DeviceLost" if lost else "DeviceReplugged"
        event = Event(reason=reason, message=message, warning=True, pod=pod)
        self._add((pod.namespace, pod.name, incident.resource, names), event)

    def _add(self, subject: Subject, event: Event) -> None:
        now = self.clock()
        self._told = {each: told for each, told in self._told.items() if told.later or now < told.at + INTERVAL}
        if now < self._closed_until:
            return
        told = self._told.get(subject)
        if told is None:
            self._told[subject] = _Told(at=now, event=event)
            self._waiting.append(event)
        else:
            told.later = None if event == told.event else event

    def action(self, now: float) -> Task | None:
        """Return the request that is due, None for none."""
        for told in self._told.values():
            if told.later is not None and now >= told.at + INTERVAL:
                self._waiting.append(told.later)
                told.at, told.event, told.later = now, told.later, None
        return Task(run=self._send) if self._waiting else None

    def due(self, now: float) -> float | None:
        """Return when there is an Event to send."""
        if self._waiting:
            return now
        return min((told.at + INTERVAL for told in self._told.values() if told.later is not None), default=None)

    async def _send(self) -> None:
        event = self._waiting.popleft()
        try:
            await self.api.record(event)
        except asyncio.CancelledError:
            self._waiting.appendleft(event)  # a patch goes first; where it was stored all the same, its name is taken
            raise
        except Conflict:
            pass
        except Forbidden as error:
            self._waiting.clear()
            self._told.clear()
            self._closed_until = self.clock() + PERMISSION_INTERVAL
            if not self._complained:
                self._complained = True
                self.log.info(
                    "event.refused",
                    error=str(error),
                    hint=error.hint,
                    lost="Events only; everything else works without them",
                )
        except ApiError as error:
            self._waiting.clear()
            self.log.debug("event.failed", error=str(error))


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)[:128]
