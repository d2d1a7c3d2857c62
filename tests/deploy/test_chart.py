"""The Helm chart: the objects of the kustomization, and values that reach the daemon as they were written."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes_validate import latest_version, validate  # type: ignore[import-untyped]  # it has no type information

from devwatch import __version__
from devwatch.config.schema import parse
from devwatch.core.classes import device_classes
from devwatch.core.errors import ConfigError
from devwatch.core.keys import KEYS
from devwatch.core.names import resource_name_fault
from support.deployment import (
    BASE,
    COMPONENTS,
    DEPLOY,
    IMAGE,
    Object,
    container,
    daemonset,
    documentation,
    missing,
    of_kind,
    pod_spec,
    rendered,
)
from system.testbed import require

helm = pytest.importorskip("helm_python", reason="needs helm-python-sdk, which has wheels for x86_64 and aarch64 alone")

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from helm_python import Chart

    from devwatch.config.schema import Config
    from devwatch.core.rules import Matcher

CHART = DEPLOY / "chart"
SWITCHES: Mapping[str, str] = {
    "admission-policy": "admissionPolicy",
    "eviction": "eviction",
    "events": "events",
    "monitoring": "monitoring",
    "patch-only": "patchOnly",
    "unprivileged": "unprivileged",
    "device-plugin": "devicePlugin",
    "dra": "dra",
}
"""The key of the values that stands for each component, in the order in which a kustomization lists them."""
SETS = [(), *((name,) for name in SWITCHES), tuple(SWITCHES)]
COPIES: Mapping[str, Path] = {
    "admission-policy.yaml": COMPONENTS / "admission-policy" / "policy.yaml",
    "alerts.yaml": COMPONENTS / "monitoring" / "alerts.yaml",
    "dashboard.json": COMPONENTS / "monitoring" / "dashboard.json",
}
"""What the chart carries along, since Helm reads nothing outside a chart and some tools follow no link out of it."""
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
AFFINITY: Object = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}
ADDRESS = {"name": "KUBERNETES_SERVICE_HOST", "value": "192.168.1.2"}
CHANGED: Object = {
    "image": {
        "repository": "registry.example.com/devwatch",
        "tag": "ignored",
        "digest": DIGEST,
        "pullPolicy": "Always",
    },
    "imagePullSecrets": [{"name": "registry"}],
    "port": 9100,
    "logLevel": "debug",
    "env": [ADDRESS],
    "resources": {"limits": {"memory": "128Mi"}},
    "tolerations": [{"key": "stick", "operator": "Exists"}],
    "nodeSelector": {"stick": "yes"},
    "affinity": AFFINITY,
    "priorityClassName": "high",
    "maxUnavailable": 1,
    "podAnnotations": {"example.com/note": "1"},
    "podLabels": {"team": "home"},
}
"""A value for each key that changes an object and is no switch."""
FOREIGN = "monitoring.coreos.com/v1"
RESERVED = (*"~?:-=|>&!%@`,[]{}#*", "<<", "---", "...", "yes", "No", "on", "null", "true", ".inf", ".NaN", "- a")
NUMBERS = ("0658", "0403", "1e10", "0x10", "0o17", "0b11", "1_000", "+1", ".5", "1:30", "2001-01-01", "10c4", "")
SPACED = (" before", "after ", "a: b", "a #b", "\t", "a\n b\n", "\n", "\r\n", "\x01", "\ufeff")
QUOTES = ("'", '"', "''", "\\", "\\n", "{{ .Release.Name }}", "{{", "$(X)", "ü", "\N{SPIDER WEB}", "x y " * 100)
HARD = (*RESERVED, *NUMBERS, *SPACED, *QUOTES)
"""Text that YAML or a template reads as something else when it is not quoted."""
UNWRITABLE = (*map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029", "\ufffe", "\uffff")
"""What YAML has no plain form for: Helm would write an empty file, or another character."""
DEVICE_TEXT = st.characters(exclude_characters=["\0", *"*?[", *UNWRITABLE], codec="utf-8")
NAMES = ("zigbee", "a/b/c", "Example.com/x", "-a/b", "a/-b", "a/b-", "a/", "/b", "a b/c", "a/b'", "a..b/c", "")
LONG = ("x" * 244 + "/b", "x" * 245 + "/b", "a/" + "x" * 63, "a/" + "x" * 64)
KEPT = ("kubernetes.io/b", "x.kubernetes.io/b", "requests.b/c", "a/B_c.d-0", "a.b-c/d", "0/1")


@pytest.fixture(scope="module")
def chart() -> Iterator[Chart]:
    """Load the chart once."""
    with helm.Chart.load(CHART) as loaded:
        yield loaded


@pytest.fixture(scope="module", params=SETS, ids=lambda names: "+".join(names) or "base")
def components(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Go through no component, each alone, and all at once."""
    names: tuple[str, ...] = request.param
    return names


