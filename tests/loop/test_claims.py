"""The claims of a node's pods from end to end: a kubelet that asks over real sockets, real files, and everything that may fail."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from grpclib.exceptions import StreamTerminatedError

from devwatch.agent.driverregistration import READY_LIMIT
from devwatch.core.claims import Toleration
from devwatch.core.errors import Forbidden, KubeletError, Refused, Retry
from devwatch.core.names import UNPLUGGED
from support.build import ZIGBEE, device, rule
from support.claims import UID, allocated, reference, state
from support.claimsite import claim_site
from support.quiet import quiet

if TYPE_CHECKING:
    from pathlib import Path

A, B = device("ttyUSB0", serial="A"), device("ttyUSB1", serial="B")
FULL = KubeletError("/x: No space left on device", hint="free space in /x")
CLAIM = reference()


def sockets(folder: Path) -> list[Path]:
    """Return the sockets below a folder."""
    return [path for path in folder.rglob("*") if path.is_socket()]


# -- prepared and unprepared


@quiet
async def test_a_claim_is_prepared_once_and_the_same_answer_given_again(tmp_path: Path) -> None:
    """Record and file are there before the kubelet has its answer; the claim holds its device until it ends."""
    async with claim_site(tmp_path, A, B) as site:
        first, second = site.ids
        site.allocate(first)
        answer = (await site.kubelet.prepare(CLAIM))[UID]
        assert (site.devnodes(), site.recorded) == (["/dev/ttyUSB0"], {UID})
        assert [each.device_name for each in answer.devices] == [first]
        assert (await site.kubelet.prepare(CLAIM))[UID] == answer
        assert len(site.api.asked) == 1
        assert site.driver.held == {ZIGBEE: frozenset({first})}
        assert [claim.reference for claim in site.driver.holders] == [CLAIM]
        assert [line.fields for line in site.log.of("claim.prepared")] == [
            {"claim": "home/c", "uid": UID, "devices": [first], "outcome": "prepared"}
        ]
        for _ in range(2):
            assert (await site.kubelet.unprepare(CLAIM))[UID].error == ""
            assert (site.devnodes(), site.recorded, site.driver.held) == ([], set(), {})
        assert [line.fields for line in site.log.of("claim.unprepared")] == [{"claim": "home/c", "uid": UID}]
        assert (site.count("prepare", "prepared"), site.count("unprepare", "unprepared")) == (2, 2)
        assert second in site.ids


@quiet
async def test_overlapping_calls_for_a_shared_claim_are_one_preparation(tmp_path: Path) -> None:
    """Two pods, 62 ms apart: the claim is read once, and both get the stick."""
    async with claim_site(tmp_path, A) as site:
        site.allocate()
        calls = [asyncio.create_task(site.kubelet.prepare(CLAIM)) for _ in range(3)]
        answers = await asyncio.gather(*calls)
        assert answers[0] == answers[1] == answers[2]
        assert answers[0][UID].devices
        assert len(site.api.asked) == 1
        assert len(site.log.of("claim.prepared")) == 1


@quiet
async def test_several_claims_of_one_call_are_each_prepared_or_refused(tmp_path: Path) -> None:
    """One that is refused keeps no other; the same claim twice is one."""
    async with claim_site(tmp_path, A, B) as site:
        one, two = site.allocate(site.ids[0], uid="1"), site.allocate("unknown", uid="2")
        three = site.allocate(site.ids[1], uid="3")
        answers = await site.kubelet.prepare(one, two, three, one, reference("gone", uid="4"))
        assert {uid: answer.error for uid, answer in answers.items()} == {
            "1": "",
            "2": "n-devwatch.io/unknown is not a device of this node",
            "3": "",
            "4": "the API server has no ResourceClaim home/gone",
        }
        assert site.recorded == {"1", "3"}
        assert [line for line in site.lines("claim.prepared") if line[0] == "warning"] == [
            ("warning", "n-devwatch.io/unknown is not a device of this node", None),
            ("warning", "the API server has no ResourceClaim home/gone", None),
        ]
        assert (site.count("prepare", "prepared"), site.count("prepare", "refused")) == (2, 2)


@quiet
async def test_a_claim_that_was_refused_is_prepared_once_its_cause_is_gone(tmp_path: Path) -> None:
    """The kubelet asks again after a minute."""
    async with claim_site(tmp_path, A) as site:
        assert "has no ResourceClaim" in (await site.kubelet.prepare(CLAIM))[UID].error
        site.allocate()
        assert (await site.kubelet.prepare(CLAIM))[UID].error == ""
        assert site.recorded == {UID}


@quiet
async def test_one_of_two_calls_for_a_claim_that_is_given_up_does_not_end_the_other(tmp_path: Path) -> None:
    """Two pods share it, and the kubelet has given up one of them."""
    async with claim_site(tmp_path, A) as site:
        site.allocate()
        site.api.latency = 2.0
        first, second = (asyncio.create_task(site.kubelet.prepare(CLAIM)) for _ in range(2))
        await asyncio.sleep(1)
        first.cancel()
        assert (await second)[UID].error == ""
        assert site.recorded == {UID}


@quiet
async def test_administrative_access_gets_the_device_that_another_claim_holds(tmp_path: Path) -> None:
    """And holds none itself; a claim that tolerates the loss is marked."""
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.prepare(
            site.allocate(uid="1", tolerations=(Toleration(key=UNPLUGGED, operator="Exists"),)),
            site.allocate(uid="2", admin=True),
        )
        assert site.devnodes("1") == site.devnodes("2") == ["/dev/ttyUSB0"]
        assert [device.spared for claim in site.driver.holders for device in claim.devices] == [True, False]
        await site.kubelet.unprepare(reference(uid="1"))
        assert site.driver.held == {}


@quiet
async def test_a_claim_that_is_unprepared_while_it_is_prepared_is_not(tmp_path: Path) -> None:
    """Whichever answer comes first, no file is left."""
    async with claim_site(tmp_path, A) as site:
        site.allocate()
        site.api.hanging = True
        call = asyncio.create_task(site.kubelet.prepare(CLAIM))
        await asyncio.sleep(0.5)
        await site.kubelet.unprepare(CLAIM)
        assert (await call)[UID].error == "home/c was unprepared meanwhile"
        assert (site.recorded, site.driver.holders) == (set(), ())


@pytest.mark.parametrize("late", [True, False])
def test_an_answer_that_comes_after_the_end_of_a_claim_changes_nothing(late: object, tmp_path: Path) -> None:
    """Neither a claim nor an error."""

    @quiet
    async def ignored() -> None:
        async with claim_site(tmp_path, A) as site:
            site.api.latency = 1.0
            site.allocate()
            if late:
                site.api.claims[UID] = Retry("later")
            call = asyncio.create_task(site.kubelet.prepare(CLAIM))
            await asyncio.sleep(0.5)
            await site.kubelet.unprepare(CLAIM)
            assert "unprepared meanwhile" in (await call)[UID].error
            await asyncio.sleep(30)
            assert (site.driver.holders, len(site.api.asked)) == ((), 1)

    ignored()


# -- the sticks


@quiet
async def test_a_claim_whose_stick_is_gone_is_prepared_and_its_container_waits(tmp_path: Path) -> None:
    """Without a CDI device the runtime starts none; it does when the stick is back, under whatever name."""
    async with claim_site(tmp_path, A, B) as site:
        site.allocate(site.ids[0])
        await site.scan(B)
        answer = (await site.kubelet.prepare(CLAIM))[UID]
        assert (answer.error, len(answer.devices), site.devnodes()) == ("", 1, [])
        await site.scan(B, replace(A, devnode="/dev/ttyUSB7", incarnation=2))
        assert site.devnodes() == ["/dev/ttyUSB7"]
        await site.scan(B)
        assert site.devnodes() == []
        assert site.driver.held == {ZIGBEE: frozenset({answer.devices[0].device_name})}


@quiet
async def test_an_uncertain_scan_takes_no_device_out_unless_another_has_its_devnode(tmp_path: Path) -> None:
    """What such a scan does not find may be there; a name is one device's at a time."""
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.prepare(site.allocate())
        await site.scan(doubts=("cannot list",))
        assert site.devnodes() == ["/dev/ttyUSB0"]
        await site.scan(replace(B, devnode="/dev/ttyUSB0"), doubts=("cannot list",))
        assert site.devnodes() == []
        await site.scan(A)
        assert site.devnodes() == ["/dev/ttyUSB0"]


