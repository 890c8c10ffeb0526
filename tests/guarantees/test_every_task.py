"""What every task keeps by itself, whatever its data, its model and its metrics are."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaffold.rules import why_not
from tests.conftest import Make
from tests.guarantees.harness import RANKS, killed
from tests.projects import (
    catalog,
    edit,
    few_examples,
    metric,
    metrics,
    render,
    same_run,
    small_options,
    train_ranks,
    values,
)

FEW = few_examples(29)
every_task = pytest.mark.parametrize("task", catalog().tasks)
OFFERED = [
    pytest.param(task, distributed, marks=() if distributed == "ddp" else pytest.mark.heavy)
    for distributed in RANKS
    for task in catalog().tasks
    if not why_not("distributed", distributed, {"task": task}, catalog())
]
everywhere = pytest.mark.parametrize(("task", "distributed"), OFFERED)
over_ranks = pytest.mark.parametrize(
    ("task", "distributed"), [row for row in OFFERED if RANKS[str(row.values[1])]]
)
KILLED = """
import os
import signal
from tqdm import tqdm

calls = []

def update(bar, number=1):
    calls.append(number)
    if len(calls) == 7 and os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)

tqdm.update = update
"""


def given(task: str, output_dir: Path, batch_size: int) -> list[object]:
    """Ten steps in epochs of four, whose last batches are not full."""
    short = ["--batch-size", batch_size, "--max-steps", 10, "--checkpoint-every", 3, "--log-every", 1]
    return [*short, *small_options(task), "--output-dir", output_dir]


@everywhere
def test_01_every_task_resumes(made: Make, tmp_path: Path, task: str, distributed: str) -> None:
    project, ranks = made(task=task, distributed=distributed), RANKS[distributed]
    whole, parts = (given(task, tmp_path / name, 8 // (ranks or 1)) for name in ("whole", "parts"))
    train_ranks(project, *whole, ranks=ranks, first=FEW)
    assert killed(project, *parts, ranks=ranks, first=FEW + KILLED)
    assert not same_run(tmp_path / "whole", tmp_path / "parts")
    train_ranks(project, *parts, "--resume", ranks=ranks, first=FEW)
    assert same_run(tmp_path / "whole", tmp_path / "parts")


def one_and_two(one: Path, two: Path, task: str, place: Path) -> list[dict[str, float]]:
    """The rows of a run of one process, and how far from them those of two are, relatively."""
    train_ranks(one, *given(task, place / "one", 8), ranks=0, first=FEW)
    train_ranks(two, *given(task, place / "two", 4), ranks=2, first=FEW)
    rows = [metrics(place / name) for name in ("one", "two")]
    assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
    assert sorted(values(place / "one", metric(one))) == [4, 8]
    return [{key: abs(a[key] - b[key]) / (abs(a[key]) or 1) for key in a} for a, b in zip(*rows, strict=True)]


@over_ranks
def test_06_every_task_over_ranks(made: Make, tmp_path: Path, task: str, distributed: str) -> None:
    """Losses and metrics of training and evaluation."""
    gaps = one_and_two(made(task=task), made(task=task, distributed=distributed), task, tmp_path)
    assert max(gap for row in gaps for gap in row.values()) < 1e-3


@pytest.mark.heavy
@every_task
def test_06_control_every_task_over_ranks(made: Make, tmp_path: Path, task: str) -> None:
    """A process that evaluates the examples of another is seen in every task's metrics.

    Not always in the one it is judged by: after ten steps no translation may be right on either side.
    """
    project = render(tmp_path / "demo", task=task, distributed="ddp")
    edit(project / "data.py", "np.arange(rank, num_examples", "np.arange(0, num_examples")
    gaps = one_and_two(made(task=task), project, task, tmp_path)
    assert max(gap for row in gaps for key, gap in row.items() if key.startswith("val/")) > 1e-3


@over_ranks
def test_05_every_task_with_one_example(made: Make, tmp_path: Path, task: str, distributed: str) -> None:
    """One process has nothing to evaluate, and the metrics are those of the only example."""
    found = []
    for ranks in (0, 2):
        project = made(task=task, distributed=distributed if ranks else "none")
        options = [
            "--batch-size",
            2 // (ranks or 1),
            "--epochs",
            1,
            *catalog().task(task).one_example,
            "--lr",
            0,
        ]
        place = tmp_path / str(ranks)
        train_ranks(project, *options, "--output-dir", place, ranks=ranks, first=few_examples(1))
        found.append([row[metric(project)] for row in metrics(place)])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert len(found[0]) == 1
