"""Build a root file system by the steps of a Containerfile, where no image can be pulled.

A small interpreter of the instructions that ours has; any other is an error, so that none is passed over. What it does in
another way than a builder: the base comes from debootstrap(8), of the same release, from the mirrors of this machine's apt.
The published slim image is made from the same variant, then stripped of manuals and translations (debuerreotype,
`.slimify-excludes`). RUN is a chroot(8), without limits and namespaces of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from support.checkout import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

CONTAINERFILE = CHECKOUT / "deploy" / "image" / "Containerfile"
IGNORE = CONTAINERFILE.with_name("Containerfile.dockerignore")

_TIMEOUT = 300
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BUNDLE = "/tmp/builder-certificates.crt"  # noqa: S108  inside the root file system that is being built
_COPIED = shutil.ignore_patterns("__pycache__")


class BuildError(Exception):
    """A step failed, or is none that this interpreter knows; the message holds the step and its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction: `COPY --from=build a b` is the word COPY, a flag, and `a b`."""

    word: str
    flags: Mapping[str, str]
    text: str

    @property
    def pairs(self) -> dict[str, str]:
        """The `key=value` pairs of LABEL and ENV."""
        return dict(part.split("=", 1) for part in shlex.split(self.text))

    @property
    def array(self) -> tuple[str, ...]:
        """The elements of the JSON form of ENTRYPOINT; raises `ValueError` for the other form."""
        return tuple(json.loads(self.text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What begins with FROM: the base, the stage's own name or `""`, and its steps."""

    base: str
    name: str
    steps: tuple[Instruction, ...]

    def only(self, word: str) -> Instruction:
        """Return the one instruction of this word; raises `ValueError` where there is none or a second."""
        (found,) = (step for step in self.steps if step.word == word)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A root file system, and what a runtime takes from the image's configuration."""

    root: Path
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = "/"
    entrypoint: tuple[str, ...] = ()


def parse(text: str) -> list[Stage]:
    """Return the stages of a Containerfile in their order."""
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.word == "FROM":
            base, _, name = instruction.text.partition(" AS ")
            stages.append(Stage(base=base, name=name, steps=()))
        else:
            stages[-1] = replace(stages[-1], steps=(*stages[-1].steps, instruction))
    return stages


def _instructions(text: str) -> Iterable[Instruction]:
    # A comment inside a continued line is dropped with its line (Dockerfile reference, "Format").
    lines = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for line in lines.replace("\\\n", " ").splitlines():
        word, rest = line.split(None, 1)
        flags = re.match(r"(?:--\S+\s+)*", rest)
        named = dict(flag[2:].split("=", 1) for flag in flags[0].split()) if flags else {}
        yield Instruction(word=word.upper(), flags=named, text=" ".join(rest[flags.end() if flags else 0 :].split()))


def missing() -> str | None:
    """Return what keeps this machine from building the image, in a few words, or None."""
    if os.geteuid() != 0:
        return "needs root, to build a root file system"
    if absent := [name for name in ("debootstrap", "chroot", "apt-get") if shutil.which(name) is None]:
        return f"needs {', '.join(absent)}"
    release = _release(parse(CONTAINERFILE.read_text()))
    return None if _mirrors(release) else f"needs apt lists of Debian {release} (apt-get update)"


def built() -> Image:
    """Return the image of this checkout; it is built once for the same inputs, and kept until they change.

    It is kept in the machine's folder for temporary files: debootstrap alone takes half a minute. Raises `BuildError`.
    """
    home = Path(tempfile.gettempdir()) / f"devwatch-image-{os.geteuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    status = home.lstat()
    if home.is_symlink() or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise BuildError(f"{home} is not ours alone: remove it")
    stages = parse(CONTAINERFILE.read_text())
    release = _release(stages)
    with _alone(home):
        base = _kept(home, "base", _base_key(stages), lambda folder: _debootstrap(folder, release))
        root = _kept(home, "root", _digest(base.name), lambda folder: _Builder(base=base).build(stages, folder))
    return configured(stages[-1], root)


def configured(stage: Stage, root: Path) -> Image:
    """Return the configuration that a stage gives its image."""
    image = Image(root=root)
    for step in stage.steps:
        match step.word:
            case "ENV":
                image = replace(image, env={**image.env, **step.pairs})
            case "USER":
                image = replace(image, user=step.text)
            case "WORKDIR":
                image = replace(image, workdir=step.text)
            case "ENTRYPOINT":
                image = replace(image, entrypoint=step.array)
            case _:
                pass
    return image