@quiet
async def test_a_device_of_several_devnodes_waits_until_all_have_arrived(tmp_path: Path) -> None:
    """Its devnodes are numbered: without the first, the second would be in its place."""
    first, second = (replace(A, devnode=f"/dev/tty{n}", devpath=f"/d/{n}", interface=f"0{n}") for n in (0, 1))
    async with claim_site(tmp_path, first, second) as site:
        await site.kubelet.prepare(site.allocate())
        assert site.devnodes() == ["/dev/tty0", "/dev/tty1"]
        await site.scan()
        await site.scan(replace(first, incarnation=2, properties=None), replace(second, incarnation=2))
        assert site.devnodes() == []
        await site.scan(replace(first, incarnation=2), replace(second, incarnation=2))
        assert site.devnodes() == ["/dev/tty0", "/dev/tty1"]


@quiet
async def test_another_path_counts_for_the_next_start_of_a_container(tmp_path: Path) -> None:
    """And where the resource leaves the configuration, the path stays for as long as the claim is prepared."""
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.prepare(site.allocate())
        await site.configure(rule(container="/dev/stick"))
        file = tmp_path / "cdi" / f"devwatch.io-claim_{UID}.json"
        assert '"path": "/dev/stick"' in file.read_text()
        await site.configure()
        assert '"path": "/dev/stick"' in file.read_text()
        await site.scan(replace(A, physical="/devices/usb/other"))
        ((slot,),) = site.driver.claims.recall().values()
        assert (slot.identity.socket, '"path": "/dev/stick"' in file.read_text()) == ("/devices/usb/other", True)


