"""One command to install, as documented: a chart from a package, and a kustomization from a git URL, without a checkout."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from deploy import test_chart
from devwatch import __version__
from devwatch.config.schema import parse
from project.test_release import COMMITTED, NOBODY
from support import release
from support.checkout import CHECKOUT
from support.deployment import IMAGE, build, container, missing, of_kind, rendered
from system.apiserver import LOOPBACK, free_ports
from system.testbed import require
from system.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.deployment import Object

REPOSITORY = "https://github.com/devwatch/devwatch"
CONFIG = b'resources: [{name: example.com/meter, match: [{vendor: "0403"}], publish: devicePlugin}]\n'
INSTALL = "\n".join((CHECKOUT / name).read_text("utf-8") for name in ("README.md", "docs/install.md")).replace(
    "\\\n", " "
)
"""How to install on any cluster, with each command on one line; the pages for one kind of cluster have tests of their own."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of a bare repository with the manifests of this checkout, at the tag of this version."""
    require(missing())
    folder = tmp_path_factory.mktemp("served")
    sources = folder / "sources"
    shutil.copytree(CHECKOUT / "deploy", sources / "deploy")
    for command in (
        "init --quiet",
        "add --all",
        "commit --quiet --message manifests",
        f"tag v{__version__}",
        "clone --quiet --bare . ../devwatch.git",
    ):
        subprocess.run(["git", *command.split()], cwd=sources, env={**os.environ, **NOBODY}, check=True)
    return f"file://{folder}/devwatch.git"


def documented(pattern: str) -> str:
    """Return the only text that a pattern finds; README and page agree."""
    (found,) = set(re.findall(pattern, INSTALL, re.MULTILINE | re.DOTALL))
    return str(found)


def test_kubectl_installs_from_an_address(served: str, tmp_path: Path) -> None:
    """The documented command, with the address of another git server, gives what the checkout gives."""
    address = documented(r"^kubectl apply -k '(https://[^']+)'").replace(REPOSITORY, served)
    done = subprocess.run(
        ["kubectl", "kustomize", address], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert list(yaml.safe_load_all(done.stdout)) == rendered()


def test_two_files_are_an_installation(served: str, tmp_path: Path) -> None:
    """The documented kustomization: base and component from the address, and a configuration of one's own."""
    text = documented(r"^```yaml\n(apiVersion: kustomize\S+\nkind: Kustomization\n.*?)^```$")
    (tmp_path / "kustomization.yaml").write_text(text.replace(REPOSITORY, served))
    (tmp_path / "config.yaml").write_bytes(CONFIG)
    objects = build(tmp_path)
    (config,) = of_kind(objects, "ConfigMap")
    assert (config["metadata"]["name"], config["data"]["config.yaml"].encode()) == ("devwatch-config", CONFIG)
    assert container(objects) == container(rendered("device-plugin"))
    assert container(objects)["image"] == f"{IMAGE}:{__version__}"


def test_the_namespace_that_kubectl_makes_admits_the_pods() -> None:
    """There is nothing to type before."""
    require(missing())
    (namespace,) = of_kind(rendered(), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


def helm_command() -> list[str]:
    """Return the words of the documented command with the configuration in it."""
    return shlex.split(documented(r"^(helm install devwatch oci://[^\n]* --set-json [^\n]*)$"))


def test_helm_installs_with_one_command(tmp_path: Path) -> None:
    """From a packaged chart, with the values of the documented command: what it says is what the daemon reads, ids as text."""
    words = helm_command()
    values: Object = {}
    for option, parsed in (("--set", test_chart.helm.parse_set_string), ("--set-json", test_chart.helm.parse_set_json)):
        values |= parsed(words[words.index(option) + 1])
    with test_chart.helm.Chart.load(release.package(tmp_path, COMMITTED)) as chart:
        assert chart.version == words[words.index("--version") + 1] == __version__
        objects = test_chart.templated(chart, values)
        (rule,) = parse(test_chart.configured(chart, values), file="config.yaml").resources
        assert "WARNING" not in test_chart.texts(chart, values)["NOTES.txt"]
    assert rule.name == "aeotec/zstick"
    assert [pattern.text for test in rule.match[0].tests for pattern in test.patterns] == ["0200", "0658"]
    assert container(objects)["image"] == f"{IMAGE}:{__version__}"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Run a real registry for a test; return its host and port."""
    program = shutil.which("docker-registry")
    require(None if program else "needs docker-registry (Debian: apt-get install docker-registry)")
    (port,) = free_ports(1)
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "storage")}}
    settings = {"version": "0.1", "storage": storage, "http": {"addr": f"{LOOPBACK}:{port}"}, "log": {"level": "error"}}
    (tmp_path / "registry.yml").write_text(json.dumps(settings))
    command = [str(program), "serve", str(tmp_path / "registry.yml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            eventually(lambda: listens(port))
            yield f"{LOOPBACK}:{port}"
        finally:
            server.kill()


def listens(port: int) -> bool:
    """Return whether a server accepts connections there."""
    with socket.socket() as client:
        return client.connect_ex((LOOPBACK, port)) == 0


def test_a_registry_gives_back_the_chart_that_was_pushed(registry: str, tmp_path: Path) -> None:
    """By the address and the version of the documented command, to the byte."""
    words = helm_command()
    address = words[3].replace("ghcr.io", registry)
    made = release.package(tmp_path, COMMITTED)
    test_chart.helm.push(made, address.rpartition("/")[0], plain_http=True)
    version = words[words.index("--version") + 1]
    test_chart.helm.pull(address, version=version, destination=tmp_path, plain_http=True)
    assert (tmp_path / f"devwatch-{version}.tgz").read_bytes() == made.read_bytes()


def test_the_labels_of_the_namespace_are_in_the_documentation() -> None:
    """Word for word those of the base, for who makes the namespace by hand."""
    require(missing())
    command = documented(r"^(kubectl label namespace devwatch [^\n]*)$")
    (namespace,) = of_kind(rendered(), "Namespace")
    wanted = {f"{name}={level}" for name, level in namespace["metadata"]["labels"].items() if "pod-security" in name}
    assert wanted == {word for word in command.split() if word.startswith("pod-security")}
