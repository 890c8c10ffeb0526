"""Every combination there is, and an oracle that knows the rules without reading them."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any

from scaffold.answers import Answers
from scaffold.catalog import Catalog, templates_folder


def subsets(items: list[str]) -> list[tuple[str, ...]]:
    return [chosen for size in range(len(items) + 1) for chosen in itertools.combinations(items, size)]


def everything(catalog: Catalog) -> Iterator[Answers]:
    """The whole product, valid or not, of what the catalog offers for each task."""
    for task in catalog.tasks:
        axes = [list(catalog.values(key, task)) for key in ("data", "hardware", "precision", "distributed")]
        loggers = subsets(list(catalog.loggers))
        features = subsets(list(catalog.values("with", task)))
        for values in itertools.product(*axes, loggers, features):
            yield Answers("demo", task, *values)


@cache
def manifest(task: str) -> dict[str, Any]:
    """What a task says of itself; those that are not ours exclude nothing here."""
    file = templates_folder() / "tasks" / task / "task.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def oracle(answers: Answers) -> bool:
    """Is this combination offered? Written from the documentation, independently of scaffold/rules.py."""
    if answers.hardware == "tpu" or answers.distributed in ("deepspeed", "spmd"):
        return False
    if answers.precision == "tf32" and answers.hardware == "cpu":
        return False
    if "async-checkpoint" in answers.features and answers.distributed != "fsdp":
        return False
    if any(
        all(
            set(answers.chosen(key)) & set([values] if isinstance(values, str) else values)
            for key, values in row["when"].items()
        )
        for row in manifest(answers.task).get("excludes", ())
    ):
        return False
    regression = "regression" in answers.features
    return not (
        (answers.data == "adult" and regression) or (answers.data == "wine-quality" and not regression)
    )


def valid(catalog: Catalog) -> Iterator[Answers]:
    return (answers for answers in everything(catalog) if oracle(answers))


def thinned(catalog: Catalog) -> Iterator[Answers]:
    """Of these, on the sample data all with at most two features or with all of them, on other data with one.

    Loggers are all of them or none but for projects with at most one feature, which have any one or two.
    """
    for answers in valid(catalog):
        never = [
            row["when"] for row in manifest(answers.task).get("excludes", ()) if list(row["when"]) == ["with"]
        ]
        many = len(catalog.values("with", answers.task)) - sum(len(when["with"]) for when in never)
        size = len(answers.features)
        if size not in (many, many - 1) and size > (2 if answers.data == "sample" else 1):
            continue
        if len(answers.loggers) in (0, len(catalog.loggers)) or (size <= 1 and len(answers.loggers) <= 2):
            yield answers
