"""Options, fixtures and helpers that several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

COMMAND = [sys.executable, "-m", "scaffold"]
Run = Callable[..., subprocess.CompletedProcess[str]]
Make = Whole = Callable[..., Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="rewrite golden/ with what is rendered now")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_matrix.py", "test_resume.py"))


@pytest.fixture
def accept(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--accept"))


def files_under(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and what it holds."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user of this machine who has nothing set up; its cache of templates is shared."""
    passed = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "VIRTUAL_ENV") if key in os.environ}
    return passed | {
        "HOME": str(tmp_path_factory.mktemp("home")),
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder that commands run in, empty."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def run(env: dict[str, str], place: Path) -> Run:
    """Run scaffold as a process of its own, without a terminal."""

    def run_scaffold(*args: object, cwd: Path = place, **options: object) -> subprocess.CompletedProcess[str]:
        settings = {"input": "", "text": True, "timeout": 60, "env": env, "command": COMMAND} | options
        command = [*settings.pop("command"), *map(str, args)]
        return subprocess.run(command, cwd=cwd, capture_output=True, **settings)

    return run_scaffold


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A project for some answers, rendered once a session: no test may change it."""
    from tests.projects import render  # here, because it brings torch along

    known: dict[str, Path] = {}

    def make(*changes: Callable[[Path], Path], **given: object) -> Path:
        key = repr(([change.__name__ for change in changes], sorted(given.items())))
        if key not in known:
            project = render(tmp_path_factory.mktemp("made") / "demo", **given)
            for change in changes:
                change(project)
            known[key] = project
        return known[key]

    return make


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The output directory of a run that nothing interrupted, made once a session."""
    from tests.projects import train_ranks

    known: dict[str, Path] = {}

    def run_whole(project: Path, *options: object, ranks: int = 0) -> Path:
        key = repr((project, options, ranks))
        if key not in known:
            known[key] = tmp_path_factory.mktemp("whole") / "run"
            train_ranks(project, "--output-dir", known[key], *options, ranks=ranks)
        return known[key]

    return run_whole
