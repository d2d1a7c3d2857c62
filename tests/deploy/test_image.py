"""What the Containerfile promises, read from its text; tests/system/test_container.py builds it and runs the result."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import devwatch
from support import deployment
from support.checkout import CHECKOUT
from system.containerfile import CONTAINERFILE, IGNORE, Stage, configured, parse

HADOLINT = Path(sys.executable).with_name("hadolint")


@pytest.fixture
def stages() -> list[Stage]:
    """Return the stages of the Containerfile; the last one is the image."""
    return parse(CONTAINERFILE.read_text())


def runs(stage: Stage) -> str:
    """Return the commands of a stage's RUN instructions."""
    return "\n".join(step.text for step in stage.steps if step.word == "RUN")


def test_the_linter_has_nothing_to_say() -> None:
    """Hadolint knows what goes wrong in Containerfiles; an exception carries its reason in the file."""
    if not HADOLINT.exists():
        pytest.skip("needs hadolint, which is there for amd64 and arm64")
    done = subprocess.run(
        [HADOLINT, "--no-color", str(CONTAINERFILE)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_base_is_pinned_by_digest(stages: list[Stage]) -> None:
    """Every stage grows from one base, a dated tag with the digest of its index; nothing is `latest`."""
    first, *others = stages
    assert re.fullmatch(r"debian:[a-z]+-\d{8}-slim@sha256:[0-9a-f]{64}", first.base)
    assert {stage.base for stage in others} == {first.name}
    assert "latest" not in "".join(step.text for stage in stages for step in stage.steps)


def test_the_user_is_a_number_other_than_root(stages: list[Stage]) -> None:
    """Kubernetes can prove runAsNonRoot by a number alone."""
    user, _, group = configured(stages[-1], CHECKOUT).user.partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_the_program_needs_no_shell(stages: list[Stage]) -> None:
    """The daemon is the container's first process, so that TERM reaches it, and its place is on the PATH."""
    image = configured(stages[-1], CHECKOUT)
    assert image.entrypoint == ("devwatch",)
    (copied,) = (step.text.split()[-1] for step in stages[-1].steps if step.word == "COPY")
    assert f"{copied}/bin" in image.env["PATH"].split(":")


def test_the_labels_tell_what_the_package_tells(stages: list[Stage]) -> None:
    """The labels of the OCI convention agree with the package: a release that forgets one fails here."""
    labels = stages[-1].only("LABEL").pairs
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()} == {
        "title": project["name"],
        "description": project["description"],
        "version": devwatch.__version__,
        "licenses": project["license"],
        "authors": project["authors"][0]["name"],
        "source": project["urls"]["Source"],
    }


def test_only_what_the_lock_files_name_is_installed(stages: list[Stage]) -> None:
    """Everything from the package index is checked against a hash, comes as a wheel, and brings nothing along."""
    installs = [line for line in re.split(r"&&|\n", runs(stages[1])) if " install " in line and "pip " in line]
    fetched = [line for line in installs if "apt-get" not in line and "--no-index" not in line]
    assert len(fetched) == 2
    for line in fetched:
        assert {"--no-deps", "--require-hashes", "--only-binary"} <= set(line.split())


def test_the_image_has_no_pip_and_no_compiler(stages: list[Stage]) -> None:
    """The last stage installs the interpreter and libudev, leaves no package list behind, and copies one folder."""
    last = stages[-1]
    commands = runs(last)
    assert not re.search(r"pip|venv|gcc|build-essential|-dev\b", commands)
    assert "libudev1" in commands.split()
    assert "--no-install-recommends" in commands
    assert "/var/lib/apt/lists/*" in commands
    assert [step.flags for step in last.steps if step.word == "COPY"] == [{"from": stages[1].name}]


def test_the_image_is_the_same_for_the_same_files(stages: list[Stage]) -> None:
    """Bytecode carries no time; pip writes none of its own, which would."""
    assert "--invalidation-mode unchecked-hash" in runs(stages[1])
    installs = [line for line in runs(stages[1]).split("&&") if "--python /opt/devwatch" in line]
    assert installs
    assert all("--no-compile" in line for line in installs)


def test_the_context_holds_what_is_copied_and_no_more(stages: list[Stage]) -> None:
    """The ignore file beside the Containerfile lets through exactly what COPY names."""
    copied = {
        source
        for stage in stages
        for step in stage.steps
        if step.word == "COPY" and not step.flags
        for source in step.text.split()[:-1]
    }
    assert {line[1:] for line in IGNORE.read_text().splitlines() if line.startswith("!")} == copied
    assert all((CHECKOUT / source).exists() for source in copied)


def test_the_daemonset_takes_this_image_and_its_user(stages: list[Stage]) -> None:
    """The manifests name this version, and the unprivileged daemon runs as the image's own user."""
    if reason := deployment.missing():
        pytest.skip(reason)
    container = deployment.container(deployment.rendered("unprivileged"))
    assert container["image"].rpartition(":")[2] == devwatch.__version__
    security = container["securityContext"]
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == configured(stages[-1], CHECKOUT).user
