"""A listed device that a certain scan did not find: its states from the departure until its pods are gone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from devwatch.core.incidents import Loss
from devwatch.core.listing import paths_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from devwatch.core.device import Device, Key
    from devwatch.core.incidents import Registration
    from devwatch.core.listing import Entry
    from devwatch.core.rules import ResourceRule
    from devwatch.core.scene import Scene

_MICROSECOND = 1e-6
"""Seconds: udev truncates USEC_INITIALIZED to whole microseconds."""
_MAX_DIGITS = 20
"""Digits from which on a number of microseconds is not a plausible time (10**19 us are 300,000 years)."""


@dataclass(slots=True, kw_only=True)
class Departure:
    """A listed device that a certain scan did not find.

    | state | entered when | `lost` | `there` | `since` |
    |---|---|---|---|---|
    | in grace: the count includes it | a certain scan does not find it | None | None | None |
    | over: the next PATCH will not count it | the grace ended, and nothing holds the count up | server's time, updated | None | None |
    | sent: a PATCH without it was sent | `Losses.send` | fixed | fixed | None |
    | lost: the Node shows the count without it | the PATCH was observed on the Node | fixed | fixed | set |

    Only a lost departure evicts. `lost` and `there` are fixed when the PATCH is sent, before its outcome is known: a pod that was bound
    afterwards may use the successor of the device and must never be evicted. A departure goes back from "over" to "in grace" when
    something holds the count up again, when the scan is uncertain, and when a present device may be this one: a PATCH that is sent then
    does not stop counting it. One that a former daemon stored with `lost` starts as "sent", without pods in `there`. A departure
    ends in any state when the device is found again, and in "lost" when its pods are gone (`settle`).
    """

    at: float
    """When the departure was observed; monotonic seconds."""
    until: float
    """When the grace ends, until which the device still counts; monotonic seconds."""
    seen: float = float("-inf")
    """When the last certain scan found it; monotonic seconds."""
    device: Device | None = None
    """The device as the last scan found it, None where it is known only from the annotation of a former daemon."""
    registrations: tuple[Registration, ...] = ()
    """The registrations up to this departure, as in `Return`; empty where the device number is unknown."""
    links: AbstractSet[str] = frozenset()
    """All links that udev made for it. Of an entry of a former daemon also its devnode, and none where it may not list all."""
    twins: tuple[Device, ...] = ()
    """Its possible twins: other devices that the last scan found beside it, as it found them."""
    taken: frozenset[str] = frozenset()
    """Its paths that have led to another listed device since: a container that started meanwhile has mounted that one."""
    recalled: bool = False
    """Whether a former daemon sent the PATCH that no longer counts it."""
    lost: str | None = None
    """The API server's time before that PATCH (RFC 3339, seconds), empty where it is unknown; None while the PATCH would count it."""
    there: frozenset[str] | None = None
    """The UIDs of the pods that were listed before that PATCH was sent."""
    since: float | None = None
    """When the Node first showed the count without it; monotonic seconds."""
    accepted: str = ""
    """The API server's time at `since`, empty where a former daemon sent the PATCH."""
    choice: Loss | None = None
    """The loss at the moment its victims were chosen."""
    maybe: Key | None = None
    """The present device that may be this one, while the udev record that decides it is incomplete."""
    undecided: bool = False
    """Whether after a restart more than one present device may be this one: then nobody is evicted for it."""

    @property
    def in_doubt(self) -> bool:
        """Whether it is unknown if the device is present."""
        return self.undecided or self.maybe is not None

    def excluded(self, devices: Sequence[Device], identified: AbstractSet[Key] = frozenset()) -> set[Key]:
        """Return the devices that cannot be this one.

        - It was present beside them, and udev has not handled them a second time since. A virtual console keeps its registration whatever
          stick it plays, so a console that udev has handled again may be this device.
        - udev had handled them before this one was last observed. Not so a former registration of this one: it has not ended, scans
          have missed its devnode, and what was taken for its return was a twin that has gone by now.
        - They are other parts of a composite stick.

        The first two do not exclude a device that has the ID of this one (`identified`): it got the ID after this one had departed, when
        its record was complete, and from then on containers of this one get that device.
        """
        handled = {twin.key: initialized_at(twin) for twin in self.twins}
        again = {
            device.key
            for device in devices
            if handled.get(device.key) is not None and (initialized_at(device) or -math.inf) > self.seen
        }
        earlier = {device.key for device in devices if (initialized_at(device) or math.inf) + _MICROSECOND < self.seen}
        former = {each.key for each in self.registrations}
        parts = (device.key for device in devices if self.device is not None and is_other_part(device, self.device))
        return (((handled.keys() - again) | (earlier - former)) - identified) | set(parts)

    def unlinked(self, devices: Iterable[Device]) -> set[Key]:
        """Return the devices that have none of its links, not even a shared one, as far as the links of both are known."""
        known = (device for device in devices if self.links and device.complete)
        return {device.key for device in known if paths_of(device).isdisjoint(self.links)}

    def decide(self, present: AbstractSet[Key], now: float, grace: float) -> None:
        """Settle the doubt about `maybe`: if that device has gone before its identity was known, the departure begins again.

        It may have been this one, so its pods may have used it until now. If it is still present, it has proved to be another device.
        """
        if self.maybe is not None and self.maybe not in present:
            self.at, self.until, self.since, self.choice = now, now + grace, None, None
        self.maybe = None

    def advance(self, scene: Scene, *, counted_out: bool, shown: bool) -> None:
        """Enter the next state of the table where its condition holds.

        `counted_out`: nothing but graces holds the count above the present devices. `shown`: the Node shows the count.
        """
        if self.there is None:
            self.lost = scene.date if counted_out and scene.now >= self.until else None
        elif self.since is None and counted_out and shown:
            self.since, self.accepted = scene.now, "" if self.recalled else scene.date


