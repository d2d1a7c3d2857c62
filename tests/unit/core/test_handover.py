"""What the kubelet is offered and when, and which figures the Node shows meanwhile."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.handover import (
    FALL_LIMIT,
    UNREGISTERED_LIMIT,
    Handover,
    Offer,
    allocate,
    held_elsewhere,
    link_names,
    links_of,
    offer_of,
    ready_ids,
    variable_of,
)
from devwatch.core.listing import Entry
from devwatch.core.node import Amounts, NodePatch, NodeState
from devwatch.core.slots import Identity, Slot, SlotState
from support.build import ZIGBEE, device, rule

PRESENT, LINGERING, HELD = SlotState.PRESENT, SlotState.LINGERING, SlotState.HELD


def slot(name: str, state: SlotState = PRESENT, *devnodes: str) -> Slot:
    """Return a slot with these devnodes."""
    identity = Identity(vendor=None, product=None, serial=None, socket=name)
    return Slot(id=name, identity=identity, devices=tuple(map(device, devnodes)), state=state)


def offer(healthy: str = "", unhealthy: str = "") -> Offer:
    """Return a list in which every letter is an ID."""
    return Offer(healthy=frozenset(healthy), unhealthy=frozenset(unhealthy))


def amounts(capacity: int, allocatable: int | None = None) -> Amounts:
    """Return two figures, which are the same where only one is given."""
    return Amounts(capacity=capacity, allocatable=capacity if allocatable is None else allocatable)


def node(*figures: int) -> NodeState:
    """Return a Node that shows them."""
    return NodePatch(counts={ZIGBEE: amounts(*figures)}).applied(NodeState())


def registered(healthy: str = "", unhealthy: str = "", **fields: object) -> Handover:
    """Return a handover whose list the kubelet has taken over."""
    listed = offer(healthy, unhealthy)
    made = Handover(desired=listed, sent=listed, acked=listed, lost_at=0)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


# -- the list


def test_devices_that_can_be_used_are_healthy_and_lost_ones_that_are_held_are_not() -> None:
    """A device that lingers may be back in a moment, and the figure includes it."""
    slots = [slot("a"), slot("b", LINGERING), slot("c", HELD), slot("d")]
    assert offer_of(slots, {"a", "b", "c"}) == offer("ab", "c")


def test_the_figures_of_a_list_are_those_that_the_kubelet_computes() -> None:
    """Capacity counts all devices, allocatable the healthy ones (kubelet, `ManagerImpl.GetCapacity`)."""
    listed = offer("ab", "c")
    assert (listed.common(listed), listed.ids) == (amounts(3, 2), frozenset("abc"))
    assert listed.common(offer("ac", "b")) == amounts(3, 1)
    assert listed.common(Offer()) == amounts(0)


# -- a rise


def test_a_rise_is_list_acknowledgement_patch() -> None:
    """A pod that is bound before the acknowledgement is refused for good."""
    handover = Handover(desired=offer("a"), lost_at=0)
    assert handover.next_list(node(0), ZIGBEE, 1) == offer("a")
    assert handover.amounts(node(0), ZIGBEE, 1) == amounts(0)
    handover.sent = offer("a")
    assert handover.amounts(node(0), ZIGBEE, 1) == amounts(0)
    handover.acked = offer("a")
    assert handover.amounts(node(0), ZIGBEE, 1) == amounts(1)
    handover.desired = offer("ab")
    assert handover.next_list(node(1), ZIGBEE, 1) == offer("ab")
    handover.sent = offer("ab")
    assert handover.amounts(node(1), ZIGBEE, 1) == amounts(1)
    handover.acked = offer("ab")
    assert handover.amounts(node(1), ZIGBEE, 1) == amounts(2)
    assert handover.changes_at(1) is None


# -- a fall


@pytest.mark.parametrize(
    ("desired", "figures"),
    [(offer("a"), amounts(1)), (offer("a", "b"), amounts(2, 1)), (offer("ac"), amounts(1)), (offer(), amounts(0))],
)
def test_a_fall_is_patch_list(desired: Offer, figures: Amounts) -> None:
    """Also one that comes with a rise, and one that leaves an unhealthy device."""
    handover = registered("ab", desired=desired)
    assert handover.amounts(node(2), ZIGBEE, 10) == figures
    assert handover.next_list(node(2), ZIGBEE, 10) == offer("ab")
    shown = node(figures.capacity, figures.allocatable)
    assert handover.next_list(shown, ZIGBEE, 10.5) == desired


def test_a_fall_waits_for_its_patch_for_a_second_at_most() -> None:
    """An API server that does not answer must not let the kubelet hand out what is gone."""
    handover = registered("ab", desired=offer("a"))
    assert handover.next_list(node(2), ZIGBEE, 10) == offer("ab")
    assert handover.changes_at(10) == 10 + FALL_LIMIT
    assert handover.next_list(node(2), ZIGBEE, 10 + FALL_LIMIT - 0.01) == offer("ab")
    assert handover.next_list(node(2), ZIGBEE, 10 + FALL_LIMIT) == offer("a")
    assert handover.changes_at(10 + FALL_LIMIT) is None


def test_each_fall_has_its_own_second() -> None:
    """A device that came back in between begins another."""
    handover = registered("ab", desired=offer("a"))
    handover.next_list(node(2), ZIGBEE, 10)
    handover.desired = offer("ab")
    assert handover.next_list(node(2), ZIGBEE, 10.9) == offer("ab")
    assert handover.changes_at(10.9) is None
    handover.desired = offer("b")
    assert handover.next_list(node(2), ZIGBEE, 11.5) == offer("ab")


def test_a_fall_that_follows_a_forced_one_waits_for_its_own_patch() -> None:
    """The list that was sent without a patch ends the first."""
    handover = registered("abc", desired=offer("ab"))
    handover.next_list(node(3), ZIGBEE, 10)
    handover.record_sent(handover.next_list(node(3), ZIGBEE, 10 + FALL_LIMIT))
    handover.desired = offer("a")
    assert handover.next_list(node(3), ZIGBEE, 10 + FALL_LIMIT) == offer("ab")
    assert handover.changes_at(10 + FALL_LIMIT) == 10 + 2 * FALL_LIMIT


def test_a_fall_before_the_acknowledgement_is_patch_list_as_well() -> None:
    """The kubelet may have taken over the list that was sent, and the Node still shows the figure of the time before."""
    handover = Handover(desired=offer("a"), sent=offer("ab"), lost_at=9.5)
    assert handover.next_list(node(2), ZIGBEE, 10) == offer("ab")
    assert handover.changes_at(10) == 10 + FALL_LIMIT
    assert handover.amounts(node(2), ZIGBEE, 10) == amounts(1)
    assert handover.next_list(node(1), ZIGBEE, 10) == offer("a")


# -- not registered


@given(st.integers(0, 5), st.integers(0, 5), st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("efgh")))
def test_figures_are_never_raised_while_not_registered(capacity: int, free: int, good: set[str], bad: set[str]) -> None:
    """And nothing can be allocated after 2 s. The capacity is the kubelet's, of the last list that it had."""
    handover = Handover(desired=Offer(healthy=frozenset(good), unhealthy=frozenset(bad)), lost_at=5)
    observed = node(capacity, free)
    before, after = (handover.amounts(observed, ZIGBEE, 5 + UNREGISTERED_LIMIT - early) for early in (0.01, 0))
    assert before == amounts(capacity, min(free, len(good)))
    assert after == amounts(before.capacity, 0)
    assert handover.changes_at(5) == 5 + UNREGISTERED_LIMIT
    assert handover.changes_at(5 + UNREGISTERED_LIMIT) is None


