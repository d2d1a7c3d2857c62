"""What can happen to a node on which the kubelet hands devices over: the moves of which a history is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devwatch.core.errors import KubeletError, Retry
from support.model import FAULTS, Hearing
from support.model_handover import FORGETTING, PLANS, STICKS, HandoverWorld
from support.model_host import UNSURE
from support.model_kubelet import TEMPLATES
from support.model_moves import (
    BOOLEANS,
    apart,
    arrive,
    blind,
    devnode,
    finish,
    freeze,
    hearing,
    nothing,
    overflow,
    records,
    step,
)

if TYPE_CHECKING:
    from support.model_kubelet import Life
    from support.model_moves import Functions

SOCKETS = ("socket-1", "socket-2", "socket-3", "socket-4")
_PODS = tuple(range(6))
_STICKS = (0, 1, 2, 3)


# -- the sticks


def _socket(world: HandoverWorld, wanted: str) -> str | None:
    """Return a free socket, the wanted one if it is."""
    taken = {tty.socket for tty in world.host.ttys.values()}
    return next((each for each in (wanted, *SOCKETS) if each not in taken), None)


def plug(world: HandoverWorld, kind: str, wanted: str, number: int, record: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Plug a new stick."""
    if (socket := _socket(world, wanted)) is not None:
        before = {tty.birth for tty in world.host.ttys.values()}
        world.host.plug(STICKS[kind], socket, number, record=record)
        arrive(world, before)


def pull(world: HandoverWorld, index: int) -> None:
    """Pull a stick."""
    if sticks := world.host.sticks:
        world.host.pull(sticks[index % len(sticks)])
        world.hear()


def bounce(world: HandoverWorld, index: int, shift: int, away: float, wanted: str) -> None:
    """Pull a stick and plug it again: under its name or another, in its socket (empty) or another."""
    if not (sticks := world.host.sticks):
        return
    pulled = world.host.pull(sticks[index % len(sticks)])
    world.hear()
    world.wait(away)
    socket = _socket(world, wanted or pulled[0].socket)
    assert socket is not None
    before = {tty.birth for tty in world.host.ttys.values()}
    world.host.replug(pulled, socket, pulled[0].number + shift)
    arrive(world, before)


def swap(world: HandoverWorld, index: int, kind: str, away: float) -> None:
    """Let another stick take the place and the name of one."""
    if not (sticks := world.host.sticks):
        return
    pulled = world.host.pull(sticks[index % len(sticks)])
    world.hear()
    world.wait(away)
    world.host.plug(STICKS[kind], pulled[0].socket, pulled[0].number, record=True)
    world.hear()


def cross(world: HandoverWorld) -> None:
    """Let two sticks change their sockets and names at once, as a hub does that starts again."""
    sticks = world.host.sticks[:2]
    if len(sticks) == 2:
        first, second = (world.host.pull(stick) for stick in sticks)
        world.host.replug(second, second[0].socket, first[0].number)
        world.host.replug(first, first[0].socket, second[0].number)
        world.hear()


def found(world: HandoverWorld, index: int) -> None:
    """Let the first daemon of the node have begun with another configuration, if there was no pod yet."""
    if not world.cluster.lives:
        world.kill()
        world.kubelet.kill()
        world.kubelet.taken.clear()
        world.kubelet.start()
        world.server.create()
        world.configure(world.plans[index])
        world.begin()


def linger(world: HandoverWorld) -> None:
    """Let more time pass than the kubelet remembers a plugin."""
    world.wait(FORGETTING)


def furnish(world: HandoverWorld) -> None:
    """Have a stick and a pod of each sort, and let all come to rest."""
    for number, (kind, socket) in enumerate(
        (("zigbee", "socket-1"), ("composite", "socket-2"), ("nameless", "socket-3"))
    ):
        if _socket(world, socket) == socket:
            world.host.plug(STICKS[kind], socket, number, record=True)
    world.hear()
    for template in world.templates[:4]:
        world.cluster.make(template)
    world.wait(25)


# -- the kubelet


def kubelet_dies(world: HandoverWorld) -> None:
    """Kill the kubelet."""
    if world.kubelet.running:
        world.kubelet.kill()


def kubelet_starts(world: HandoverWorld) -> None:
    """Start the kubelet."""
    if not world.kubelet.running:
        world.judge.troubled_at = max(world.judge.troubled_at, world.loop.time() - 70)
        world.kubelet.start()


def kubelet_restarts(world: HandoverWorld, away: float) -> None:
    """Start the kubelet again."""
    kubelet_dies(world)
    world.wait(away)
    kubelet_starts(world)