@quiet
async def test_a_resource_that_is_not_ours_makes_no_device_known(tmp_path: Path) -> None:
    """No claim can have been given it."""
    async with claim_site(tmp_path, A, rules=(rule("example.com/other"),)) as site:
        answer = await site.kubelet.prepare(site.allocate())
        assert "is not a device of this node" in answer[UID].error


# -- the API server


@quiet
async def test_a_claim_is_read_again_until_it_is_answered(tmp_path: Path) -> None:
    """At growing intervals, and as late as the server asks."""
    async with claim_site(tmp_path, A) as site:
        site.allocate()
        found, site.api.claims[UID] = site.api.claims[UID], Retry("overload", after=3.0)
        call = asyncio.create_task(site.kubelet.prepare(CLAIM))
        await asyncio.sleep(5)
        site.api.claims[UID] = found
        assert (await call)[UID].error == ""
        moments = [at for at, _ in site.api.asked]
        assert len(moments) == 3
        assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(moments))


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Forbidden("no right", hint="grant it"), "no right; grant it"), (Refused("a policy"), "a policy")],
)
def test_what_only_the_user_can_change_is_told_at_once(error: Forbidden | Refused, reason: str, tmp_path: Path) -> None:
    """The kubelet shows it at the pod, and asks again after a minute."""

    @quiet
    async def told() -> None:
        async with claim_site(tmp_path, A) as site:
            site.api.claims[UID] = error
            async with asyncio.timeout(1):
                assert (await site.kubelet.prepare(CLAIM))[UID].error == reason
            await asyncio.sleep(30)
            assert len(site.api.asked) == 1

    told()


