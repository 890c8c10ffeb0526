"""What people install: the wheel in an environment of its own, far from this checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scaffold import __version__
from scaffold.catalog import load_catalog
from tests.conftest import Run, files_under
from tests.projects import is_offered

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def call(*command: object, cwd: Path = ROOT, **options: Any) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=600, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(*folders: str) -> set[str]:
    """The files that version control has, or would have, in some folders."""
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", *folders)
    return {path for path in listed.splitlines() if (ROOT / path).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call(*PIP, "wheel", ".", "--no-deps", "--wheel-dir", folder)
    (built,) = folder.iterdir()
    return built


@dataclass(frozen=True)
class Installed:
    """An environment that holds the wheel and what it needs, nothing else."""

    python: Path
    command: Path
    package: Path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    venv = tmp_path_factory.mktemp("installed") / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    call(*PIP, "--python", python, "install", "--constraint", "constraints.txt", wheel)
    package = Path(call(python, "-I", "-c", "import scaffold; print(scaffold.__path__[0])", cwd=venv).strip())
    assert venv in package.parents
    return Installed(python, venv / "bin" / "scaffold", package)


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that knows nothing of this checkout, with an empty home."""
    (tmp_path / "home").mkdir()
    return {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), "LC_ALL": "C.UTF-8"}


def test_the_wheel_holds_the_package_and_the_templates(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for name in tracked("templates"):
            assert archive.read(f"scaffold/{name}") == (ROOT / name).read_bytes()
    info = f"scaffold-{__version__}.dist-info/"
    expected = tracked("scaffold") | {f"scaffold/{name}" for name in tracked("templates")}
    assert {name for name in names if not name.startswith(info)} == expected
    assert f"{info}licenses/LICENSE" in names


def choices() -> list[list[str]]:
    """A plain project of every task, and one with everything that a sharded one can have."""
    known = load_catalog()
    plain = [["--task", task] for task in known.tasks]
    chosen = {
        "task": "tabular",
        "data": "files",
        "hardware": "gpu",
        "precision": "fp16",
        "distributed": "fsdp",
    }
    loggers = tuple(known.loggers)
    features = [
        name
        for name in known.values("with", "tabular")
        if is_offered(**chosen, logger=loggers, features=(name,))
    ]
    rich = [word for key, value in chosen.items() for word in (f"--{key}", value)]
    rich += [word for name in loggers for word in ("--logger", name)]
    return [*plain, rich + [word for name in features for word in ("--with", name)]]


@pytest.mark.parametrize("flags", choices(), ids=lambda flags: f"{flags[1]}-{len(flags)}")
def test_it_writes_what_the_checkout_writes(
    installed: Installed, run: Run, bare: dict[str, str], tmp_path: Path, flags: list[str]
) -> None:
    unrelated = tmp_path / "unrelated"
    unrelated.mkdir()
    call(installed.command, "new", "demo", *flags, "--yes", cwd=unrelated, env=bare)
    assert run("new", "demo", *flags, "--yes").returncode == 0
    assert files_under(unrelated / "demo") == files_under(tmp_path / "place" / "demo")
    assert (Path(bare["HOME"]) / ".cache" / "scaffold").is_dir()


@pytest.mark.parametrize(
    "cache",
    [
        {"XDG_CACHE_HOME": "/dev/null"},
        {"XDG_CACHE_HOME": "/proc/nowhere"},
        {"HOME": "/dev/null"},
        "read-only",
    ],
    ids=["file", "proc", "home-is-a-file", "read-only"],
)
def test_it_works_where_no_cache_can_be_written(
    installed: Installed, run: Run, bare: dict[str, str], tmp_path: Path, cache: dict[str, str] | str
) -> None:
    if isinstance(cache, str):
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        (tmp_path / "closed").mkdir(mode=0o555)
        cache = {"XDG_CACHE_HOME": str(tmp_path / "closed")}
    unrelated = tmp_path / "unrelated"
    unrelated.mkdir()
    call(installed.command, "new", "demo", "--yes", cwd=unrelated, env=bare | cache)
    run("new", "demo", "--yes")
    assert files_under(unrelated / "demo") == files_under(tmp_path / "place" / "demo")


def test_it_needs_no_training_library(installed: Installed, bare: dict[str, str], tmp_path: Path) -> None:
    code = "from importlib.util import find_spec as f; print(*map(f, ('torch', 'numpy', 'black', 'pytest')))"
    assert call(installed.python, "-c", code, cwd=tmp_path, env=bare) == "None None None None\n"
    found = json.loads(call(installed.command, "doctor", "--json", cwd=tmp_path, env=bare))
    assert found["torch"] is None and "torch" in found["problem"]
    assert list(json.loads(call(installed.command, "list", "tasks", "--json", cwd=tmp_path, env=bare))) == [
        "tasks"
    ]


def test_the_questions_are_in_it(installed: Installed, bare: dict[str, str], tmp_path: Path) -> None:
    code = "import scaffold.prompts; print(scaffold.prompts.__file__)"
    assert call(installed.python, "-c", code, cwd=tmp_path, env=bare).startswith(str(installed.package))


def test_it_leaves_its_own_folder_alone(installed: Installed, bare: dict[str, str], tmp_path: Path) -> None:
    def texts() -> dict[str, bytes]:
        return {k: v for k, v in files_under(installed.package).items() if not k.endswith(".pyc")}

    before = texts()
    call(installed.command, "new", "demo", "--yes", cwd=tmp_path, env=bare)
    assert texts() == before


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    backend = tmp_path / "backend"
    call(*PIP, "install", "--target", backend, "hatchling>=1.27")
    code = f"from hatchling.build import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    name = call(sys.executable, "-c", code, env=os.environ | {"PYTHONPATH": str(backend)}).splitlines()[-1]
    with tarfile.open(tmp_path / name) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", *tracked("scaffold", "templates")} <= names
    assert not any(path.startswith(("golden/", "tests/", ".ci/", ".git/")) for path in names)
    call(*PIP, "wheel", tmp_path / name, "--no-deps", "--wheel-dir", tmp_path / "again")
    (rebuilt,) = (tmp_path / "again").iterdir()
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(rebuilt) as second:
        assert {n: first.read(n) for n in first.namelist()} == {n: second.read(n) for n in second.namelist()}
