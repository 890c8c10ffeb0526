"""Every offered task, hardware, precision and distribution trains, and the support table says no more."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from scaffold.answers import Answers
from scaffold.catalog import load_catalog
from tests.projects import metrics, render, train_ranks, values
from tests.support import CORE, DOCS, core_combinations, in_the_table, leave, page, tasks_page

COMBINATIONS = [answers for answers in core_combinations(load_catalog()) if answers.hardware != "tpu"]


def label(answers: Answers) -> str:
    return "-".join(answers.to_dict()[key] for key in CORE)


@pytest.mark.complete
@pytest.mark.parametrize("answers", COMBINATIONS, ids=label)
def test_trains_and_resumes(tmp_path: Path, answers: Answers) -> None:
    if answers.distributed == "deepspeed":
        pytest.importorskip("deepspeed")
    given = answers.to_dict()
    project = render(tmp_path / "demo", **{key: given[key] for key in (*CORE, "with")})
    ranks = 0 if answers.distributed == "none" else 2
    options = ["--device", "cpu", "--batch-size", 8, "--warmup-steps", 2, "--output-dir", tmp_path / "out"]
    train_ranks(project, *options, "--max-steps", 3, ranks=ranks, timeout=300)
    train_ranks(project, *options, "--max-steps", 6, "--resume", ranks=ranks, timeout=300)
    losses = values(tmp_path / "out", "train/loss")
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(value) for row in metrics(tmp_path / "out") for value in row.values())
    result = {"answers": given, "ran": "trained-cpu", "processes": ranks or 1, "steps": 6, "resumed_at": 3}
    leave(f"core-{label(answers)}", **result)


def test_the_page_is_made_from_results() -> None:
    results = json.loads((DOCS / "support.json").read_text())
    assert (DOCS / "support.md").read_text(encoding="utf-8") == page(results, load_catalog())


def test_all_that_the_page_is_about_was_run() -> None:
    """On processors, or on XLA's client for them: no row of the covering arrays is missing, or an old one."""
    results = json.loads((DOCS / "support.json").read_text())
    ran = [result["answers"] for result in results if result["ran"] != "trained-gpu"]
    known = in_the_table(load_catalog())
    assert [answers for answers in known if answers not in ran] == []
    assert [answers for answers in ran if answers not in known] == []


def test_the_page_of_tasks_is_made_from_results() -> None:
    results = json.loads((DOCS / "tasks.json").read_text())
    catalog = load_catalog()
    assert (DOCS / "tasks.md").read_text(encoding="utf-8") == tasks_page(results, catalog)
    assert {result["task"] for result in results} == set(catalog.tasks)


def test_a_run_that_is_missing_is_not_claimed() -> None:
    results = json.loads((DOCS / "support.json").read_text())
    core = [result["answers"][key] for result in results[:1] for key in CORE]
    others = [r for r in results if [r["answers"][key] for key in CORE] != core]
    before, after = (page(found, load_catalog()).count("rendered-only |") for found in (results, others))
    assert after == before + 1


def test_where_it_ran_is_said() -> None:
    results = json.loads((DOCS / "support.json").read_text())
    on_gpu = next(result for result in results if result["ran"] == "trained-cpu")
    on_gpu = on_gpu | {"ran": "trained-gpu", "device": "a GPU"}
    core = " | ".join(f"`{on_gpu['answers'][key]}`" for key in CORE)
    processors = [result for result in results if result["ran"] == "trained-cpu"]
    assert f"| {core} | trained-CPU |" in page(processors, load_catalog())
    assert f"| {core} | trained-GPU, trained-CPU |" in page([*processors, on_gpu], load_catalog())
    assert f"| {core} | trained-GPU |" in page([on_gpu], load_catalog())