@quiet
async def test_a_server_that_never_answers_leads_to_a_reason_before_the_kubelet_gives_up(tmp_path: Path) -> None:
    """It waits for 45 s; nothing is asked afterwards."""
    async with claim_site(tmp_path, A) as site:
        site.allocate(uid="2")
        site.api.claims[UID] = Retry("no answer from the API server")
        async with asyncio.timeout(45):
            answers = await site.kubelet.prepare(CLAIM, reference(uid="2"))
        assert answers[UID].error == "not prepared within 40 s: no answer from the API server"
        assert answers["2"].error == ""
        asked = len(site.api.asked)
        await asyncio.sleep(60)
        assert len(site.api.asked) == asked
        site.api.hanging = True
        assert "not asked yet" in (await site.kubelet.prepare(reference(uid="3")))["3"].error


@quiet
async def test_a_call_that_the_kubelet_gives_up_leaves_nothing(tmp_path: Path) -> None:
    """Nothing is read for it any more."""
    async with claim_site(tmp_path, A) as site:
        site.api.claims[UID] = Retry("later")
        first = asyncio.create_task(site.kubelet.prepare(CLAIM))
        await asyncio.sleep(0.5)
        site.kubelet.disconnect()
        with pytest.raises(StreamTerminatedError):
            await first
        asked = len(site.api.asked)
        await asyncio.sleep(20)
        assert len(site.api.asked) == asked


# -- restarts of the daemon


@quiet
async def test_the_next_daemon_has_the_claims_before_it_registers(tmp_path: Path) -> None:
    """It keeps the IDs, and writes the files again: after a reboot their folder is empty. It answers once the allocation is read."""
    twin = device("ttyUSB0", serial=None, port="usb-1")
    async with claim_site(tmp_path, twin) as site:
        answer = await site.kubelet.prepare(site.allocate())
        await site.scan(replace(twin, port="usb-2"))
        moved = site.driver.claims.recall()
        await site.end()
        for path in (tmp_path / "cdi").iterdir():
            path.unlink()
        asked = len(site.api.asked)
        site.api.claims[UID] = Retry("the API server is away")
        site.start()
        assert site.driver.claims.recall() == moved
        held = {ZIGBEE: frozenset({answer[UID].devices[0].device_name})}
        assert site.driver.held == held
        await asyncio.sleep(1)
        assert len(site.kubelet.registered) == 2
        assert site.devnodes() == ["/dev/ttyUSB0"]
        await asyncio.sleep(600)
        assert site.driver.held == held
        assert 3 < len(site.api.asked) - asked < 15
        assert (await site.kubelet.prepare(CLAIM))[UID].error == "not prepared within 40 s: the API server is away"
        site.allocate()
        assert await site.kubelet.prepare(CLAIM) == answer


@quiet
async def test_what_has_ended_while_no_daemon_ran_is_cleaned_up(tmp_path: Path) -> None:
    """A claim that is gone, is another one, or is allocated elsewhere; what is allocated here stays."""
    async with claim_site(tmp_path, A, B) as site:
        for uid in ("1", "2", "3", "4", "6"):
            await site.kubelet.prepare(site.allocate(site.ids[0], uid=uid))
        await site.end()
        del site.api.claims["1"]
        site.api.claims["2"] = state(allocated("a"), uid="5")
        site.api.claims["3"] = state(allocated("a", pool="m"), uid="3")
        site.api.claims["6"] = state(allocated("a", driver="x"), uid="6")
        site.start()
        await asyncio.sleep(1)
        assert site.recorded == {"4"}
        assert [site.devnodes(uid) for uid in ("1", "2", "3", "6", "4")] == [[], [], [], [], ["/dev/ttyUSB0"]]
        reasons = [line.fields["reason"] for line in site.log.of("claim.unprepared")]
        assert reasons == ["its allocation has ended"] * 4


@quiet
async def test_a_claim_that_could_not_be_read_when_the_kubelet_asked_is_read_again(tmp_path: Path) -> None:
    """It may have ended while no daemon ran, and would hold its device for as long as this one runs."""
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.prepare(site.allocate())
        await site.end()
        site.api.claims[UID] = Forbidden("cannot get resourceclaims")
        site.start()
        await asyncio.sleep(1)
        assert "cannot get" in (await site.kubelet.prepare(CLAIM))[UID].error
        del site.api.claims[UID]
        await asyncio.sleep(600)
        assert site.driver.held == {}


