"""What a machine has once, and the tests that must not have it at the same time."""

from __future__ import annotations

ALONE = (
    "tests/system/",
    "tests/unit/agent/test_daemon.py",
    "tests/unit/cli/test_cli.py::test_a_daemon_that_prints_nothing_needs_no_standard_output",
    "tests/unit/cli/test_cli.py::test_few_descriptors_are_one_line",
    "tests/unit/cli/test_cli.py::test_results_that_cannot_be_written_are_one_line",
    "tests/unit/cli/test_cli.py::test_the_command_line_wins_over_the_environment",
    "tests/unit/cli/test_cli.py::test_the_daemon_loads_nothing_that_only_a_command_needs",
    "tests/unit/host/test_lock.py::test_a_daemon_beside_a_squatter_holds_the_node_once_he_has_gone",
    "tests/unit/host/test_lock.py::test_a_daemon_that_comes_after_the_squatter_is_not_worked_beside",
    "tests/unit/host/test_lock.py::test_a_squatter_keeps_no_daemon_from_ending",
    "tests/unit/host/test_udev.py",
)
"""How the names of the tests begin of which one worker runs all, one after the other.

They share udevd, the parts that are started once a run, and the uevents of this network namespace: a program that listens to those of
the kernel looks like udevd to every daemon here.
"""


SERVERS = tuple(
    f"tests/system/test_{name}.py" for name in ("admin", "admission", "deploy", "faulty_proxy", "helm", "kube")
)
"""The files among them whose tests need an API server at most, and no udevd and no daemon: another worker runs them, with a server of its
own.
"""


def scope_of(nodeid: str) -> str:
    """Return the name of what one worker runs in one piece: the tests above are two pieces, every other test is its own."""
    if nodeid.startswith(SERVERS):
        return "API server"
    return "machine" if nodeid.startswith(ALONE) else nodeid
