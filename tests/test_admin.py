"""`purge` over real HTTP: it takes away what was asked for and no more, from every node that lets it, and says what it could not do."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from devwatch import admin
from devwatch.cli import main
from devwatch.display import Screen
from devwatch.kube import Connection, Credentials
from nodesite import RESOURCE, node, site
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nodesite import Site

RBAC = 'nodes "{}" is forbidden: User "u" cannot patch resource "nodes/status" in API group "" at the cluster scope'


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Site]:
    """Return an API server with three Nodes on which devwatch advertises."""
    with site(tmp_path, "n1", "n2", "n3") as running:
        yield running


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a purge of all nodes ended."""

    status: int
    out: list[str]
    err: list[str]


def purge(cluster: Site, *, dry_run: str | None = None, confirmed: Callable[[int], bool] = lambda _count: True) -> Done:
    """Purge all nodes, and look again without a pause."""
    connection = Connection(Credentials(kubeconfig=cluster.kubeconfig, environ={}), version="0")
    out, err = io.StringIO(), io.StringIO()
    task = admin.Purge(node=None, dry_run=dry_run, confirmed=confirmed, pause=0)
    status = admin.run(connection, admin.purge(connection, Screen(out=out), Screen(out=err), task))
    return Done(status=status, out=out.getvalue().splitlines(), err=err.getvalue().splitlines())


def advertising(cluster: Site) -> list[str]:
    """Return the Nodes that still have something of devwatch."""
    return [name for name, held in cluster.nodes.items() if RESOURCE in held["status"]["capacity"]]


# -- which nodes


ONE, ALL = ["n1"], ["n1", "n2", "n3"]


