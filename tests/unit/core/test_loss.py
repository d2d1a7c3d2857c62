"""Which of the listed devices are lost, since when, and what the annotation goes on listing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from devwatch.core.incidents import Incidents
from devwatch.core.inventory import Inventory
from devwatch.core.listing import MAX_LINKS, Entry
from devwatch.core.loss import Losses
from devwatch.core.matching import match_remembered, match_replugged
from devwatch.core.node import NodeState
from devwatch.core.paths import Paths
from devwatch.core.plan import Figure, Figures
from devwatch.core.rules import Claim
from devwatch.core.scene import Scene
from support.build import ZIGBEE, device, rule, scan

if TYPE_CHECKING:
    from devwatch.core.device import Device
    from devwatch.core.incidents import Loss

USB0 = device("ttyUSB0", serial="S0")
USB1 = device("ttyUSB1", serial="S1")
E0, E1 = Entry.of(USB0), Entry.of(USB1)
TWIN_OF_1 = Entry.of(device("ttyUSB0", serial="S1"))
TWIN0, TWIN1 = device("ttyUSB0"), device("ttyUSB1")
RULES = (rule(evict_after=30.0, removal_grace=0.0),)


@pytest.mark.parametrize(
    ("listed", "here", "lost"),
    [
        ([], [USB0], []),
        ([E0], [USB0], []),
        ([E0], [], [E0]),
        ([E0, E1], [USB1], [E0]),
        ([E0], [device("ttyUSB0", serial="other")], [E0]),
        ([E0], [device("ttyUSB0", serial="other", properties=None)], []),
        # Vendor and product are the stick's own word, whatever udev has yet to say.
        ([E0], [device("ttyUSB0", vendor="0403", properties=None)], [E0]),
        ([E0], [device("ttyUSB0")], []),
        ([Entry(devnode="/dev/ttyUSB0")], [USB0], []),
        ([E0], [device("ttyACM7", serial="S0")], []),
        ([E0, E1], [device("ttyUSB0", serial="S1"), device("ttyUSB1", serial="S0")], []),
        ([E0, E1], [device("ttyUSB0", serial="S1")], [E0]),
        ([Entry.of(TWIN0), Entry.of(TWIN1)], [TWIN1], [Entry.of(TWIN0)]),
        ([Entry.of(TWIN0), Entry.of(TWIN1)], [device("ttyUSB5")], [Entry.of(TWIN1)]),
        ([Entry.of(TWIN0)], [TWIN1], []),
        ([E0, Entry.of(TWIN0), Entry.of(TWIN1)], [device("ttyUSB0", serial="X")], [E0, Entry.of(TWIN1)]),
        ([E0, TWIN_OF_1, E1], [device("ttyUSB0", serial="S1")], [E0, E1]),
        # Without a serial it may be the one at its place, and is the one that moved: then the other has moved too.
        ([Entry.of(TWIN0), E1], [device("ttyUSB0", serial="S1"), device("ttyUSB2")], []),
        # Who has all the ids of one is not the other of which only a part is told.
        ([Entry.of(TWIN0), E1], [device("ttyUSB0", serial="S1")], [Entry.of(TWIN0)]),
        ([E0, Entry.of(TWIN1)], [device("ttyUSB0")], [E0]),
    ],
)
def test_lost_is_what_is_neither_at_its_place_nor_found_elsewhere(
    listed: list[Entry], here: list[Device], lost: list[Entry]
) -> None:
    """A device with unknown ids may be the listed one; a listed one that is at its place is no other that moved."""
    found = match_replugged(dict.fromkeys(listed, frozenset()), here)
    assert [entry for entry in listed if entry not in found] == lost


def test_without_records_the_twin_at_its_place_is_the_one_that_stayed() -> None:
    """Where nobody writes records, what the resource has is known well enough."""
    bare = [device(f"ttyUSB{number}", properties=None) for number in (0, 1)]
    listed = [Entry.of(twin) for twin in bare]
    found = match_replugged(dict.fromkeys(listed, frozenset()), bare[1:], {bare[1].key})
    assert found == {listed[1]: bare[1]}


def test_of_those_that_are_alike_the_one_that_the_resource_has_stands_in() -> None:
    """Two interfaces of one stick have the same ids; the other one may go without taking it along."""
    here = [device(f"ttyUSB{number}", properties=None) for number in (0, 1)]
    found = match_replugged({Entry.of(device("ttyUSB2")): frozenset()}, here, {here[1].key})
    assert list(found.values()) == [here[1]]


def test_of_twins_the_one_that_can_be_no_other_gets_the_place_that_is_left() -> None:
    """Two came back under other names, and one of those was there beside the second: that one is the first."""
    first, second = Entry.of(TWIN0), Entry.of(TWIN1)
    here = [device("ttyUSB5"), device("ttyUSB6")]
    assert match_replugged({first: frozenset(), second: {here[1].key}}, here) == {first: here[1], second: here[0]}
    assert match_replugged({first: frozenset(), second: {here[0].key}}, here) == {first: here[0], second: here[1]}


def test_of_twins_the_one_in_the_socket_is_the_one_that_had_it() -> None:
    """Names follow the order of plugging, and another may take them."""
    socket = "/dev/serial/by-path/2"
    first = Entry.of(TWIN0)
    second = replace(Entry.of(TWIN1), links=(socket,))
    here = [device("ttyUSB0", links=(socket,))]
    assert match_replugged({first: frozenset(), second: frozenset()}, here) == {second: here[0]}
    assert match_replugged({first: frozenset(), second: {here[0].key}}, here) == {first: here[0]}


@pytest.mark.parametrize(("serial", "found"), [(None, True), ("S0", True), ("S1", False)])
def test_what_udev_has_not_read_yet_may_be_the_listed_one(serial: str | None, found: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """A rule of udev may give it another serial than its own, or none; what says that it is another is not it."""
    here = [device("ttyUSB7", serial="S0", properties=None)]
    assert bool(match_replugged({Entry.of(device("ttyUSB0", serial=serial)): frozenset()}, here)) is found


@pytest.mark.no_cover
@pytest.mark.parametrize(("before", "after"), [(512, 256), (1200, 1200)])
def test_hundreds_of_twins_find_their_places_again(before: int, after: int) -> None:
    """A hub that resets renames them all. Each takes a free place: that it sent all others on would be a recursion too deep."""
    listed = [Entry.of(device(f"ttyUSB{number}")) for number in range(before)]
    here = [device(f"ttyACM{number}") for number in range(after)]
    found = match_replugged(dict.fromkeys(listed, frozenset()), here)
    assert found.keys() == set(listed[:after])
    assert set(found.values()) == set(here)


LOST_AT = "2026-01-01T00:00:00Z"


class Story:
    """A resource over time; each PATCH is sent and accepted at once."""

    def __init__(self, *listed: Entry, lost: bool = True) -> None:
        """Start with what the annotation lists, by default as lost."""
        self.losses, self.inventory, self.figures = Losses(), Inventory(), Figures()
        self.waiting = False
        """Whether no PATCH is sent."""
        self.losses.start({ZIGBEE: tuple(replace(entry, lost=LOST_AT if lost else None) for entry in listed)})

    def incidents(
        self,
        now: float,
        *devices: Device,
        shown: int | None = None,
        doubts: tuple[str, ...] = (),
        doubtful: tuple[Device, ...] = (),
        foreign: tuple[Device, ...] = (),
        **fields: object,
    ) -> Incidents:
        """Return what a scan that finds these devices comes to while the Node shows their number, or `shown`.

        The resource has them all, unless `fields` say otherwise; of `doubtful` ones it is unknown, `foreign` ones another resource has.
        """
        self.inventory.observe(scan(*devices, at=now, doubts=doubts))
        present = len(self.inventory.present)
        own = {"present": present, "advertised": present, "devices": self.inventory.present, **fields}
        everything = (*self.inventory.present, *self.inventory.pending)
        claims = {device: Claim(doubtful=frozenset({ZIGBEE} if device in doubtful else ())) for device in everything}
        claims |= {device: Claim(owner="example.com/other") for device in foreign}
        self.figures = Figures(by_name={ZIGBEE: Figure(**own)}, claims=claims)  # type: ignore[arg-type]  # the fields of a Figure
        count = {ZIGBEE: str(present if shown is None else shown)}
        observed = NodeState(capacity=count, allocatable=count)
        scene = Scene(figures=self.figures, inventory=self.inventory, observed=observed, now=now, date=LOST_AT)
        self.losses.update(RULES, scene)
        if not self.waiting:
            self.losses.send()
        return self.losses.update(RULES, scene)

    def turn(self, now: float, *devices: Device, **fields: object) -> Loss | None:
        """Return the first loss."""
        return next(iter(self.incidents(now, *devices, **fields).losses), None)  # type: ignore[arg-type]  # as above

    def gone(self) -> list[str]:
        """Return the devnodes that the annotation lists though the resource does not have them."""
        have = {device.devnode for device in self.figures.by_name[ZIGBEE].devices}
        listed = self.losses.listing(self.figures)[ZIGBEE]
        return [entry.devnode for entry in listed if entry.devnode not in have]


def devnodes(loss: Loss | None) -> list[str]:
    """Return the devnodes of what is lost."""
    return [] if loss is None else [entry.devnode for entry in loss.entries]


def test_a_loss_begins_when_the_node_shows_the_count_without_the_device() -> None:
    """The annotation lists the device before, and until the loss is settled."""
    story = Story()
    assert story.turn(0, USB0) is None
    assert story.gone() == []
    assert story.turn(10, shown=1) is None
    assert story.gone() == [E0.devnode]
    loss = story.turn(20)
    assert loss is not None
    assert (devnodes(loss), loss.left, loss.since, loss.due) == ([E0.devnode], 0, 20, 50)
    assert story.turn(30) == loss
    story.losses.settle(loss)
    assert story.gone() == []
    assert story.turn(60) is None


@pytest.mark.parametrize("fields", [{"held": True}, {"advertised": 1}, {"shown": 1}, {"doubts": ("masked",)}])
def test_while_anything_is_open_there_is_no_loss_and_its_time_runs_on(fields: dict[str, object]) -> None:
    """Nobody is evicted in doubt, and a doubt about something else gives no respite."""
    story = Story(E0)
    first = story.turn(0)
    assert first is not None
    assert story.turn(10, **fields) is None
    assert story.gone() == [E0.devnode]
    assert story.turn(20) == first


def test_a_patch_that_is_sent_in_doubt_tells_of_no_loss() -> None:
    """No count falls then, though another device may have taken the place of the lost one; and the server has answered since."""
    story = Story()
    story.turn(0, USB0)
    story.waiting = True

    def lost(*others: Device, doubts: tuple[str, ...] = ()) -> set[str | None]:
        own = {"present": 1, "advertised": 1, "devices": (USB1,), "shown": 1}
        story.incidents(10, USB1, *others, doubts=doubts, **own)  # type: ignore[arg-type]  # as in `turn`
        return {entry.lost for entry in story.losses.listing(story.figures)[ZIGBEE] if entry.devnode == USB0.devnode}

    assert lost() == {LOST_AT}
    assert lost(doubts=("masked",)) == {None}
    assert lost() == {LOST_AT}
    assert lost(device("ttyUSB0", vendor=None, properties=None)) == {None}, "it may be the lost one"
    assert lost() == {LOST_AT}


def test_a_device_that_comes_back_has_all_its_time_again() -> None:
    """The next loss is another one."""
    story = Story(E0)
    story.turn(0)
    assert story.turn(10, USB0) is None
    loss = story.turn(20)
    assert loss is not None
    assert loss.since == 20


def test_a_device_that_nobody_knows_yet_at_the_place_of_the_lost_one_keeps_it_listed() -> None:
    """It may be the lost one; if it is another, the loss and its time go on."""
    story = Story(E0)
    first = story.turn(0)
    stranger = device("ttyUSB0", vendor=None, properties=None)
    assert story.turn(10, stranger, present=0, advertised=0, devices=(), shown=0) is None
    assert story.gone() == [E0.devnode]
    known = device("ttyUSB0", vendor="0403")
    assert story.turn(11, known, present=0, advertised=0, devices=(), shown=0) == first


def test_a_device_that_goes_before_anybody_knows_it_may_have_been_the_lost_one() -> None:
    """Then that was there in between, and the time runs again."""
    story = Story(E0)
    first = story.turn(0)
    assert first is not None
    stranger = device("ttyUSB0", vendor=None, properties=None)
    assert story.turn(10, stranger, present=0, advertised=0, devices=(), shown=0) is None
    again = story.turn(11)
    assert again is not None
    assert (again.since, again.there) == (11, first.there)


def test_a_stick_that_moved_while_another_took_its_name_is_not_lost() -> None:
    """On a hub that starts anew the names are dealt again, and udev is still at work on the one that has the old name now."""
    story = Story(E0)
    moved, stranger = device("ttyUSB4", serial="S0"), device("ttyUSB0", vendor="0403", properties=None)
    own = {"present": 1, "advertised": 1, "devices": (moved,), "shown": 1}
    assert story.turn(0, moved, stranger, **own) is None
    assert story.turn(1, moved, device("ttyUSB0", vendor="0403"), **own) is None
    assert story.gone() == []


def test_without_records_an_interface_that_changed_its_name_is_not_lost() -> None:
    """The other interface of the same stick has the old name, and nobody will ever know more of it."""
    bare = [device(f"ttyUSB{number}", serial="S0", properties=None) for number in (0, 1, 2)]
    story = Story(Entry.of(bare[1]))
    both = {"present": 1, "advertised": 1, "devices": (bare[2],), "shown": 1}
    assert story.turn(0, bare[1], bare[2], **both) is None
    assert story.turn(1, bare[2], **both) is None


def test_a_stick_whose_record_is_rewritten_is_not_lost() -> None:
    """A new rule gives it another serial: the kernel has not registered anything else, so that it never left."""
    story = Story()
    story.turn(0, USB0)
    renamed = device("ttyUSB0", serial="named by a rule")
    assert story.turn(1, renamed) is None
    assert story.gone() == []
    loss = story.turn(2)
    assert loss is not None
    assert [entry.serial for entry in loss.entries] == ["named by a rule"]


NONE = {"present": 0, "advertised": 0, "devices": (), "shown": 0}


def test_a_twin_that_was_there_all_along_stands_for_nobody() -> None:
    """It is another one, whoever has it; a twin that comes later may be the lost one in another socket."""
    story = Story()
    story.turn(0, TWIN0, TWIN1, present=1, advertised=1, devices=(TWIN0,), shown=1)
    loss = story.turn(1, TWIN1, **NONE)
    assert loss is not None
    assert devnodes(loss) == [TWIN0.devnode]
    assert story.turn(2, TWIN1, device("ttyUSB2"), **NONE) is None


def test_what_was_there_with_other_ids_may_be_the_lost_stick_now() -> None:
    """A registration that udev gives the ids of a stick was none of its twins before."""
    story, console = Story(), device("ttyUSB1", vendor=None, product=None)
    story.turn(0, USB0, console, present=1, advertised=1, devices=(USB0,), shown=1)
    assert story.turn(1, device("ttyUSB1", serial="S0")) is None


def test_of_twins_that_were_listed_before_the_start_the_one_that_is_gone_stays_lost() -> None:
    """The other one is at its place, and stands for itself alone, at every look."""
    story = Story(Entry.of(TWIN0), Entry.of(TWIN1))
    first = story.turn(0, TWIN1)
    assert first is not None
    assert devnodes(first) == [TWIN0.devnode]
    assert story.turn(1, TWIN1) == first


def test_a_stick_at_its_place_is_no_other_that_only_looks_like_it() -> None:
    """A twin that udev is still at work on comes and goes beside it, and takes nothing along."""
    story, twin = Story(Entry.of(TWIN0)), device("ttyUSB5", properties=None)
    one = {"present": 1, "advertised": 1, "devices": (TWIN0,), "shown": 1}
    assert story.turn(0, TWIN0, twin, **one) is None
    assert story.turn(1, TWIN0, **one) is None


def test_who_says_nothing_of_itself_is_found_nowhere_else() -> None:
    """Every virtual console has no ids either."""
    port, console = device("ttyS0", vendor=None, product=None), device("tty1", vendor=None, product=None)
    story = Story(Entry.of(port))
    story.turn(0, port, console, present=1, advertised=1, devices=(port,), shown=1)
    loss = story.turn(1, console, **NONE)
    assert loss is not None
    assert Story(Entry.of(port)).turn(0, console, **NONE) is not None


@pytest.mark.parametrize("waiting", [True, False], ids=["udev is at work", "another resource may have it"])
def test_a_contact_that_bounces_hides_no_loss(waiting: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """Pulled, the stick is registered once more under another name, for a moment: as long as that is open, it stays listed."""
    story = Story(E0)
    story.turn(0, USB0)
    bounce = device("ttyUSB1", serial="S0", properties=None if waiting else {})
    doubtful = () if waiting else (bounce,)
    assert story.turn(1, bounce, doubtful=doubtful, **NONE) is None
    assert story.gone() == [E0.devnode]
    loss = story.turn(2)
    assert loss is not None
    assert devnodes(loss) == [E0.devnode]


def test_a_resource_that_may_have_its_stick_again_still_loses_it() -> None:
    """While the record is missing nobody can tell whose the stick is; pulled then, it is lost all the same."""
    story = Story()
    story.turn(0, USB0)
    assert story.turn(1, USB0, doubtful=(USB0,), **NONE) is None
    loss = story.turn(2)
    assert loss is not None
    assert devnodes(loss) == [E0.devnode]


def test_a_stick_of_another_resource_hides_no_loss_while_its_record_is_missing() -> None:
    """It may have the devnode of the lost one, and no serial yet."""
    story = Story()
    story.turn(0, USB0)
    other = device("ttyUSB0", properties=None, incarnation=99, links_known=False)
    assert devnodes(story.turn(1, other, foreign=(other,), **NONE)) == [E0.devnode]


def test_a_stick_that_its_resource_no_longer_matches_is_not_lost_when_it_is_pulled() -> None:
    """It was given up before."""
    story = Story()
    story.turn(0, USB0)
    assert story.turn(1, USB0, **NONE) is None
    assert story.turn(2) is None


def test_what_is_lost_later_counts_as_left_until_its_own_time_has_come() -> None:
    """Each has its own time; when the later one is due too, nothing is left."""
    story = Story(E0, E1)
    story.turn(0, USB1)
    (early,) = story.incidents(20).losses[:1]
    assert (devnodes(early), early.left, early.due) == ([E0.devnode], 1, 30)
    first, second = story.incidents(50).losses
    assert (devnodes(first), first.left, first.due) == ([E0.devnode], 0, 30)
    assert (devnodes(second), second.left, second.due) == ([E1.devnode], 0, 50)
    story.losses.settle(first)
    (rest,) = story.incidents(51).losses
    assert (devnodes(rest), rest.due) == ([E1.devnode], 50)


def test_what_one_patch_stopped_counting_is_one_loss() -> None:
    """Of two on a hub nothing is left."""
    story = Story()
    story.turn(0, USB0, USB1)
    loss = story.turn(1)
    assert loss is not None
    assert (devnodes(loss), loss.left) == ([E0.devnode, E1.devnode], 0)


def test_a_loss_stays_as_it_was_when_its_victims_were_chosen_unless_a_device_returns() -> None:
    """What is plugged later is of no use to them."""
    story = Story()
    story.turn(0, USB0, USB1)
    loss = story.turn(1)
    assert loss is not None
    assert story.losses.choose(loss, {"a"}) == {"a"}
    stranger = device("ttyUSB7", serial="S7")
    chosen = story.turn(2, stranger)
    assert chosen is not None
    assert (chosen.left, chosen.victims) == (0, frozenset({"a"}))
    assert story.losses.choose(chosen, {"a", "late"}) == {"a"}
    returned = story.turn(3, stranger, USB1)
    assert returned is not None
    assert (devnodes(returned), returned.left, returned.victims) == ([E0.devnode], 2, frozenset({"a"}))


def test_before_the_first_observation_nothing_is_listed_and_nothing_is_lost() -> None:
    """A stick that was moved meanwhile is found to be the listed one."""
    story = Story()
    story.inventory.observe(scan(USB0))
    scene = Scene(figures=Figures(), inventory=story.inventory, observed=None, now=0)
    assert story.losses.update(RULES, scene) == Incidents()
    story.losses.start({ZIGBEE: (Entry.of(device("ttyUSB9", serial="S0")),)})
    assert story.turn(1, USB0) is None


def test_a_resource_that_evicts_no_more_forgets_what_it_lost() -> None:
    """And the annotation lists only what is there."""
    story = Story(E0)
    loss = story.turn(0)
    assert loss is not None
    scene = Scene(figures=Figures(), inventory=story.inventory, observed=NodeState(), now=1)
    assert story.losses.update((rule(),), scene) == Incidents()
    story.losses.settle(loss)  # its pods were being listed meanwhile
    assert story.losses.listing(story.figures) == {}
    assert story.turn(2) is None


# -- what a former daemon listed


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (Entry.of(USB0), True),
        (Entry.of(device("ttyUSB0", serial="other")), True),
        (Entry.of(device("ttyUSB0", vendor="0403", serial="S0")), False),
        (Entry.of(device("ttyUSB9", serial="S9")), False),
        (Entry(devnode="/dev/ttyUSB9", vendor=USB0.vendor, product=USB0.product, link="/dev/zigbee"), True),
        (Entry(devnode="/dev/ttyUSB9", vendor=USB0.vendor, product=USB0.product, links=("/dev/by-path",)), True),
        (Entry(devnode="/dev/ttyUSB9", vendor="0403", product=USB0.product, link="/dev/zigbee"), False),
    ],
)
def test_a_listed_device_is_the_one_to_which_its_devnode_or_a_link_leads(entry: Entry, found: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """With the same vendor and product; what its serial reads does not count."""
    here = device("ttyUSB0", serial="S0", links=("/dev/zigbee", "/dev/by-path"))
    assert (entry in match_remembered({entry: frozenset()}, (here,))) is found


def test_before_the_first_certain_scan_the_annotation_lists_what_it_did() -> None:
    """Of a resource whose devices were not seen yet nothing better is known."""
    story = Story(E0)
    assert story.incidents(0, doubts=("masked",)) == Incidents()
    assert story.losses.listing(story.figures) == {}


def test_a_listed_stick_that_another_resource_has_is_not_lost_also_where_no_certain_scan_has_found_it() -> None:
    """It was given up before it was pulled."""
    story = Story(E0)
    assert story.turn(0, USB0, doubts=("masked",), foreign=(USB0,), **NONE) is None
    assert story.turn(1) is None
    kept = Story(E0)
    assert kept.turn(0, USB0, doubts=("masked",)) is None
    assert devnodes(kept.turn(1)) == [E0.devnode]


BY_ID = "/dev/serial/by-id/usb-S0-if00"


@pytest.mark.parametrize(
    ("links", "shared", "lost"),
    [
        ((BY_ID,), (), True),
        ((BY_ID,), ("/dev/stick",), True),
        ((BY_ID,), ("/dev/part1",), False),
        ((), (), False),
        ((), (BY_ID,), False),
        (("/dev/serial/by-path/0", "/dev/stick"), (), False),
        ((BY_ID, *(f"/dev/{number}" for number in range(MAX_LINKS - 1))), (), False),
        ((BY_ID,), tuple(f"/dev/{number}" for number in range(MAX_LINKS - 1)), False),
    ],
    ids=[
        "by ID",
        "and a shared one",
        "which the other has",
        "none",
        "a twin has its ID",
        "of the socket",
        "maybe cut",
        "the shared maybe cut",
    ],
)
def test_a_listed_part_is_lost_though_another_resource_has_the_other_part(
    links: tuple[str, ...],
    shared: tuple[str, ...],
    lost: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    """They have the same ids; the links of both tell, where all are listed and one of them names the part in every socket."""
    part, other = replace(E0, links=links, shared=shared), device("ttyUSB1", serial="S0", links=("/dev/part1",))
    assert (Story(part).turn(0, other, foreign=(other,), **NONE) is not None) is lost


@pytest.mark.parametrize("foreign", [True, False], ids=["of another resource", "of none"])
def test_a_listed_stick_that_cannot_be_looked_at_is_lost_though_another_of_its_kind_was_there(foreign: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """It is not forgotten for one that has none of its paths: that may be its twin, or another part."""
    story, twin = Story(E0), device("ttyUSB1", serial="S0")
    assert story.turn(0, twin, doubts=("masked",), foreign=(twin,) if foreign else (), **NONE) is None
    assert devnodes(story.turn(1)) == [E0.devnode]


def test_a_listed_stick_is_not_lost_while_a_stick_of_its_kind_is_at_its_devnode_whatever_has_it() -> None:
    """Its links may be others since udev's rules have changed."""
    moved = device("ttyUSB0", serial="S0", links=("/dev/serial/by-id/renamed",))
    assert Story(replace(E0, links=(BY_ID,))).turn(0, moved, foreign=(moved,), **NONE) is None