@pytest.fixture(scope="module")
def kustomized(components: tuple[str, ...]) -> list[Object]:
    """Return what kubectl would apply."""
    require(missing())
    return rendered(*components)


@pytest.fixture(scope="module")
def installed(chart: Chart, components: tuple[str, ...]) -> list[Object]:
    """Return what Helm would install."""
    return templated(chart, switched(*components))


def switched(*components: str, **values: object) -> Object:
    """Return values with the switches of these components on."""
    return {**{SWITCHES[name]: {"enabled": True} for name in components}, **values}


def texts(chart: Chart, values: Object, namespace: str = "devwatch") -> dict[str, str]:
    """Return what each template renders to, by the name of its file."""
    files = chart.render(values, name="sticks", namespace=namespace)
    return {Path(path).name: text for path, text in files.items()}


def templated(chart: Chart, values: Object, namespace: str = "devwatch") -> list[Object]:
    """Return the objects that Helm would send for these values."""
    return [item for item in _rendered(chart, values, namespace) if not _hooked(item)]


def objects_of_helm_test(chart: Chart, values: Object, namespace: str = "devwatch") -> list[Object]:
    """Return the objects that `helm test` makes, in their order."""
    found = [item for item in _rendered(chart, values, namespace) if _hooked(item) == "test"]
    return sorted(found, key=lambda item: int(item["metadata"]["annotations"]["helm.sh/hook-weight"]))


def _rendered(chart: Chart, values: Object, namespace: str) -> list[Object]:
    files = texts(chart, values, namespace)
    del files["NOTES.txt"]
    return [item for text in files.values() for item in yaml.safe_load_all(text) if item]


def _hooked(item: Object) -> object:
    return item["metadata"].get("annotations", {}).get("helm.sh/hook")


def configured(chart: Chart, values: Object) -> bytes:
    """Return the file that the daemon would read."""
    return _data(templated(chart, values), "devwatch-config")["config.yaml"].encode()


def refusal(chart: Chart, values: Object) -> str:
    """Return the words with which Helm refuses these values, empty if it takes them."""
    try:
        chart.render(values)
    except helm.HelmError as error:
        return str(error)
    return ""


def resource(name: str = "example.com/zigbee", **entry: object) -> Object:
    """Return values with one resource that has one entry."""
    return {"config": {"resources": [{"name": name, "match": [entry or {"vendor": "0658"}]}]}}


def understood(text: bytes) -> Config:
    """Return a configuration as the daemon reads it, with the keys of each entry in one order: Helm sorts them, and none comes first."""
    config = parse(text, file="config.yaml")
    rules = (replace(rule, match=_sorted(rule.match), exclude=_sorted(rule.exclude)) for rule in config.resources)
    return replace(config, resources=tuple(rules))


def _sorted(entries: Iterable[Matcher]) -> tuple[Matcher, ...]:
    return tuple(
        replace(entry, tests=tuple(sorted(entry.tests, key=lambda test: (test.key, test.property_name))))
        for entry in entries
    )


def _data(objects: Iterable[Object], name: str) -> dict[str, str]:
    (found,) = (item for item in of_kind(objects, "ConfigMap") if item["metadata"]["name"] == name)
    data: dict[str, str] = found["data"]
    return data


def _comparable(objects: Iterable[Object]) -> dict[tuple[str, str], Object]:
    """Return the objects by kind and name, without what may differ.

    The Namespace is made by `helm install --create-namespace`. The namespace that an object is in has a test of its own:
    kustomize gives none to the dashboard. The configuration is compared as the daemon reads it; Helm keeps no comments.
    """
    found = {}
    for item in objects:
        metadata = {key: value for key, value in item["metadata"].items() if key != "namespace"}
        found[item["kind"], metadata["name"]] = {**item, "metadata": metadata}
    found.pop(("Namespace", "devwatch"), None)
    config = found["ConfigMap", "devwatch-config"]
    text = config["data"]["config.yaml"].encode()
    found["ConfigMap", "devwatch-config"] = {**config, "data": {"config.yaml": understood(text)}}
    return found


