"""The way in which a resource was published before, as the annotation tells, and when another one may begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from devwatch.core.holders import unread_claims
from devwatch.core.rules import Count, Publish

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from devwatch.core.holders import Holding
    from devwatch.core.listing import Entry, Listing
    from devwatch.core.pods import Pod
    from devwatch.core.rules import ResourceRule

KUBELET_MEMORY = 320.0
"""Seconds for which the kubelet may write 0 for the resource of a plugin that has ended: 5 minutes (`endpointStopGracePeriod` of its device
manager), and two syncs of its status."""
_NAMED = 5
"""Names in one line; the rest is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A resource that the configuration publishes in another way than the Node shows it, or of which it counts something else.

    Where the kubelet hands devices over, a device has another ID for each `count`: two pods could have the one stick.
    """

    resource: str
    former: Publish
    way: Publish
    """The same as `former` where `count` has changed alone."""
    listed: bool = True
    """Whether the annotation tells of the former way; else pods alone can, from before the resource left the configuration."""

    def __str__(self) -> str:
        """Write what changes."""
        return "its count" if self.former is self.way else f"from {self.former.value} to {self.way.value}"


def changes(
    rules: Iterable[ResourceRule], memory: Listing, established: Mapping[str, ResourceRule]
) -> frozenset[Change]:
    """Return the resources whose way of publishing has changed, or may have, since a devwatch last listed them.

    What this daemon has `established` counts before the annotation, which anyone may write.
    """
    found: set[Change] = set()
    for rule in rules:
        begun, entries = established.get(rule.name), memory.get(rule.name, ())
        former = begun.publish if begun else way_of(entries)
        if former is not rule.publish or (former.hands_over and _counts(begun, entries) not in {None, rule.count}):
            listed = rule.name in memory or begun is not None
            found.add(Change(resource=rule.name, former=former, way=rule.publish, listed=listed))
    return frozenset(found)


def _counts(begun: ResourceRule | None, entries: Iterable[Entry]) -> Count | None:
    """Return what a resource counted before, None where nothing tells, or the entries disagree."""
    if begun is not None:
        return begun.count
    told = {Count.DEVNODE if entry.place else Count.DEVICE for entry in entries if entry.id}
    return told.pop() if len(told) == 1 else None


def handed_over_before(memory: Listing) -> Listing:
    """Return the resources that the kubelet handed over when a devwatch last listed them."""
    return {name: entries for name, entries in memory.items() if way_of(entries).hands_over}


def way_of(entries: Iterable[Entry]) -> Publish:
    """Return how a resource was published, by its entries in the annotation."""
    told = {entry.publish for entry in entries}
    return next((way for way in Publish if way.value in told), Publish.NODE_STATUS)


def holdouts(change: Change, pods: Iterable[Pod], holdings: Collection[Holding] = ()) -> str:
    """Return why the former way is still in use: the unfinished pods that request the resource; empty where there are none.

    The figures are 0 meanwhile, so that each of these pods was bound in the former way. Those that have their devices in the new one, as
    `holdings` say, do not count. A claim of which they do not say what it holds may hold a device in the former way.
    """
    ways = {Publish.DRA: set[tuple[str, str]](), Publish.DEVICE_PLUGIN: set[tuple[str, str]]()}
    for each in holdings:
        if each.resource == change.resource:
            ways[Publish.DRA if each.claim else Publish.DEVICE_PLUGIN].add((each.namespace, each.pod))
    unfinished = [pod for pod in pods if not pod.finished]
    wanting = {(pod.namespace, pod.name) for pod in unfinished if pod.requests.get(change.resource, 0) > 0}
    if change.former is Publish.DRA:
        unread = unread_claims(unfinished, holdings)
        wanting |= {
            (pod.namespace, pod.name)
            for pod in unfinished
            if (pod.namespace, pod.name) in ways[change.former]
            or any((pod.namespace, claim) in unread for claim in pod.claims)
        }
    new = ways.get(change.way, set()) if change.way is not change.former else set()
    titles = sorted("/".join(key) for key in wanting - new)
    return f"waits for the end of {joined(titles)}" if titles else ""


def joined(titles: Sequence[str]) -> str:
    """Return the first names of a list for one line, and the number of the rest."""
    more = f" and {len(titles) - _NAMED} more" if len(titles) > _NAMED else ""
    return ", ".join(titles[:_NAMED]) + more
