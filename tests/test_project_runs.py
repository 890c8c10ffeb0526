"""What a generated project shows of a run and notes about it, and the launch lines of its README."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import termios
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import projects
from tests.conftest import Make, Whole
from tests.guarantees.harness import SHORT, TASKS, over_ranks
from tests.projects import (
    checkpoints,
    edit,
    load,
    render,
    same_bits,
    same_run,
    server,
    train,
    train_ranks,
    values,
)

# run.json


def test_resume_with_other_options(made: Make, tmp_path: Path) -> None:
    """It goes on, but not in silence: the order of the data, or the schedule, is another from there."""
    project = made(task="tabular")
    options = ["--epochs", 2, "--output-dir", tmp_path, "--resume"]
    assert "another" not in train(project, *options, "--max-steps", 5).out
    assert "another" not in train(project, *options, "--max-steps", 8).out
    out = train(project, *options, "--batch-size", 16, "--seed", 7, "--max-steps", 10).out
    assert "resumed with another batch_size: 16, not 32" in out
    assert "resumed with another seed: 7, not 0" in out


@pytest.mark.parametrize("text", ['{"argum', "null", "{}"])
def test_resume_with_a_damaged_run_json(made: Make, tmp_path: Path, text: str) -> None:
    project = made(task="tabular")
    train(project, "--max-steps", 2, "--output-dir", tmp_path)
    (tmp_path / "run.json").write_text(text)
    train(project, "--max-steps", 3, "--output-dir", tmp_path, "--resume")
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 0


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("ranks", [0, 2])
def test_run_json(tmp_path: Path, ranks: int) -> None:
    project = render(tmp_path / "demo", distributed="ddp" if ranks else "none", task="tabular")
    options = ["--max-steps", 1, "--seed", 7]

    def ran(name: str, **env: str) -> dict[str, Any]:
        train_ranks(project, *options, "--output-dir", tmp_path / name, ranks=ranks, env=env)
        found: dict[str, Any] = json.loads((tmp_path / name / "run.json").read_text())
        return found

    outside = ran("outside", GIT_CEILING_DIRECTORIES=str(tmp_path))
    assert outside["git_commit"] is None
    assert outside["seed"] == outside["arguments"]["seed"] == 7
    assert outside["arguments"]["output_dir"] == str(tmp_path / "outside")
    assert outside["versions"]["torch"] == torch.__version__
    assert outside["device"] == "cpu"
    assert outside["world_size"] == (ranks or 1)
    git(project, "init", "-q")
    assert ran("empty")["git_commit"] is None
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    assert ran("inside")["git_commit"] == git(project, "rev-parse", "HEAD")
    assert ran("no-git", PATH=str(tmp_path))["git_commit"] is None


# the progress bar


def on_terminal(project: Path, *options: object, ranks: int = 0) -> str:
    """What is written to standard error when that is a terminal."""
    main, side = pty.openpty()
    termios.tcsetwinsize(main, (24, 100))
    seen: list[bytes] = []

    def read() -> None:
        with suppress(OSError):
            while text := os.read(main, 4096):
                seen.append(text)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    server().start(project, *options, ranks=ranks, err=os.ttyname(side))
    codes = [json.loads(server().line(60))]
    os.close(side)
    reader.join(10)
    os.close(main)
    assert codes == [[0] * (ranks or 1)]
    return b"".join(seen).decode()


def test_bar_on_a_terminal(made: Make, tmp_path: Path) -> None:
    text = on_terminal(made(task="tabular"), "--max-steps", 3, "--output-dir", tmp_path / "one")
    assert "3/3" in text
    quiet = train(made(task="tabular"), "--max-steps", 3, "--output-dir", tmp_path / "two")
    assert quiet.err == ""
    assert [line.split()[1] for line in quiet.out.splitlines()] == ["1", "2", "3"]


def count_bars(text: str) -> int:
    """Each bar is drawn at zero once."""
    return text.count("0/3 [")


def test_bar_of_the_first_rank_only(made: Make, tmp_path: Path) -> None:
    project = made(task="tabular", distributed="ddp")
    alone = on_terminal(project, "--max-steps", 3, "--output-dir", tmp_path / "one", ranks=1)
    both = on_terminal(project, "--max-steps", 3, "--output-dir", tmp_path / "two", ranks=2)
    assert count_bars(alone) == count_bars(both) == 1


def test_control_bar(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", distributed="ddp")
    edit(project / "train.py", "disable=rank != 0 or None", "disable=None")
    alone = on_terminal(project, "--max-steps", 3, "--output-dir", tmp_path / "one", ranks=1)
    both = on_terminal(project, "--max-steps", 3, "--output-dir", tmp_path / "two", ranks=2)
    assert (count_bars(alone), count_bars(both)) == (1, 2)


# gpu projects without a GPU


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_gpu_project_on_cpu(made: Make, tmp_path: Path, task: str, precision: str) -> None:
    project = made(task=task, hardware="gpu", precision=precision)
    train(project, "--device", "cpu", "--max-steps", 2, "--output-dir", tmp_path)
    assert sorted(values(tmp_path, "train/loss")) == [1, 2]


# the launch lines of the README


@pytest.mark.parametrize(
    ("task", "distributed"),
    [
        ("tabular", "none"),
        pytest.param("image-classification", "none", marks=pytest.mark.heavy),
        ("tabular", "ddp"),
        pytest.param("image-classification", "ddp", marks=pytest.mark.heavy),
        ("tabular", "fsdp"),
        pytest.param("image-classification", "fsdp", marks=pytest.mark.heavy),
    ],
)
def test_as_the_readme_says(made: Make, whole: Whole, tmp_path: Path, task: str, distributed: str) -> None:
    """Python and torchrun themselves do what the forked processes of these tests do."""
    project = made(task=task, distributed=distributed)
    words = ["train.py", *SHORT, "--output-dir", tmp_path]
    alone = distributed == "none"
    projects.run(project, projects.python(*words) if alone else projects.torchrun(*words))
    assert same_run(whole(project, *SHORT, ranks=0 if alone else 2), tmp_path)
    assert same_bits(*(load(checkpoints(tmp_path)[-1]) for _ in range(2)))


# cpu projects beside a GPU

# what PyTorch finds on a machine with one, as far as process groups ask
WITH_GPU = """
import torch

torch._C._get_accelerator = lambda *_: torch.device("cuda")
"""


@pytest.mark.parametrize(
    "named", [pytest.param(True, id="project"), pytest.param(False, id="control", marks=pytest.mark.heavy)]
)
@over_ranks
def test_cpu_project_beside_a_gpu(tmp_path: Path, distributed: str, named: bool) -> None:
    """The backend is named: PyTorch's own choice would be for the GPU."""
    project = render(tmp_path / "demo", task="tabular", distributed=distributed)
    if not named:
        edit(project / "train.py", 'init_process_group("gloo")', "init_process_group()")
    options = ["--max-steps", 2, "--output-dir", tmp_path / "out"]
    results = train_ranks(project, *options, check=False, first=WITH_GPU, timeout=60)
    assert all(result.code == 0 for result in results) == named, results[0].err
