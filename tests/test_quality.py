"""The sample runs, at their defaults, learn what reach.py in the task's folder asks for."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.projects import catalog, drive, metric, python, render, run, values
from tests.support import leave

LONG = ("diffusion", "language-modeling")  # minutes on one processor
LIMIT = 360  # seconds, where another test runs beside it; on two processors alone it is to be half of that


KINDS = [
    (task.name, features)
    for task in catalog().tasks.values()
    for features in [(), *((name,) for name in task.features)]
]
# of each task one run, if it is not a long one, is always made
RUNS = [
    pytest.param(
        *kind,
        seed,
        marks=pytest.mark.complete if seed or kind[1] or kind[0] in LONG else pytest.mark.heavy,
        id="-".join([kind[0], *kind[1], str(seed)]),
    )
    for kind in KINDS
    for seed in range(3)
]


def shortfalls(series: list[float], seconds: float, bar: dict[str, float]) -> list[str]:
    """What of a bar a metric over a run does not reach."""
    found = {
        "best_at_least": max(series),
        "last_at_least": series[-1],
        "best_at_most": min(series),
        "last_at_most": series[-1],
        "at_least": series[-1],
        "at_most": series[-1],
        "seconds_at_most": seconds,
    }
    sign = {name: 1 if name.endswith("least") else -1 for name in bar}
    return [name for name, bound in bar.items() if sign[name] * found[name] < sign[name] * bound]


@pytest.mark.parametrize(("task", "features", "seed"), RUNS)
def test_sample_run(tmp_path: Path, task: str, features: tuple[str, ...], seed: int) -> None:
    project = render(tmp_path / "demo", task=task, features=features)
    start = time.monotonic()
    run(project, python("train.py", "--seed", seed, "--output-dir", tmp_path / "out"), timeout=600)
    seconds = time.monotonic() - start
    source = (catalog().task(task).folder / "reach.py").read_text()
    measures = drive(project, source, tmp_path / "out").splitlines()
    assert measures
    for line in measures:
        reach = json.loads(line)
        name = reach.pop("metric")
        if "reached" in reach:  # measured by reach.py itself, of what the run has saved
            series = [reach.pop("reached")]
        else:
            series = list(values(tmp_path / "out", name).values())
        assert shortfalls(series, seconds, {"seconds_at_most": LIMIT} | reach) == []
        result = {"task": task, "with": features, "seed": seed, "metric": name, "reached": series[-1]}
        leave(f"quality-{'-'.join([task, *features, *name.split('/')])}-{seed}", **result, bar=reach)
        told = re.search(r"sample run reaches (\d+(?:\.\d+)?)", (project / "README.md").read_text())
        if told and name == metric(project):
            assert series[-1] == pytest.approx(float(told[1]), rel=0.02)


def test_a_bar_can_be_missed() -> None:
    series = [0.5, 0.9, 0.8]
    reached = {"best_at_least": 0.9, "last_at_least": 0.8, "best_at_most": 0.5, "seconds_at_most": 7}
    assert shortfalls(series, 7, reached) == []
    assert shortfalls([0.9], 7, {"at_least": 0.9, "at_most": 0.9}) == []
    missed = {"best_at_least": 0.91, "last_at_most": 0.79, "at_least": 0.81, "seconds_at_most": 6}
    assert shortfalls(series, 7, missed) == list(missed)