def test_every_component_has_a_switch() -> None:
    """A component that is added is missed here."""
    assert SWITCHES.keys() == {path.name for path in COMPONENTS.iterdir()}


def test_the_chart_is_the_kustomization(installed: list[Object], kustomized: list[Object]) -> None:
    """By default the base; with a switch the base with that component; with all switches all of them."""
    assert _comparable(installed) == _comparable(kustomized)


def test_every_object_is_valid(installed: list[Object]) -> None:
    """The API takes every object as it is, with no unknown field."""
    for item in installed:
        if item["apiVersion"] != FOREIGN:  # its schemas are not those of Kubernetes
            validate(item, latest_version(), strict=True)


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_up_to_date(name: str) -> None:
    """The files that the chart carries along are those of the components, byte for byte."""
    source, copy = COPIES[name], CHART / "files" / name
    assert copy.read_bytes() == source.read_bytes(), f"cp {source} {copy}"


@pytest.mark.parametrize("values", [{}, switched(*SWITCHES, **CHANGED)], ids=["default", "everything"])
def test_the_linter_has_nothing_to_say(values: Object) -> None:
    """Not even a recommendation."""
    report = helm.lint(CHART, values, strict=True)
    assert (report["errors"], report["messages"]) == ([], [])


def test_the_version_is_that_of_the_package(chart: Chart) -> None:
    """Of the chart, and of the image that it takes."""
    assert (chart.version, chart.metadata["appVersion"]) == (__version__, __version__)


def test_a_packaged_chart_is_the_same(chart: Chart, tmp_path: Path) -> None:
    """Nothing is left behind in the checkout."""
    with helm.Chart.load(helm.package(CHART, destination=tmp_path)) as packaged:
        assert templated(packaged, switched(*SWITCHES)) == templated(chart, switched(*SWITCHES))


def test_what_is_namespaced_is_where_the_release_is(chart: Chart) -> None:
    """And so are the subjects of the bindings."""
    objects = templated(chart, switched(*SWITCHES), namespace="other")
    cluster = re.compile("ClusterRole.*|ValidatingAdmissionPolicy.*|DeviceClass")
    places = {item["metadata"].get("namespace") for item in objects if not cluster.fullmatch(item["kind"])}
    assert places == {"other"}
    assert not any("namespace" in item["metadata"] for item in objects if cluster.fullmatch(item["kind"]))
    subjects = [subject for item in of_kind(objects, "ClusterRoleBinding") for subject in item["subjects"]]
    assert {(subject["name"], subject["namespace"]) for subject in subjects} == {("devwatch", "other")}


def test_every_value_arrives_in_the_pod(chart: Chart) -> None:
    """Each at its place, beside what the chart itself sets there."""
    objects = templated(chart, CHANGED)
    spec, only = pod_spec(objects), container(objects)
    assert only["image"] == f"registry.example.com/devwatch@{DIGEST}"
    assert only["imagePullPolicy"] == "Always"
    assert only["resources"]["limits"] == {"memory": "128Mi"}
    assert {"name": "DEVWATCH_LOG_LEVEL", "value": "debug"} in only["env"]
    assert ADDRESS in only["env"]
    for key in ("imagePullSecrets", "tolerations", "affinity", "priorityClassName"):
        assert spec[key] == CHANGED[key]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "stick": "yes"}
    validate(daemonset(objects), latest_version(), strict=True)


