"""What a release publishes: names that agree, notes of the changelog, a chart that is the same each time, signatures."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from devwatch import __version__
from project.test_release import COMMITTED, NOBODY
from support import release
from support.checkout import CHECKOUT
from system.containerfile import CONTAINERFILE

if TYPE_CHECKING:
    from pathlib import Path

MAKEFILE = CHECKOUT / "Makefile"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
NAMED = (*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*"), *(CHECKOUT / "deploy").rglob("*"))
"""The files that users read or install, where the registry and the repository are named."""
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
OTHER_DIGEST = f"sha256:{'fedcba9876543210' * 4}"
ENTRY = "### Added\n\n- **One** thing\n  on two lines, see [there](x.md).\n- `Two`.\n\n### Fixed\n\n- Three.\n"


def variable(name: str) -> str:
    """Return a variable of the Makefile, as it is written."""
    (found,) = re.findall(rf"^{name} := (.*)$", MAKEFILE.read_text("utf-8"), re.MULTILINE)
    return str(found)


def texts() -> dict[str, str]:
    """Return the files that name the registry or the repository."""
    return {str(path.relative_to(CHECKOUT)): path.read_text("utf-8") for path in NAMED if path.is_file()}


# -- names


def test_the_registry_stands_in_the_makefile() -> None:
    """Every other file names the image or the chart in it, or the folder of the chart, and nothing else."""
    registry = re.escape(variable("REGISTRY"))
    named = {
        name: re.findall(r"\bghcr\.io/(?!squat|project|blakeblackshear)[\w./-]*\w", text)
        for name, text in texts().items()
    }
    wrong = [
        (name, found)
        for name, places in named.items()
        for found in places
        if not re.fullmatch(rf"{registry}/(devwatch|charts(/devwatch)?)", found)
    ]
    assert wrong == []
    assert {name for name, places in named.items() if places} >= {"deploy/base/daemonset.yaml", "docs/install.md"}


def test_the_repository_stands_in_the_metadata() -> None:
    """Every file that names a devwatch on GitHub names this one."""
    source = PROJECT["urls"]["Source"]
    owner = source.removeprefix("https://github.com/")
    named = {
        match
        for text in texts().values()
        for match in re.findall(r"github(?:usercontent)?\.com/([\w-]+/devwatch)\b", text)
    }
    assert named == {owner}
    assert all(url.startswith(source) for url in PROJECT["urls"].values())


def test_every_version_that_is_named_is_this_one() -> None:
    """In what is copied from the documentation: a tag of the image, a version of the chart, a tag of the repository."""
    named = re.findall(r"(?:devwatch[:/]v?|--version |\?ref=v)(\d+\.\d+\.\d+)", "\n".join(texts().values()))
    assert set(named) == {__version__}


def test_the_image_is_built_for_what_its_containerfile_promises() -> None:
    """Both architectures for which every dependency has a wheel."""
    promised = re.findall(r"linux/(?:amd64|arm64)\b", CONTAINERFILE.read_text("utf-8"))
    assert variable("PLATFORMS") == ",".join(sorted(set(promised)))
    (chart,) = yaml.safe_load(metadata()["annotations"]["artifacthub.io/images"])
    assert chart["platforms"] == variable("PLATFORMS").split(",")
    assert chart["image"] == f"{variable('REGISTRY')}/devwatch:{__version__}"


# -- changelog


def test_the_notes_are_the_latest_entry() -> None:
    """Without its heading, and without what came before."""
    assert release.notes(f"# Changelog\n\n## [1.0.0] - 2026-01-31\n\n{ENTRY}\n## [0.9.0]\n\n- Old.\n") == ENTRY


def test_a_changelog_without_an_entry_is_refused() -> None:
    """A release without notes is a mistake."""
    with pytest.raises(ValueError, match="no entry"):
        release.notes("# Changelog\n")


def test_every_bullet_is_a_change_in_plain_text() -> None:
    """Artifact Hub shows no Markdown."""
    assert release.changes(ENTRY) == [
        {"kind": "added", "description": "One thing on two lines, see there."},
        {"kind": "added", "description": "Two."},
        {"kind": "fixed", "description": "Three."},
    ]


def test_what_to_do_at_an_upgrade_is_in_the_notes_and_is_not_a_change() -> None:
    """It stands first, for users; Artifact Hub has no word for it."""
    advice = "### Upgrading\n\n- **Helm**: with your values.\n\n"
    assert release.notes(f"# Changelog\n\n## [1.0.0] - 2026-01-31\n\n{advice}{ENTRY}") == advice + ENTRY
    assert release.changes(advice + ENTRY) == release.changes(ENTRY)


def test_a_heading_that_no_change_has_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(ValueError, match=r"'News' is not a kind of change .*added, changed"):
        release.changes("### News\n\n- It.\n")


def test_the_changelog_can_be_released() -> None:
    """As it is now."""
    assert release.changes(release.notes(release.CHANGELOG.read_text("utf-8")))


# -- the chart


def metadata() -> dict[str, Any]:
    """Return the Chart.yaml of a packaged chart."""
    found: dict[str, Any] = yaml.safe_load(release.metadata())
    return found


def test_the_packaged_chart_is_the_same_each_time(tmp_path: Path) -> None:
    """To the byte, dated by the commit, with all files of the folder and nothing but its metadata changed."""
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    first, second = (release.package(place, COMMITTED) for place in places)
    assert first.name == f"devwatch-chart-{__version__}.tgz"
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        assert {member.mtime for member in archive} == {COMMITTED}
        held = {member.name.removeprefix("devwatch/"): archive.extractfile(member) for member in archive}
        contents = {name: file.read() for name, file in held.items() if file}
    assert contents.pop("Chart.yaml") == release.metadata()
    sources = {str(path.relative_to(release.CHART)): path for path in release.CHART.rglob("*") if path.is_file()}
    del sources["Chart.yaml"]
    assert contents == {name: path.read_bytes() for name, path in sources.items()}


def test_the_metadata_are_complete() -> None:
    """What Helm and Artifact Hub show: where it comes from, who keeps it, on which Kubernetes it runs, what has changed."""
    chart, source = metadata(), PROJECT["urls"]["Source"]
    assert (chart["home"], chart["sources"]) == (source, [source])
    assert [keeper["name"] for keeper in chart["maintainers"]] == [author["name"] for author in PROJECT["authors"]]
    assert chart["kubeVersion"] == ">=1.20.0-0"
    assert "made for 1.20 to" in (CHECKOUT / "README.md").read_text("utf-8")
    assert chart["description"] == PROJECT["description"]
    notes = chart["annotations"]
    assert notes["artifacthub.io/license"] == PROJECT["license"]
    links = {link["name"]: link["url"] for link in yaml.safe_load(notes["artifacthub.io/links"])}
    assert {name: links[name] for name in ("Documentation", "Changelog")} == {
        name: PROJECT["urls"][name] for name in ("Documentation", "Changelog")
    }
    assert {change["kind"] for change in yaml.safe_load(notes["artifacthub.io/changes"])} <= set(release.KINDS)


def test_the_icon_is_there() -> None:
    """At its address in the repository, at the tag of this version."""
    repository = PROJECT["urls"]["Source"].removeprefix("https://github.com/")
    prefix = f"https://raw.githubusercontent.com/{repository}/v{__version__}/"
    assert metadata()["icon"].startswith(prefix)
    assert (CHECKOUT / metadata()["icon"].removeprefix(prefix)).read_text("utf-8").startswith("<svg ")


# -- make push, make announce


RECORDING = """#!/bin/bash
# Records what it is called with, and answers as far as the recipe needs it.
{ printf '%s' "${0##*/}"; printf ' %s' "$@"; echo; } >> "$CALLS"
case "${0##*/} $1 $2" in
    "buildah login "*) cat >> "$CALLS.stdin"; echo '{}' > "$REGISTRY_AUTH_FILE" ;;
    "buildah manifest push") while [ "$1" != --digestfile ]; do shift; done; printf '%s' "$DIGEST" > "$2" ;;
    "helm push "*) echo "Pushed: there"; echo "Digest: $CHART_DIGEST" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with a release in dist/, and programs that record how they are called instead of publishing."""
    if any(shutil.which(name) is None for name in ("git", "make")):
        pytest.skip("needs git and make")
    for name in ("Makefile", "pyproject.toml", "src/devwatch/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, tmp_path / name)
    shutil.copytree(CHECKOUT / ".requirements", tmp_path / ".requirements")
    for folder in ("bin", "dist"):
        (tmp_path / folder).mkdir()
    for name in ("buildah", "helm", "cosign", "gh"):
        (tmp_path / "bin" / name).write_text(RECORDING)
        (tmp_path / "bin" / name).chmod(0o755)
    for file in (f"devwatch-{__version__}.tar.gz", f"devwatch-chart-{__version__}.tgz", "NOTES.md"):
        (tmp_path / "dist" / file).write_text(file)
    for command in (
        "cd dist && sha256sum devwatch-* > SHA256SUMS",
        "git init -q && git add Makefile && git commit -qm it",
    ):
        subprocess.run(command, shell=True, cwd=tmp_path, env={**os.environ, **NOBODY}, check=True)  # noqa: S602
    return tmp_path


def make(checkout: Path, target: str, **environ: str) -> tuple[int, list[str], str]:
    """Run a target; return its status, the calls of the recorded programs, and what it printed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "MAKE", "MFLAGS"))}
    calls = checkout / "calls"
    settings = {**NOBODY, "CALLS": str(calls), "DIGEST": DIGEST, "CHART_DIGEST": OTHER_DIGEST, **environ}
    settings |= {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "REGISTRY_USER": "me", "REGISTRY_TOKEN": "s3cret"}
    done = subprocess.run(
        ["make", target], cwd=checkout, env={**inherited, **settings}, capture_output=True, text=True, check=False
    )
    return done.returncode, calls.read_text().splitlines() if calls.exists() else [], done.stdout + done.stderr


