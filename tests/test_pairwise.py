"""Every two choices together in some project that is really trained, stopped and resumed.

A source of data changes data.py alone: each is in some row, and its task meets every other choice.

What was run is left for the support table (tests/support.py).
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from scaffold.answers import Answers
from scaffold.rules import complete
from tests import projects
from tests.loggers.install import names as of_their_own
from tests.matrix import oracle
from tests.projects import (
    checkpoints,
    few_examples,
    load,
    metrics,
    render,
    same_run,
    train_ranks,
    values,
)
from tests.support import leave

Row = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]  # in sorted order
FEW = 32  # examples in a set

OF_EVERY_TASK = (
    "async-checkpoint",
    "hybrid-shard",
    "distributed",
    "hardware",
    "precision",
)  # the axes that exclude one another


@cache
def axes() -> dict[str, list[str]]:
    """Loggers and features are axes of their own, on or off, but for those that only add files.

    Loggers are those whose clients are here; tests/loggers has the others. What is cheap comes first and is
    preferred.
    """
    catalog = projects.catalog()
    elsewhere = of_their_own()
    switches = [name for name in catalog.loggers if name not in elsewhere]
    switches += [name for name in catalog.values("with") if name not in catalog.additive]
    return {
        "source": [f"{task.name} {data}" for task in catalog.tasks.values() for data in task.sources],
        "hardware": ["cpu", "gpu"],
        "precision": ["fp32", "tf32", "bf16", "fp16"],
        "distributed": ["none", "ddp", "fsdp"],
    } | {name: ["off", "on"] for name in switches}


def answers(row: Row) -> Answers:
    catalog = projects.catalog()
    task, data = row["source"].split()
    chosen = {key: row[key] for key in ("hardware", "precision", "distributed")} | {
        "task": task,
        "data": data,
    }
    on = [name for name, value in row.items() if value == "on"]
    loggers = tuple(name for name in on if name in catalog.loggers)
    features = tuple(name for name in on if name not in catalog.loggers)
    return complete(chosen | {"logger": loggers, "with": features}, catalog)


def is_offered(row: Row) -> bool:
    return is_possible(tuple(row.items()))


@cache
def is_possible(items: tuple[tuple[str, str], ...]) -> bool:
    row = dict(items)
    task, data = row["source"].split()
    loggers = projects.catalog().loggers
    features = tuple(name for name, value in items if value == "on" and name not in loggers)
    core = (row[axis] for axis in ("hardware", "precision", "distributed"))
    known = projects.catalog().values("with", task)
    return known.keys() >= set(features) and oracle(Answers("demo", task, data, *core, features=features))


def task_of(row: Row) -> str:
    return row["source"].partition(" ")[0]


def pairs_of(row: Row, axis: str) -> set[Pair]:
    """The pairs of a row that change with one of its axes; a source is paired with its task alone."""
    task = ("task", task_of(row))
    mine = task if axis == "source" else (axis, row[axis])
    items = [task, *(item for item in row.items() if item[0] != "source")]
    found = {(mine, item) if mine < item else (item, mine) for item in items if item[0] != mine[0]}
    return found | {(("source", row["source"]), task)} if axis == "source" else found


def pairs(row: Row) -> set[Pair]:
    return set[Pair]().union(*(pairs_of(row, axis) for axis in row))


def values_with(pair: Pair, axis: str) -> list[str]:
    """What an axis can be in a row with this pair."""
    fixed = dict(pair)
    if axis in fixed:
        return [fixed[axis]]
    if axis == "source" and "task" in fixed:
        return [source for source in axes()[axis] if source.split()[0] == fixed["task"]]
    return axes()[axis]


def rows_with(pair: Pair) -> Iterator[Row]:
    """Rows with this pair, and every value of the axes that exclude one another; the rest at its first."""
    first = {axis: values_with(pair, axis)[0] for axis in axes()}
    for source in values_with(pair, "source"):
        task = projects.catalog().task(source.partition(" ")[0])
        if dict(pair).get("task", task.name) != task.name:
            continue
        free = [*OF_EVERY_TASK, *task.features]
        for chosen in itertools.product(*(values_with(pair, axis) for axis in free)):
            row = first | dict(zip(free, chosen, strict=True)) | {"source": source}
            if is_offered(row):
                yield row


@cache
def all_pairs() -> frozenset[Pair]:
    """What can be together at all."""
    tasks, others = list(projects.catalog().tasks), axes().keys() - {"source"}
    items = [("task", task) for task in tasks] + [(axis, value) for axis in others for value in axes()[axis]]
    candidates = [pair for pair in itertools.combinations(sorted(items), 2) if pair[0][0] != pair[1][0]]
    candidates += [(("source", source), ("task", source.partition(" ")[0])) for source in axes()["source"]]
    return frozenset(pair for pair in candidates if next(rows_with(pair), None))


@cache
def covering_array() -> list[Row]:
    """Greedy: start each row from a missing pair, then change it wherever that covers more pairs."""
    rng, rows = random.Random(0), list[Row]()
    missing = set(all_pairs())
    while missing:
        start = min(missing)
        grown = []
        for row in itertools.islice(rows_with(start), 8):
            for axis in rng.sample(list(axes()), len(axes())):
                options = [row | {axis: value} for value in values_with(start, axis)]
                offered = [option for option in options if is_offered(option)]
                row = max(offered, key=lambda option: len(pairs_of(option, axis) & missing))
            grown.append(row)
        rows.append(max(grown, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(rows[-1])
    for number, row in enumerate(rows):  # compiling takes longest: only where a pair needs it
        others = set[Pair]().union(*(pairs(other) for other in rows[:number] + rows[number + 1 :]))
        plain = row | {"compile": "off"}
        if pairs(row) - pairs(plain) <= others:
            rows[number] = plain
    return rows


def label(row: Row) -> str:
    return "-".join(
        axis if value == "on" else value.replace(" ", "-") for axis, value in row.items() if value != "off"
    )


def test_array_covers_all_pairs() -> None:
    assert all(answers(row) for row in covering_array())
    covered = set().union(*(pairs(row) for row in covering_array()))
    assert covered >= all_pairs()
    assert (("hardware", "gpu"), ("precision", "tf32")) in covered
    assert (("hardware", "cpu"), ("precision", "tf32")) not in all_pairs()
    assert {row["source"] for row in covering_array()} == set(axes()["source"])
    assert len(covering_array()) <= 2 * len(projects.catalog().tasks) * len(
        axes()["precision"]
    )  # which all meet


def check_record(project: Path, output_dir: Path, last: int) -> None:
    steps = [int(row["step"]) for row in metrics(output_dir)]
    assert steps == list(range(1, last + 1))
    for key in ("train/loss", "train/lr"):
        assert sorted(values(output_dir, key)) == steps
    assert sorted(values(output_dir, projects.metric(project))) == [4]
    assert all(math.isfinite(value) for row in metrics(output_dir) for value in row.values())


@pytest.mark.heavy
@pytest.mark.parametrize("row", covering_array(), ids=label)
def test_row(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, row: Row) -> None:
    chosen = answers(row)
    given = chosen.to_dict()
    project = render(
        tmp_path / "demo", **{key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    )
    ranks = 0 if chosen.distributed == "none" else 2
    accum = 2 if "grad-accum" in chosen.features else 1
    regression = "regression" in chosen.features
    batch = FEW // (4 * (ranks or 1) * accum)  # an epoch is four steps
    options = [
        *projects.write_data(tmp_path, chosen.task, chosen.data, regression),
        *projects.small_options(chosen.task),
        *("--device", "cpu", "--epochs", 3, "--batch-size", batch, "--workers", 0, "--warmup-steps", 2),
        *(("--grad-accum", accum) if accum > 1 else ()),
    ]
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "inductor")}

    def run(name: str, *more: object) -> Path:
        words = [*options, "--output-dir", tmp_path / name, *more]
        train_ranks(project, *words, ranks=ranks, env=env, timeout=300, first=few_examples(FEW))
        return tmp_path / name

    run("parts", "--max-steps", 3)
    parts = run("parts", "--max-steps", 6, "--resume")
    check_record(project, parts, 6)
    state = load(checkpoints(parts)[-1])
    assert ("ema" in state, "scaler" in state) == (row["ema"] == "on", row["precision"] == "fp16")
    ran = json.loads((parts / "run.json").read_text())
    assert (ran["device"], ran["world_size"]) == ("cpu", ranks or 1)
    assert bool(list(parts.glob("events.out.tfevents.*"))) == (row["tensorboard"] == "on")
    assert len(list(parts.glob("wandb/offline-run-*"))) == (2 if row["wandb"] == "on" else 0)
    if row["compile"] == "off":
        assert same_run(run("whole", "--max-steps", 6), parts)
    leave(label(row), answers=given, ran="trained-cpu", processes=ranks or 1, steps=6, resumed_at=3)
