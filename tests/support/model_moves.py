"""What can happen to a node: the moves of which a history is made, each a name with its arguments."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from devwatch.core.errors import ApiError, Forbidden, Gone, Refused, Retry
from devwatch.core.node import ANNOTATION_PART, MAPS, Writer
from support.fakes import RIGHTS
from support.model import FAULTS, NAMES, PLANS, STRANGER, Hearing, Surroundings, World
from support.model_eviction import listing
from support.model_host import FILE, GONE, KINDS, UNSURE
from support.model_pods import SPARE, TEMPLATES, ZIGBEE, Placing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet
    from enum import Enum

    from support.model_pods import Life

AnyWorld = Surroundings[Any]
Argument = str | float | bool | tuple[str, ...] | None
MOMENTS = (0.0, 0.001, 0.05, 0.5, 1.5, 2.5, 6.0, 6.0, 11.0, 11.0, 35.0, 65.0)
ENDS: dict[str, ApiError | None] = {
    "ends": None,
    "breaks": Retry("connection reset"),
    "is too old": Gone("too old resource version"),
    "is forbidden": Forbidden("cannot watch nodes", hint="grant it"),
}
MAPS_CHOICES = (MAPS, *((part,) for part in MAPS))
TEXTS = ("", "{", "[]", "{}", f'{{"{ZIGBEE}":[]}}', f'{{"{ZIGBEE}":[{{"devnode":"/dev/ttyUSB7"}}],"{SPARE}":[]}}')


def nothing(_world: AnyWorld) -> None:
    """Let only time pass."""


# -- the daemons


def step(world: AnyWorld, times: int) -> None:
    """Let the loop turn a few times."""
    world.step(times)


def freeze(world: AnyWorld, seconds: float) -> None:
    """Let time pass without the daemon."""
    world.freeze(seconds)


def kill(world: World, index: int, times: int) -> None:
    """End a daemon a few turns of the loop from now, wherever it is then. What a webhook puts back then is nobody's."""
    world.step(times)
    world.tampered |= bool(world.server.undone)
    if world.daemons:
        world.kill(index)


def begin(world: World) -> None:
    """Start a daemon, or a second one, which waits."""
    if len(world.daemons) <= 1:
        world.begin()


def draw(world: World, jitter: float) -> None:
    """Let what is drawn at random be this."""
    world.jitter = jitter


# -- the sticks