def test_what_is_pushed_is_signed_by_digest(checkout: Path) -> None:
    """Image for all platforms and chart; the bill of materials is attested for the image, and no signature is of a tag."""
    status, calls, said = make(checkout, "push")
    assert status == 0, said
    registry = variable("REGISTRY")
    image, chart = f"{registry}/devwatch@{DIGEST}", f"{registry}/charts/devwatch@{OTHER_DIGEST}"
    assert [" ".join(call.split()[:2]) for call in calls] == [
        "buildah login",
        "buildah build",
        "buildah manifest",
        "helm push",
        "cosign sign",
        "cosign attest",
    ]
    _, build, _, push, sign, attest = calls
    assert f"--platform {variable('PLATFORMS')}" in build
    assert f"--manifest {registry}/devwatch:{__version__}" in build
    assert push.endswith(f" dist/devwatch-chart-{__version__}.tgz oci://{registry}/charts")
    assert sign == f"cosign sign --yes {image} {chart}"
    assert attest.endswith(f"--type cyclonedx --predicate dist/devwatch-{__version__}.cdx.json {image}")


def test_a_token_is_no_argument(checkout: Path) -> None:
    """Every user of a machine can read the arguments of a process."""
    _, calls, said = make(checkout, "push")
    assert "s3cret" not in "\n".join(calls) + said
    assert (checkout / "calls.stdin").read_text() == "s3cret\n"


