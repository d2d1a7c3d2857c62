"""`helm test`: it says whether every node has a ready daemon, and may do nothing else."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING, Any

import pytest
from kubernetes_validate import latest_version, validate  # type: ignore[import-untyped]  # it has no type information

from deploy import test_chart
from support.deployment import DEPLOY, IMAGE, daemonset, of_kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support.deployment import Object

SCRIPT = runpy.run_path(str(DEPLOY / "chart" / "files" / "ready.py"))
VALUES: Object = {"imagePullSecrets": [{"name": "registry"}], "image": {"tag": "1.2", "pullPolicy": "Always"}}
READY = {"conditions": [{"type": "Ready", "status": "True"}]}
UP_TO_DATE = {
    "observedGeneration": 3,
    "desiredNumberScheduled": 2,
    "currentNumberScheduled": 2,
    "updatedNumberScheduled": 2,
    "numberReady": 2,
}


@pytest.fixture(scope="module")
def objects() -> Iterator[list[Object]]:
    """Return what `helm test` makes, in its order."""
    with test_chart.helm.Chart.load(test_chart.CHART) as chart:
        yield test_chart.objects_of_helm_test(chart, VALUES, namespace="other")


@pytest.fixture(scope="module")
def pod(objects: list[Object]) -> Object:
    """Return the Pod that runs the script."""
    (found,) = of_kind(objects, "Pod")
    return found


def missing(status: Mapping[str, int], *pods: Object) -> list[str]:
    """Return what the script finds missing for a DaemonSet with this status, and these Pods on nodes a, b, …."""
    whole: dict[str, Any] = {"metadata": {"namespace": "other", "generation": 3}, "status": {**UP_TO_DATE, **status}}
    named = [
        {"metadata": {"name": f"devwatch-{node}", "namespace": "other"}, "spec": {"nodeName": node}, "status": each}
        for node, each in zip("abc", pods, strict=False)
    ]
    found: list[str] = SCRIPT["missing"](whole, named)
    return found


def test_nothing_is_missing_where_every_daemon_is_ready() -> None:
    """And of the latest version."""
    assert missing({}, READY, READY) == []


@pytest.mark.parametrize(
    ("status", "pods", "said"),
    [
        ({"numberReady": 1}, [READY, {"phase": "Running"}], "b: Running, not ready (kubectl -n other logs devwatch-b)"),
        (
            {"numberReady": 1},
            [READY, {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}],
            "b: ImagePullBackOff (kubectl -n other logs devwatch-b)",
        ),
        ({"updatedNumberScheduled": 1}, [READY, READY], "1 of 2 daemons are of the latest version"),
        ({"numberReady": 1}, [READY, READY], "1 of 2 daemons are ready"),
        ({"observedGeneration": 2}, [READY, READY], "the DaemonSet devwatch is not yet seen by its controller"),
        ({"desiredNumberScheduled": 0}, [], "no node is chosen for a daemon"),
        ({"currentNumberScheduled": 0}, [], "no Pod of 2 was made: kubectl -n other describe daemonset devwatch"),
    ],
)
def test_what_is_missing_is_said(status: Mapping[str, int], pods: list[Object], said: str) -> None:
    """Which node, what its Pod waits for, and where to look."""
    assert missing(status, *pods)[0].startswith(said)


def test_a_namespace_that_refuses_the_daemons_gets_its_label_named() -> None:
    """The command of the notes: without it a DaemonSet has no Pod, and says why in its events alone."""
    command = "kubectl label namespace other pod-security.kubernetes.io/enforce=privileged"
    assert missing({"currentNumberScheduled": 0})[1].endswith(command)


def test_the_pod_runs_the_script(pod: Object) -> None:
    """Line by line, in the image of the daemon and with its settings; nothing in it is a variable to Kubernetes."""
    (only,) = pod["spec"]["containers"]
    script = (DEPLOY / "chart" / "files" / "ready.py").read_text("utf-8")
    assert [line.rstrip() for line in only["args"][0].splitlines()] == script.splitlines()
    assert "$(" not in script
    assert only["command"] == ["python3", "-c"]
    assert (only["image"], only["imagePullPolicy"]) == (f"{IMAGE}:1.2", "Always")
    assert pod["spec"]["imagePullSecrets"] == VALUES["imagePullSecrets"]


def test_the_pod_has_time_to_give_up_by_itself(pod: Object) -> None:
    """Its own words come before the deadline of Kubernetes, and that before Helm's (5 minutes)."""
    assert SCRIPT["PATIENCE"] < pod["spec"]["activeDeadlineSeconds"] < 300


def test_every_level_of_pod_security_admits_the_pod(pod: Object) -> None:
    """Also `restricted`: else the test would fail of what it is to explain."""
    spec, (only,) = pod["spec"], pod["spec"]["containers"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & spec.keys()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_rights_are_those_of_the_script(objects: list[Object]) -> None:
    """One DaemonSet and the Pods of the namespace of the release; nothing of the cluster."""
    (role,), (binding,) = of_kind(objects, "Role"), of_kind(objects, "RoleBinding")
    assert role["rules"] == [
        {"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": ["devwatch"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    ]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "devwatch-test", "namespace": "other"}]
    assert {item["metadata"]["namespace"] for item in objects} == {"other"}
    assert objects[-1]["kind"] == "Pod"  # the others are there before it


def test_nothing_is_left_of_a_test_that_passed(objects: list[Object]) -> None:
    """The account and its rights go with it; of one that failed the Pod stays, with its log."""
    policies = {item["metadata"]["annotations"]["helm.sh/hook-delete-policy"] for item in objects}
    assert policies == {"before-hook-creation,hook-succeeded"}


def test_the_daemonset_does_not_take_the_pod_for_a_daemon(pod: Object) -> None:
    """It adopts every Pod that its labels choose."""
    with test_chart.helm.Chart.load(test_chart.CHART) as chart:
        chosen = daemonset(test_chart.templated(chart, {}))["spec"]["selector"]["matchLabels"]
    assert not chosen.items() <= pod["metadata"]["labels"].items()


def test_every_object_is_valid(objects: list[Object]) -> None:
    """The API takes every object as it is, with no unknown field."""
    assert len(objects) == 4
    for item in objects:
        validate(item, latest_version(), strict=True)
