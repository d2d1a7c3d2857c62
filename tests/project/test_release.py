"""What a stranger installs: a wheel and a source distribution that are complete, reproducible and of one version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from packaging.metadata import Metadata
from packaging.specifiers import SpecifierSet
from trove_classifiers import classifiers

from devwatch import __version__
from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMITTED = 1_700_000_000
"""When the sources were committed, in Unix time, as far as these builds know."""


def run(
    *command: str, cwd: Path, umask: int = 0o022, environ: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, without the git and make that may have started the tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "MAKE", "MFLAGS"))}
    return subprocess.run(
        command, cwd=cwd, umask=umask, env={**inherited, **environ}, capture_output=True, text=True, check=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A folder with what one run of the build backend made of one folder of sources."""

    folder: Path

    @property
    def wheel(self) -> Path:
        """The only wheel."""
        (path,) = self.folder.glob("*.whl")
        return path

    @property
    def sdist(self) -> Path:
        """The only source distribution."""
        (path,) = self.folder.glob("*.tar.gz")
        return path

    def unpacked(self, into: Path) -> Path:
        """Unpack the source distribution and return the folder with pyproject.toml."""
        with tarfile.open(self.sdist) as archive:
            # Python 3.11 has the filter since 3.11.4 only, 3.12 and 3.13 warn without one.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(into)  # noqa: S202  an archive of our own making
        (folder,) = into.iterdir()
        return folder


