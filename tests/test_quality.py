"""The sample runs, at their defaults, learn what reach.py in the task's folder asks for."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.projects import catalog, drive, python, render, run, values

pytestmark = pytest.mark.heavy
SEEDS = [0, 1, 2]
LIMIT = 180  # seconds on two processors
KINDS = [
    (task.name, features)
    for task in catalog().tasks.values()
    for features in [(), *((name,) for name in task.features)]
]


def shortfalls(series: list[float], bar: dict[str, float]) -> list[str]:
    """What of a bar a metric over a run does not reach."""
    found = {
        "best_at_least": max(series) - bar.get("best_at_least", -sys.float_info.max),
        "last_at_least": series[-1] - bar.get("last_at_least", -sys.float_info.max),
        "best_at_most": bar.get("best_at_most", sys.float_info.max) - min(series),
        "last_at_most": bar.get("last_at_most", sys.float_info.max) - series[-1],
    }
    return [name for name, margin in found.items() if margin < 0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("task", "features"), KINDS, ids=lambda part: "-".join(part) if part else "")
def test_sample_run(tmp_path: Path, task: str, features: tuple[str, ...], seed: int) -> None:
    project = render(tmp_path / "demo", task=task, features=features)
    start = time.monotonic()
    run(project, python("train.py", "--seed", seed, "--output-dir", tmp_path / "out"), timeout=600)
    seconds = time.monotonic() - start
    bar = json.loads(drive(project, (catalog().task(task).folder / "reach.py").read_text()))
    series = list(values(tmp_path / "out", bar.pop("metric")).values())
    print(f"{task} seed {seed}: best {min(series):.4f} to {max(series):.4f}, last {series[-1]:.4f}, {bar}")
    assert shortfalls(series, bar) == []
    assert seconds < 2 * LIMIT  # another test may run beside it


def test_a_bar_can_be_missed() -> None:
    series = [0.5, 0.9, 0.8]
    assert shortfalls(series, {"best_at_least": 0.9, "last_at_least": 0.8, "best_at_most": 0.5}) == []
    assert shortfalls(series, {"best_at_least": 0.91, "last_at_most": 0.79}) == [
        "best_at_least",
        "last_at_most",
    ]
