"""The support table: what was really trained, from the results that the heavy tests leave behind.

SCAFFOLD_RESULTS=FOLDER pytest -m heavy tests/test_pairwise.py tests/test_support.py
python -m tests.support FOLDER      # rewrites docs/support.json and docs/support.md
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scaffold.answers import Answers
from scaffold.axes import BY_KEY
from scaffold.catalog import Catalog, load_catalog
from tests.matrix import oracle

DOCS = Path(__file__).parent.parent / "docs"
CORE = ("task", "hardware", "precision", "distributed")


def leave(name: str, answers: dict[str, Any], processes: int, steps: int, resumed_at: int) -> None:
    """Record a run that passed, where SCAFFOLD_RESULTS asks for it."""
    if folder := os.environ.get("SCAFFOLD_RESULTS"):
        result = {
            "answers": answers,
            "ran": "trained-cpu",
            "processes": processes,
            "steps": steps,
            "resumed_at": resumed_at,
            "torch": version("torch"),
            "date": datetime.date.today().isoformat(),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def core_combinations(catalog: Catalog) -> list[Answers]:
    """Every offered task, hardware, precision and distribution, on the sample data."""
    return [
        answers
        for task in catalog.tasks
        for hardware in BY_KEY["hardware"].values or ()
        for precision in BY_KEY["precision"].values or ()
        for distributed in BY_KEY["distributed"].values or ()
        if oracle(answers := Answers("demo", task, "sample", hardware, precision, distributed))
    ]


def page(results: list[dict[str, Any]], catalog: Catalog) -> str:
    return "\n".join(page_lines(results, catalog)) + "\n"


def page_lines(results: list[dict[str, Any]], catalog: Catalog) -> Iterator[str]:
    ran = {tuple(result["answers"][key] for key in CORE) for result in results}
    dates = sorted({result["date"] for result in results})
    torches = sorted({result["torch"] for result in results})
    yield "# Support"
    yield ""
    yield "Made from test results by `python -m tests.support`; nothing here claims more than was run."
    yield "*trained-CPU*: generated, trained for some steps, stopped, resumed, and its record checked, on"
    yield "processors: `gpu` projects with `--device cpu`, DDP and FSDP with two processes over gloo."
    yield "*rendered-only*: generated, parsed, linted. No row was run on a GPU: no such machine was at hand."
    yield ""
    yield f"Run on {', '.join(dates)} with PyTorch {', '.join(torches)}, Python 3.11, Linux."
    yield ""
    yield "| task | hardware | precision | distributed | result |"
    yield "| --- | --- | --- | --- | --- |"
    for answers in core_combinations(catalog):
        key = tuple(answers.to_dict()[axis] for axis in CORE)
        result = "trained-CPU" if key in ran else "rendered-only"
        yield f"| {' | '.join(f'`{value}`' for value in key)} | {result} |"
    yield ""
    yield "## The runs"
    yield ""
    yield "The core above on the sample data, and a covering array in which every two choices that can be"
    yield "made together occur together: data sources, loggers and features too."
    yield ""
    yield "| task | data | hardware | precision | distributed | loggers | features |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    rows = [[show(result["answers"][axis]) for axis in BY_KEY] for result in results]
    yield from (f"| {' | '.join(row)} |" for row in sorted(rows))


def show(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def main() -> None:
    results = [json.loads(file.read_text()) for file in sorted(Path(sys.argv[1]).glob("*.json"))]
    (DOCS / "support.json").write_text(json.dumps(results, indent=1) + "\n")
    (DOCS / "support.md").write_text(page(results, load_catalog()), encoding="utf-8")


if __name__ == "__main__":
    main()