def test_the_two_seconds_begin_with_the_end_of_the_registration() -> None:
    """The kubelet has started again, say: it is fast, and nothing falls."""
    handover = registered("a")
    handover.closed(100)
    assert (handover.registered, handover.sent, handover.lost_at) == (False, None, 100)
    assert handover.amounts(node(1), ZIGBEE, 100 + UNREGISTERED_LIMIT - 0.01) == amounts(1)
    assert handover.amounts(node(1), ZIGBEE, 100 + UNREGISTERED_LIMIT) == amounts(1, 0)


def test_a_stream_that_is_never_acknowledged_does_not_begin_them_anew() -> None:
    """A kubelet that ends every stream at once would otherwise keep what is allocatable forever."""
    handover = registered("a")
    handover.closed(100)
    for second in (101, 102, 103):
        handover.sent = offer("a")
        handover.closed(second)
    assert handover.amounts(node(1), ZIGBEE, 103) == amounts(1, 0)


def test_a_device_that_was_off_the_list_meanwhile_is_acknowledged_again() -> None:
    """The kubelet may not have come to the last list yet."""
    handover = registered("ab")
    handover.record_sent(offer("a"))
    handover.record_sent(offer("ab"))
    assert handover.amounts(node(1), ZIGBEE, 1) == amounts(1)
    assert handover.acked != handover.sent
    handover = registered("ab")
    handover.record_sent(offer("a", "b"))
    handover.record_sent(offer("ab"))
    assert handover.amounts(node(2, 1), ZIGBEE, 1) == amounts(2, 1)


