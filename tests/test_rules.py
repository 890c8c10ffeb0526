"""The rules against an oracle written independently of them, over the whole product of choices."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scaffold.answers import Answers
from scaffold.axes import AXES, BY_KEY
from scaffold.catalog import Catalog, load_catalog, read_catalog, templates_folder
from scaffold.errors import RequestError
from scaffold.matrix import Extent, combinations
from scaffold.rules import RULES, Rule, all_rules, broken, complete, default, followed, why_not
from tests.matrix import manifest, oracle


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def chosen(answers: Answers) -> dict[str, tuple[str, ...]]:
    return {axis.key: answers.chosen(axis.key) for axis in AXES}


def product(catalog: Catalog) -> Iterator[Answers]:
    """All with no more than two features, of which rules speak, and each logger beside none."""
    return combinations(catalog, lambda answers: True, Extent(sample=2, other=1, each_logger=0, turns=1))


def disagreements(catalog: Catalog, judge) -> list[Answers]:
    return [
        answers
        for answers in product(catalog)
        if judge(answers) != (broken(chosen(answers), catalog) is None)
    ]


def test_rules_and_oracle_agree_everywhere(catalog: Catalog) -> None:
    assert disagreements(catalog, oracle) == []


@pytest.mark.heavy
def test_a_wrong_oracle_is_noticed(catalog: Catalog) -> None:
    assert disagreements(catalog, lambda a: oracle(a) and (a.precision, a.hardware) != ("bf16", "cpu"))


def test_the_oracle_reads_what_sources_go_with(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources of somebody's, with one feature alone and without it: oracle and rules agree."""
    folder = Path(shutil.copytree(templates_folder() / "tasks" / "tabular", tmp_path / "tasks" / "tabular"))
    source = '[data.prices]\nhelp = "x"\nonly_with = ["regression"]\n'
    source += '[data.costs]\nhelp = "x"\nnot_with = ["regression"]\n'
    with (folder / "task.toml").open("a", encoding="utf-8") as file:
        file.write(source)
    (tmp_path / "features").symlink_to(templates_folder() / "features")
    changed = read_catalog((templates_folder(), tmp_path))
    changed = replace(changed, tasks={"tabular": changed.tasks["tabular"]})
    manifest.cache_clear()
    monkeypatch.setattr("tests.matrix.templates_folder", lambda: tmp_path)
    try:
        assert disagreements(changed, oracle) == []
        for data in ("prices", "costs"):
            assert {oracle(answers) for answers in product(changed) if answers.data == data} == {True, False}
    finally:
        manifest.cache_clear()


def test_loggers_exclude_nothing(catalog: Catalog) -> None:
    assert not any("logger" in rule.when for rule in all_rules(catalog))


@pytest.mark.parametrize("loggers", [(), ("tensorboard",)])
def test_the_best_checkpoint_needs_a_logger_that_takes_it(catalog: Catalog, loggers: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=r"log-best.*artifacts \(.*wandb.*without log-best or logger="):
        complete({"logger": loggers, "with": ("log-best",)}, catalog)
    assert complete({"logger": (*loggers, "wandb"), "with": ("log-best",)}, catalog).features == ("log-best",)


@pytest.mark.parametrize("rule", all_rules(load_catalog()), ids=lambda rule: rule.id)
def test_advice_lifts_the_rule_that_gives_it(rule: Rule, catalog: Catalog) -> None:
    for combination in rule.combinations():
        answers = {axis.key: () if axis.many else (default(axis.key, {}, catalog),) for axis in AXES}
        answers |= combination
        assert rule.applies(answers)
        for after in followed(rule.choose, answers):
            assert not rule.applies(after)


def test_following_advice_ends_at_something_offered(catalog: Catalog) -> None:
    """From any combination, doing what the messages say leads to a valid one in a few steps."""
    for answers in product(catalog):
        if answers.loggers or len(answers.features) > 2:
            continue
        state = chosen(answers)
        for _ in all_rules(catalog):  # each may be met once
            if (rule := broken(state, catalog)) is None:
                break
            state = followed(rule.choose, state)[0]
        assert broken(state, catalog) is None, answers


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_values_named_by_rules_exist(rule: Rule, catalog: Catalog) -> None:
    for key, values in rule.when.items():
        assert set(values) <= set(catalog.values(key))


def test_messages_say_what_would_work(catalog: Catalog) -> None:
    with pytest.raises(RequestError, match=r"fp16.*tpu.*bfloat16.*precision=bf16"):
        complete({"hardware": "tpu", "precision": "fp16"}, catalog)
    with pytest.raises(RequestError, match=r"ddp.*tpu.*distributed=spmd"):
        complete({"hardware": "tpu", "distributed": "ddp", "precision": "bf16"}, catalog)
    with pytest.raises(RequestError, match=r"spmd.*cpu.*distributed=ddp"):
        complete({"distributed": "spmd", "hardware": "cpu"}, catalog)
    with pytest.raises(RequestError, match="did you mean 'tabular'"):
        complete({"task": "tabula"}, catalog)


def test_defaults_give_way(catalog: Catalog) -> None:
    """What nobody chose excludes nothing that somebody chose."""
    assert complete({"distributed": "spmd"}, catalog, machine="gpu").hardware == "tpu"
    assert complete({"precision": "tf32"}, catalog).hardware == "gpu"
    assert complete({"precision": "bf16"}, catalog).hardware == "cpu"
    assert complete({"task": "diffusion"}, catalog).features == ("ema",)
    assert complete({"task": "diffusion", "distributed": "deepspeed"}, catalog).features == ()
    with pytest.raises(RequestError, match="ema"):
        complete({"task": "diffusion", "distributed": "deepspeed", "with": ("ema",)}, catalog)


def test_partial_answers_exclude_only_what_is_certain(catalog: Catalog) -> None:
    assert why_not("precision", "tf32", {"hardware": "cpu"}, catalog)
    assert why_not("precision", "tf32", {}, catalog) is None
    assert why_not("data", "wine-quality", {"task": "tabular"}, catalog) is None
    assert why_not("with", "regression", {"task": "tabular", "data": "adult"}, catalog)


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_defaults_are_valid(hardware: str, catalog: Catalog) -> None:
    for task in catalog.tasks:
        answers = complete({"task": task}, catalog, hardware)
        assert oracle(answers)
        assert answers.hardware == hardware


def test_a_tpu_is_the_default_where_it_can_be_chosen(catalog: Catalog) -> None:
    answers = complete({"task": "tabular"}, catalog, "tpu")
    assert (answers.hardware, answers.precision, answers.distributed) == ("tpu", "bf16", "spmd")
    assert complete({"task": "reinforcement-learning"}, catalog, "tpu").hardware == "cpu"
    assert complete({"task": "tabular", "distributed": "ddp"}, catalog, "tpu").hardware == "cpu"


def test_lists_come_in_the_order_of_the_catalog(catalog: Catalog) -> None:
    answers = complete({"logger": ("wandb", "tensorboard"), "with": ("ema", "grad-accum")}, catalog)
    assert answers.loggers == ("tensorboard", "wandb")
    assert answers.features == ("grad-accum", "ema")
    assert set(BY_KEY) == {axis.key for axis in AXES}