def plug(world: World, kind: str, socket: str, number: int, record: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Plug a stick."""
    if len(world.host.ttys) <= 6:
        before = {tty.birth for tty in world.host.ttys.values()}
        world.host.plug(KINDS[kind], socket, number, record=record)
        arrive(world, before)


def apart(world: AnyWorld, seconds: float) -> None:
    """Let the kernel register the devnodes of a stick one after the other from now on, as it does."""
    world.apart = seconds


def arrive(world: AnyWorld, before: AbstractSet[int]) -> None:
    """Announce what was plugged since."""
    _, *later = (tty for tty in world.host.ttys.values() if tty.birth not in before)
    for tty in later if world.apart else ():
        del world.host.ttys[tty.devnode]
    world.hear()
    for tty in later if world.apart else ():
        world.wait(world.apart)
        now = world.loop.time()
        born = replace(tty, plugged=now, handled=now if tty.record else None)
        world.host.ttys[tty.devnode] = world.host.past[tty.birth] = born
        world.hear()


def finish(world: AnyWorld) -> None:
    """Let udev complete its records."""
    world.host.finish()
    world.hear()


def pull(world: World, index: int) -> None:
    """Pull a stick."""
    if sticks := world.host.sticks:
        world.host.pull(sticks[index % len(sticks)])
        world.hear()


def replug(world: World, index: int, socket: str, number: int, away: float) -> None:
    """Pull a stick and plug it again: into another socket, under another name."""
    if not (sticks := world.host.sticks):
        return
    stick = sticks[index % len(sticks)]
    pulled = world.host.pull(stick)
    world.hear()
    world.wait(away)
    before = {tty.birth for tty in world.host.ttys.values()}
    world.host.replug(pulled, socket, number)
    arrive(world, before)


def bounce(world: World, index: int, shift: int, away: float) -> None:
    """Pull a stick and plug it again where it was: under its name if that is free, or one that comes after it."""
    if not (sticks := world.host.sticks):
        return
    pulled = world.host.pull(sticks[index % len(sticks)])
    world.hear()
    world.wait(away)
    before = {tty.birth for tty in world.host.ttys.values()}
    world.host.replug(pulled, pulled[0].socket, pulled[0].number + shift)
    arrive(world, before)


def swap(world: World, index: int, name: str, away: float) -> None:
    """Let another stick take the place and the name of one."""
    if not (sticks := world.host.sticks):
        return
    pulled = world.host.pull(sticks[index % len(sticks)])
    world.hear()
    world.wait(away)
    world.host.plug(KINDS[name], pulled[0].socket, pulled[0].number, record=True)
    world.hear()


def respell(world: World, index: int, serial: str | None) -> None:
    """Let udev write another serial for a stick that nobody touches."""
    if sticks := world.host.sticks:
        world.host.respell(sticks[index % len(sticks)], serial)
        world.hear()


def consoles(world: World, played: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Let virtual consoles play the sticks that are plugged from now on."""
    world.host.consoles = played


def furnish(world: World, *names: str) -> None:
    """Plug some sticks, and let all pods run on them."""
    for number, (name, socket) in enumerate(zip(names, SOCKETS, strict=False)):
        if len(world.host.ttys) <= 4:
            world.host.plug(KINDS[name], socket, number, record=True)
    world.hear()
    world.wait(12)
    for life in world.town.here:
        world.town.restart(life, 0.1)
    world.wait(2)


def hearing(world: AnyWorld, how: str) -> None:
    """Lose uevents, deliver them twice, or late."""
    world.hearing = Hearing(how)


def overflow(world: AnyWorld) -> None:
    """Let the monitor overflow."""
    for daemon in world.daemons:
        daemon.listener.overflowed()


def blind(world: AnyWorld, blinded: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Let listings come out empty."""
    world.host.blind = blinded


def devnode(world: AnyWorld, index: int, number: int) -> None:
    """Let `stat` of a devnode fail, or find a file there; 0 puts it right."""
    if names := sorted(world.host.ttys):
        world.host.nodes[names[index % len(names)]] = number


def records(world: AnyWorld, hidden: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Hide `/run/udev`, or show it again."""
    world.host.hidden = hidden


# -- the API server


def fail(world: World, name: str, times: int) -> None:
    """Let the next requests fail."""
    world.faults.extend([FAULTS[name]] * times)


def climate(world: World, name: str) -> None:
    """Let every request fail."""
    world.climate = FAULTS[name]


def refuse(world: World, name: str) -> None:
    """Refuse whatever names a resource, or the annotation, without which nobody can know later what is ours."""
    world.tampered |= name == ANNOTATION_PART
    world.server.refused[name] = Refused("denied by a policy")


def undo(world: World, name: str) -> None:
    """Put back whatever is written to a resource, or the annotation, without which nobody can know later what is ours."""
    world.tampered |= name == ANNOTATION_PART
    world.server.undone.add(name)


def relief(world: World) -> None:
    """Let the API server be well again."""
    world.relieve()


def delete(world: World) -> None:
    """Delete the Node."""
    world.server.delete()


def create(world: World) -> None:
    """Register the Node anew."""
    world.server.create()


def foreign(world: World, name: str, value: str | None, maps: tuple[str, ...]) -> None:
    """Let a stranger write a resource."""
    world.foreign(name, value, maps)


def annotate(world: World, text: str | None) -> None:
    """Let a stranger write our annotation."""
    world.annotate(text)


def forge(world: World, what: str, writer: str) -> None:
    """Let a stranger add something to our annotation, under whatever name."""
    if world.server.exists:
        content: dict[str, object] = {**listing(world.server.state)}
        leading = sorted(path for path in world.host.leading if path.startswith("/dev/serial/by-path"))
        entry = {"devnode": "/dev/ttyUSB7", "vendor": "0001", "product": "0001", "serial": "Z1", "link": None}
        lost = {**entry, "links": leading[:1], "rdev": os.makedev(188, 7), "lost": "2030-01-01T00:00:00Z"}
        old = {**entry, "devnode": "/dev/ttyUSB0", "rdev": os.makedev(188, 7)}
        name, added = {"a resource": (STRANGER, []), "a loss": (ZIGBEE, [lost]), "a number": (ZIGBEE, [old])}[what]
        world.annotate(json.dumps({**content, name: added}), WRITERS[writer])


def zero(world: World) -> None:
    """Let the kubelet zero all extended resources."""
    if world.server.exists:
        world.server.zero()


def war(world: World, seconds: float) -> None:
    """Let a stranger write the same again and again."""
    world.war(seconds)


def watch(world: World, how: str) -> None:
    """End the watches."""
    world.server.show(ENDS[how])


def watches(world: World, how: str) -> None:
    """Let no watch begin."""
    world.server.watch_error = ENDS[how]


def streams(world: World, how: str) -> None:
    """Let no watch get further than its list."""
    world.server.stream_error = ENDS[how]
    world.server.show(ENDS[how])


def forbid(world: World) -> None:
    """Take away the right to watch the Node, for good."""
    world.forbidden = world.server.watch_error = Forbidden("cannot watch nodes", hint="grant it")
    world.server.show(Retry("connection reset"))


def watch_late(world: World, seconds: float) -> None:
    """Let the watch be late."""
    world.server.watch_latency = seconds


def watch_deaf(world: World) -> None:
    """Let the watch's connection die without a sign."""
    world.deaf = True


def old_event(world: World, index: int) -> None:
    """Let the watch tell again what was so long ago."""
    if world.server.exists and world.history:
        state = world.history[-1 - index % len(world.history)]
        if state.uid == world.server.state.uid:
            world.server.show(state)


# -- the pods and the configuration


def take(world: World, right: str) -> None:
    """Take a right away."""
    world.town.rights.discard(right)


def grant(world: World) -> None:
    """Grant every right."""
    world.town.rights = set(RIGHTS)


def budget(world: World, name: str, number: int) -> None:
    """Forbid the eviction of a pod by so many budgets."""
    world.town.budgets[name] = number


def restart(world: World, index: int, seconds: float) -> None:
    """Let the containers of a pod start again in place."""
    for life in _some(world, index):
        world.town.restart(life, seconds)


def forget_start(world: World, index: int) -> None:
    """Let a pod's status no longer tell when its containers started."""
    for life in _some(world, index):
        world.town.forget_start(life)


def complete(world: World, index: int) -> None:
    """Let a pod end by itself."""
    for life in _some(world, index):
        world.town.complete(life)


def terminate(world: World, index: int) -> None:
    """Let a user delete a pod, which ends later."""
    for life in _some(world, index):
        world.town.terminate(life)


def remove(world: World, index: int) -> None:
    """Let a user delete a pod at once."""
    for life in _some(world, index):
        world.town.remove(life)


def _some(world: World, index: int) -> list[Life]:
    here = world.town.here
    return here[index % len(here) :][:1] if here else []


def place(world: World, where: str) -> None:
    """Let successors come to run here, later, or on another node."""
    world.town.placing = Placing(where)


def leak(world: World, leaky: bool) -> None:  # noqa: FBT001 - an argument of a move
    """Let lists hold the pods of other nodes, or no longer."""
    world.town.leaky = leaky


def pods(world: World) -> None:
    """Start the pods that were evicted."""
    world.town.fill()


def configure(world: World, index: int) -> None:
    """Write another configuration."""
    world.configure(PLANS[index])


def spoil(world: World) -> None:
    """Write a faulty configuration."""
    for daemon in world.daemons:
        daemon.file.settings.spoil()


def hup(world: World) -> None:
    """Ask for the configuration to be read again."""
    for daemon in world.daemons:
        daemon.listener.wake("config")


WRITERS = {
    "kubectl": Writer(manager="kubectl-annotate", time="", subresource=""),
    "by our name": Writer(manager="devwatch", time="", subresource=""),
    "applied": Writer(manager="devwatch", time="", operation="Apply"),
}
MEDDLING = {
    forge,
    fail,
    climate,
    refuse,
    undo,
    delete,
    create,
    foreign,
    annotate,
    zero,
    war,
    watch_late,
    watch_deaf,
    old_event,
}
HOMES = (
    ("zigbee",),
    ("zigbee", "nameless"),
    ("zigbee", "twin"),
    ("zigbee", "composite"),
    ("composite", "twin", "modem"),
)
PEOPLE = tuple(range(11))
"""Pods of this node."""
SOCKETS = ("socket-1", "socket-2", "socket-3")
BOOLEANS = (False, True)
INDEXES = (0, 1, 2, 3, 4)
FUNCTIONS: tuple[tuple[Callable[..., None], int, tuple[Sequence[Argument], ...]], ...] = (
    (nothing, 1, ()),
    *((furnish, 1, tuple((name,) for name in names)) for names in HOMES),
    (plug, 6, (tuple(KINDS), SOCKETS, (0, 1, 2), (True, True, True, False))),
    (pull, 5, (INDEXES,)),
    (replug, 5, (INDEXES, SOCKETS, (0, 1, 2), (0.0, 0.5, 1.9, 2.1, 4.5))),
    (apart, 2, ((0.0, 0.05, 0.5, 2.5),)),
    (bounce, 4, (INDEXES, (0, 1), (0.0, 0.5, 1.9, 2.1, 4.5, 8.0, 12.0))),
    (swap, 2, (INDEXES, ("zigbee", "nameless", "composite"), (0.0, 0.5, 2.5, 8.0))),
    (respell, 1, (INDEXES, (None, "Z1", "Z2"))),
    (finish, 2, ()),
    (relief, 5, ()),
    (hearing, 2, (tuple(how.value for how in Hearing),)),
    (overflow, 1, ()),
    (blind, 2, (BOOLEANS,)),
    (devnode, 3, (INDEXES, (0, 0, FILE, *GONE, *UNSURE))),
    (records, 1, (BOOLEANS,)),
    (step, 2, ((1, 2, 3, 5, 8),)),
    (freeze, 1, ((0.5, 3.0, 40.0),)),
    (kill, 3, ((0, 1), (0, 1, 2, 3, 5, 8))),
    (begin, 3, ()),
    (draw, 1, ((0.1, 0.5, 0.999),)),
    (fail, 4, (tuple(FAULTS), (1, 2, 3))),
    (climate, 1, ((*FAULTS, "answer lost", "answer lost"),)),
    (refuse, 1, ((ANNOTATION_PART, *NAMES),)),
    (undo, 1, ((ANNOTATION_PART, *NAMES),)),
    (delete, 1, ()),
    (create, 2, ()),
    (foreign, 3, ((*NAMES, STRANGER), (None, "0", "1", "3", "1k"), MAPS_CHOICES)),
    (annotate, 1, ((None, *TEXTS),)),
    (forge, 1, (("a resource", "a loss", "a number"), tuple(WRITERS))),
    (zero, 2, ()),
    (war, 1, ((3.0, 30.0),)),
    (watch, 2, (tuple(ENDS),)),
    (watches, 1, (tuple(ENDS),)),
    (streams, 1, (tuple(ENDS),)),
    (forbid, 1, ()),
    (watch_late, 1, ((0.0, 1.0, 8.0),)),
    (watch_deaf, 1, ()),
    (old_event, 2, (tuple(range(12)),)),
    (take, 1, (RIGHTS,)),
    (grant, 1, ()),
    (budget, 1, (tuple(template.name for template in TEMPLATES), (0, 1, 2))),
    (pods, 2, ()),
    (restart, 3, (PEOPLE, (0.0, 1.0, 5.0))),
    (forget_start, 1, (PEOPLE,)),
    (complete, 1, (PEOPLE,)),
    (terminate, 1, (PEOPLE,)),
    (remove, 1, (PEOPLE,)),
    (place, 1, (tuple(each.value for each in Placing),)),
    (leak, 1, (BOOLEANS,)),
    (configure, 3, (tuple(range(len(PLANS))),)),
    (spoil, 1, ()),
    (hup, 1, ()),
)
"""Each kind of move, how often it comes, and the choices of its arguments: first the simplest, to which a history is shrunk."""


@dataclass(frozen=True, slots=True)
class Move:
    """One thing that happens, and the seconds that pass after it."""

    function: Callable[..., None]
    arguments: tuple[Argument, ...] = ()
    then: float = 0.0

    def __repr__(self) -> str:
        """Write it as Python, to be tried again."""
        return f"Move({self.function.__name__}, {self.arguments}, {self.then})"

    def make(self, world: AnyWorld) -> None:
        """Let it happen."""
        world.meddled |= self.function in MEDDLING
        self.function(world, *self.arguments)
        world.wait(self.then)


Functions = tuple[tuple["Callable[..., None]", int, tuple["Sequence[Argument]", ...]], ...]


def moves(*favoured: Callable[..., None], functions: Functions = FUNCTIONS) -> st.SearchStrategy[Move]:
    """Return every move, as often as it is to come; those in favour come three times as often."""
    kinds = [
        st.builds(Move, st.just(function), st.sampled_from(tuple(product(*choices))), st.sampled_from(MOMENTS))
        for function, weight, choices in functions
        for _ in range(3 * weight if function in favoured else weight)
    ]
    return st.one_of(kinds)


SEED = int(os.environ.get("DEVWATCH_SEED", "0"))


def random_histories(
    number: int, *favoured: Callable[..., None], functions: Functions = FUNCTIONS, least: int = 10
) -> Callable[[Callable[[Sequence[Move]], None]], Callable[[], None]]:
    """Decorate a test that is to be kept by so many histories of `least` moves or more; `DEVWATCH_SEED` draws others."""
    drawn = st.lists(moves(*favoured, functions=functions), min_size=least, max_size=least + 20)
    conditions = settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),  # they are about the time that a history takes
    )
    return lambda test: seed(SEED)(conditions(given(drawn)(test)))


def play(world: AnyWorld, history: Sequence[Move]) -> list[tuple[Enum, str]]:
    """Let a history happen, end every fault, and return what was not promised so."""
    try:
        for move in history:
            move.make(world)
            if world.broken:
                return world.broken
        world.end()
        return world.broken
    finally:
        world.close()