def test_a_fall_ends_with_its_stream() -> None:
    """The next stream begins with the list that is desired then."""
    handover = registered("ab", desired=offer("a"))
    handover.next_list(node(2), ZIGBEE, 10)
    handover.closed(10.5)
    assert handover.next_list(node(2), ZIGBEE, 10.5) == offer("a")
    assert handover.changes_at(10.5) == 10.5 + UNREGISTERED_LIMIT


@pytest.mark.parametrize("reason", ["contested", "ending"])
def test_nothing_is_allocatable_while_another_plugin_lists_or_the_daemon_ends(reason: str) -> None:
    """The capacity stays: running holders are not touched."""
    assert registered("ab", "c", **{reason: True}).amounts(node(3, 2), ZIGBEE, 1) == amounts(3, 0)


def test_the_figures_of_another_plugin_are_overwritten_once_in_each_contest() -> None:
    """The kubelet writes them again at each of its updates: that would be a fight."""
    handover = registered("ab", contested=True)
    assert handover.amounts(node(5), ZIGBEE, 1) == amounts(5, 0)
    assert handover.amounts(node(5, 0), ZIGBEE, 1) == amounts(5, 0)
    assert handover.amounts(node(5), ZIGBEE, 1) == amounts(5, 5)
    handover.contested = False
    assert handover.amounts(node(5), ZIGBEE, 1) == amounts(2, 2)
    handover.contested = True
    assert handover.amounts(node(2), ZIGBEE, 1) == amounts(2, 0)


# -- any history

OFFERS = st.builds(
    lambda states: Offer(
        healthy=frozenset(name for name, state in states.items() if state),
        unhealthy=frozenset(name for name, state in states.items() if not state),
    ),
    st.dictionaries(st.sampled_from("abc"), st.booleans()),
)


@dataclass(slots=True)
class World:
    """A Node, a kubelet and the daemon between them; lists, acknowledgements and patches take as long as they like."""

    handover: Handover = field(default_factory=lambda: Handover(lost_at=0))
    observed: NodeState = field(default_factory=lambda: node(0))
    now: float = 0.0
    open: bool = True
    falls_since: float | None = None
    possible: list[Offer] = field(default_factory=list)
    """What the kubelet may go by: the list that it acknowledged last, and all that were sent since."""

    def cycle(self) -> None:
        """Run one cycle of the loop: the next list is sent at once, the Node is patched."""
        handover = self.handover
        if self.open:
            self._send(handover.next_list(self.observed, ZIGBEE, self.now))
        before, wanted = self.observed.amounts(ZIGBEE), handover.amounts(self.observed, ZIGBEE, self.now)
        if handover.acked is not None:
            assert all(wanted.allocatable <= len(each.healthy & handover.desired.healthy) for each in self.possible)
            assert all(wanted.capacity <= len(each.ids & handover.desired.ids) for each in self.possible)
        else:
            assert wanted.allocatable <= before.allocatable
            assert wanted.capacity <= before.capacity
        due = handover.changes_at(self.now)
        assert due is None or due > self.now

    def _send(self, listed: Offer) -> None:
        handover, sent = self.handover, self.handover.sent
        falling = sent is not None and not sent.healthy <= handover.desired.healthy
        self.falls_since = (self.now if self.falls_since is None else self.falls_since) if falling else None
        assert listed in (handover.desired, sent)
        if self.falls_since is not None:
            wanted = handover.amounts(self.observed, ZIGBEE, self.now)
            ready = self.observed.shows(ZIGBEE, wanted) or self.now >= self.falls_since + FALL_LIMIT
            assert (listed == handover.desired) is ready
        else:
            assert listed == handover.desired
        if listed != sent:
            handover.record_sent(listed)
            self.possible.append(listed)
        self.falls_since = None if listed == handover.desired else self.falls_since

    def patch(self) -> None:
        """Let the API server accept the figures."""
        wanted = self.handover.amounts(self.observed, ZIGBEE, self.now)
        self.observed = NodePatch(counts={ZIGBEE: wanted}).applied(self.observed)

    def step(self, action: object) -> None:
        """Let something happen."""
        handover = self.handover
        if isinstance(action, Offer):
            handover.desired = action
        elif isinstance(action, float):
            self.now += action
        elif action == "open":
            self.open = True
        elif action == "acknowledged":
            handover.acked = handover.sent
            self.possible = [handover.sent] if handover.sent else []
        elif action == "patched":
            self.patch()
        else:
            self.open, self.falls_since, self.possible = False, None, []
            handover.closed(self.now)


