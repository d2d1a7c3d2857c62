"""The pages for clusters and applications: all that is ready to paste is valid, and fits together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]  # it has no type information
import kubernetes_validate  # type: ignore[import-untyped]  # it has no type information
import pytest
import yaml

from devwatch import __version__
from devwatch.cli.entry import main
from devwatch.config.catalogue import well_known_sticks
from devwatch.config.schema import parse
from devwatch.core.rules import Publish
from support import guides
from support.deployment import container, missing, of_kind, pod_spec
from support.guides import APPLICATIONS, CLUSTERS, GUIDES, Block, UnknownBlockError
from system.testbed import require

if TYPE_CHECKING:
    from devwatch.core.rules import ResourceRule
    from support.deployment import Object

DATA = Path(__file__).parent / "data"
FOREIGN: dict[str, Any] = yaml.safe_load((DATA / "foreign.yaml").read_text("utf-8"))
VERSION = kubernetes_validate.latest_version()
REFUSALS = (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError, jsonschema.ValidationError)
ENFORCE = "pod-security.kubernetes.io/enforce"
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""What Pod Security's level `restricted` asks of a container."""
FOLDER_OF_USB = {"path": "/dev/bus/usb", "type": "Directory"}


def schema(form: object) -> Object:
    """Return the JSON Schema of a form of `foreign.yaml`."""
    if isinstance(form, str):
        names = form.split("|")
        return {"enum": names} if len(names) > 1 else {"type": form}
    if isinstance(form, list):
        return {"type": "array", "items": schema(form[0])}
    assert isinstance(form, dict)
    fields = {name: schema(inner) for name, inner in form.items()}
    return {"type": "object", "additionalProperties": fields.pop("*", False), "properties": fields}


def check(item: Object) -> None:
    """Raise where a manifest is not what its API takes: an unknown field, another type, a missing field."""
    form = FOREIGN.get(f"{item['apiVersion']}/{item['kind']}")
    if form is None:
        kubernetes_validate.validate(item, VERSION, strict=True)
    else:
        jsonschema.validate(item["spec"], schema(form))
        assert item.keys() == {"apiVersion", "kind", "metadata", "spec"}


def page_of(section: list[str]) -> pytest.MarkDecorator:
    """Run a test for each of these pages."""
    return pytest.mark.parametrize("page", section)


# -- all pages


@page_of(GUIDES)
def test_every_block_is_checked_as_something(page: str) -> None:
    """A manifest, a kustomization, a configuration, or values of the chart; foreign YAML is not marked as YAML."""
    found = [block.kind for block in guides.blocks(page)]
    assert found
    assert len(found) == guides.text_of(page).count("```yaml\n")


@page_of(GUIDES)
def test_every_page_says_what_was_checked(page: str) -> None:
    """And that it was not tried on the real thing."""
    (said,) = re.findall(r"^\*Checked\*: .*?\n\n", guides.text_of(page), re.DOTALL | re.MULTILINE)
    assert re.search(r"\bwas (not )?tried\b", said)


@page_of(GUIDES)
def test_every_manifest_is_valid(page: str) -> None:
    """With no unknown field; those of other programs as far as `foreign.yaml` knows them."""
    for item in guides.objects(page):
        check(item)