def test_what_was_no_longer_counted_at_the_start_without_a_time_is_forgotten() -> None:
    """Who came since cannot be told; what is still counted is ours to count out, with a time."""
    forgotten, counted = Story(E0, lost=False), Story(E0, lost=False)
    assert forgotten.turn(0) is None
    assert forgotten.gone() == []
    assert counted.turn(0, present=0, advertised=1, shown=1) is None
    assert counted.gone() == [E0.devnode]
    loss = counted.turn(10)
    assert loss is not None
    assert loss.lost == LOST_AT


# -- paths


def test_what_an_uncertain_scan_misses_shares_no_path_with_what_is_in_its_socket_since() -> None:
    """It is gone then; whether another one is gone as well, that scan cannot say."""
    paths, links = Paths(), ("/dev/serial/by-id/S", "/dev/serial/by-path/1")
    first, again, twin = (device(name, links=links) for name in ("ttyUSB0", "ttyUSB1", "ttyUSB2"))
    paths.observe((first,))
    for listed in ((again,), (), (again,)):
        paths.observe(listed, certain=False)
        assert paths.own(again.key) == {"/dev/ttyUSB1", *links}
    paths.observe((replace(twin, links=links[:1]),), certain=False)
    assert paths.own(twin.key) == {"/dev/ttyUSB2"}


