"""The pages of what was really trained, from the results that the heavy tests leave behind.

export SCAFFOLD_RESULTS=FOLDER
pytest -m "heavy or complete" tests/test_pairwise.py tests/test_support.py tests/test_quality.py
pytest tests/gpu                    # where there is one
pytest -m xla tests/xla             # with the .venv-xla that .ci/run makes
python -m tests.support FOLDER      # puts them into docs/*.json and makes docs/support.md and docs/tasks.md
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import statistics
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scaffold.answers import Answers
from scaffold.axes import BY_KEY
from scaffold.catalog import Catalog, load_catalog
from scaffold.rules import default
from tests.covering import answers_of, on_processors, on_tpus
from tests.matrix import oracle

DOCS = Path(__file__).parent.parent / "docs"
MARKS = {"trained-gpu": "trained-GPU", "trained-cpu": "trained-CPU", "trained-xla-cpu": "trained-XLA-CPU"}
CORE = ("task", "hardware", "precision", "distributed")


def leave(name: str, **result: Any) -> None:
    """Record a run that passed, where SCAFFOLD_RESULTS asks for it."""
    if folder := os.environ.get("SCAFFOLD_RESULTS"):
        result = {"torch": version("torch"), "date": datetime.date.today().isoformat()} | result
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def core_combinations(catalog: Catalog) -> list[Answers]:
    """Every offered task, hardware, precision and distribution, on the sample data.

    With the task's usual features, or without any where those are not offered.
    """
    keys = ("hardware", "precision", "distributed")
    found = []
    for task in catalog.tasks:
        for values in itertools.product(*(BY_KEY[key].values or () for key in keys)):
            for features in (default("with", {"task": task}, catalog), ()):
                if oracle(answers := Answers("demo", task, "sample", *values, (), features)):
                    found.append(answers)
                    break
    return found


def page(results: list[dict[str, Any]], catalog: Catalog) -> str:
    return "\n".join(page_lines(results, catalog)) + "\n"


def page_lines(results: list[dict[str, Any]], catalog: Catalog) -> Iterator[str]:
    ran: dict[tuple[str, ...], set[str]] = {}
    for result in results:
        ran.setdefault(tuple(result["answers"][key] for key in CORE), set()).add(result["ran"])
    devices = sorted({result["device"] for result in results if "device" in result})
    dates = sorted({result["date"] for result in results})
    torches = sorted({result["torch"] for result in results})
    yield "# Support"
    yield ""
    yield "Made from test results by `python -m tests.support`; nothing here claims more than was run."
    yield "*trained-CPU*: generated, trained for some steps, stopped, resumed, and its record checked, on"
    yield "processors: `gpu` projects with `--device cpu`; DDP, FSDP and DeepSpeed, at stage 2, with two"
    yield "processes over gloo."
    if devices:
        yield "*trained-GPU*: the same on the GPU, where DDP and FSDP are one process over NCCL; run on"
        yield f"{', '.join(devices)}, with `tests/gpu`."
    if any(result["ran"] == "trained-xla-cpu" for result in results):
        yield "*trained-XLA-CPU*: `tpu` projects on XLA's client for processors, `spmd` with two devices;"
        yield "resumed to the last bit, with `tests/xla`. No TPU was there."
    yield "*rendered-only*: generated, parsed, linted."
    yield ""
    yield f"Run on {', '.join(dates)} with PyTorch {', '.join(torches)}, Python 3.11, Linux."
    yield ""
    yield "| task | hardware | precision | distributed | result |"
    yield "| --- | --- | --- | --- | --- |"
    for answers in core_combinations(catalog):
        key = tuple(answers.to_dict()[axis] for axis in CORE)
        result = ", ".join(mark for run, mark in MARKS.items() if run in ran.get(key, ())) or "rendered-only"
        yield f"| {' | '.join(f'`{value}`' for value in key)} | {result} |"
    yield ""
    yield "## The runs"
    yield ""
    loggers = [name for name in catalog.loggers if name in on_processors().axes]
    yield "The core above on the sample data, and two covering arrays, one of projects for TPUs and one of"
    yield "all others, in which every two choices that can be made together occur together: a task's sources"
    yield f"of data, features and, but for TPUs, the loggers {' and '.join(loggers)} too. They have few"
    yield "examples, small pictures and, where its size is an option, a small model. The other loggers are"
    yield "run with their clients in tests/loggers; what only adds files is in tests/test_launchers.py."
    yield ""
    yield "| task | data | hardware | precision | distributed | loggers | features |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    rows = {tuple(show(result["answers"][axis]) for axis in BY_KEY) for result in results}
    yield from (f"| {' | '.join(row)} |" for row in sorted(rows))


def show(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def tasks_page(results: list[dict[str, Any]], catalog: Catalog) -> str:
    return "\n".join(tasks_page_lines(results, catalog)) + "\n"


def tasks_page_lines(results: list[dict[str, Any]], catalog: Catalog) -> Iterator[str]:
    yield "# Tasks"
    yield ""
    yield "What the sample run of each task reaches at its defaults, on two processors: the metric after the"
    yield "last epoch (what is no `val/` metric: of the best checkpoint), mean and standard deviation over"
    yield "the seeds, and the bar that a test holds each run to."
    yield "Made from test results by `python -m tests.support`."
    for task in catalog.tasks.values():
        yield ""
        yield f"## {task.name}"
        yield ""
        sources = ", ".join(f"`{name}`" for name in task.sources)
        yield f"{task.help[0].upper()}{task.help[1:]}. Data: {sources}."
        yield ""
        yield "| with | metric | seeds | reaches | bar | PyTorch | date |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        own = [result for result in results if result["task"] == task.name]
        for features, name in sorted({(tuple(result["with"]), result["metric"]) for result in own}):
            runs = [run for run in own if (tuple(run["with"]), run["metric"]) == (features, name)]
            yield f"| {' | '.join(summary(runs))} |"


def summary(runs: list[dict[str, Any]]) -> list[str]:
    """A row of the page, of runs that differ in their seeds alone; of one run, which may have none."""
    values = [run["reached"] for run in runs]
    spread = f" ± {statistics.stdev(values):.4f}" if len(runs) > 1 else ""
    reached = f"{statistics.mean(values):.4f}{spread}"
    seeds = ", ".join(str(seed) for seed in sorted(run["seed"] for run in runs if "seed" in run))
    bar = ", ".join(f"{name.replace('_', ' ')} {bound:.4g}" for name, bound in runs[0]["bar"].items())
    versions, dates = ({run[key] for run in runs} for key in ("torch", "date"))
    features = ", ".join(f"`{name}`" for name in runs[0]["with"])
    return [
        features,
        f"`{runs[0]['metric']}`",
        seeds,
        reached,
        bar,
        *map(", ".join, map(sorted, (versions, dates))),
    ]


def in_the_table(catalog: Catalog) -> list[dict[str, Any]]:
    """The answers of every project that docs/support.md is about."""
    rows = [answers_of(row) for space in (on_processors(), on_tpus()) for row in space.array]
    return [answers.to_dict() for answers in (*core_combinations(catalog), *rows)]


def merged(page: str, found: list[dict[str, Any]], same: tuple[str, ...]) -> list[dict[str, Any]]:
    """The results of a page, those that were found in the place of those of the same runs."""
    file = DOCS / f"{page}.json"
    before = json.loads(file.read_text()) if file.exists() else []
    results = {json.dumps([result.get(key, "") for key in same]): result for result in before + found}
    return [results[key] for key in sorted(results)]


def main() -> None:
    found = [json.loads(file.read_text()) for file in sorted(Path(sys.argv[1]).glob("*.json"))]
    catalog = load_catalog()
    trained = merged("support", [result for result in found if "answers" in result], ("answers", "ran"))
    known = in_the_table(catalog)
    trained = [result for result in trained if result["answers"] in known]
    write("support", trained, page(trained, catalog))
    same = ("task", "with", "seed", "metric")
    reached = merged("tasks", [result for result in found if "reached" in result], same)
    write("tasks", reached, tasks_page(reached, catalog))


def write(name: str, results: list[dict[str, Any]], text: str) -> None:
    (DOCS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (DOCS / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