@page_of(GUIDES)
def test_every_configuration_is_valid(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`devwatch check` finds neither a fault nor anything to warn of."""
    for block in guides.blocks(page, "configuration"):
        (tmp_path / "config.yaml").write_text(block.text, encoding="utf-8")
        assert main(["check", str(tmp_path / "config.yaml")], {}) == 0
        assert capsys.readouterr().err == ""


@page_of(GUIDES)
def test_every_version_is_this_one(page: str) -> None:
    """Also where the version of the chart is a field of its own, and in the identity of its signature."""
    for item in guides.objects(page):
        spec = item.get("spec", {})
        match item["kind"]:
            case "HelmChart":
                assert spec["version"] == __version__
            case "Application":
                assert spec["source"]["targetRevision"] == __version__
            case "OCIRepository":
                assert spec["ref"]["tag"] == __version__
                assert re.escape(f"@refs/tags/v{__version__}") in spec["verify"]["matchOIDCIdentity"][0]["subject"]


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{prt: 1}]}", "prt"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: one}]}", "one"),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {template: {}}", "selector"),
        ("apiVersion: apps/v1\nkind: Deploiment\nmetadata: {name: x}\nspec: {}", "SchemaNotFoundError"),
        ("apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: x}\nspec: {chrt: x}", "chrt"),
        (
            "apiVersion: argoproj.io/v1alpha1\nkind: Application\nmetadata: {name: x}\nspec: {source: {helm: 1}}",
            "object",
        ),
    ],
)
def test_a_broken_manifest_is_found(block: str, error: str) -> None:
    """An unknown field, a wrong type, a missing field, an unknown kind; of Kubernetes and of other programs."""
    (item,) = Block(file=None, text=block).documents
    with pytest.raises(REFUSALS) as caught:
        check(item)
    assert error in f"{caught.type.__name__}: {caught.value}"


def test_a_block_of_another_kind_is_found() -> None:
    """It would be checked by nothing."""
    with pytest.raises(UnknownBlockError):
        _ = Block(file=None, text="machine: {udev: {rules: []}}").kind


# -- clusters


@page_of(CLUSTERS)
def test_a_cluster_has_what_its_resources_need(page: str) -> None:
    """The switch for each way of publishing, and for `evict`."""
    for values in guides.installed_values(page):
        rules = values["config"]["resources"]
        assert values["devicePlugin"]["enabled"] == any(rule["publish"] == "devicePlugin" for rule in rules)
        assert values.get("eviction", {}).get("enabled", False) == any("evict" in rule for rule in rules)


@page_of(CLUSTERS)
def test_the_namespace_admits_the_pods(page: str) -> None:
    """By a command, a Namespace or what makes one, wherever a page installs devwatch by itself."""
    found = [item["metadata"].get("labels", {}) for item in of_kind(guides.objects(page), "Namespace")]
    policies = (item["spec"]["syncPolicy"] for item in of_kind(guides.objects(page), "Application"))
    found += [policy["managedNamespaceMetadata"]["labels"] for policy in policies]
    command = re.search(rf"kubectl label namespace devwatch {ENFORCE}=privileged", guides.text_of(page))
    elsewhere = guides.blocks(page, "kustomization") or "k3s.md#install" in guides.text_of(page)
    assert command or elsewhere or [labels[ENFORCE] for labels in found] == ["privileged"]


@page_of(CLUSTERS)
def test_the_folder_of_the_kubelet_is_that_of_the_unit(page: str) -> None:
    """Where the chart is told another one, the page tells the unit the same."""
    for values in guides.installed_values(page):
        folder = values["devicePlugin"].get("kubeletDir")
        assert folder is None or f"`DEVWATCH_KUBELET_DIR={folder}`" in guides.text_of(page)


@page_of(CLUSTERS)
def test_every_kustomization_can_be_built(page: str, tmp_path: Path) -> None:
    """With the files beside it that the page names; every object is valid."""
    require(missing())
    for item in guides.kustomized(page, tmp_path):
        check(item)


def test_openshift_admits_the_pod_and_selinux_does_not_confine_it(tmp_path: Path) -> None:
    """By the constraints `privileged`, without being privileged; the account of the binding is the daemon's."""
    require(missing())
    objects = guides.kustomized("openshift", tmp_path)
    context = container(objects)["securityContext"]
    assert context["seLinuxOptions"] == {"type": "spc_t"}
    assert context.items() >= RESTRICTED.items()
    (binding,) = of_kind(objects, "RoleBinding")
    (account,) = of_kind(objects, "ServiceAccount")
    (subject,) = binding["subjects"]
    names = {key: account["metadata"][key] for key in ("name", "namespace")}
    assert subject == {"kind": "ServiceAccount", **names}
    (namespace,) = of_kind(objects, "Namespace")
    assert namespace["metadata"]["labels"]["security.openshift.io/scc.podSecurityLabelSync"] == "false"


def test_k0s_has_one_folder_elsewhere_and_not_the_other(tmp_path: Path) -> None:
    """As its table says; in the Pod both are where devwatch looks for them."""
    require(missing())
    objects = guides.kustomized("k0s", tmp_path)
    hosts = {each["name"]: each["hostPath"]["path"] for each in pod_spec(objects)["volumes"] if "hostPath" in each}
    assert hosts["pod-resources"] == "/var/lib/k0s/kubelet/pod-resources"
    assert hosts["device-plugins"] == "/var/lib/kubelet/device-plugins"


# -- applications


def application(page: str) -> tuple[ResourceRule, Object, Object]:
    """Return the only resource of a page, the only Deployment, and its only container."""
    (block,) = guides.blocks(page, "configuration")
    (rule,) = parse(block.text.encode(), file=page).resources
    (deployment,) = of_kind(guides.objects(page), "Deployment")
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return rule, deployment, only


@page_of(APPLICATIONS)
def test_the_resource_is_that_of_the_catalogue(page: str) -> None:
    """Matched as the catalogue matches it."""
    rule, _, _ = application(page)
    known = {stick.rule.name: stick.rule for stick in well_known_sticks()}[rule.name]
    assert [(entry.tests, rule.subsystem) for entry in rule.match] == [
        (entry.tests, known.subsystem) for entry in known.match
    ]


@page_of(APPLICATIONS)
def test_one_pod_has_one_stick(page: str) -> None:
    """It requests what the page configures, and no second one is made beside it."""
    rule, deployment, only = application(page)
    assert only["resources"] == {"limits": {rule.name: 1}}
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


@page_of(APPLICATIONS)
def test_the_program_is_told_the_path_of_the_stick(page: str) -> None:
    """With `devicePlugin` it is where devwatch hands it over; otherwise the folder of all USB devices is mounted."""
    rule, deployment, only = application(page)
    variables = {each["name"]: each.get("value") for each in only.get("env", ())}
    if rule.publish is Publish.DEVICE_PLUGIN:
        assert rule.container_path in variables.values() or f"`{rule.container_path}`" in guides.text_of(page)
        assert "privileged" not in only["securityContext"]
        assert only["securityContext"]["allowPrivilegeEscalation"] is False
    else:
        volumes = {each["name"]: each.get("hostPath") for each in deployment["spec"]["template"]["spec"]["volumes"]}
        mounts = {each["mountPath"]: volumes[each["name"]] for each in only["volumeMounts"]}
        assert mounts[FOLDER_OF_USB["path"]] == FOLDER_OF_USB
        assert only["securityContext"] == {"privileged": True}


def test_zigbee2mqtt_would_be_admitted_where_pods_are_restricted() -> None:
    """It is not root, and has the group of the stick."""
    _, deployment, only = application("zigbee2mqtt")
    context = deployment["spec"]["template"]["spec"]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["supplementalGroups"] == [20]
    assert only["securityContext"] == RESTRICTED


@page_of(APPLICATIONS)
def test_the_objects_of_an_application_find_each_other(page: str) -> None:
    """The selectors their Pods, the Service its ports, the volumes their claims, and each mount its volume."""
    _, deployment, only = application(page)
    template = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    (service,) = of_kind(guides.objects(page), "Service")
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    assert {port["targetPort"] for port in service["spec"]["ports"]} == {port["name"] for port in only["ports"]}
    volumes = template["spec"]["volumes"]
    claimed = {each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each}
    assert claimed == {each["metadata"]["name"] for each in of_kind(guides.objects(page), "PersistentVolumeClaim")}
    assert {mount["name"] for mount in only["volumeMounts"]} == {volume["name"] for volume in volumes}
