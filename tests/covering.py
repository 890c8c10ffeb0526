"""Covering arrays: rows of choices in which every two that can be made together occur together.

A source of data changes data.py alone: each is in some row, and its task meets every other choice.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

from scaffold.answers import Answers
from scaffold.rules import complete
from tests import projects
from tests.loggers.install import names as of_their_own
from tests.matrix import ARTIFACTS, oracle

Row = dict[str, str]
Pair = tuple[tuple[str, str], ...]  # two items, in sorted order

CORE = ("hardware", "precision", "distributed")
EXCLUSIVE = (*CORE, "async-checkpoint", "hybrid-shard")  # the axes of every task that exclude one another


@dataclass(frozen=True, eq=False)
class Space:
    """Axes and their values; loggers and features are axes of their own, on or off.

    What is cheap comes first and is preferred.
    """

    axes: dict[str, list[str]]

    def values_with(self, pair: Pair, axis: str) -> list[str]:
        """What an axis can be in a row with this pair."""
        fixed = dict(pair)
        if axis in fixed:
            return [fixed[axis]]
        if axis == "source" and "task" in fixed:
            return [source for source in self.axes[axis] if source.split()[0] == fixed["task"]]
        return self.axes[axis]

    def rows_with(self, pair: Pair) -> Iterator[Row]:
        """Rows with this pair, and all values of the axes that exclude one another; the rest at its first."""
        first = {axis: self.values_with(pair, axis)[0] for axis in self.axes}
        takers = sorted(ARTIFACTS & self.axes.keys()) if ("log-best", "on") in pair else ()
        for source in self.values_with(pair, "source"):
            task = projects.catalog().task(source.partition(" ")[0])
            if dict(pair).get("task", task.name) != task.name:
                continue
            free = [axis for axis in (*EXCLUSIVE, *task.features, *takers) if axis in self.axes]
            for chosen in itertools.product(*(self.values_with(pair, axis) for axis in free)):
                row = first | dict(zip(free, chosen, strict=True)) | {"source": source}
                if is_offered(row):
                    yield row

    @cached_property
    def pairs(self) -> frozenset[Pair]:
        """What can be together at all."""
        others = self.axes.keys() - {"source"}
        items = [("task", task) for task in {source.split()[0] for source in self.axes["source"]}]
        items += [(axis, value) for axis in others for value in self.axes[axis]]
        found = [pair for pair in itertools.combinations(sorted(items), 2) if pair[0][0] != pair[1][0]]
        found += [(("source", source), ("task", source.split()[0])) for source in self.axes["source"]]
        return frozenset(pair for pair in found if next(self.rows_with(pair), None))

    @cached_property
    def array(self) -> list[Row]:
        """Greedy: start each row from a missing pair, then change it wherever that covers more pairs."""
        rng, rows = random.Random(0), list[Row]()
        missing = set(self.pairs)
        while missing:
            start = min(missing)
            grown = []
            for row in itertools.islice(self.rows_with(start), 8):
                for axis in rng.sample(list(self.axes), len(self.axes)):
                    options = [row | {axis: value} for value in self.values_with(start, axis)]
                    offered = [option for option in options if is_offered(option)]
                    row = max(offered, key=lambda option: len(pairs_of(option, axis) & missing))
                grown.append(row)
            rows.append(max(grown, key=lambda row: len(pairs_in(row) & missing)))
            missing -= pairs_in(rows[-1])
        for number, row in enumerate(rows):  # compiling takes longest: only where a pair needs it
            others = set[Pair]().union(*map(pairs_in, rows[:number] + rows[number + 1 :]))
            plain = {axis: "off" if axis == "compile" else value for axis, value in row.items()}
            if pairs_in(row) - pairs_in(plain) <= others:
                rows[number] = plain
        return rows


@cache
def on_processors() -> Space:
    """All but TPUs; loggers are those whose clients are here, and tests/loggers has the others."""
    elsewhere = of_their_own()
    loggers = [name for name in projects.catalog().loggers if name not in elsewhere]
    return space(
        ["cpu", "gpu"], ["fp32", "tf32", "bf16", "fp16"], ["none", "ddp", "fsdp", "deepspeed"], loggers
    )


@cache
def on_tpus() -> Space:
    """Without loggers, whose clients are not in the environment of torch_xla."""
    return space(["tpu"], ["fp32", "bf16"], ["none", "spmd"], [])


def space(hardware: list[str], precision: list[str], distributed: list[str], loggers: list[str]) -> Space:
    """What can be chosen there at all, but for features that only add files."""
    catalog = projects.catalog()
    core = {"hardware": hardware, "precision": precision, "distributed": distributed}
    switches = loggers + [name for name in catalog.values("with") if name not in catalog.additive]
    sources = [f"{task.name} {data}" for task in catalog.tasks.values() for data in task.sources]
    wide = Space({"source": sources} | core | {name: ["off", "on"] for name in switches})
    return Space(
        {
            axis: [value for value in values if next(wide.rows_with(((axis, value),)), None)]
            for axis, values in wide.axes.items()
        }
    )


def answers_of(row: Row) -> Answers:
    """The answers of a row, whether they are offered or not."""
    task, data = row["source"].split()
    loggers = projects.catalog().loggers
    on = [name for name, value in row.items() if value == "on"]
    return Answers(
        "demo",
        task,
        data,
        *(row[axis] for axis in CORE),
        loggers=tuple(name for name in on if name in loggers),
        features=tuple(name for name in on if name not in loggers),
    )


def completed(row: Row) -> Answers:
    return complete(answers_of(row).to_dict(), projects.catalog())


def is_offered(row: Row) -> bool:
    return is_possible(tuple(row.items()))


@cache
def is_possible(items: tuple[tuple[str, str], ...]) -> bool:
    answers = answers_of(dict(items))
    known = projects.catalog().values("with", answers.task)
    return known.keys() >= set(answers.features) and oracle(answers)


def pairs_of(row: Row, axis: str) -> set[Pair]:
    """The pairs of a row that change with one of its axes; a source is paired with its task alone."""
    task = ("task", row["source"].split()[0])
    mine = task if axis == "source" else (axis, row[axis])
    items = [task, *(item for item in row.items() if item[0] != "source")]
    found = {(mine, item) if mine < item else (item, mine) for item in items if item[0] != mine[0]}
    return found | {(("source", row["source"]), task)} if axis == "source" else found


def pairs_in(row: Row) -> set[Pair]:
    return set[Pair]().union(*(pairs_of(row, axis) for axis in row))


def label(row: Row) -> str:
    return "-".join(
        axis if value == "on" else value.replace(" ", "-") for axis, value in row.items() if value != "off"
    )