def test_a_path_that_two_devices_had_at_the_same_time_is_no_longer_of_one() -> None:
    """Also when it led to the one first and to the other then; one that another had later is."""
    paths, shared, own = Paths(), "/dev/serial/by-id/twin", "/dev/serial/by-path/1"
    first, second = device("ttyUSB0", links=(shared, own)), device("ttyUSB1", links=(shared,))
    paths.observe((first,))
    assert paths.own(first.key) == {"/dev/ttyUSB0", shared, own}
    paths.observe((device("ttyUSB0", links=(own,)), second))
    assert paths.own(first.key) == {"/dev/ttyUSB0", own}
    assert paths.shared(second.key) == {shared}
    assert paths.by_device[second.key] == {"/dev/ttyUSB1", shared}
    paths.observe((first,))
    assert paths.own(first.key) == {"/dev/ttyUSB0", own}
    paths.observe(())
    third = device("ttyUSB2", links=(own,))
    paths.observe((third,))
    assert paths.own(third.key) == {"/dev/ttyUSB2", own}


def test_a_device_that_an_uncertain_scan_did_not_find_shares_its_paths_all_the_same() -> None:
    """It may have been there beside the one that was plugged meanwhile."""
    paths, link = Paths(), "/dev/zigbee"
    first, second = device("ttyUSB0", links=(link,)), device("ttyUSB1", links=(link,))
    paths.observe((first,))
    paths.observe((second,), certain=False)
    assert paths.own(first.key) == {"/dev/ttyUSB0"}
    paths.observe((second,))
    assert paths.own(second.key) == {"/dev/ttyUSB1"}


