"""What the admission policy promises: devwatch's ServiceAccount writes the counts of its own node, and nothing else."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import kubernetes_validate  # type: ignore[import-untyped]  # it has no type information
import pytest

from devwatch.core.slices import slice_name
from devwatch.kube.responses import list_hint
from support.admission import ALLOWED_PATH, DAEMON, SLICES, Request, allowed, as_cel, manifests, policy, requests
from support.build import patch_of
from support.deployment import missing, rendered
from system import testbed

if TYPE_CHECKING:
    from support.admission import Object

pytest.importorskip("cel_expr_python", reason="needs cel-expr-python, which has wheels for x86_64 and aarch64 alone")

from support.admission_cel import Policy

REQUESTS = requests()
DENIED = [request for request in REQUESTS if request.denied]


@pytest.fixture(scope="module")
def compiled() -> Policy:
    """Have the policy compiled once."""
    return Policy(policy())


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.name)
def test_every_request_gets_its_verdict(compiled: Policy, request_: Request) -> None:
    """A request is denied in words that name the field and what is wanted, or it is allowed."""
    message = compiled.denial(request_)
    assert bool(message) == bool(request_.denied), message
    assert request_.denied in message


def test_there_are_enough_requests() -> None:
    """Each is listed once, and there are more than sixty."""
    assert len({request.name for request in REQUESTS}) == len(REQUESTS) > 60


@pytest.mark.parametrize("index", range(len(manifests()[0]["spec"]["validations"])))
def test_every_validation_is_needed(index: int) -> None:
    """Without it some request passes that must not."""
    mutant = policy()
    del mutant["spec"]["validations"][index]
    weaker = Policy(mutant)
    assert any(not weaker.denial(request) for request in DENIED)


def test_a_denial_is_a_403_and_an_error_in_the_policy_denies() -> None:
    """A daemon tells a denial from a bad patch by its status code; nothing passes because an expression failed."""
    spec = policy()["spec"]
    assert {validation.get("reason") for validation in spec["validations"]} == {"Forbidden"}
    assert spec["failurePolicy"] == "Fail"
    assert manifests()[1]["spec"] == {"policyName": "devwatch", "validationActions": ["Deny"]}


def test_no_message_is_left_to_the_expression() -> None:
    """Where the message cannot be built, a fixed sentence says what is wrong, in one line."""
    messages = [validation["message"] for validation in policy()["spec"]["validations"]]
    assert all(message and "\n" not in message for message in messages)


@pytest.mark.parametrize("manifest", manifests(), ids=lambda manifest: manifest["kind"])
def test_the_manifests_fit_the_schema_of_the_api(manifest: Object) -> None:
    """Every field is one that Kubernetes 1.30, the first with this API, knows."""
    kubernetes_validate.validate(manifest, "1.30", strict=True)


def test_what_the_server_adds_inside_a_list_is_written_out() -> None:
    """Else `kubectl apply` compares a list with what the server made of it, and reports a change each time.

    Of all defaults of a policy and its binding the scope of a rule is the only one inside a list (pkg/apis/admissionregistration/v1,
    `SetObjectDefaults_ValidatingAdmissionPolicy`); those of maps, such as `matchPolicy`, are merged.
    """
    written, binding = (manifest["spec"] for manifest in manifests())
    constraints = written["matchConstraints"]
    assert [rule["scope"] for rule in constraints["resourceRules"]] == ["*", "*", "*"]
    assert constraints.keys() == {"resourceRules"}
    assert "matchResources" not in binding


def test_the_resources_of_the_base_are_allowed() -> None:
    """Who adds the component to the base as it is gets a daemon that may advertise all of its configuration."""
    unchanged = Policy(manifests()[0])
    for name in ("aeotec/zstick", "rfxcom/rfxtrx433"):
        assert not unchanged.denial(_count_of(name))
    assert unchanged.denial(_count_of("example.com/meter"))


def test_the_daemon_knows_the_words_for_a_name_that_is_not_listed() -> None:
    """It says in which list the name has to stand: other words in the policy would take that hint away."""
    denial = Policy(manifests()[0]).denial(_count_of("example.com/meter"))
    message = f"nodes \"n\" is forbidden: ValidatingAdmissionPolicy 'devwatch' with binding 'devwatch' denied request: {denial}"
    assert "add example.com/meter to " in list_hint(message, patch_of({"example.com/meter": "1"}))
    assert "keep example.com/meter in " in list_hint(message, patch_of({"example.com/meter": None}))


def test_an_installer_names_the_resources_in_a_kustomization() -> None:
    """The list is replaced as the component says, and the binding goes on to name the policy."""
    testbed.require(missing())
    target = {"kind": "ValidatingAdmissionPolicy", "name": "devwatch"}
    patch = f'[{{"op": "replace", "path": "{ALLOWED_PATH}", "value": "{as_cel(allowed())}"}}]'
    found = _by_kind(rendered("admission-policy", patches=[{"target": target, "patch": patch}]))
    assert found["ValidatingAdmissionPolicy"]["spec"] == policy()["spec"]


def test_the_policy_follows_the_namespace_of_a_kustomization() -> None:
    """In another namespace the daemon's ServiceAccount is held as well, and the binding names the policy."""
    testbed.require(missing())
    found = _by_kind(rendered("admission-policy", namespace="other"))
    account = found["ServiceAccount"]["metadata"]
    moved = Policy(found["ValidatingAdmissionPolicy"])
    user = f"system:serviceaccount:{account['namespace']}:{account['name']}"
    assert user == "system:serviceaccount:other:devwatch"
    assert moved.denial(_count_of("example.com/meter", user=user))
    assert found["ValidatingAdmissionPolicyBinding"]["spec"]["policyName"] == "devwatch"


def test_a_broken_expression_denies() -> None:
    """A policy whose expression fails on a request refuses it."""
    broken = deepcopy(policy())
    broken["spec"]["validations"][0]["expression"] = "object.nothing == 1"
    assert "error" in Policy(broken).denial(_count_of("aeotec/zstick"))


@pytest.mark.parametrize("name", ["n" * 241, "n" * 242, "n" * 253])
def test_a_node_of_a_long_name_has_its_slice(compiled: Policy, name: str) -> None:
    """The name that devwatch makes for it, and none of another node."""
    right = slice_name(name)
    for slice_, allowed_ in ((right, True), (slice_name("m" * 253), False), (f"{'n' * 100}-devwatch.io", False)):
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": "u1"}
        spec = {"nodeName": name, "pool": {"name": slice_}}
        request = Request(
            name=name,
            allowed=True,
            operation="CREATE",
            resource=SLICES,
            object=slice_,
            node=(name,),
            merge={"metadata": {"ownerReferences": [owner]}, "spec": spec},
            stored={},
        )
        assert (compiled.denial(request) == "") == allowed_


def _count_of(name: str, user: str = DAEMON) -> Request:
    counts = {"capacity": {name: "1"}, "allocatable": {name: "1"}}
    return Request(name=name, allowed=True, merge={"status": counts}, stored={}, user=user)


def _by_kind(objects: list[Object]) -> dict[str, Object]:
    return {each["kind"]: each for each in objects}