def advance_departures(gone: Mapping[Entry, Departure], name: str, scene: Scene, taken: AbstractSet[str]) -> None:
    """Advance the departures of one resource; `taken` are the paths of the present devices.

    One that may be a present device does not advance. Nothing advances while something else holds the count above the present and
    lingering devices: the start grace, or a key that is unknown. The count then still includes the departed device, so a PATCH would not
    be the one that removes it.
    """
    sure, figure, shown = [each for each in gone.values() if not each.in_doubt], scene.figure(name), scene.shows(name)
    lingering = sum(scene.now < departure.until for departure in sure)
    counted_out = not figure.held and figure.advertised <= figure.present + lingering
    for departure in sure:
        departure.taken |= taken & frozenset(chain.from_iterable(each.paths for each in departure.registrations))
    for departure in gone.values():
        departure.advance(scene, counted_out=counted_out and not departure.in_doubt, shown=shown)


def find_losses(
    gone: Mapping[Entry, Departure], rule: ResourceRule, scene: Scene, others: frozenset[str]
) -> Iterator[Loss]:
    """Yield the losses that the Node shows, grouped by the PATCH that stopped counting them; none while the count may still fall.

    A device that the kubelet hands over is a loss of its own: the holder of one may be known, while that of another is not.
    Fewer devices than the present ones may be advertised for long: while a pod has one of them under another name.
    """
    figure, after = scene.figure(rule.name), rule.evict_after or 0.0
    if figure.held or figure.advertised > figure.present or not scene.shows(rule.name):
        return
    groups: dict[tuple[float, str, frozenset[str], str], list[Entry]] = {}
    for entry, departure in gone.items():
        if departure.since is not None and not departure.in_doubt:
            group = (departure.since, departure.lost or "", departure.there or frozenset(), entry.id or "")
            groups.setdefault(group, []).append(entry)
    for (since, lost, there, _), entries in groups.items():
        ripe = sum(len(each) for group, each in groups.items() if group[0] + after <= max(since + after, scene.now))
        choice = gone[entries[0]].choice
        loss = Loss(
            resource=rule.name,
            entries=tuple(entries),
            left=figure.present + len(gone) - ripe,
            since=since,
            due=since + after,
            there=there,
            lost=lost,
            accepted=gone[entries[0]].accepted,
            others=others,
            victims=choice.victims if choice else None,
        )
        # Whatever was plugged in since the choice changes nothing, unless one of the devices has returned.
        yield choice if choice and choice.entries == loss.entries else loss


def initialized_at(device: Device) -> float | None:
    """Return when udev first handled a registration, in monotonic seconds (USEC_INITIALIZED), None where the record does not say."""
    text = (device.properties or {}).get("USEC_INITIALIZED", "")
    return int(text) / 1e6 if text.isascii() and text.isdecimal() and len(text) < _MAX_DIGITS else None


def is_untouched(before: Device, now: Device) -> bool:
    """Return whether udev, as far as its records say, has not handled a registration a second time between two scans."""
    times = {initialized_at(before), initialized_at(now)}
    return None in times or len(times) == 1


def is_other_part(one: Device, other: Device) -> bool:
    """Return whether two devices are certainly different parts (interfaces) of a composite stick."""
    return None not in {one.interface, other.interface} and one.interface != other.interface


def returned_at(device: Device, departure: Departure, scene: Scene) -> float | None:
    """Return when a device returned (monotonic seconds), None where this daemon did not observe it and udev did not record it.

    The time of the scan is an upper bound only, since a scan may be late, and so is USEC_INITIALIZED, since udev may be slow. The latter
    is used where it belongs to this registration. A device that was present beside the departed one returns with the scan in which it
    takes its place: a container that started before has the file of the departed one.
    """
    initialized, seen = initialized_at(device), scene.inventory.seen_since(device.key)
    if departure.device is None:
        return min(initialized, seen) if initialized is not None and initialized <= scene.now else None
    if seen <= departure.seen:
        return scene.now
    # Where scans were uncertain or uevents were lost, the departure may be observed after the return. A USEC_INITIALIZED from before the
    # device was last observed belongs to another registration.
    return initialized if initialized is not None and departure.seen <= initialized <= seen else seen