ACTIONS = st.lists(
    st.one_of(OFFERS, st.floats(0.01, 3), st.sampled_from(["open", "acknowledged", "patched", "closed"])),
    min_size=5,
    max_size=30,
)


@given(ACTIONS)
def test_in_any_history_nothing_is_promised_that_the_kubelet_has_not_taken_over(actions: list[object]) -> None:
    """And once nothing more happens, Node and kubelet have what is desired."""
    world = World()
    for action in actions:
        world.step(action)
        world.cycle()
    for action in ("open", FALL_LIMIT, "patched", FALL_LIMIT, "acknowledged", "patched"):
        world.step(action)
        world.cycle()
    desired = world.handover.desired
    assert world.handover.sent == desired
    assert world.observed.amounts(ZIGBEE) == desired.common(desired)


# -- what can be handed out


def ready(*slots: Slot, listed: str = "", waiting: str = "", held: str = "", linked: str = "") -> set[str]:
    """Return what can be handed out, where each of the `linked` letters has a link to the devnode of its slot."""
    links = {name: devnode for each in slots for name, devnode in link_names(each) if each.id in linked}
    bodies = [f"/devices/usb/{name}" for name in waiting.split()]
    return ready_ids(slots, listed=frozenset(listed), waiting=bodies, held=held, linked=links)


def test_a_present_device_is_handed_out_once_each_of_its_links_is_right() -> None:
    """A container would open another device, or none."""
    modem = slot("m", PRESENT, "ttyUSB0", "ttyUSB1")
    assert ready(modem, linked="m") == {"m"}
    assert ready(modem) == set()
    half = ready_ids([modem], listed=set(), waiting=(), held=(), linked={"m": "/dev/ttyUSB0"})
    assert half == set()
    assert ready(modem, listed="m") == set()


def test_a_new_device_waits_for_its_other_devnodes_and_for_the_pod_that_has_it() -> None:
    """One that is listed stays listed: a fall would fail the pods that are bound to it."""
    stick = slot("a", PRESENT, "ttyUSB0")
    assert ready(stick, linked="a", waiting="ttyUSB0") == set()
    assert ready(stick, linked="a", held="a") == set()
    assert ready(stick, linked="a", waiting="ttyUSB9", held="b") == {"a"}
    assert ready(stick, linked="a", waiting="ttyUSB0", held="a", listed="a") == {"a"}


def test_an_absent_device_stays_listed_also_one_that_only_a_former_daemon_has_listed() -> None:
    """One that was plugged in and pulled before it was listed is not handed out."""
    assert ready(slot("a", LINGERING, "ttyUSB0"), listed="a") == {"a"}
    assert ready(slot("a", LINGERING, "ttyUSB0")) == set()
    assert ready(slot("a", LINGERING), waiting="ttyUSB0") == {"a"}


def test_an_absent_device_keeps_the_names_of_its_links() -> None:
    """The kubelet may ask for it still: its container waits for these links."""
    modem = slot("m", PRESENT, "ttyUSB0", "ttyUSB1")
    assert links_of([modem, slot("a", LINGERING)], {"m": ("m",)}) == {"m": ("m", "m-1"), "a": ("a",)}
    assert links_of([slot("m", HELD)], {"m": ("m", "m-1")}) == {"m": ("m", "m-1")}


def test_an_absent_device_of_a_former_daemon_has_as_many_links_as_devnodes_were_listed() -> None:
    """The container that waits for it starts with all of its paths."""
    entries = tuple(Entry.of(device(name)) for name in ("ttyUSB0", "ttyUSB1"))
    assert links_of([replace(slot("m", LINGERING), entries=entries)], {}) == {"m": ("m", "m-1")}


def test_a_device_that_counts_waits_for_the_pod_that_may_have_it_under_another_name() -> None:
    """Within its grace too. A lost one is not offered, so it need not wait."""
    former = slot("z", HELD, "ttyUSB0")
    there, lingering, lost = (slot("a", state, "ttyUSB0") for state in (PRESENT, LINGERING, HELD))
    assert held_elsewhere([there, slot("b", PRESENT, "ttyUSB1")], [("x", former)]) == {"a": ("x", "z")}
    assert held_elsewhere([lingering], [("x", former)]) == {"a": ("x", "z")}
    assert held_elsewhere([lost], [("x", former)]) == {}