def test_every_value_arrives_in_the_daemonset(chart: Chart) -> None:
    """What selects the pods is not changed by labels that are added."""
    whole = daemonset(templated(chart, CHANGED))
    assert whole["spec"]["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1}
    pod = whole["spec"]["template"]["metadata"]
    assert pod["annotations"] == {"example.com/note": "1"}
    assert pod["labels"].items() >= {"team": "home", **whole["spec"]["selector"]["matchLabels"]}.items()


def test_another_root_of_the_kubelet_is_used_by_all(chart: Chart) -> None:
    """Both folders are in the pod where they are on the host, and the daemon looks for them there."""
    folders = {"kubeletDir": "/var/lib/k0s/kubelet", "devicePluginDir": "/srv/kubelet/device-plugins"}
    objects = templated(chart, switched("dra", devicePlugin={"enabled": True, **folders}))
    variables = {entry["name"]: entry.get("value") for entry in container(objects)["env"]}
    assert variables["DEVWATCH_KUBELET_DIR"] == folders["kubeletDir"]
    assert variables["DEVWATCH_DEVICE_PLUGIN_DIR"] == folders["devicePluginDir"]
    root = folders["kubeletDir"]
    paths = {"device-plugins": folders["devicePluginDir"], "pod-resources": f"{root}/pod-resources"}
    paths |= {"dra-plugin": f"{root}/plugins/devwatch.io", "plugins-registry": f"{root}/plugins_registry"}
    assert paths.items() <= {mount["name"]: mount["mountPath"] for mount in container(objects)["volumeMounts"]}.items()
    hosts = {volume["name"]: volume.get("hostPath", {}).get("path") for volume in pod_spec(objects)["volumes"]}
    assert paths.items() <= hosts.items()


def test_a_tag_names_the_image(chart: Chart) -> None:
    """Where no digest does."""
    assert container(templated(chart, {"image": {"tag": "1.2"}}))["image"] == f"{IMAGE}:1.2"


@pytest.mark.parametrize("monitoring", [False, True])
def test_another_port_is_used_by_all(chart: Chart, *, monitoring: bool) -> None:
    """By the daemon, by the probes and by Prometheus; on loopback unless Prometheus asks."""
    objects = templated(chart, {"port": 9100, "monitoring": {"enabled": monitoring}})
    only = container(objects)
    (listen,) = (entry["value"] for entry in only["env"] if entry["name"] == "DEVWATCH_LISTEN")
    assert listen == ("[$(HOST_IP)]:9100" if monitoring else "127.0.0.1:9100")
    probes = [only[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    assert {(probe.get("host"), probe["port"]) for probe in probes} == {(None if monitoring else "127.0.0.1", 9100)}
    for monitor in of_kind(objects, "PodMonitor"):
        assert "28796" not in json.dumps(monitor)
        assert json.dumps(monitor).count(":9100") == 2


@pytest.mark.parametrize(
    ("part", "kind"), [("podMonitor", "PodMonitor"), ("rules", "PrometheusRule"), ("dashboard", "ConfigMap")]
)
def test_a_part_of_the_monitoring_can_be_labelled_or_left_out(chart: Chart, part: str, kind: str) -> None:
    """Operators select by labels; who has no operator leaves out what needs one."""
    found = templated(chart, switched("monitoring", monitoring={"enabled": True, part: {"labels": {"release": "x"}}}))
    labels = [item["metadata"]["labels"] for item in of_kind(found, kind)]
    assert [label["app.kubernetes.io/name"] for label in labels if label.get("release") == "x"] == ["devwatch"]
    fewer = templated(chart, {"monitoring": {"enabled": True, part: {"enabled": False}}})
    assert len(fewer) == len(found) - 1


def test_hard_text_reaches_the_daemon_as_it_was_written(chart: Chart) -> None:
    """YAML is written by Helm and read by devwatch: in both, text stays text."""
    values = resource(serial=list(HARD), properties=dict.fromkeys((*HARD[:40], "ID_MODEL"), "x"))
    del values["config"]["resources"][0]["match"][0]["properties"]["*"]
    (rule,) = parse(configured(chart, values), file="config.yaml").resources
    (entry,) = rule.match
    serials = [test for test in entry.tests if test.key == "serial"]
    assert [pattern.text for test in serials for pattern in test.patterns] == list(HARD)
    names = {test.property_name for test in entry.tests if test.key == "properties"}
    assert names == values["config"]["resources"][0]["match"][0]["properties"].keys()


@settings(max_examples=15, deadline=None)
@given(serial=st.lists(st.text(DEVICE_TEXT), min_size=1, max_size=20))
def test_any_text_reaches_the_daemon_as_it_was_written(chart: Chart, serial: list[str]) -> None:
    """Whatever a device may call itself."""
    (rule,) = parse(configured(chart, resource(serial=serial)), file="config.yaml").resources
    assert [pattern.text for pattern in rule.match[0].tests[0].patterns] == serial


@pytest.mark.parametrize("place", ["serial", "properties"])
def test_what_helm_cannot_write_is_refused(chart: Chart, place: str) -> None:
    """Else the daemon would find an empty file, or another text."""
    entry: Object = {place: list(UNWRITABLE) if place == "serial" else dict.fromkeys(UNWRITABLE, "x")}
    assert refusal(chart, resource(**entry)).count("does not match pattern") == len(UNWRITABLE)


def test_every_documented_configuration_can_be_installed(chart: Chart) -> None:
    """What devwatch reads from a file, Helm takes in its values, in quotes or not where it makes no difference."""
    blocks = re.findall(r"^```yaml\n(resources:\n.*?)^```$", documentation(), re.DOTALL | re.MULTILINE)
    assert [block for block in blocks if "removalGrace" in block] != []
    for block in blocks:
        values = {"config": helm.values_from_yaml(block)}
        assert understood(configured(chart, values)) == understood(block.encode())


def test_every_key_of_the_configuration_is_known(chart: Chart) -> None:
    """The schema takes what devwatch takes, and no other key."""
    with pytest.raises(ConfigError) as caught:
        parse(b"{x: 1, resources: [{x: 1, match: [{x: 1}], evict: {x: 1}, container: {x: 1}}]}", file="c")
    allowed = [set(found.split(", ")) for found in re.findall(r"unknown key \((.*?)\)", str(caught.value))]
    assert chart.schema is not None
    definitions = chart.schema["definitions"]
    config = chart.schema["properties"]["config"]
    inner = (definitions["resource"]["properties"][name] for name in ("evict", "container"))
    known = [set(part["properties"]) for part in (config, definitions["resource"], definitions["entry"], *inner)]
    assert sorted(map(sorted, known)) == sorted(map(sorted, allowed))
    assert set(definitions["entry"]["properties"]) == set(KEYS)


@pytest.mark.parametrize("written", ["0658", "0403", "1e10", "0x10", "0200", "6001", "no", "~"])
@pytest.mark.parametrize("form", ["{}", "[{}]"])
def test_a_number_is_refused_in_words_that_help(chart: Chart, written: str, form: str) -> None:
    """Helm reads 0403 as 259 before devwatch can see it: it says where, and to put it in quotes."""
    bare = helm.values_from_yaml(f"vendor: {form.format(written)}")
    said = refusal(chart, resource(**bare))
    assert "/config/resources/0/match/0/vendor" in said
    assert 'text in quotes, such as "0658"' in said
    quoted = helm.values_from_yaml(f"""serial: {form.format(f'"{written}"')}""")
    assert refusal(chart, resource(**quoted)) == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("podMonitor: {}", "additional properties 'podMonitor' not allowed"),
        ("events: {enable: true}", "at '/events': additional properties 'enable' not allowed"),
        ("monitoring: {rules: {enabled: 'yes'}}", "at '/monitoring/rules/enabled': got string, want boolean"),
        ("port: 0", "at '/port'"),
        ("logLevel: loud", "at '/logLevel': value must be one of"),
        ("image: {digest: latest}", "at '/image/digest'"),
        ("devicePlugin: {kubeletDir: kubelet}", "at '/devicePlugin/kubeletDir'"),
        ("maxUnavailable: 0%", "at '/maxUnavailable'"),
        ('admissionPolicy: {allowed: ["a/b\'"]}', "at '/admissionPolicy/allowed/0'"),
        ("config: {sweep: 10}", "at '/config/sweep': got number, want string"),
        ("config: {resync: 5 minutes}", "at '/config/resync'"),
        ("config: {sweep: 301s}", "at '/config/sweep'"),
        ("config: {resources: [{name: a/b}]}", "missing property 'match'"),
        ("config: {resources: [{name: 5, match: [{port: x}]}]}", "at '/config/resources/0/name': got number"),
        ("config: {resources: [{name: a/b, match: []}]}", "at '/config/resources/0/match': minItems"),
        ("config: {resources: [{name: a/b, match: [{}]}]}", "at '/config/resources/0/match/0': minProperties"),
        ("config: {resources: [{name: a/b, match: [{vendr: x}]}]}", "additional properties 'vendr' not allowed"),
        ("config: {resources: [{name: a/b, match: [{vendor: '658'}]}]}", "'658' does not match"),
        ("config: {resources: [{name: a/b, match: [{path: dev}]}]}", "'dev' does not match"),
        ("config: {resources: [{name: a/b, match: [{port: x}], count: two}]}", "value must be one of 'device'"),
        ("config: {resources: [{name: a/b, match: [{port: x}], evict: {}}]}", "missing property 'after'"),
        ("config: {resources: [{name: a/b, match: [{port: x}], publish: cdi}]}", "value must be one of 'nodeStatus'"),
        ("config: {resources: [{name: a/b, match: [{port: x}], container: {}}]}", "missing property 'path'"),
        (
            "config: {resources: [{name: a/b, match: [{port: x}], container: {path: /dev/x}}]}",
            "/resources/0/container'",
        ),
        ("config: {resources: [{name: a/null, match: [{port: x}], publish: dra}]}", "at '/config/resources/0/name'"),
    ],
    ids=lambda value: value[:60],
)
def test_a_wrong_value_is_refused(chart: Chart, values: str, words: str) -> None:
    """Before anything is installed, with its place and what is wanted."""
    assert words in refusal(chart, helm.values_from_yaml(values))


@pytest.mark.parametrize(
    "path", ["/dev/x", "/dev/.x", "/dev/a/..b", "/dev", "/dev/", "/dev/.", "/dev/a/../b", "/dev//x", "/mnt/x", "dev/x"]
)
def test_a_path_in_containers_is_taken_where_devwatch_takes_it(chart: Chart, path: str) -> None:
    """Below /dev, and clean."""
    values = resource()
    values["config"]["resources"][0] |= {"publish": "devicePlugin", "container": {"path": path}}
    try:
        parse(json.dumps(values["config"]).encode(), file="config.yaml")
    except ConfigError:
        assert "at '/config/resources/0/container/path'" in refusal(chart, values)
    else:
        assert refusal(chart, values) == ""


@pytest.mark.parametrize("name", [*NAMES, *LONG, *KEPT], ids=lambda name: name[-20:] or "empty")
def test_a_name_is_taken_where_devwatch_takes_it(chart: Chart, name: str) -> None:
    """The rules are those of the Pod API; a name that no Pod can ask for is refused at once."""
    said = refusal(chart, resource(name))
    assert bool(said) == bool(resource_name_fault(name)), said
    assert said == "" or "config" in said


def test_a_name_is_taken_once(chart: Chart) -> None:
    """The second of two resources with one name is named."""
    twice = resource()["config"]["resources"] * 2
    said = refusal(chart, {"config": {"resources": twice}})
    assert "config.resources[1].name: example.com/zigbee is taken" in said


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        ({}, ["aeotec/zstick", "rfxcom/rfxtrx433"]),
        (resource(), ["example.com/zigbee"]),
        ({**resource(), "admissionPolicy": {"allowed": ["old.io/*"]}}, ["example.com/zigbee", "old.io/*"]),
        ({**resource(), "admissionPolicy": {"allowed": ["example.com/zigbee"]}}, ["example.com/zigbee"]),
    ],
)
def test_the_policy_allows_what_is_configured(chart: Chart, values: Object, allowed: list[str]) -> None:
    """And what is named besides: a resource that left the configuration has still to be removed from the Nodes."""
    extra = values.get("admissionPolicy", {})
    (policy,) = of_kind(
        templated(chart, {**values, "admissionPolicy": {"enabled": True, **extra}}), "ValidatingAdmissionPolicy"
    )
    first = policy["spec"]["variables"][0]
    assert first["name"] == "allowed"
    assert re.fullmatch(r"\[('[^']*'(, )?)*\]", first["expression"])
    assert re.findall("'(.*?)'", first["expression"]) == allowed