# -- who was there


def test_the_pods_are_listed_at_a_departure_and_before_the_end_of_its_grace() -> None:
    """And at a bouncing contact not more often than once a second."""
    story, slow = Story(), (rule(evict_after=30.0, removal_grace=5.0),)

    def cycle(now: float, *devices: Device) -> None:
        story.inventory.observe(scan(*devices, at=now))
        figure = Figure(present=len(devices), advertised=1, devices=story.inventory.present)
        claims = dict.fromkeys(devices, Claim())
        figures = Figures(by_name={ZIGBEE: figure}, claims=claims)
        story.losses.update(slow, Scene(figures=figures, inventory=story.inventory, observed=NodeState(), now=now))

    cycle(0, USB0)
    assert story.losses.pod_list_due is None
    cycle(10)
    assert story.losses.pod_list_due == 10
    story.losses.note_pod_list(10)
    assert story.losses.pod_list_due == 14.5
    cycle(10.1, USB0)
    assert story.losses.pod_list_due is None
    cycle(10.2)
    assert story.losses.pod_list_due == 11
    story.losses.note_pod_list(11)
    assert story.losses.pod_list_due == 14.7
    story.losses.note_pod_list(14.7)
    assert story.losses.pod_list_due is None


# -- a stick that a virtual console plays keeps its registration


