"""What `kubectl apply -k` would send: the objects of deploy/base, with components on top."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Object = dict[str, Any]

DEPLOY = CHECKOUT / "deploy"
BASE = DEPLOY / "base"
COMPONENTS = DEPLOY / "components"
IMAGE = "ghcr.io/devwatch/devwatch"
"""The image that a release pushes."""
OLDEST_KUSTOMIZE = (4, 2)
"""The first kustomize inside kubectl that knows `labels` (kubectl 1.22)."""


def missing() -> str | None:
    """Return why nothing can be rendered here, or None."""
    if shutil.which("kubectl") is None:
        return "needs kubectl"
    done = subprocess.run(
        ["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True, check=False, timeout=60
    )
    text = json.loads(done.stdout or "{}").get("kustomizeVersion", "v0.0")
    version = tuple(int(part) for part in text.removeprefix("v").split(".")[:2])
    return None if version >= OLDEST_KUSTOMIZE else f"needs a kubectl whose kustomize knows `labels`, not {text}"


def rendered(*components: str, **settings: object) -> list[Object]:
    """Return the objects of the base with these components, in the order in which they are applied.

    `settings` are further keys of the kustomization: `namespace="other"`. Raises `CalledProcessError`, with kubectl's words in `stderr`.
    """
    if not settings:
        return _objects(_plain(components))
    with tempfile.TemporaryDirectory() as folder:
        write_kustomization(Path(folder), *components, **settings)
        return build(Path(folder))


def write_kustomization(folder: Path, *components: str, **settings: object) -> None:
    """Write what a user would: the base, these components, and further keys of a kustomization."""
    home = folder.resolve()
    content: Object = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    content["resources"] = [os.path.relpath(BASE, home)]  # kustomize takes no absolute path
    content["components"] = [os.path.relpath(COMPONENTS / name, home) for name in components]
    (folder / "kustomization.yaml").write_text(json.dumps({**content, **settings}))


def build(folder: Path) -> list[Object]:
    """Return the objects of a kustomization. Raises `CalledProcessError`, with kubectl's words in `stderr`."""
    return _objects(_build(folder))


def _build(folder: Path) -> str:
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


@functools.cache  # a second each, and dozens of tests ask for the same
def _plain(components: tuple[str, ...]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        write_kustomization(Path(folder), *components)
        return _build(Path(folder))


def _objects(text: str) -> list[Object]:
    """Return the objects of a stream, new ones each time: a test may change its own."""
    return [item for item in yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if item]


def documentation() -> str:
    """Return what users read: the README, then the pages in docs/ by name."""
    pages = (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))
    return "\n".join(page.read_text("utf-8") for page in pages)


def documented_block(command: str) -> str:
    """Return the only block of commands in the documentation in which this stands."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", documentation(), re.DOTALL | re.MULTILINE)
    (found,) = (block for language, block in blocks if not language and command in block)
    return str(found)


def of_kind(objects: Iterable[Object], kind: str) -> Iterator[Object]:
    """Yield the objects of this kind."""
    return (item for item in objects if item["kind"] == kind)


def daemonset(objects: Iterable[Object]) -> Object:
    """Return the only DaemonSet."""
    (found,) = of_kind(objects, "DaemonSet")
    return found


def pod_spec(objects: Iterable[Object]) -> Object:
    """Return the spec of the daemon's pod."""
    spec: Object = daemonset(objects)["spec"]["template"]["spec"]
    return spec


def container(objects: Iterable[Object]) -> Object:
    """Return the only container of the daemon's pod."""
    (found,) = pod_spec(objects)["containers"]
    result: Object = found
    return result


def granted(objects: Iterable[Object]) -> set[tuple[str, str, str]]:
    """Return the rights that are bound to the daemon's account, as (API group, resource, verb)."""
    objects = list(objects)
    roles = {role["metadata"]["name"]: role["rules"] for role in of_kind(objects, "ClusterRole")}
    rules = [
        rule for binding in of_kind(objects, "ClusterRoleBinding") for rule in roles[str(binding["roleRef"]["name"])]
    ]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