@pytest.mark.parametrize(
    "names",
    [
        ["aeotec/zstick"],
        ["a.b-c/Z_b", "a.b-c/z-b", "a.b-c.z/b"],
        ["a/b.c", "a.b/c", "a/b-.c", "a/b..c", "a/B.C"],
        ["example.com/" + "x" * 52],
    ],
    ids=lambda names: names[0][:20],
)
def test_the_classes_are_those_that_devwatch_prints(chart: Chart, names: list[str]) -> None:
    """Object by object; a resource that is published in another way has none."""
    entry = {"match": [{"port": "x"}]}
    resources = [{"name": name, "publish": "dra", **entry} for name in names]
    values: Object = {
        "config": {"resources": [*resources, {"name": "other.com/plain", **entry}]},
        "dra": {"enabled": True},
    }
    objects = templated(chart, values)
    rules = parse(_data(objects, "devwatch-config")["config.yaml"].encode(), file="c").resources
    found = list(of_kind(objects, "DeviceClass"))
    assert len(found) == len(names)
    assert found == list(device_classes(rules))
    for item in found:
        validate(item, latest_version(), strict=True)
    assert (
        list(of_kind(templated(chart, {**values, "dra": {"enabled": True, "deviceClasses": False}}), "DeviceClass"))
        == []
    )
    assert list(of_kind(templated(chart, {**values, "dra": {"enabled": False}}), "DeviceClass")) == []


