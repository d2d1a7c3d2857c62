"""Assign devices to resources: each devnode to one, and each USB device either as a whole or by its parts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from devwatch.core.device import USB
from devwatch.core.rules import Claim, claim, subsystems_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from devwatch.core.device import Device
    from devwatch.core.rules import ResourceRule


def claim_all(devices: Iterable[Device], rules: Sequence[ResourceRule]) -> dict[Device, Claim]:
    """Return the claim of each device of one scan."""
    claims = {device: claim(device, rules) for device in devices}
    return claims | exclude_other_kind(claims, rules)


def exclude_other_kind(claims: Mapping[Device, Claim], rules: Sequence[ResourceRule]) -> dict[Device, Claim]:
    """Return the claims that change because the same USB device is claimed both as a whole and by its parts.

    A program that opens the whole device takes it away from the drivers of its parts. So the first resource that claims a device through
    one kind of devnode excludes the other kind. While it is unknown which is the first, none of them has the device.
    """
    subsystems = subsystems_of(rules)
    if USB not in subsystems or len(subsystems) == 1:
        return {}
    priority = {rule.name: index for index, rule in enumerate(rules)}
    changed: dict[Device, Claim] = {}
    for whole, parts in _claimed_in_both_ways(claims):
        first, second = sorted((whole, parts), key=lambda kind: _first_rank(kind, claims, priority))
        owners = (owner for device in first if (owner := claims[device].owner) is not None)
        owner = min(owners, key=lambda name: priority[name], default=None)
        if owner is not None and priority[owner] < _first_rank(second, claims, priority):
            changed |= {device: Claim(wanted=(owner, *claims[device].wanted), excluded_by=owner) for device in second}
        else:
            rivals = frozenset[str]().union(*(claims[device].candidates for device in (*whole, *parts)))
            changed |= {device: Claim(doubtful=rivals, wanted=claims[device].wanted) for device in (*whole, *parts)}
    return changed


def _claimed_in_both_ways(claims: Mapping[Device, Claim]) -> Iterator[tuple[list[Device], list[Device]]]:
    """Yield the claimed devnodes of each device of which both the whole and parts are claimed, or may be."""
    bodies: dict[str, tuple[list[Device], list[Device]]] = {}
    for device, each in claims.items():
        if each.candidates and device.physical is not None:
            bodies.setdefault(device.physical, ([], []))[device.subsystem != USB].append(device)
    yield from ((whole, parts) for whole, parts in bodies.values() if whole and parts)


def _first_rank(devices: Iterable[Device], claims: Mapping[Device, Claim], priority: Mapping[str, int]) -> float:
    return min((priority[name] for device in devices for name in claims[device].candidates), default=math.inf)
