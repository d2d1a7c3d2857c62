"""Which pods hold which devices, as the kubelet says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from devwatch.core.incidents import Loss, Return
    from devwatch.core.pods import Holders, Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The devices of one resource that a container has (podresources/v1, `List`)."""

    namespace: str
    pod: str
    """The name of the pod: the kubelet reports no UID, and another pod may have the name by now."""
    container: str
    resource: str
    """The name of the resource; of devices that a claim gives, that of the driver, since the kubelet does not know the resource."""
    ids: frozenset[str]
    claim: str = ""
    """The name of the ResourceClaim in the pod's namespace through which it has them, empty for devices of a device plugin."""
    unprepared: bool = False
    """Whether the claim may not be prepared yet: the kubelet lists it before, without devices, as it does where its driver gives none."""
    unrecorded: bool = False
    """Whether the record of claims lacks the claim, so that it may tolerate a loss, or have the devices for administrative access alone."""


def holders_of(incident: Loss | Return, holdings: Iterable[Holding]) -> Holders:
    """Return the containers that have a device of the incident."""
    mine = (each for each in holdings if each.resource == incident.resource and each.ids & incident.ids)
    return frozenset((each.namespace, each.pod, each.container) for each in mine)


def untold(incident: Loss | Return, holdings: Iterable[Holding]) -> str:
    """Return why it is unknown whether a container with a device of the incident holds it; empty where it is known of each."""
    mine = (each for each in holdings if each.unrecorded and each.ids & incident.ids)
    lacking = next((f"{each.namespace}/{each.claim}" for each in mine), "")
    return f"the record of claims lacks {lacking}: delete its pod if it does not work" if lacking else ""


def unproved(incident: Loss | Return, holders: Holders, before: Iterable[Pod], after: Sequence[Pod]) -> str:
    """Return why a reading of the holders, between two lists of the pods of this node, proves nothing; empty where it does.

    The kubelet reports names: the pod of that name must be the same before and after, have been taken over by the kubelet, and, where its
    status names its devices, have one of these.
    """
    earlier = {(pod.namespace, pod.name): pod.uid for pod in before}
    later = {(pod.namespace, pod.name): pod for pod in after}
    for namespace, name, _ in holders:
        pod = later.get((namespace, name))
        if pod is None or not pod.started or earlier.get((namespace, name)) != pod.uid:
            return f"{namespace}/{name} was replaced while the holders were read"
        named = pod.devices.get(incident.resource)
        if named and not named & incident.ids:
            return f"the status of {namespace}/{name} does not name the device that the kubelet says it holds"
    return ""


def held_ids(
    resource: str, holdings: Collection[Holding], pods: Iterable[Pod], *, claimed: bool = False
) -> frozenset[str] | None:
    """Return the IDs that pods of this node hold, None where that is unknown.

    A reading proves that a device is not held only if it accounts for every unfinished pod of this node that requests the resource: the
    kubelet answers with nothing for a while after its start. Where a ResourceClaim can request it too (`claimed`), it must account for
    every claim: what one is for, the pod does not tell.
    """
    unfinished = [pod for pod in pods if not pod.finished]
    mine = [each for each in holdings if each.resource == resource]
    wanting = {(pod.namespace, pod.name) for pod in unfinished if pod.requests.get(resource, 0) > 0}
    known = wanting <= {(each.namespace, each.pod) for each in mine}
    if known and claimed:
        known = unread_claims(unfinished, holdings) == set()
    return frozenset().union(*(each.ids for each in mine)) if known else None


def unread_claims(pods: Iterable[Pod], holdings: Iterable[Holding]) -> set[tuple[str, str]]:
    """Return the claims of these pods, by namespace and name, of which the kubelet does not say what they hold.

    The claims of a pod of which a container has run are prepared. What the record lacks may be of any resource, where nothing else tells.
    """
    told, unknown = dict[tuple[str, str], bool](), set[tuple[str, str]]()
    for each in holdings:
        told[each.namespace, each.claim] = each.unprepared
        if each.unrecorded and not each.resource:
            unknown.add((each.namespace, each.claim))
    return {
        key
        for pod in pods
        for key in ((pod.namespace, claim) for claim in pod.claims)
        if key in unknown or (told.get(key, True) and not (key in told and pod.has_run))
    }