@quiet
async def test_a_claim_that_ends_while_it_is_compared_has_ended_once(tmp_path: Path) -> None:
    """The kubelet may ask before the API server has answered."""
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.prepare(site.allocate())
        await site.end()
        site.api.latency, site.api.claims = 5.0, {}
        site.start()
        await asyncio.sleep(1)
        await site.kubelet.unprepare(CLAIM)
        await asyncio.sleep(10)
        assert (site.recorded, len(site.log.of("claim.unprepared"))) == (set(), 1)
        assert site.driver.holders == ()


@quiet
async def test_a_damaged_record_is_told_with_the_cure_and_its_files_are_removed(tmp_path: Path) -> None:
    """No file may name a devnode whose device is unknown."""
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.prepare(site.allocate())
        await site.end()
        (tmp_path / "plugins" / "devwatch.io" / "claims.json").write_text("{")
        site.start()
        await asyncio.sleep(1)
        assert site.devnodes() == []
        ((level, error, hint),) = site.lines("kubelet.lost")
        assert (level, hint) == ("warning", "delete the pods with claims whose containers do not start again")
        assert "claims.json is damaged" in str(error)
        assert (await site.kubelet.prepare(CLAIM))[UID].error == ""
        assert site.devnodes() == ["/dev/ttyUSB0"]


@quiet
async def test_a_record_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    """What is held is unknown then, so nothing is prepared; it is read again every ten seconds."""
    unreadable = KubeletError("claims.json: Permission denied", hint="run as uid 0")
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.prepare(site.allocate())
        await site.end()
        site.faults.reading = unreadable
        site.start()
        await asyncio.sleep(35)
        assert site.driver.held is None
        assert (site.driver.registration.registered, site.devnodes(), site.driver.claims.fault) == (
            True,
            ["/dev/ttyUSB0"],
            unreadable.advice,
        )
        assert site.lines("kubelet.lost") == [("warning", str(unreadable), "run as uid 0")] * 3
        assert (await site.kubelet.prepare(CLAIM))[UID].error == unreadable.advice
        site.faults.reading = None
        await asyncio.sleep(15)
        assert (await site.kubelet.prepare(CLAIM))[UID].error == ""
        assert site.recorded == {UID}


@quiet
async def test_a_claim_is_unprepared_while_the_record_cannot_be_read(tmp_path: Path) -> None:
    """Its pod can end; once the record is read the claim is not in it any more, and has no file."""
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.prepare(site.allocate())
        await site.end()
        site.faults.reading = KubeletError("claims.json: Input/output error")
        site.start()
        await asyncio.sleep(35)
        assert (await site.kubelet.unprepare(CLAIM))[UID].error == ""
        assert (site.recorded, site.devnodes()) == ({UID}, ["/dev/ttyUSB0"])
        site.faults.reading = None
        await asyncio.sleep(15)
        assert (site.recorded, site.devnodes()) == (set(), [])
        assert site.driver.held == {}


@quiet
async def test_a_driver_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """The libraries for it may be missing."""
    missing = KubeletError("publish: dra needs grpclib", hint="pip install 'devwatch[kubelet]'")
    async with claim_site(tmp_path, A, unconnected=missing) as site:
        assert site.lines("kubelet.lost") == [("warning", str(missing), missing.hint)]
        assert not site.driver.registration.registered


# -- faults of record and files


@pytest.mark.parametrize("which", ["writing", "files"])
def test_what_cannot_be_written_refuses_the_claim_with_the_reason(which: str, tmp_path: Path) -> None:
    """It is told once with the cure, and the next call succeeds once there is space."""

    @quiet
    async def told() -> None:
        async with claim_site(tmp_path, A) as site:
            site.allocate()
            setattr(site.faults, which, FULL)
            for _ in range(3):
                assert (await site.kubelet.prepare(CLAIM))[UID].error == FULL.advice
            assert site.driver.held == {}
            lost = site.lines("kubelet.lost")
            assert lost[0] == ("warning", str(FULL), "free space in /x")
            assert len(lost) < 6
            await site.cycle()
            assert site.driver.claims.fault == FULL.advice, "nothing is left to write, and nothing could be"
            setattr(site.faults, which, None)
            await site.cycle()
            assert site.driver.claims.fault == ""
            assert (await site.kubelet.prepare(CLAIM))[UID].error == ""
            assert (site.driver.claims.fault, site.recorded, site.devnodes()) == ("", {UID}, ["/dev/ttyUSB0"])

    told()


