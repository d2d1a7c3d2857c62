"""What can happen to a node whose pods get devices by claims: the moves of which a history is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devwatch.core.claims import PreparedClaim
from devwatch.core.errors import Conflict, Forbidden, Refused, Retry
from support.model_claims import Claim
from support.model_claims_world import ClaimWorld
from support.model_handover import Promise
from support.model_handover_moves import FUNCTIONS as HANDOVER_FUNCTIONS
from support.model_handover_moves import configure, found, pod
from support.model_moves import BOOLEANS
from support.model_pods import ZIGBEE
from support.objectserver import SLICES

if TYPE_CHECKING:
    from devwatch.core.errors import ApiError
    from support.model_moves import Functions

ERRORS: dict[str, ApiError] = {
    "403": Forbidden("forbidden (403)", hint="grant it"),
    "409": Conflict("conflict (409)"),
    "422": Refused("invalid (422)"),
    "500": Retry("internal error (500)"),
}


# -- slices


def wiped(world: ClaimWorld) -> None:
    """Let all slices of the node be deleted."""
    world.objects.delete_all(SLICES)


def edited(world: ClaimWorld, how: str) -> None:
    """Let another client change the slice, or leave one beside it."""
    for item in world.objects.all(SLICES)[:1]:
        world.edited = True
        devices = item["spec"].get("devices") or []
        if how == "tainted":
            for device in devices:
                device["taints"] = [{"key": "devwatch.io/unplugged", "effect": "NoSchedule"}]
        elif how == "cleared":
            world.judge.clear(device["name"] for device in devices if device.pop("taints", None))
        elif how == "emptied":
            item["spec"]["devices"] = []
        else:
            item["metadata"] = {"name": "leftover"}
            item["spec"]["pool"]["generation"] += 1
        world.objects.put(SLICES, item)


def taintless(world: ClaimWorld, dropped: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Let the server drop taints from now on, as one does that is set so at its start."""
    world.objects.taints = not dropped
    world.taintless |= dropped
    world.objects.end_watches(Retry("connection reset"))


def lost(world: ClaimWorld, name: str, times: int, stored: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Let the next requests for objects fail, `stored` all the same."""
    world.losses.extend([(ERRORS[name], stored and name == "500")] * times)


def denied(world: ClaimWorld, kind: str) -> None:
    """Forbid all that is done with a kind of objects, or with none."""
    world.denied = kind


def slow(world: ClaimWorld, seconds: float) -> None:
    """Let the server take its time for objects."""
    world.objects.latency = seconds


def watch(world: ClaimWorld, how: str) -> None:
    """Let the watch of slices end, break, be late, be silent or be too old."""
    world.objects.lag = 5.0 if how == "late" else 0.0
    world.objects.mute = how == "silent"
    if how == "too old":
        world.objects.compact()
    if how in {"ends", "breaks", "too old"}:
        world.objects.end_watches(None if how != "breaks" else Retry("connection reset"))


# -- the node


def full(world: ClaimWorld, what: str) -> None:
    """Let record or files fail; without a name none."""
    world.spoil(**{what: True} if what else {})


def strange(world: ClaimWorld, how: str) -> None:
    """Let the kubelet ask for a claim that must not be prepared."""
    device = {"another node": "0001-0001-z1-0000000000"}.get(how) or min(world.judge.ids, default="")
    if not device:
        return
    stored = world.cluster.put("strange", device, **({"shareID": "s"} if how == "a share" else {}))
    uid = "uid-of-another" if how == "another uid" else stored["metadata"]["uid"]
    claim = Claim(name="strange", uid=uid, resource=ZIGBEE, id=device, tty=None, tolerates=False)

    async def ask() -> None:
        if isinstance(await world.kubelet.ask(claim, strange=True), PreparedClaim):
            world.judge.broken(Promise.OWN, f"prepares a claim with {how}")
        world.cluster.delete_claim("strange")

    world.kubelet.spawn(ask())
    world.wait(50)


FUNCTIONS: Functions = (
    *(each for each in HANDOVER_FUNCTIONS if each[0] not in {found, configure, pod}),
    (pod, 8, (tuple(range(len(ClaimWorld.templates))),)),
    (found, 1, (tuple(range(len(ClaimWorld.plans))),)),
    (configure, 3, (tuple(range(len(ClaimWorld.plans))), BOOLEANS)),
    (wiped, 2, ()),
    (edited, 2, (("tainted", "cleared", "emptied", "beside"),)),
    (taintless, 1, (BOOLEANS,)),
    (lost, 3, (tuple(ERRORS), (1, 2, 3), BOOLEANS)),
    (denied, 2, (("", "resourceslices", "resourceclaims", "resource"),)),
    (slow, 1, ((0.01, 0.3, 4.0),)),
    (watch, 2, (("ends", "breaks", "late", "silent", "too old"),)),
    (full, 2, (("", "", "reading", "writing", "files"),)),
    (strange, 1, (("another node", "a share", "another uid"),)),
)
