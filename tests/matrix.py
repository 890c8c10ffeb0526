"""An oracle that knows the rules without reading them, and the combinations that it lets pass."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any

from scaffold import matrix
from scaffold.answers import Answers
from scaffold.catalog import Catalog, templates_folder
from scaffold.matrix import everything


@cache
def manifest(task: str) -> dict[str, Any]:
    """What a task says of itself; those that are not ours exclude nothing here."""
    file = templates_folder() / "tasks" / task / "task.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def oracle(answers: Answers) -> bool:
    """Is this combination offered? Written from the documentation, independently of scaffold/rules.py."""
    if answers.distributed == "deepspeed":
        return False
    if answers.hardware == "tpu":
        if answers.precision not in ("fp32", "bf16") or answers.distributed not in ("none", "spmd"):
            return False
        if {"compile", "deterministic"} & set(answers.features):
            return False
    elif answers.distributed == "spmd":
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
    return matrix.thinned(catalog, oracle)