@quiet
async def test_a_pod_ends_whatever_fails_and_its_files_later(tmp_path: Path) -> None:
    """Otherwise it stays Terminating."""
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.prepare(site.allocate())
        site.faults.writing = site.faults.files = FULL
        await site.scan()
        assert (await site.kubelet.unprepare(CLAIM))[UID].error == ""
        assert (site.recorded, site.devnodes(), site.driver.held) == ({UID}, ["/dev/ttyUSB0"], {})
        site.faults.writing = site.faults.files = None
        await site.cycle()
        assert (site.recorded, site.devnodes()) == (set(), [])


@quiet
async def test_a_missing_folder_of_cdi_is_told_with_the_cure(tmp_path: Path) -> None:
    """And a pod that ends does not wait for it."""
    (tmp_path / "cdi").write_text("a file in its place")
    async with claim_site(tmp_path, A) as site:
        assert site.driver.registration.registered
        answer = (await site.kubelet.prepare(site.allocate()))[UID]
        assert f"{tmp_path}/cdi" in answer.error
        assert (await site.kubelet.unprepare(CLAIM))[UID].error == ""
        assert site.lines("kubelet.lost")[0][1] == answer.error


# -- the registration


@quiet
async def test_a_kubelet_that_starts_again_is_followed(tmp_path: Path) -> None:
    """Gone after 2 s, registered again without a step of ours."""
    async with claim_site(tmp_path, A) as site:
        assert site.driver.registration.registered
        await site.kubelet.stop()
        await asyncio.sleep(1)
        assert site.driver.registration.registered
        await asyncio.sleep(2)
        assert not site.driver.registration.registered
        assert site.driver.registration.failure == "the kubelet has closed its connection"
        site.kubelet.start()
        await asyncio.sleep(1)
        assert (site.driver.registration.registered, site.driver.registration.failure) == (True, "")
        assert site.lines("kubelet.lost") == [("warning", "the kubelet has closed its connection", None)]
        assert len(site.log.of("kubelet.registered")) == 2


@quiet
async def test_a_kubelet_that_connects_again_at_once_was_not_away(tmp_path: Path) -> None:
    """Its client closes a connection that is idle for long."""
    async with claim_site(tmp_path, A) as site:
        for _ in range(5):
            await asyncio.sleep(7)
            assert site.kubelet.channel is not None
            site.kubelet.channel.close()
        await asyncio.sleep(7)
        assert site.driver.registration.registered
        assert site.log.of("kubelet.lost") == []


@quiet
async def test_a_kubelet_that_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    """With the version that is needed, and instead of the lost connection of the one before."""
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.stop()
        site.kubelet.refusing = "no version"
        site.kubelet.start()
        await asyncio.sleep(5)
        told, cure = "the kubelet has not registered the driver: no version", "Kubernetes 1.34 or newer is needed"
        assert site.lines("kubelet.lost") == [("warning", told, cure)]
        assert (site.driver.registration.registered, site.driver.registration.failure) == (False, f"{told}; {cure}")


@quiet
async def test_no_kubelet_is_told_after_ten_seconds_and_once(tmp_path: Path) -> None:
    """One that starts needs some."""
    async with claim_site(tmp_path, A) as site:
        await site.end()
        await site.kubelet.stop()
        before = asyncio.get_running_loop().time()
        site.start()
        await asyncio.sleep(9)
        assert site.log.of("kubelet.lost") == []
        await asyncio.sleep(60)
        hint = "does it run, and is its folder this one (--kubelet-dir)?"
        assert site.lines("kubelet.lost") == [("warning", "no kubelet registers the driver", hint)]
        assert before <= site.driver.registration.lost_at < before + 1