@dataclass(slots=True, kw_only=True)
class _Builder:
    """Performs the steps of stages in copies of `base`."""

    base: Path
    _roots: dict[str, Path] = field(default_factory=dict)

    def build(self, stages: list[Stage], target: Path) -> None:
        """Fill `target` with the root file system of the last stage."""
        with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as scratch:
            for number, stage in enumerate(stages):
                last = number == len(stages) - 1
                root = target if last else Path(scratch) / str(number)
                root.mkdir(exist_ok=True)
                self._stage(stage, root)

    def _stage(self, stage: Stage, root: Path) -> None:
        origin = self._roots.get(stage.base, self.base)
        if not stage.steps:
            self._roots[stage.name] = origin
            return
        _must("cp", "-a", f"{origin}/.", str(root))
        self._roots[stage.name] = root
        image = Image(root=root)
        for step in stage.steps:
            image = self._step(step, image)

    def _step(self, step: Instruction, image: Image) -> Image:
        match step.word:
            case "RUN":
                _run(step.text, image)
            case "COPY":
                self._copy(step, image)
            case "ENV":
                return replace(image, env={**image.env, **step.pairs})
            case "WORKDIR":
                _inside(image, step.text).mkdir(parents=True, exist_ok=True)
                return replace(image, workdir=step.text)
            case "LABEL" | "USER" | "ENTRYPOINT":
                pass
            case _:
                raise BuildError(f"{step.word} is not known here")
        return image

    def _copy(self, step: Instruction, image: Image) -> None:
        *sources, target = step.text.split()
        for source in sources:
            origin = self._roots[step.flags["from"]] / source.lstrip("/") if "from" in step.flags else _context(source)
            into = _inside(image, target)
            place = into / origin.name if target.endswith("/") else into
            place.parent.mkdir(parents=True, exist_ok=True)
            if origin.is_dir():
                shutil.copytree(origin, place, symlinks=True, ignore=None if step.flags else _COPIED)
            else:
                shutil.copy2(origin, place)


def _context(source: str) -> Path:
    """Return the file of the checkout, which the ignore file has to let through."""
    passed = False
    for line in IGNORE.read_text().splitlines():
        if line and not line.startswith("#") and fnmatch.fnmatch(source, line.removeprefix("!")):
            passed = line.startswith("!")
    if not passed:
        raise BuildError(f"COPY {source}: {IGNORE.name} keeps it out")
    return CHECKOUT / source


def _run(command: str, image: Image) -> None:
    """Run a step with an environment of its own, and with this machine's way to its package index."""
    environ = {"PATH": _PATH, "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive", **image.env}
    bundle = image.root / _BUNDLE.lstrip("/")
    # As a builder behind a proxy of its own would: the certificates it trusts are there for the step, and not in the image.
    if trusted := os.environ.get("PIP_CERT"):
        shutil.copy(trusted, bundle)
        environ["PIP_CERT"] = _BUNDLE
    try:
        _must("chroot", str(image.root), "/bin/sh", "-c", f"cd {shlex.quote(image.workdir)} && {command}", env=environ)
    finally:
        bundle.unlink(missing_ok=True)


def _must(*command: str, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT, env=env)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\n{(done.stdout + done.stderr)[-2000:]}")


def _inside(image: Image, path: str) -> Path:
    return image.root / (Path(image.workdir) / path).relative_to("/")


# Base


def _release(stages: list[Stage]) -> str:
    """Return the code name in the tag of the base: `debian:bookworm-20260918-slim@...` is bookworm."""
    found = re.match(r"debian:([a-z]+)-", stages[0].base)
    if found is None:
        raise BuildError(f"FROM {stages[0].base}: no base of Debian")
    return found[1]


def _mirrors(release: str) -> list[tuple[str, str]]:
    """Return (address, suite) of what this machine's apt has of a release: itself first, then updates and security."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)"],
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT,
    )
    rows = {tuple(line.split()) for line in done.stdout.splitlines()}
    wanted = [release, f"{release}-updates", f"{release}-security"]
    return [
        (row[3], suite) for suite in wanted for row in sorted(rows) if row[:3] == ("Debian", suite, "main") and row[3:]
    ]


def _base_key(stages: list[Stage]) -> str:
    return hashlib.sha256(json.dumps([stages[0].base, _mirrors(_release(stages))]).encode()).hexdigest()


def _debootstrap(target: Path, release: str) -> None:
    mirrors = _mirrors(release)
    # Whatever it mounts in there goes with its mount namespace: the folder is removed as a whole one day.
    _must("unshare", "--mount", "debootstrap", "--variant=minbase", release, str(target), mirrors[0][0])
    lines = [f"deb {address} {suite} main\n" for address, suite in mirrors]
    (target / "etc/apt/sources.list").write_text("".join(lines))


# Keeping


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Let nobody else build meanwhile."""
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _kept(home: Path, kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of this key, made by `make` where it is not there yet; earlier ones of its kind go."""
    place = home / f"{kind}-{key[:16]}"
    if not place.exists():
        for old in (*home.glob(f"{kind}-*"), *home.glob(".new-*")):
            shutil.rmtree(old)
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=home))
        make(fresh)
        fresh.chmod(0o755)
        fresh.rename(place)
    return place


def _digest(base: str) -> str:
    """Return the digest of all that the image is made of."""
    inputs = [CONTAINERFILE, IGNORE, Path(__file__)]
    inputs += [CHECKOUT / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    inputs += sorted((CHECKOUT / ".requirements").glob("*.txt"))
    inputs += sorted(path for path in (CHECKOUT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc")
    total = hashlib.sha256(base.encode())
    for path in inputs:
        total.update(f"{path.relative_to(CHECKOUT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
