"""Recognise well-known sticks, by rules that distinguish them from other devices with the same bridge chip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from devwatch.core.rules import ResourceRule, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devwatch.core.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Stick:
    """A well-known stick: the name that people know, and the resource to suggest for it."""

    title: str
    rule: ResourceRule


def recognise(device: Device, sticks: Iterable[Stick]) -> Stick | None:
    """Return the first stick that matches a device, None where none does."""
    return next((stick for stick in sticks if stick.rule.verdict(device) is Verdict.MATCHED), None)