@pytest.mark.parametrize(
    ("serial", "socket", "twin", "waits"),
    [(None, "1", True, True), (None, "2", True, False), ("S", "2", False, True), ("S", "2", True, False)],
)
def test_what_a_former_daemon_has_listed_waits_for_the_pod_that_may_have_it_under_another_name(
    *, serial: str | None, socket: str, twin: bool, waits: bool
) -> None:
    """No scan has found it since. A serial names it in every socket, but not one of two twins."""
    identity = Identity(vendor="0658", product="0200", serial=serial, socket="1")
    former = replace(slot("z", HELD), identity=identity)
    now_is = replace(slot("a", LINGERING), identity=replace(identity, socket=socket), in_socket=twin)
    assert held_elsewhere([now_is], [("x", former)]) == ({"a": ("x", "z")} if waits else {})


def test_it_shows_whether_the_kubelet_can_tell_a_list_from_the_one_before() -> None:
    """The kubelet lists healthy devices alone: that a lost device has left the list cannot be seen there."""
    handover = Handover(lost_at=0)
    proofs = []
    for listed in (offer("a"), offer("", "a"), offer(), offer(), offer("b", "a"), offer("b")):
        handover.record_sent(listed)
        proofs.append(handover.provable)
    assert proofs == [True, True, False, True, True, False]


# -- in the container


def test_the_links_of_a_device_are_numbered_from_the_second_devnode_on() -> None:
    """In the order of the slot."""
    assert list(link_names(slot("a", PRESENT, "ttyUSB3", "ttyUSB1", "ttyUSB2"))) == [
        ("a", "/dev/ttyUSB3"),
        ("a-1", "/dev/ttyUSB1"),
        ("a-2", "/dev/ttyUSB2"),
    ]
    assert list(link_names(slot("a", HELD))) == []


def test_the_first_devnode_is_at_the_path_and_further_ones_are_numbered_over_all_devices() -> None:
    """Devices in the order of their IDs, whatever the order in which the kubelet names them."""
    links = {"b": ("b", "b-1"), "a": ("a",), "c": ("c",)}
    found = allocate(rule("nortek.com/zig-bee"), ["b", "a"], links)
    assert list(found.paths.items()) == [("/dev/zig-bee", "a"), ("/dev/zig-bee1", "b"), ("/dev/zig-bee2", "b-1")]
    assert found.variables == {"DEVICE_NORTEK_COM_ZIG_BEE": "/dev/zig-bee,/dev/zig-bee1,/dev/zig-bee2"}
    elsewhere = allocate(replace(rule(), container="/dev/serial/z"), ["c"], links)
    assert (elsewhere.paths, *elsewhere.variables.values()) == ({"/dev/serial/z": "c"}, "/dev/serial/z")


def test_an_id_that_was_never_listed_is_refused_by_name() -> None:
    """None of the others is handed out then."""
    with pytest.raises(KeyError, match=r"^'x'$"):
        allocate(rule(), ["a", "x"], {"a": ("a",)})


@given(st.dictionaries(st.text("abc-1", min_size=1), st.integers(1, 3), min_size=1, max_size=4))
def test_each_link_has_one_path_and_the_variable_has_them_all(devices: dict[str, int]) -> None:
    """In the same order for every order of the IDs."""
    links = {name: tuple(f"{name}/{number}" for number in range(count)) for name, count in devices.items()}
    first, second = (allocate(rule(), ids, links) for ids in (list(devices), list(reversed(devices))))
    assert first == second
    assert sorted(first.paths.values()) == sorted(sum(links.values(), ()))
    assert first.variables == {variable_of(ZIGBEE): ",".join(first.paths)}


@given(
    st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,9}[a-z0-9])?/[A-Za-z0-9]([-_.A-Za-z0-9]{0,9}[A-Za-z0-9])?", fullmatch=True)
)
def test_a_variable_is_a_name_that_every_shell_takes(name: str) -> None:
    """Whatever the name of the resource."""
    assert re.fullmatch(r"DEVICE_[A-Z0-9_]+", variable_of(name))
    assert len(variable_of(name)) == len("DEVICE_") + len(name)


def test_the_variable_of_a_resource_is_its_name_in_capitals() -> None:
    """As the contract says."""
    assert variable_of("nortek.com/zigbee") == "DEVICE_NORTEK_COM_ZIGBEE"


def test_a_lost_device_can_be_allocated_until_the_kubelet_has_the_list_without_it() -> None:
    """That is the cut: who holds it then has held it before."""
    handover, without = registered("ab", confirmed=True), offer("a", "b")
    assert handover.can_allocate(frozenset("b"))
    handover.record_sent(without)
    assert handover.can_allocate(frozenset("b"))
    handover.record_taken(without)
    assert not handover.can_allocate(frozenset("b"))
    handover.closed(1)
    assert not handover.can_allocate(frozenset("a"))
    handover.record_sent(without)
    assert handover.can_allocate(frozenset("b")), (
        "whether the kubelet has taken over anything of this stream is unknown"
    )