def test_a_chart_without_resources_can_be_installed(chart: Chart) -> None:
    """It advertises nothing, and takes away what it advertised before."""
    objects = templated(chart, switched(*SWITCHES, config={"resources": []}))
    assert parse(_data(objects, "devwatch-config")["config.yaml"].encode(), file="c").resources == ()


def test_every_value_is_described(chart: Chart) -> None:
    """In values.yaml with its default, in the schema with its meaning; `global` is Helm's own."""
    assert chart.schema is not None
    keys = chart.schema["properties"]
    assert set(keys) - {"global"} == set(chart.values)
    definitions = chart.schema["definitions"]
    assert [key for key, value in keys.items() if not _described(value, definitions)] == []


def _described(value: Mapping[str, Any], definitions: Mapping[str, Any]) -> bool:
    return bool(definitions[value["$ref"].split("/")[-1]] if "$ref" in value else value.get("description"))


def test_the_notes_tell_what_to_do_next(chart: Chart) -> None:
    """How the namespace admits the pods, how to see daemons and counts, how to ask for a stick, how to leave."""
    notes = texts(chart, resource("nortek.com/zigbee"), namespace="other")["NOTES.txt"]
    (namespace,) = yaml.safe_load_all((BASE / "namespace.yaml").read_text("utf-8"))
    for label, level in namespace["metadata"]["labels"].items():
        assert f"{label}={level}" in notes
    assert "kubectl label namespace other " in notes
    assert "kubectl -n other get pods -o wide" in notes
    assert r"nortek.com/zigbee:.status.allocatable.nortek\.com/zigbee'" in notes
    assert "limits:\n       nortek.com/zigbee: 1" in notes
    assert notes.index("helm uninstall sticks --namespace other") < notes.index("devwatch purge --all-nodes")
    assert "evict" not in notes
    assert "WARNING" not in notes


