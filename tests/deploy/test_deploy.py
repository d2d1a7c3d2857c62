"""The manifests: valid for the Kubernetes API, with the rights, the mounts and the hardening that they promise."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import latest_version, validate  # type: ignore[import-untyped]  # it has no type information

from devwatch import __version__
from devwatch.cli.entry import DEFAULT_LISTEN, DEVICE_PLUGIN_DIR, KUBELET_DIR, main
from devwatch.config.schema import parse
from devwatch.core.rules import Publish
from devwatch.observe.metrics import Metrics
from devwatch.observe.server import parse_listen
from support.deployment import (
    BASE,
    COMPONENTS,
    DEPLOY,
    IMAGE,
    Object,
    build,
    container,
    daemonset,
    granted,
    missing,
    of_kind,
    pod_spec,
    rendered,
)
from system.testbed import require

BASE_RIGHTS = {
    ("", "nodes/status", "patch"),
    ("", "nodes", "get"),
    ("", "nodes", "list"),
    ("", "nodes", "watch"),
}
EVENTS = ("", "events", "create")
LIST_PODS = ("", "pods", "list")
EVICTION = {LIST_PODS, ("", "pods/eviction", "create")}
SLICES = ("get", "list", "watch", "create", "update", "delete")
DRA = {
    LIST_PODS,
    ("resource.k8s.io", "resourceclaims", "get"),
    *(("resource.k8s.io", "resourceslices", verb) for verb in SLICES),
}
FOREIGN = "monitoring.coreos.com/v1"
ALL = sorted(path.name for path in COMPONENTS.iterdir() if (path / "kustomization.yaml").exists())
SETS = [(), *((name,) for name in ALL), tuple(ALL)]
ALERT_TESTS = Path(__file__).parent / "data" / "alerts.yaml"


@pytest.fixture(autouse=True)
def _kubectl() -> None:
    require(missing())


@pytest.fixture
def base() -> list[Object]:
    """Return what is applied without any component."""
    return rendered()


@pytest.mark.parametrize("version", ["1.30.0", latest_version()])
@pytest.mark.parametrize("components", SETS, ids=lambda names: "+".join(names) or "base")
def test_every_object_is_valid(components: tuple[str, ...], version: str) -> None:
    """The API takes every object as it is, with no unknown field."""
    for item in rendered(*components):
        if item["apiVersion"] != FOREIGN:  # its schemas are not those of Kubernetes
            validate(item, version, strict=True)


@pytest.mark.parametrize("components", SETS, ids=lambda names: "+".join(names) or "base")
def test_a_user_may_choose_the_namespace(components: tuple[str, ...]) -> None:
    """What is namespaced follows, and so do the subjects of the bindings."""
    objects = rendered(*components, namespace="other")
    assert [item["metadata"]["name"] for item in of_kind(objects, "Namespace")] == ["other"]
    assert {item["metadata"].get("namespace", "other") for item in objects} == {"other"}
    subjects = [subject for item in of_kind(objects, "ClusterRoleBinding") for subject in item["subjects"]]
    assert {(subject["name"], subject["namespace"]) for subject in subjects} == {("devwatch", "other")}


@pytest.mark.parametrize(
    ("components", "rights"),
    [
        ((), BASE_RIGHTS),
        (("unprivileged", "monitoring"), BASE_RIGHTS),
        (("patch-only",), {("", "nodes/status", "patch")}),
        (("events",), {*BASE_RIGHTS, EVENTS}),
        (("eviction",), {*BASE_RIGHTS, *EVICTION}),
        (("device-plugin",), {*BASE_RIGHTS, LIST_PODS}),
        (("device-plugin", "eviction"), {*BASE_RIGHTS, *EVICTION}),
        (("dra",), {*BASE_RIGHTS, *DRA}),
        (("device-plugin", "dra"), {*BASE_RIGHTS, *DRA}),
        (("patch-only", "events", "eviction"), {("", "nodes/status", "patch"), EVENTS, *EVICTION}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_the_rights_are_exactly_these(components: tuple[str, ...], rights: set[tuple[str, str, str]]) -> None:
    """Each component grants what it says; nothing reads a secret, and there is no wildcard and no other role."""
    objects = rendered(*components)
    assert granted(objects) == rights
    assert not [item for item in objects if item["kind"] in {"Role", "RoleBinding"}]
    roles = {item["metadata"]["name"] for item in of_kind(objects, "ClusterRole")}
    assert roles == {item["roleRef"]["name"] for item in of_kind(objects, "ClusterRoleBinding")}


def test_the_host_is_mounted_for_reading_alone(base: list[Object]) -> None:
    """The three folders of the host, each at its own path and whole, and the configuration as a folder, which changes when it is edited."""
    mounts = {mount["name"]: mount for mount in container(base)["volumeMounts"]}
    assert all(mount["readOnly"] and "subPath" not in mount for mount in mounts.values())
    volumes = {volume["name"]: volume for volume in pod_spec(base)["volumes"]}
    assert mounts.keys() == volumes.keys()
    host = {
        mounts[name]["mountPath"]: volume["hostPath"]["path"]
        for name, volume in volumes.items()
        if "hostPath" in volume
    }
    assert host == {"/dev": "/dev", "/run/udev": "/run/udev", "/sys": "/sys"}
    assert mounts["config"]["mountPath"] == "/etc/devwatch"


def test_the_last_words_are_written_outside_the_hosts_dev(base: list[Object]) -> None:
    """The default path of the termination message is in /dev, which is the host's, for reading."""
    assert not container(base)["terminationMessagePath"].startswith("/dev")
    assert container(base)["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_the_daemon_is_in_the_hosts_network_and_reserves_no_port(base: list[Object]) -> None:
    """It hears udevd there; a declared port of such a pod would keep other pods from the node."""
    assert pod_spec(base)["hostNetwork"] is True
    assert "ports" not in container(base)


@pytest.mark.parametrize(
    ("probe", "path"), [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
)
def test_the_probes_ask_where_the_daemon_listens(base: list[Object], probe: str, path: str) -> None:
    """On loopback, as it does by default; with `monitoring` on the address of the host, as the probes then do."""
    wanted = container(base)[probe]["httpGet"]
    assert (wanted["host"], wanted["port"]) == parse_listen(DEFAULT_LISTEN)
    assert wanted["path"] == path
    watched = container(rendered("monitoring"))[probe]["httpGet"]
    assert watched == {"path": path, "port": wanted["port"]}


@pytest.mark.parametrize("address", ["192.168.1.20", "fd00::20"])
def test_with_monitoring_the_daemon_listens_on_the_address_of_its_node(address: str) -> None:
    """IPv4 or IPv6. A variable can use those above it alone."""
    values = {entry["name"]: entry for entry in container(rendered("monitoring"))["env"]}
    assert list(values).index("HOST_IP") < list(values).index("DEVWATCH_LISTEN")
    assert values["HOST_IP"]["valueFrom"]["fieldRef"]["fieldPath"] == "status.hostIP"
    assert parse_listen(values["DEVWATCH_LISTEN"]["value"].replace("$(HOST_IP)", address)) == (address, 28796)


def test_every_node_with_sticks_is_served(base: list[Object]) -> None:
    """Also tainted ones and those under pressure: the daemon is among the last to be evicted."""
    spec = pod_spec(base)
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert spec["priorityClassName"] == "system-node-critical"


def test_the_daemon_knows_its_node(base: list[Object]) -> None:
    """By the name that Kubernetes gives it, whatever the host calls itself."""
    (name,) = (entry for entry in container(base)["env"] if entry["name"] == "NODE_NAME")
    assert name["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}


def test_the_old_daemon_ends_before_the_new_one_starts(base: list[Object]) -> None:
    """A surge would wait for the lock that the old daemon holds, and the old daemon for the surge to be ready."""
    strategy = daemonset(base)["spec"]["updateStrategy"]
    assert strategy["type"] == "RollingUpdate"
    assert strategy["rollingUpdate"].get("maxSurge", 0) == 0


@pytest.mark.parametrize("nodes", [1, 2, 3, 10, 1000])
def test_an_update_reaches_every_node_that_runs(base: list[Object], nodes: int) -> None:
    """However many others are off: their daemons count as unavailable, and some room has to be left (apps/v1, RollingUpdateDaemonSet)."""
    share = daemonset(base)["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"]
    room = math.ceil(nodes * int(share.removesuffix("%")) / 100)  # rounded up, as Kubernetes does
    assert all(room > off for off in range(nodes))


def test_memory_is_limited_and_time_is_not(base: list[Object]) -> None:
    """A limit of the CPU would delay the answer to a uevent."""
    resources = container(base)["resources"]
    assert resources["limits"].keys() == {"memory"}
    assert resources["requests"].keys() == {"cpu", "memory"}


def test_the_namespace_admits_the_pod(base: list[Object]) -> None:
    """It uses the host's network and paths, which Pod Security allows at one level alone."""
    (namespace,) = of_kind(base, "Namespace")
    labels = namespace["metadata"]["labels"]
    levels = {mode: labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")}
    assert set(levels.values()) == {"privileged"}


def test_a_changed_configuration_restarts_nobody(base: list[Object]) -> None:
    """The name of the ConfigMap is always the same, since the daemon reads a changed file by itself."""
    (config,) = of_kind(base, "ConfigMap")
    assert config["metadata"]["name"] == "devwatch-config"
    assert config["data"].keys() == {"config.yaml"}


@pytest.mark.parametrize("folder", [BASE, DEPLOY / "example"], ids=lambda path: path.name)
def test_the_configuration_is_valid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`devwatch check` finds no fault in what is shipped."""
    assert main(["check", str(folder / "config.yaml")]) == 0
    assert "valid" in capsys.readouterr().out


def test_the_base_counts_what_the_first_users_had() -> None:
    """Their two names go on to work."""
    config = parse((BASE / "config.yaml").read_bytes(), file="config.yaml")
    assert [rule.name for rule in config.for_node("any")] == ["aeotec/zstick", "rfxcom/rfxtrx433"]


def test_the_image_is_that_of_this_version(base: list[Object]) -> None:
    """Never `latest`, and the one that a release pushes: a mirror is set by `images:` of kustomize."""
    assert container(base)["image"] == f"{IMAGE}:{__version__}"
    (example,) = yaml.safe_load((DEPLOY / "example" / "kustomization.yaml").read_text())["images"]
    assert example == {"name": IMAGE, "newTag": __version__}


def test_the_base_is_privileged_and_its_root_read_only(base: list[Object]) -> None:
    """Root, whatever the user of the image: privileges are of no use to another one."""
    assert container(base)["securityContext"] == {
        "privileged": True,
        "readOnlyRootFilesystem": True,
        "runAsUser": 0,
        "runAsGroup": 0,
    }


def test_unprivileged_has_no_privilege() -> None:
    """No capability, no root, no way to become more, the default seccomp profile; nothing of the base is left."""
    spec = pod_spec(rendered("unprivileged"))
    assert "securityContext" not in spec
    (only,) = spec["containers"]
    assert only["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert not {"hostPID", "hostIPC"} & spec.keys()


@pytest.mark.parametrize("name", ["device-plugin", "dra"])
@pytest.mark.parametrize("before", [(), ("unprivileged",), ("eviction", "events", "monitoring", "unprivileged")])
def test_who_hands_devices_over_is_root_without_any_privilege(before: tuple[str, ...], name: str) -> None:
    """The owner of the kubelet's folders, with no capability and no way to get one; also where it is listed after `unprivileged`."""
    (only,) = pod_spec(rendered(*before, name))["containers"]
    assert only["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_device_plugin_mounts_two_folders_of_the_kubelet_and_nothing_else(base: list[Object]) -> None:
    """Where they are on the host; only that of the plugins can be written to, and a missing one stops the pod with words."""
    objects = rendered("device-plugin")
    mounts = [mount for mount in container(objects)["volumeMounts"] if mount not in container(base)["volumeMounts"]]
    volumes = [volume for volume in pod_spec(objects)["volumes"] if volume not in pod_spec(base)["volumes"]]
    assert {mount["mountPath"]: mount.get("readOnly", False) for mount in mounts} == {
        DEVICE_PLUGIN_DIR: False,
        f"{KUBELET_DIR}/pod-resources": True,
    }
    paths = {mount["name"]: mount["mountPath"] for mount in mounts}
    assert {volume["name"]: volume["hostPath"] for volume in volumes} == {
        name: {"path": path, "type": "Directory"} for name, path in paths.items()
    }
    rest = {**pod_spec(objects), "containers": None, "volumes": None}
    assert rest == {**pod_spec(base), "containers": None, "volumes": None}


def test_dra_mounts_the_folders_of_a_driver_and_nothing_else(base: list[Object]) -> None:
    """Where they are on the host, of the plugins the own folder alone; what the kubelet has not made may be missing."""
    objects = rendered("dra")
    mounts = [mount for mount in container(objects)["volumeMounts"] if mount not in container(base)["volumeMounts"]]
    volumes = [volume for volume in pod_spec(objects)["volumes"] if volume not in pod_spec(base)["volumes"]]
    assert {mount["mountPath"]: mount.get("readOnly", False) for mount in mounts} == {
        f"{KUBELET_DIR}/plugins/devwatch.io": False,
        f"{KUBELET_DIR}/plugins_registry": False,
        f"{KUBELET_DIR}/pod-resources": True,
        "/var/run/cdi": False,
    }
    paths = {mount["name"]: mount["mountPath"] for mount in mounts}
    assert {volume["name"]: volume["hostPath"]["path"] for volume in volumes} == paths
    made = {volume["name"] for volume in volumes if volume["hostPath"]["type"] == "DirectoryOrCreate"}
    assert made == {"dra-plugin", "cdi"}
    rest = {**pod_spec(objects), "containers": None, "volumes": None}
    assert rest == {**pod_spec(base), "containers": None, "volumes": None}


def test_another_root_of_the_kubelet_is_one_patch_for_dra_too() -> None:
    """The folders are at the path of the host in the pod as well: the kubelet dials the path that the daemon tells it."""
    root = "/var/lib/k0s/kubelet"
    objects = rendered("dra", patches=_commented_patches("dra"))
    mounts = {mount["name"]: mount["mountPath"] for mount in container(objects)["volumeMounts"]}
    plain = {mount["name"]: mount["mountPath"] for mount in container(rendered("dra"))["volumeMounts"]}
    moved = {name: path.replace(KUBELET_DIR, root) for name, path in plain.items()}
    assert mounts == moved != plain
    hosts = {
        volume["name"]: volume["hostPath"]["path"] for volume in pod_spec(objects)["volumes"] if "hostPath" in volume
    }
    assert hosts.items() <= moved.items()
    variables = {each["name"]: each.get("value") for each in container(objects)["env"]}
    assert variables["DEVWATCH_KUBELET_DIR"] == root


def _commented_patches(component: str) -> list[Object]:
    """Return the patches in the comment of a component."""
    lines = (COMPONENTS / component / "kustomization.yaml").read_text("utf-8").splitlines()
    comment = "\n".join(line.removeprefix("#   ") for line in lines if line.startswith("#   "))
    patches: list[Object] = yaml.safe_load(comment)["patches"]
    return patches


def test_another_root_of_the_kubelet_is_one_patch() -> None:
    """The one in the comment of the component: the daemon finds pod-resources where it was."""
    objects = rendered("device-plugin", patches=_commented_patches("device-plugin"))
    paths = {volume["name"]: volume.get("hostPath") for volume in pod_spec(objects)["volumes"]}
    assert paths["pod-resources"] == {"path": "/var/lib/k0s/kubelet/pod-resources", "type": "Directory"}
    assert container(objects) == container(rendered("device-plugin"))


def test_the_token_is_for_the_daemon_alone(base: list[Object]) -> None:
    """Another pod under the account gets none by itself."""
    (account,) = of_kind(base, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert pod_spec(base)["automountServiceAccountToken"] is True
    assert pod_spec(base)["serviceAccountName"] == account["metadata"]["name"]


def test_what_selects_the_pods_finds_them() -> None:
    """The DaemonSet and the PodMonitor."""
    objects = rendered("monitoring")
    labels = daemonset(objects)["spec"]["template"]["metadata"]["labels"].items()
    (monitor,) = of_kind(objects, "PodMonitor")
    for selector in (daemonset(objects)["spec"]["selector"], monitor["spec"]["selector"]):
        assert selector["matchLabels"].items() <= labels
    assert monitor["spec"]["jobLabel"] in dict(labels)


def test_every_object_says_whose_it_is() -> None:
    """By the recommended label, so that `kubectl get -l app.kubernetes.io/name=devwatch` finds all of them."""
    for item in rendered(*ALL):
        assert item["metadata"]["labels"]["app.kubernetes.io/name"] == "devwatch", item["metadata"]["name"]


def test_the_example_keeps_its_own_configuration() -> None:
    """In the place of the base's, under the same name, in the namespace of the user's choice."""
    objects = build(DEPLOY / "example")
    (config,) = of_kind(objects, "ConfigMap")
    assert config["data"]["config.yaml"] == (DEPLOY / "example" / "config.yaml").read_text()
    assert config["metadata"]["name"] == "devwatch-config"
    assert "privileged" not in container(objects)["securityContext"]
    assert granted(objects) == {*BASE_RIGHTS, EVENTS, *EVICTION}


def test_the_example_gives_its_stick_to_pods_without_privileges() -> None:
    """The kubelet does, so the daemon has what it needs to reach it."""
    config = parse((DEPLOY / "example" / "config.yaml").read_bytes(), file="config.yaml")
    assert {rule.publish for rule in config.for_node("any")} == {Publish.DEVICE_PLUGIN}
    only = container(build(DEPLOY / "example"))
    assert only["securityContext"]["runAsUser"] == 0
    assert DEVICE_PLUGIN_DIR in {mount["mountPath"] for mount in only["volumeMounts"]}


def test_the_example_allows_the_names_that_it_configures() -> None:
    """Its admission policy lists the resources of its configuration; any other would be refused."""
    (policy,) = of_kind(build(DEPLOY / "example"), "ValidatingAdmissionPolicy")
    (allowed,) = (item["expression"] for item in policy["spec"]["variables"] if item["name"] == "allowed")
    config = parse((DEPLOY / "example" / "config.yaml").read_bytes(), file="config.yaml")
    assert re.findall("'(.*?)'", allowed) == [rule.name for rule in config.for_node("any")]


def test_a_copy_of_the_example_takes_any_namespace(tmp_path: Path) -> None:
    """As its comment says."""
    shutil.copy(DEPLOY / "example" / "config.yaml", tmp_path)
    text = (DEPLOY / "example" / "kustomization.yaml").read_text()
    text = text.replace("namespace: devwatch # another", "namespace: other # another")
    text = re.sub(r"- \.\./", f"- {os.path.relpath(DEPLOY, tmp_path.resolve())}/", text)
    (tmp_path / "kustomization.yaml").write_text(text)
    (config,) = of_kind(build(tmp_path), "ConfigMap")
    assert config["metadata"]["namespace"] == "other"
    assert "evict" in config["data"]["config.yaml"]


def _relabelled(address: str, node: str) -> dict[str, str]:
    """Do what Prometheus does with the PodMonitor's relabelings (`relabel_config`): anchored patterns, `$1`."""
    (monitor,) = of_kind(rendered("monitoring"), "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    labels = {
        "__address__": address,
        "__meta_kubernetes_pod_ip": address,
        "__meta_kubernetes_pod_node_name": node,
    }
    for rule in endpoint["relabelings"]:
        assert rule.keys() <= {"sourceLabels", "regex", "replacement", "targetLabel", "action"}
        # The operator's schema adds it where it is left out, and `kubectl apply` would report a change each time.
        assert rule["action"] == "replace"
        (source,) = rule["sourceLabels"]
        if found := re.fullmatch(rule.get("regex", "(.*)"), labels[source]):
            labels[rule["targetLabel"]] = rule.get("replacement", "$1").replace("$1", found[1])
    return labels


@pytest.mark.parametrize(
    ("address", "wanted"), [("192.168.1.20", "192.168.1.20:28796"), ("fd00::20", "[fd00::20]:28796")]
)
def test_prometheus_asks_the_daemon_of_each_node(address: str, wanted: str) -> None:
    """Though the pod declares no port: the address is made from the pod's, and the node is a label, which the alerts need."""
    labels = _relabelled(address, "nuc-1")
    assert (labels["__address__"], labels["node"]) == (wanted, "nuc-1")
    (monitor,) = of_kind(rendered("monitoring"), "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint.keys() == {"path", "relabelings"}  # a port, by name or number, would select none
    assert endpoint["path"] == "/metrics"


def _alerts() -> list[dict[str, Any]]:
    (item,) = of_kind(rendered("monitoring"), "PrometheusRule")
    assert item["spec"].keys() == {"groups"}
    (group,) = item["spec"]["groups"]
    assert group.keys() == {"name", "rules"}
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_every_alert_says_what_to_do() -> None:
    """A summary, a description, and how bad it is."""
    rules = _alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert all(rule["annotations"].values())


def _board() -> dict[str, Any]:
    maps = {item["metadata"]["name"]: item for item in of_kind(rendered("monitoring"), "ConfigMap")}
    board: dict[str, Any] = json.loads(maps["devwatch-dashboard"]["data"]["devwatch.json"])
    assert maps["devwatch-dashboard"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    return board


def _expressions() -> dict[str, str]:
    """Return every expression of the alerts and the dashboard, by where it is; Grafana's variables as Grafana would fill them in."""
    found = {rule["alert"]: rule["expr"] for rule in _alerts()}
    for panel in _board()["panels"]:
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", "5m").replace("$node", "nuc-1|nuc-2")
            found[f"{panel['title']} {target['refId']}"] = text
    return found


def _exported() -> dict[str, set[str]]:
    """Return every series that devwatch exports, with the names of its labels."""
    metrics = Metrics(__version__)
    metrics.set_devices({"aeotec/zstick": 1})
    metrics.set_capacity({"aeotec/zstick": 1})
    metrics.set_registered({"aeotec/zstick": 1})
    metrics.uevent("add")
    series: dict[str, set[str]] = {}
    for line in io.StringIO(metrics.render().decode()):
        if found := re.match(r"(devwatch_\w+)(?:\{(.*)\})? ", line):
            series.setdefault(found[1], set()).update(re.findall(r'(\w+)="', found[2] or ""))
    return series


_SELECTOR = re.compile(r"\b(devwatch_\w+)(?:\{([^}]*)\})?")


def test_alerts_and_dashboard_ask_for_what_there_is() -> None:
    """Every series is one that devwatch exports, with labels that it has (`node` comes from the PodMonitor)."""
    series = _exported()
    for where, expression in _expressions().items():
        asked = _SELECTOR.findall(expression)
        assert asked, where
        for name, labels in asked:
            assert name in series, where
            assert set(re.findall(r"(\w+)=", labels)) <= {*series[name], "node"}, where


def test_alerts_ask_for_outcomes_that_there_are() -> None:
    """A misspelt outcome would be an alert that never fires."""
    text = Metrics(__version__).render().decode()
    for where, expression in _expressions().items():
        for name, labels in _SELECTOR.findall(expression):
            for label, values in re.findall(r'(outcome|trigger|action)=~?"([^"]*)"', labels):
                for value in values.split("|"):
                    assert re.search(rf'{name}\{{[^}}]*{label}="{value}"', text), (where, value)


def test_everything_that_is_exported_is_on_the_board() -> None:
    """Nobody has to find a metric by its name."""
    bases = {re.sub("_(bucket|sum|count)$", "", name) for name in _exported()}
    shown = " ".join(target["expr"] for panel in _board()["panels"] for target in panel["targets"])
    assert sorted(name for name in bases if name not in shown) == []


def test_the_board_can_be_read() -> None:
    """Every panel has a number of its own, a place of its own and words that explain it."""
    panels = _board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert all(panel["title"] and panel["description"] for panel in panels)


@pytest.fixture
def promtool(tmp_path: Path) -> Path:
    """Return a folder with the alerts as Prometheus reads them, beside their tests."""
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool")
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "devwatch", "rules": _alerts()}]}))
    shutil.copy(ALERT_TESTS, tmp_path / "tests.yaml")
    return tmp_path


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_fire_when_they_should_and_then_alone(promtool: Path) -> None:
    """Each one, over made-up series, by Prometheus' own evaluation."""
    _run(promtool, "test", "rules", "tests.yaml")
    assert set(re.findall('alertname="(.*?)"', ALERT_TESTS.read_text())) == {rule["alert"] for rule in _alerts()}


def test_prometheus_understands_every_expression(promtool: Path) -> None:
    """Those of the dashboard too."""
    rules = [{"record": f"test:{at}", "expr": text} for at, text in enumerate(_expressions().values())]
    (promtool / "all.yaml").write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    _run(promtool, "check", "rules", "--lint-fatal", "all.yaml")
    _run(promtool, "check", "rules", "--lint-fatal", "rules.yaml")