def build(sources: Path, into: Path, umask: int = 0o022) -> Built:
    """Build by the backend that the lock file names, in this environment: nothing is downloaded."""
    command = (sys.executable, "-m", "hatchling", "build", "--directory", str(into))
    done = run(*command, cwd=sources, umask=umask, environ={"SOURCE_DATE_EPOCH": str(COMMITTED)})
    assert done.returncode == 0, done.stderr
    return Built(folder=into)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build this checkout, once for all tests."""
    return build(CHECKOUT, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def metadata(built: Built) -> Metadata:
    """Read the metadata of the wheel as an index does: what it would refuse raises."""
    with zipfile.ZipFile(built.wheel) as wheel:
        text = wheel.read(f"devwatch-{__version__}.dist-info/METADATA")
    return Metadata.from_email(text, validate=True)


def test_the_same_sources_give_the_same_files(built: Built, tmp_path: Path) -> None:
    """To the byte: in another folder, from the source distribution, with files and a umask of other rights."""
    sources = built.unpacked(tmp_path / "elsewhere")
    for file in sources.rglob("*.py"):
        file.chmod(0o600)
    again = build(sources, tmp_path / "again", umask=0o077)
    assert again.wheel.name == built.wheel.name
    assert again.sdist.name == built.sdist.name
    assert again.wheel.read_bytes() == built.wheel.read_bytes()
    assert again.sdist.read_bytes() == built.sdist.read_bytes()


def test_the_files_are_dated_by_the_commit(built: Built) -> None:
    """No clock of a builder is in them."""
    with tarfile.open(built.sdist) as archive:
        assert {member.mtime for member in archive} == {COMMITTED}
    with zipfile.ZipFile(built.wheel) as wheel:
        assert {entry.date_time for entry in wheel.infolist()} == {(2023, 11, 14, 22, 13, 20)}


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    """Every module, what generated modules come from and the mark that it is typed; no tests, no top-level name but devwatch."""
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    source = CHECKOUT / "src"
    modules = {str(path.relative_to(source)) for kind in ("py", "pyi", "proto") for path in source.rglob(f"*.{kind}")}
    about = f"devwatch-{__version__}.dist-info"
    papers = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names == modules | {"devwatch/py.typed"} | papers


def test_the_source_distribution_holds_all_that_is_under_version_control(built: Built, tmp_path: Path) -> None:
    """Who unpacks it can run every test and every make target, as in a checkout."""
    if shutil.which("git") is None or not (CHECKOUT / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = run("git", "-c", f"safe.directory={CHECKOUT}", "ls-files", "-z", cwd=CHECKOUT)
    assert listed.returncode == 0, listed.stderr
    wanted = {name for name in listed.stdout.split("\0") if name and (CHECKOUT / name).is_file()}
    folder = built.unpacked(tmp_path)
    held = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert sorted(wanted - held) == []


def test_the_source_distribution_holds_nothing_that_tools_left_behind(built: Built) -> None:
    """No caches, no environments, no results of earlier builds."""
    with tarfile.open(built.sdist) as archive:
        parts = {part for name in archive.getnames() for part in Path(name).parts}
    assert not {part for part in parts if re.search(r"_cache|__pycache__|\.pyc|\.coverage|\.venv|^dist$|^\.git$", part)}


def test_the_program_of_the_wheel_says_its_version(built: Built, tmp_path: Path) -> None:
    """The command's entry point is there and starts from the wheel's own code; the file names say the same version."""
    with zipfile.ZipFile(built.wheel) as wheel:
        entry_points = wheel.read(f"devwatch-{__version__}.dist-info/entry_points.txt").decode()
    assert entry_points == "[console_scripts]\ndevwatch = devwatch.cli:main\n"
    script = "import sys, devwatch.cli; print(devwatch.__file__); sys.exit(devwatch.cli.main(['--version']))"
    done = run(sys.executable, "-c", script, cwd=tmp_path, environ={"PYTHONPATH": str(built.wheel)})
    assert done.stdout == f"{built.wheel}/devwatch/__init__.py\ndevwatch {__version__}\n", done.stderr
    assert built.sdist.name == f"devwatch-{__version__}.tar.gz"


def test_an_index_accepts_the_metadata(metadata: Metadata) -> None:
    """Valid fields of a version that indexes know (PEP 639 is 2.4), known classifiers, the README as the page."""
    assert (metadata.name, str(metadata.version), metadata.metadata_version) == ("devwatch", __version__, "2.4")
    assert metadata.summary is not None
    assert metadata.description is not None
    assert metadata.description.strip() == (CHECKOUT / "README.md").read_text(encoding="utf-8").strip()
    assert metadata.description_content_type == "text/markdown"
    assert (metadata.license_expression, metadata.license_files) == ("Apache-2.0", ["LICENSE"])
    assert set(metadata.classifiers or ()) <= classifiers


def test_a_page_elsewhere_can_show_the_readme(built: Built, metadata: Metadata) -> None:
    """Outside the checkout a relative picture leads nowhere, and a relative link only to a file that the source distribution holds."""
    text = metadata.description or ""
    assert re.findall(r"!\[[^]]*\]\((?!https://)[^)]*\)|<img", text) == []
    links = {link.partition("#")[0] for link in re.findall(r"\]\((?!https://|#)([^)]*)\)", text)}
    with tarfile.open(built.sdist) as archive:
        held = set(archive.getnames())
    assert [link for link in sorted(links) if f"devwatch-{__version__}/{link}" not in held] == []


def test_the_classifiers_name_the_pythons_that_may_install_it(metadata: Metadata) -> None:
    """The oldest is the one that `requires-python` begins with, and none is missing between."""
    prefix = "Programming Language :: Python :: 3."
    minors = [int(name.removeprefix(prefix)) for name in metadata.classifiers or () if name.startswith(prefix)]
    assert metadata.requires_python == SpecifierSet(f">=3.{min(minors)}")
    assert minors == list(range(min(minors), max(minors) + 1))


def test_both_distributions_say_the_same_of_themselves(built: Built) -> None:
    """The metadata of the source distribution is that of the wheel."""
    with zipfile.ZipFile(built.wheel) as wheel, tarfile.open(built.sdist) as sdist:
        info = sdist.extractfile(f"devwatch-{__version__}/PKG-INFO")
        assert info is not None
        of_sdist, of_wheel = (
            BytesParser().parsebytes(text)
            for text in (info.read(), wheel.read(f"devwatch-{__version__}.dist-info/METADATA"))
        )
    assert sorted(of_sdist.items()) == sorted(of_wheel.items())


def test_what_a_user_installs_is_what_is_locked(metadata: Metadata) -> None:
    """The lock file of the daemon has a version of every requirement, inside its bounds."""
    lines = (CHECKOUT / ".requirements" / "run.txt").read_text(encoding="utf-8")
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", lines, re.MULTILINE))
    for requirement in metadata.requires_dist or ():
        assert requirement.specifier.contains(locked[requirement.name]), requirement


# -- what may be released


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A git repository with the sources of a release that is ready."""

    folder: Path

    def git(self, *arguments: str) -> None:
        """Run git as somebody, without the settings of the user or the machine."""
        done = run("git", *arguments, cwd=self.folder, environ=NOBODY)
        assert done.returncode == 0, done.stderr

    def commit(self) -> None:
        """Commit everything."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a change")

    def write(self, name: str, text: str) -> None:
        """Write a file anew."""
        (self.folder / name).write_text(text, encoding="utf-8")

    def refusal(self) -> str:
        """Return why this commit cannot be released, empty if it can."""
        done = run("make", "ready", cwd=self.folder, environ=NOBODY)
        assert (done.returncode == 0) == (done.stderr == ""), done
        return done.stderr


NOBODY = {
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{role}_{what}": "nobody" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}
READY = f"# Changelog\n\n## [{__version__}] - 2026-01-31\n\n### Added\n\n- It.\n\n## [0.0.1] - 2025-01-31\n"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Commit the files that say the version, as they are for a release."""
    if shutil.which("git") is None or shutil.which("make") is None:
        pytest.skip("needs git and make")
    made = Repository(folder=tmp_path)
    for name in ("Makefile", "pyproject.toml", ".gitignore", "src/devwatch/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, tmp_path / name)
    shutil.copytree(CHECKOUT / ".requirements", tmp_path / ".requirements")
    made.write("CHANGELOG.md", READY)
    made.git("init", "--quiet")
    made.commit()
    return made


def test_a_commit_with_one_version_is_ready(repository: Repository) -> None:
    """Before it is tagged, so that it can be tried, and after, so that the tag can be built."""
    assert repository.refusal() == ""
    repository.git("tag", f"v{__version__}")
    assert repository.refusal() == ""


@pytest.mark.parametrize("name", ["CHANGELOG.md", "new.py"])
def test_what_is_not_committed_is_not_released(repository: Repository, name: str) -> None:
    """Neither a changed file nor a new one: a release can be made again from its commit."""
    repository.write(name, READY + "\n")
    assert name in repository.refusal()


@pytest.mark.parametrize(
    "changelog",
    [
        READY.replace(f"## [{__version__}]", "## [9.9.9]"),
        READY.replace(" - 2026-01-31", ""),
        READY.replace("# Changelog", "# Changelog\n\n## [Unreleased]\n"),
        "# Changelog\n",
    ],
    ids=["another version", "no date", "unreleased changes on top", "nothing"],
)
def test_the_changelog_has_to_begin_with_the_version(repository: Repository, changelog: str) -> None:
    """Users read there what they get, and when it came."""
    repository.write("CHANGELOG.md", changelog)
    repository.commit()
    assert f"'## [{__version__}] - YYYY-MM-DD'" in repository.refusal()


def test_a_tag_of_another_version_is_refused(repository: Repository) -> None:
    """A forgotten bump does not publish the last version's number under a new tag."""
    repository.git("tag", "v9.9.9")
    assert f"tagged v9.9.9, and the package is {__version__}" in repository.refusal()


def test_a_version_is_released_once(repository: Repository) -> None:
    """A tag that stands on an earlier commit is not made again."""
    repository.git("tag", f"v{__version__}")
    repository.commit()
    assert f"v{__version__} is another commit" in repository.refusal()


def test_the_version_stands_in_one_place() -> None:
    """The metadata take it from the package; pyproject.toml has none of its own."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"] == {"path": "src/devwatch/__init__.py"}
