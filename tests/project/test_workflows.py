"""The files for GitHub: workflows that call make and hold few rights, forms and guides that name what exists."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from devwatch.cli.entry import main
from project.test_floors import FLOORS
from support.checkout import CHECKOUT
from system import testbed

GITHUB = CHECKOUT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
SCHEMAS = {
    **dict.fromkeys(WORKFLOWS, "vendor.github-workflows"),
    GITHUB / "ISSUE_TEMPLATE" / "bug.yml": "vendor.github-issue-forms",
    GITHUB / "dependabot.yml": "vendor.dependabot",
}
GUIDE = GITHUB / "CONTRIBUTING.md"
SCRIPTS = {f".ci/{path.name}" for path in (CHECKOUT / ".ci").iterdir()}
ACTIONS = r"actions/[\w-]+|sigstore/cosign-installer"
"""Whose code may run in a workflow: GitHub's own, and the installer of the one program that no runner has."""
ARCHITECTURE = CHECKOUT / "docs" / "architecture.md"


def document(name: str) -> Any:  # noqa: ANN401 - any YAML
    """Return a workflow. To PyYAML the key `on` is True, as in YAML 1.1."""
    return yaml.safe_load((GITHUB / "workflows" / name).read_text(encoding="utf-8"))


def jobs() -> dict[str, Any]:
    """Return the jobs of all workflows."""
    return {f"{path.stem}.{name}": job for path in WORKFLOWS for name, job in document(path.name)["jobs"].items()}


def steps() -> list[Any]:
    """Return the steps of all jobs."""
    return [step for job in jobs().values() for step in job["steps"]]


