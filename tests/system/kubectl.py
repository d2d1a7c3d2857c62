"""kubectl as administrator of a real API server."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from support.deployment import missing
from system.testbed import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from system.apiserver import ApiServer

    Kubectl = Callable[..., str]


def administrator(apiserver: ApiServer) -> Kubectl:
    """Return a function that runs kubectl, with `given` as its input, and returns what it prints. Skips the test where there is none.

    The function asserts exit status 0: for `diff` it means that there is no difference.
    """
    require(missing())
    environ = {**os.environ, "KUBECONFIG": str(apiserver.admin_kubeconfig)}

    def run(*arguments: str, given: str | None = None) -> str:
        done = subprocess.run(
            ["kubectl", *arguments],
            env=environ,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