@quiet
async def test_sockets_that_another_program_removes_are_made_again(tmp_path: Path) -> None:
    """The kubelet finds them."""
    async with claim_site(tmp_path, A) as site:
        (tmp_path / "plugins_registry" / "devwatch.io-reg.sock").unlink()
        await asyncio.sleep(10)
        assert site.driver.registration.registered
        assert len(site.kubelet.registered) == 2
        ((level, error, _),) = site.lines("kubelet.lost")
        assert (level, str(error).endswith("devwatch.io-reg.sock: another program has removed it")) == ("warning", True)


@quiet
async def test_a_folder_of_the_kubelet_that_is_missing_is_told_once_and_waited_for(tmp_path: Path) -> None:
    """It may be mounted, or the kubelet installed, later."""
    async with claim_site(tmp_path, A) as site:
        await site.end()
        (tmp_path / "plugins_registry").rmdir()
        site.start()
        await asyncio.sleep(5)
        ((_, error, hint),) = site.lines("kubelet.lost")[:1]
        assert "plugins_registry/devwatch.io-reg.sock: No such file or directory" in str(error)
        assert hint == f"create {tmp_path / 'plugins_registry'}, or mount it into the container"
        (tmp_path / "plugins_registry").mkdir()
        await asyncio.sleep(15)
        assert site.driver.registration.registered


@quiet
async def test_the_driver_is_there_from_the_first_resource_or_claim_to_the_end(tmp_path: Path) -> None:
    """Pods of a resource that has left the configuration can end, after a restart too, and so can those whose claim was never prepared."""
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.prepare(site.allocate())
        await site.configure()
        await site.end()
        site.start()
        await asyncio.sleep(1)
        assert site.driver.registration.registered
        await site.kubelet.unprepare(CLAIM)
        await asyncio.sleep(60)
        refused = reference("d", "2")
        assert (await site.kubelet.prepare(refused))["2"].error
        assert (await site.kubelet.unprepare(refused))["2"].error == ""
        await site.end()
        assert sockets(tmp_path) == []
        site.start()
        await asyncio.sleep(1)
        assert (site.driver.registration.registered, site.driver.held) == (False, {})
        await site.configure(rule())
        await asyncio.sleep(1)
        assert site.driver.registration.registered


@quiet
async def test_a_record_that_another_program_removes_is_written_again(tmp_path: Path) -> None:
    """The next daemon would take the device for a free one."""
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.prepare(site.allocate())
        shutil.rmtree(tmp_path / "plugins" / "devwatch.io")
        await asyncio.sleep(15)
        assert site.recorded == {UID}


@quiet
async def test_the_driver_waits_for_a_certain_scan_before_it_registers(tmp_path: Path) -> None:
    """A claim that is asked for by then would be refused as unknown."""
    async with claim_site(tmp_path, doubts=("cannot list",)) as site:
        await asyncio.sleep(READY_LIMIT - 1)
        assert site.kubelet.registered == []
        await site.scan(A)
        await asyncio.sleep(1)
        assert site.driver.registration.registered


@quiet
async def test_doubts_that_last_keep_no_pod_from_ending(tmp_path: Path) -> None:
    """Its claim needs no scan to be unprepared."""
    async with claim_site(tmp_path, doubts=("cannot list",)) as site:
        await asyncio.sleep(READY_LIMIT + 1)
        assert site.driver.registration.registered
        assert not (await site.kubelet.unprepare(CLAIM))[CLAIM.uid].error


@quiet
async def test_the_end_of_the_daemon_leaves_files_and_no_socket(tmp_path: Path) -> None:
    """Containers start again in its absence."""
    async with claim_site(tmp_path, A) as site:
        await site.kubelet.prepare(site.allocate())
        async with asyncio.timeout(0.1):
            await site.end()
        assert (site.devnodes(), site.recorded) == (["/dev/ttyUSB0"], {UID})
        assert sockets(tmp_path) == []