def targets() -> frozenset[str]:
    """Return the make targets that `make help` shows."""
    return frozenset(re.findall(r"^([a-z]+):.*## ", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_workflows_are_there() -> None:
    """The tests of this file have something to look at."""
    assert [path.stem for path in WORKFLOWS] == ["ci", "release"]


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_github_can_read_it(path: Path) -> None:
    """The file keeps to the schema of its kind (SchemaStore's, as check-jsonschema carries it)."""
    if find_spec("check_jsonschema") is None:
        pytest.skip("needs check-jsonschema, which is not installed for this machine")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[path], str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_of_workflows_finds_nothing() -> None:
    """Neither a weakness nor a smell: zizmor with its strictest rules but those that need the network."""
    linter = Path(sys.executable).with_name("zizmor")
    if not linter.exists():
        pytest.skip("needs zizmor, which has no wheel for this machine")
    command = [str(linter), "--offline", "--no-config", "--pedantic", "--strict-collection", "--quiet", str(GITHUB)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_step_is_one_that_a_contributor_can_run() -> None:
    """A make target that exists, or a script in .ci: no logic hides in a workflow."""
    commands = [step["run"] for step in steps() if "run" in step]
    made = [re.fullmatch(r"make ([a-z]+)(?: [A-Z]+=\S+)*", command) for command in commands if command not in SCRIPTS]
    assert {".ci/run", ".ci/emulation"} == SCRIPTS & set(commands)
    assert None not in made, commands
    assert {found[1] for found in made if found} <= targets()


def test_every_action_is_pinned_to_a_commit_and_says_its_release() -> None:
    """A tag can be moved; and without the comment nobody sees what runs."""
    uses = [line for path in WORKFLOWS for line in path.read_text("utf-8").splitlines() if "uses:" in line]
    assert len(uses) == sum("uses" in step for step in steps())
    pinned = re.compile(rf" +- uses: (?:{ACTIONS})@[0-9a-f]{{40}} # v[\d.]+")
    assert [line for line in uses if not pinned.fullmatch(line)] == []


def test_one_action_has_one_commit() -> None:
    """A forgotten pin does not stay behind when the others are raised."""
    uses = {step["uses"] for step in steps() if "uses" in step}
    assert len(uses) == len({name.partition("@")[0] for name in uses})


def test_a_job_may_read_the_sources_and_nothing_else() -> None:
    """Those that publish may do what each needs: push packages, say which workflow they are, write the release page."""
    assert {path.name: document(path.name)["permissions"] for path in WORKFLOWS} == {"ci.yml": {}, "release.yml": {}}
    rights = {name: job["permissions"] for name, job in jobs().items()}
    assert rights.pop("release.publish") == {"contents": "read", "id-token": "write"}
    assert rights.pop("release.registry") == {"contents": "read", "id-token": "write", "packages": "write"}
    assert rights.pop("release.announce") == {"contents": "write"}
    assert {tuple(each.items()) for each in rights.values()} == {(("contents", "read"),)}


def test_no_job_keeps_the_credentials_it_checked_out_with() -> None:
    """Code that the job runs later cannot use them."""
    checkouts = [step for step in steps() if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) == len(jobs())
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_only_a_tag_releases_and_only_a_decision_publishes() -> None:
    """Publishing waits for the whole release, a variable of the repository, and an environment that can ask a person."""
    release = document("release.yml")
    assert release[True] == {"push": {"tags": ["v*"]}}
    checked, *publishing = release["jobs"]
    assert (checked, publishing) == ("release", ["registry", "publish", "announce"])
    assert {name: release["jobs"][name]["needs"] for name in publishing} == {
        "registry": "release",
        "publish": "release",
        "announce": ["registry", "publish"],
    }
    assert {release["jobs"][name]["if"] for name in publishing} == {"vars.PUBLISH == 'true'"}
    assert {name: release["jobs"][name].get("environment") for name in publishing} == {
        "registry": "registry",
        "publish": "package-index",
        "announce": None,  # it gives away nothing that the others have not
    }
    assert not re.search("make (push|publish|announce)", str(release["jobs"]["release"]) + str(document("ci.yml")))


def test_no_secret_of_the_repository_is_used() -> None:
    """Each job has the token that GitHub makes for it, and hands it to the one step that needs it."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    assert "secrets." not in text
    assert [step["run"] for step in steps() if "github.token" in str(step)] == ["make push", "make announce"]


def test_a_skip_fails_only_where_everything_can_run() -> None:
    """GitHub says CI=true to every job, and most runners have neither root nor an API server."""
    tested = {name: job for name, job in jobs().items() if re.search(r"make (test|check|release)\b", str(job["steps"]))}
    assert tested.keys() == {"ci.test", "release.release"}
    assert [name for name, job in tested.items() if testbed.skips_fail({"CI": "true", **job.get("env", {})})] == []
    assert testbed.skips_fail({"CI": "true", **jobs()["ci.system"].get("env", {})})


def test_root_runs_no_code_of_a_pull_request() -> None:
    """The job on a machine of our own is for what is already on the main branch."""
    assert jobs()["ci.system"]["if"].startswith("github.event_name == 'push' && ")
    assert [name for name, job in jobs().items() if "${{" in job["runs-on"]] == ["ci.system"]


def test_every_python_of_the_metadata_is_tested() -> None:
    """What the classifiers promise is what CI runs."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert jobs()["ci.test"]["strategy"]["matrix"]["python"] == promised


def test_the_form_for_bugs_asks_for_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """And for those that answer most questions: devices, explain and status."""
    form = (GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")
    asked = set(re.findall(r"`devwatch ([a-z]+)", form))
    assert {"devices", "explain", "status"} <= asked
    assert {name: main([name, "--help"], {}) for name in asked} == dict.fromkeys(asked, 0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("path", sorted(GITHUB.glob("*.md")), ids=lambda path: path.name)
def test_a_guide_names_only_what_is_there(path: Path) -> None:
    """Every file, folder and make target in it exists; so does what stands after `::` in a file."""
    text = path.read_text(encoding="utf-8")
    names = re.findall(r"`((?:src|tests|systemd|deploy|bench|\.github|\.requirements|\.ci)/[^`\s]*|[A-Z]+\.md)`", text)
    places = [name.partition("::") for name in names]
    assert [place for place, _, _ in places if not (CHECKOUT / place).exists()] == []
    inside = [(place, what) for place, _, what in places if what]
    assert [each for each in inside if each[1] not in (CHECKOUT / each[0]).read_text(encoding="utf-8")] == []
    assert set(re.findall(r"`make ([a-z]+)", text)) <= targets()


def test_the_architecture_shows_the_floors_as_they_are() -> None:
    """The table that contributors read is the one that is enforced."""
    rows = re.findall(r"^\| (\d) \| `([a-z]+)` \|", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    floors = [(str(height), package) for height, packages in enumerate(FLOORS) for package in packages]
    assert rows == floors


def test_the_guide_says_how_to_add_what_is_public() -> None:
    """A match key, a metric, a command and a log event: each with the module that it begins in, by names that are in the code."""
    text = GUIDE.read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in (CHECKOUT / "src" / "devwatch").rglob("*.py"))
    names = set(re.findall(r"`(_[a-z_]+|_[A-Z_]{5,}|[A-Z][a-z]+(?:\.\w+)?|KEYS)`", text))
    assert len(names) > 5
    assert [name for name in names if name.rpartition(".")[2] not in code] == []
    parts = {part.split("\n", 1)[0]: part for part in text.split("\n### ")[1:]}
    begins = {
        "A match key": "core/keys.py",
        "A metric": "observe/metrics.py",
        "A command": "cli/entry.py",
        "A log event": "agent/report.py",
    }
    assert parts.keys() >= begins.keys()
    assert [title for title, module in begins.items() if f"`src/devwatch/{module}" not in parts[title]] == []
