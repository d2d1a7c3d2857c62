"""Which tests may run here, and what becomes of those that may not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

_OFF = {"", "0", "false"}
NEWER = "needs Kubernetes 1."
"""The beginning of the reason of tests for a newer server: with which one they run is not up to this machine."""
HISTORY = "needs the history of the repository"
"""The beginning of the reason of tests for an earlier release, which a shallow clone does not have."""
LONG = "takes minutes"
"""The beginning of the reason of tests that are for a release, not for each change."""
STRESS = "DEVWATCH_STRESS"
"""Names the environment variable that has the long tests run: it is the share of the full counts that is done, 1 for all."""

long = pytest.mark.skipif(
    STRESS not in os.environ, reason=f"{LONG}: needs {STRESS}=1 (make stress), of which 0.005 does each once"
)


def closed(environ: Mapping[str, str]) -> str | None:
    """Return why tests that change the machine may not run in this environment, or None."""
    if environ.get("DEVWATCH_SYSTEM_TESTS") == "1":
        return None
    return "changes the machine: needs DEVWATCH_SYSTEM_TESTS=1"


def skips_fail(environ: Mapping[str, str]) -> bool:
    """Return whether a skip is a failure here: in CI a test that silently stops running protects nobody."""
    return any(environ.get(name, "").lower() not in _OFF for name in ("CI", "DEVWATCH_CI"))


def without_skip(report: Report) -> Report:
    """Turn the report of a skip into that of a failure; an expected failure (xfail) stays, as do `NEWER`, `HISTORY` and `LONG`."""
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if any(allowed in str(reason) for allowed in (NEWER, HISTORY, LONG)):
            return report
        report.outcome = "failed"
        report.longrepr = f"a skip is a failure in CI: {reason}"
    return report


def require(reason: str | None) -> None:
    """Skip the running test for this reason, if there is one."""
    if reason:
        pytest.skip(reason)