def test_a_device_that_returns_under_its_own_registration_is_not_lost() -> None:
    """Also where the kernel has never removed it: udev has handled it again, under the number that it had."""
    story = Story()
    before, after = (device("ttyUSB0", serial="S0", properties={"USEC_INITIALIZED": f"{at}000000"}) for at in (1, 11))
    story.incidents(2, before)
    story.incidents(10)
    (back,) = story.incidents(12, after).returns
    assert [each.number for each in back.registrations] == [1, 1]
    assert story.turn(100, after) is None
    assert story.gone() == []


def test_a_cut_link_is_not_taken_for_another_with_the_same_beginning() -> None:
    """Links of 200 characters that differ at their end stay different in the annotation."""
    one, other = (device(name, links=("/dev/" + "x" * 190 + name,)) for name in ("ttyUSB0", "ttyUSB1"))
    assert match_remembered({Entry.of(one): frozenset()}, [other]) == {}


def test_a_twin_that_udev_has_not_read_takes_nobodys_place() -> None:
    """The other twin is where it was; of the one without a record that is not known yet, and it is where it was as well."""
    read = device("ttyUSB3", serial="S", links=("/dev/serial/by-path/3",))
    unread = device("ttyUSB2", serial="S", properties=None)
    entries = [replace(Entry.of(read), links=read.links), Entry.of(unread)]
    found = match_replugged(dict.fromkeys(entries, frozenset()), (unread, read))
    assert found == dict(zip(entries, (read, unread), strict=True))