def test_the_notes_warn_of_a_missing_right(chart: Chart) -> None:
    """A resource evicts and nobody granted it."""
    values = resource()
    values["config"]["resources"][0]["evict"] = {"after": "30s"}
    assert "eviction.enabled=true" in texts(chart, values)["NOTES.txt"]
    assert "WARNING" not in texts(chart, {**values, **switched("eviction")})["NOTES.txt"]


def test_the_notes_say_where_the_stick_is_in_a_container(chart: Chart) -> None:
    """By the default path or the configured one; and that the daemon has to reach the kubelet for it."""
    values = resource("nortek.com/zigbee")
    assert "hostPath volume" in texts(chart, values)["NOTES.txt"]
    (only,) = values["config"]["resources"]
    only["publish"] = "devicePlugin"
    notes = texts(chart, values)["NOTES.txt"]
    assert "finds the stick at /dev/zigbee, " in notes
    assert "WARNING" in notes
    assert "devicePlugin.enabled=true" in notes
    only["publish"] = "dra"
    notes = texts(chart, values)["NOTES.txt"]
    assert "finds the stick at /dev/zigbee, " in notes
    assert "dra.enabled=true" in notes
    assert "WARNING" not in texts(chart, {**values, **switched("dra")})["NOTES.txt"]
    only["publish"] = "devicePlugin"
    only["container"] = {"path": "/dev/stick"}
    notes = texts(chart, {**values, **switched("device-plugin")})["NOTES.txt"]
    assert "finds the stick at /dev/stick, " in notes
    assert "WARNING" not in notes


def test_the_notes_name_the_label_without_which_nobody_is_evicted(chart: Chart) -> None:
    """Only where the policy asks for it, in the policy's own words."""
    label = "devwatch.io/evict=allowed"
    assert label in (CHART / "files" / "admission-policy.yaml").read_text("utf-8")
    assert f"kubectl label namespace NAMESPACE {label}" in texts(chart, switched(*SWITCHES))["NOTES.txt"]
    assert label not in texts(chart, switched("eviction"))["NOTES.txt"]