@pytest.mark.parametrize(
    ("options", "variables", "wanted"),
    [
        (["--node", "n1"], {"DEVWATCH_ALL_NODES": "1"}, ONE),
        (["--node", "n1"], {"DEVWATCH_ALL_NODES": "1", "DEVWATCH_NODE": "n1"}, ONE),
        (["--node", "n1"], {"DEVWATCH_ALL_NODES": "1", "DEVWATCH_NODE": "n2"}, ONE),
        (["--node", "n1", "--no-all-nodes"], {"DEVWATCH_ALL_NODES": "1"}, ONE),
        (["--no-all-nodes"], {"DEVWATCH_ALL_NODES": "1", "DEVWATCH_NODE": "n1"}, ONE),
        ([], {"DEVWATCH_NODE": "n1"}, ONE),
        ([], {"DEVWATCH_NODE": "n1", "DEVWATCH_ALL_NODES": "no"}, ONE),
        (["--all-nodes"], {"DEVWATCH_NODE": "n1"}, ALL),
        (["--all-nodes"], {"DEVWATCH_NODE": "n1", "DEVWATCH_ALL_NODES": "maybe"}, ALL),
        ([], {"DEVWATCH_ALL_NODES": "1"}, ALL),
    ],
)
def test_the_command_line_says_what_is_purged_whatever_the_variables_say(
    options: list[str],
    variables: dict[str, str],
    wanted: list[str],
    cluster: Site,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A variable left over from another day neither widens nor narrows what somebody types."""
    argv = ["purge", "--dry-run", "--kubeconfig", cluster.kubeconfig, *options]
    assert main(argv, variables) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert heads == [f"{name}: would remove" for name in wanted]


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        (["--node", "n1", "--all-nodes"], {}),
        (["--node", "n1", "--all-nodes"], {"DEVWATCH_NODE": "n1"}),
        ([], {"DEVWATCH_NODE": "n1", "DEVWATCH_ALL_NODES": "true"}),
    ],
)
def test_one_node_and_all_of_them_contradict_each_other(
    options: list[str], variables: dict[str, str], cluster: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for in the same breath, neither is guessed: status 2, and nobody is asked for anything."""
    assert main(["purge", "--yes", "--kubeconfig", cluster.kubeconfig, *options], variables) == 2
    assert "contradict each other" in capsys.readouterr().err
    assert cluster.asked == []


# -- failures


def test_a_node_that_cannot_be_written_keeps_no_other_from_being_purged(cluster: Site) -> None:
    """All others are done and looked at again; the failure is one line with its node and what helps, and the status is 1."""
    cluster.refusals = {"n1": (403, RBAC.format("n1")), "n2": (500, "try\nlater \x1b[31m")}
    done = purge(cluster)
    assert done.status == 1
    assert cluster.removed == ["n3"]
    assert cluster.asked == ["n1", "n2", "n3", "n3"]
    assert done.out[-1] == "removed from 1 node"
    (first, second) = done.err
    assert first.startswith('devwatch: n1: nodes "n1" is forbidden')
    assert "kubectl create clusterrole" in first
    assert second.startswith("devwatch: n2: try later \\x1b[31m")


def test_a_removal_that_a_policy_refuses_is_told_with_the_list_to_change(cluster: Site) -> None:
    """The name has to stay allowed until it is gone, which nobody guesses."""
    denied = f"ValidatingAdmissionPolicy 'devwatch' with binding 'b' denied request: status.capacity[{RESOURCE}] is not among"
    cluster.refusals = {"n1": (403, f"{denied} the resources that the policy allows: x.io/y")}
    (line,) = purge(cluster).err
    assert f"keep {RESOURCE} in spec.variables[0] of ValidatingAdmissionPolicy devwatch" in line


def test_a_node_that_is_gone_meanwhile_has_nothing_left_to_remove(cluster: Site) -> None:
    """That is no failure, and it is said."""

    def vanish(name: str) -> None:
        del cluster.nodes[{"n1": "n2", "n3": "n1"}[name]]

    cluster.at_removal = vanish
    done = purge(cluster)
    assert (done.status, done.err) == (0, [])
    assert cluster.removed == ["n1", "n3"]
    assert [line for line in done.out if "gone" in line] == [
        "n2: the Node is gone meanwhile, so nothing is left to remove"
    ]
    assert done.out[-1] == "removed from 2 nodes"


def test_a_daemon_that_writes_again_is_told_beside_what_was_done(cluster: Site) -> None:
    """The second look is made on every node; the one with a running daemon is a line, and so is one that cannot be looked at."""

    def meddle(name: str) -> None:
        cluster.nodes[name] = {"n1": cluster.nodes["n1"], "n2": {"metadata": "nonsense"}, "n3": node("n3")}[name]

    cluster.at_removal = meddle
    done = purge(cluster)
    assert done.status == 1
    assert done.err[0].startswith("devwatch: n2: removed, but whether it stays away is unknown: ")
    assert done.err[1:] == ["devwatch: n3: a devwatch still runs on n3: stop it first"]
    assert done.out[-1] == "removed from 1 node"


def test_a_dry_run_asks_the_server_about_every_node(cluster: Site) -> None:
    """Who refuses is told; nothing is removed, and nothing is said to be."""
    cluster.refusals = {"n1": (403, RBAC.format("n1"))}
    done = purge(cluster, dry_run="server")
    assert (done.status, len(done.err)) == (1, 1)
    assert cluster.asked == ["n1", "n2", "n3"]
    assert advertising(cluster) == ["n1", "n2", "n3"]
    assert not any(line.startswith("removed") for line in done.out)


# -- the question


@dataclass(slots=True, kw_only=True)
class Terminal:
    """A purge of all nodes that somebody watches, with its results in a file."""

    program: subprocess.Popen[bytes]
    keyboard: int
    shown: bytes = b""

    def shows(self, text: bytes) -> bool:
        """Return whether the terminal shows this by now."""
        with suppress(BlockingIOError):
            self.shown += os.read(self.keyboard, 4096)
        return text in self.shown

    def type(self, keys: bytes) -> None:
        """Press these keys."""
        os.write(self.keyboard, keys)


@contextmanager
def watched(cluster: Site, folder: Path) -> Iterator[Terminal]:
    """Start `purge --all-nodes` on a terminal of its own, with stdout redirected, and wait for the question."""
    ours, its = pty.openpty()
    os.set_blocking(ours, False)
    command = [sys.executable, "-m", "devwatch", "purge", "--all-nodes", "--kubeconfig", cluster.kubeconfig]
    with (folder / "out").open("wb") as out:
        program = subprocess.Popen(command, stdin=its, stdout=out, stderr=its, start_new_session=True)
    terminal = Terminal(program=program, keyboard=ours)
    try:
        eventually(lambda: terminal.shows(b"Remove all this from 3 nodes? [y/N] "))
        yield terminal
    finally:
        program.kill()
        program.wait()
        os.close(ours)
        os.close(its)


def test_the_question_is_seen_where_the_results_go_into_a_file(cluster: Site, tmp_path: Path) -> None:
    """It is asked on stderr, and `n` removes nothing."""
    with watched(cluster, tmp_path) as terminal:
        terminal.type(b"n\n")
        assert terminal.program.wait(30) == 1
    assert (tmp_path / "out").read_text().splitlines()[-1] == "nothing was removed"
    assert cluster.asked == []


def test_yes_removes_from_all_nodes(cluster: Site, tmp_path: Path) -> None:
    """The answer is taken as people give it."""
    with watched(cluster, tmp_path) as terminal:
        terminal.type(b" Yes\n")
        eventually(lambda: advertising(cluster) == [])
    assert cluster.removed == ["n1", "n2", "n3"]


def test_an_interrupt_before_the_answer_counts_although_the_answer_is_yes(cluster: Site) -> None:
    """What the event loop has only noted by then ends it before the first request."""

    def interrupted(_count: int) -> bool:
        signal.raise_signal(signal.SIGINT)
        return True

    with pytest.raises(KeyboardInterrupt):
        purge(cluster, confirmed=interrupted)
    assert cluster.asked == []


def test_an_interrupt_at_the_question_ends_it_and_removes_nothing(cluster: Site, tmp_path: Path) -> None:
    """The first Ctrl-C counts: status 130, and no answer is waited for."""
    with watched(cluster, tmp_path) as terminal:
        terminal.program.send_signal(signal.SIGINT)
        assert terminal.program.wait(30) == 130
        assert not terminal.shows(b"Traceback")
    assert cluster.asked == []