@pytest.mark.parametrize("name", ["DIGEST", "CHART_DIGEST"])
def test_nothing_is_signed_without_a_digest(name: str, checkout: Path) -> None:
    """A registry whose answer is not understood gets no signature of a tag."""
    status, calls, said = make(checkout, "push", **{name: "latest"})
    assert status != 0
    assert "so nothing is signed" in said
    assert not [call for call in calls if call.startswith("cosign")]


@pytest.mark.parametrize("target", ["push", "announce"])
def test_a_file_that_has_changed_since_is_not_published(target: str, checkout: Path) -> None:
    """What make release has tried is what is published."""
    (checkout / "dist" / f"devwatch-chart-{__version__}.tgz").write_text("another")
    status, calls, said = make(checkout, target)
    assert status != 0
    assert f"devwatch-chart-{__version__}.tgz: FAILED" in said
    assert calls == []


def test_the_release_page_has_the_notes_and_every_file(checkout: Path) -> None:
    """For a tag that is there already: the page makes none."""
    status, (call,), said = make(checkout, "announce")
    assert status == 0, said
    assert call.startswith(f"gh release create v{__version__} --verify-tag ")
    assert "--notes-file dist/NOTES.md" in call
    assert set(re.findall(r" (dist/\S+)", call)) == {
        "dist/NOTES.md",
        "dist/SHA256SUMS",
        f"dist/devwatch-{__version__}.tar.gz",
        f"dist/devwatch-chart-{__version__}.tgz",
    }