def kubelet_hangs(world: HandoverWorld, hanging: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Let the kubelet answer nothing, or go on."""
    world.kubelet.hang(hanging=hanging)


def kubelet_slow(world: HandoverWorld, seconds: float) -> None:
    """Let the kubelet take its time for lists."""
    world.kubelet.latency = seconds


def stream_ends(world: HandoverWorld, index: int) -> None:
    """End a stream from the side of the kubelet."""
    plugins = [each for each in world.kubelet.plugins.values() if each.stream is not None]
    for plugin in plugins[index % len(plugins) :][:1] if plugins else ():
        plugin.end()


def holders_unknown(world: HandoverWorld, unknown: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Let the kubelet not say who has what."""
    world.kubelet.unheld = KubeletError("no folder") if unknown else None


def descending(world: HandoverWorld, last: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Let the kubelet give the last free device first."""
    world.kubelet.descending = last


def disk_full(world: HandoverWorld, full: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Let no link be made."""
    world.kubelet.links.error = KubeletError("no space left") if full else None


# -- the daemon


def kill(world: HandoverWorld, times: int) -> None:
    """Kill the daemon a few turns of the loop from now."""
    world.step(times)
    world.kill()


def stop(world: HandoverWorld) -> None:
    """Send TERM to the daemon."""
    world.stop()


def begin(world: HandoverWorld) -> None:
    """Start a daemon."""
    world.begin()


# -- the API server


def away(world: HandoverWorld, gone: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Let the API server be away for all, or be there again."""
    world.judge.troubled_at = world.loop.time()
    error = Retry("connection refused") if gone else None
    world.cluster.away, world.cluster.error = gone, error
    world.climate = FAULTS["500"] if gone else None
    if gone:
        world.server.show(error)
    world.server.watch_error = error
    world.cluster.schedule_soon()


def fail(world: HandoverWorld, name: str, times: int) -> None:
    """Let the next requests fail."""
    world.judge.troubled_at = world.loop.time()
    world.faults.extend([FAULTS[name]] * times)


def relief(world: HandoverWorld) -> None:
    """Let the API server be well."""
    world.relieve()
    if world.cluster.away:
        away(world, gone=False)


def deaf(world: HandoverWorld) -> None:
    """Let the connection of the watch die without a sign."""
    world.judge.troubled_at = world.loop.time()
    world.deaf = True


# -- the pods and the configuration


def pod(world: HandoverWorld, index: int) -> None:
    """Make a pod."""
    world.cluster.make(world.templates[index % len(world.templates)])


def pods(world: HandoverWorld) -> None:
    """Make a pod of each template."""
    for template in world.templates:
        world.cluster.make(template)


def delete(world: HandoverWorld, index: int, force: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Delete a pod."""
    for life in _some(world, index):
        world.cluster.delete(life, force=force)


def restart(world: HandoverWorld, index: int, seconds: float) -> None:
    """Let the container of a pod start again in place."""
    for life in _some(world, index):
        world.cluster.restart(life, seconds)


def _some(world: HandoverWorld, index: int) -> list[Life]:
    here = world.cluster.here
    return here[index % len(here) :][:1] if here else []


def budget(world: HandoverWorld, index: int, forbidden: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Forbid the eviction of a pod."""
    for life in _some(world, index):
        world.cluster.budgets[life.pod.name] = int(forbidden)


def configure(world: HandoverWorld, index: int, hup: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Write another configuration."""
    world.configure(world.plans[index])
    for daemon in world.daemons if hup else ():
        daemon.listener.wake("config")


def roll_out(world: HandoverWorld) -> None:
    """Let users replace the pods of a former way."""
    world.roll_out()


def refuse(world: HandoverWorld, right: str) -> None:
    """Take a right away; without one give all."""
    world.cluster.rights.discard(right)
    if not right:
        world.cluster.rights |= {"list pods", "create pods/eviction"}


_NUMBERS = (0, 1, 2, 3)
_KINDS = ("zigbee", "other", "nameless", "composite", "twin", "zigbee", "other", "nameless", "modem")
FUNCTIONS: Functions = (
    (nothing, 2, ()),
    (found, 1, (tuple(range(len(PLANS))),)),
    (furnish, 2, ()),
    (linger, 1, ()),
    (plug, 6, (_KINDS, SOCKETS, _NUMBERS, (True, True, True, False))),
    (pull, 6, (_STICKS,)),
    (bounce, 6, (_STICKS, (0, 1), (0.0, 0.5, 1.9, 2.1, 4.5, 8.0, 12.0), ("", "", *SOCKETS))),
    (swap, 3, (_STICKS, _KINDS, (0.0, 0.5, 2.5, 8.0))),
    (cross, 1, ()),
    (apart, 1, ((0.0, 0.05, 0.5, 2.5),)),
    (finish, 2, ()),
    (hearing, 1, (tuple(how.value for how in Hearing),)),
    (overflow, 1, ()),
    (blind, 2, (BOOLEANS,)),
    (devnode, 1, (_STICKS, (0, 0, *UNSURE))),
    (records, 1, (BOOLEANS,)),
    (step, 2, ((1, 2, 3, 5, 8),)),
    (freeze, 1, ((0.5, 3.0, 40.0),)),
    (kubelet_dies, 2, ()),
    (kubelet_starts, 4, ()),
    (kubelet_restarts, 4, ((0.0, 0.05, 1.0, 5.0, 30.0),)),
    (kubelet_hangs, 2, (BOOLEANS,)),
    (kubelet_slow, 2, ((0.02, 0.3, 1.5),)),
    (stream_ends, 2, ((0, 1, 2),)),
    (holders_unknown, 2, (BOOLEANS,)),
    (descending, 1, (BOOLEANS,)),
    (disk_full, 1, (BOOLEANS,)),
    (kill, 3, ((0, 1, 2, 3, 5, 8),)),
    (stop, 2, ()),
    (begin, 6, ()),
    (away, 2, (BOOLEANS,)),
    (fail, 3, (tuple(FAULTS), (1, 2, 3))),
    (relief, 4, ()),
    (deaf, 1, ()),
    (pod, 6, (tuple(range(len(TEMPLATES))),)),
    (pods, 2, ()),
    (delete, 4, (_PODS, BOOLEANS)),
    (restart, 6, (_PODS, (0.0, 1.0, 5.0))),
    (budget, 1, (_PODS, BOOLEANS)),
    (configure, 3, (tuple(range(len(PLANS))), BOOLEANS)),
    (roll_out, 3, ()),
    (refuse, 1, (("list pods", "create pods/eviction", ""),)),
)
"""Each kind of move, how often it comes, and the choices of its arguments: first the simplest, to which a history is shrunk."""
