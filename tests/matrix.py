"""An oracle that knows the rules without reading them, and the combinations that it lets pass."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any

from scaffold.answers import Answers
from scaffold.catalog import Catalog, templates_folder
from scaffold.matrix import THIN, WIDE, combinations

ARTIFACTS = {  # the loggers whose templates take the best checkpoint
    path.parent.name
    for path in templates_folder().glob("loggers/*/logger.py.jinja")
    if "macro artifact()" in path.read_text(encoding="utf-8")
}


@cache
def manifest(place: str) -> dict[str, Any]:
    """What a task or feature says of itself; those that are not ours exclude nothing here."""
    file = templates_folder() / place
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def has_blocks(answers: Answers) -> bool:
    task = manifest(f"tasks/{answers.task}/task.toml")
    facts = task.get("facts", {})
    for feature in answers.features:
        facts = facts | task.get("with", {}).get(feature, {}).get("facts", {})
    return bool(facts.get("blocks"))


def oracle(answers: Answers) -> bool:
    """Is this combination offered? Written from the documentation, independently of scaffold/rules.py."""
    if answers.hardware == "tpu":
        if answers.precision not in ("fp32", "bf16") or answers.distributed not in ("none", "spmd"):
            return False
        if {"compile", "deterministic", "activation-checkpointing"} & set(answers.features):
            return False
    elif answers.distributed == "spmd":
        return False
    if answers.distributed == "deepspeed":
        if answers.precision == "fp16":
            return False
        if {"ema", "compile"} & set(answers.features):
            return False
    if answers.precision == "tf32" and answers.hardware == "cpu":
        return False
    if "log-best" in answers.features and not ARTIFACTS & set(answers.loggers):
        return False
    if "async-checkpoint" in answers.features and answers.distributed != "fsdp":
        return False
    if "offload" in answers.features and answers.distributed != "deepspeed":
        return False
    if "hybrid-shard" in answers.features and answers.distributed != "fsdp":
        return False
    if "activation-checkpointing" in answers.features and not has_blocks(answers):
        return False
    named = [f"tasks/{answers.task}/task.toml", *(f"features/{n}/feature.toml" for n in answers.features)]
    if any(
        all(
            set(answers.chosen(key)) & set([values] if isinstance(values, str) else values)
            for key, values in row["when"].items()
        )
        for place in named
        for row in manifest(place).get("excludes", ())
    ):
        return False
    source = manifest(f"tasks/{answers.task}/task.toml").get("data", {}).get(answers.data, {})
    chosen = set(answers.features)
    return chosen >= set(source.get("only_with", ())) and chosen.isdisjoint(source.get("not_with", ()))


def valid(catalog: Catalog) -> Iterator[Answers]:
    return combinations(catalog, oracle, WIDE)


def thinned(catalog: Catalog) -> Iterator[Answers]:
    return combinations(catalog, oracle, THIN)
