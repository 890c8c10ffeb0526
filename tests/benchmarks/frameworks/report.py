"""docs/guarantees.md from docs/guarantees.json, the table in rows.py and the projects rendered now.

python -m tests.benchmarks.frameworks.report
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.benchmarks.frameworks.rows import PROPERTIES, VARIANTS, Property, Where
from tests.projects import choose, tree_of

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
FRAMEWORKS = ("Lightning", "Ignite", "Accelerate")
NOT_MEASURED = "not measured"

# Where a framework has no mechanism of its own, failing is not its failure.
LEFT_TO_THE_USER = {(3, "Ignite"), (3, "Accelerate"), (8, "Ignite"), (8, "Accelerate"), (14, "Accelerate")}

# What the words in the table stand for, where they are not literally an option's name.
OPTIONS = {
    "DataLoader": "a plain `DataLoader` for evaluation (every rank evaluates everything)",
    "own evaluation": "`use_distributed_sampler=False` (every rank evaluates everything)",
    "DistributedSampler": "`DistributedSampler` (on one process too)",
    "drop_last": "`drop_last=True`",
    "whole windows": "`limit_train_batches` at a multiple of the windows' length",
    "num_items_in_batch": "the loop of its guide on batches of different sizes",
    "StatefulDataLoader": "torchdata's `StatefulDataLoader`",
    "EarlyStopping(check_finite)": "`EarlyStopping(check_finite=True)`",
    "torchmetrics": "torchmetrics objects",
    "terminate": "a signal handler of one's own that calls `trainer.terminate()`",
    "triggers": "handlers of one's own around `set_trigger` and `check_trigger`",
    "sync_dist": "`sync_dist=True`",
    "detect_anomaly": "`detect_anomaly=True`",
}

INTRODUCTION = """# What a generated project guarantees

Twenty-five properties: what each means for a user, the lines that keep it, and who else has it. The figures
are measured by `tests/benchmarks/frameworks/`: the same small network with dropout on the same 455 rows
(scikit-learn's breast cancer set), on a processor, with gloo and two ranks, in each framework's documented
way. Where that falls short and an option should help, the option is tried too and named. Rendered projects go
through the same measurements.

"Partly" means that at least half of a measurement's cases held; "left to the user" that it did not hold and
the framework has no mechanism of its own for it; "yes (tests)" that this repository's tests show it; "not
measured" means just that and nothing more. Frameworks serve many more uses than a generated project does, and
much of what they leave open is open on purpose.
"""

AGAIN = """## Measuring again

```
python -m tests.benchmarks.frameworks.run        # makes an environment of its own; about an hour
python -m tests.benchmarks.frameworks.report     # rewrites this page
```

`--python` names an interpreter that has what `tests/benchmarks/frameworks/requirements.txt` lists; `--only`
and `--of` choose properties and contestants. Processes are forked from one that has imported the framework,
with the variables that `torchrun` would set; for SIGTERM to `torchrun` it is really used. The model notes
the rows it is given and the optimizer the steps it makes, so nothing is taken from a framework's own
account. The fp16 scaler runs on the processor; Accelerate, which makes none there, is handed one. A test of
every change compares this page with its sources.
"""


@cache
def rendered(variant: str) -> dict[str, str]:
    return tree_of(choose(**VARIANTS[variant]))


def lines(where: Where) -> str:
    """The snippet's place, as a link; an error where it is gone."""
    text = rendered(where.variant)[where.file]
    found = text.count(where.snippet)
    if found != 1:
        raise LookupError(f"{where.variant} {where.file} holds {found} times, not once:\n{where.snippet}")
    first = text[: text.index(where.snippet)].count("\n") + 1
    last = first + where.snippet.count("\n")
    span = f"{first}" if first == last else f"{first}-{last}"
    if where.variant.endswith("/base"):
        anchor = f"#L{first}" if first == last else f"#L{first}-L{last}"
        return f"[{where.file}:{span}](../golden/{where.variant}/{where.file}{anchor})"
    return f"[{where.file}:{span}](../golden/{where.variant}.diff) with `{where.variant.partition('/')[2]}`"


def holds(tried: dict[str, Any]) -> bool:
    return bool(tried["held"] == tried["cases"])


def verdict(number: int, name: str, found: dict[str, Any] | None) -> str:
    if found is None:
        return NOT_MEASURED
    tried = found["tried"]
    if holds(tried[-1]):
        return f"yes, with {options(tried[-1]['with'])}" if tried[-1]["with"] else "yes"
    if (number, name) in LEFT_TO_THE_USER:
        return "left to the user"
    best = max(one["held"] / one["cases"] for one in tried)
    return "partly" if best >= 0.5 else "no"


def options(words: str) -> str:
    return " + ".join(OPTIONS.get(word, f"`{word}`") for word in words.split(","))


def evidence(found: dict[str, Any]) -> str:
    parts = []
    for one in found["tried"]:
        way = f"With {options(one['with'])}: " if one["with"] else ""
        parts.append(way + (one["seen"] if way else one["seen"][0].upper() + one["seen"][1:]) + ".")
    return " ".join(parts)


def page(results: dict[str, Any]) -> str:
    return "\n".join(page_lines(results))


def page_lines(results: dict[str, Any]) -> Iterator[str]:
    measured = results["measured"]
    dates = sorted({found["date"] for row in measured.values() for found in row.values()})
    yield INTRODUCTION
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    yield f"Measured {' to '.join(sorted({dates[0], dates[-1]}))} with {versions}."
    yield ""
    yield f"| # | property | scaffold | {' | '.join(FRAMEWORKS)} |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for prop in PROPERTIES:
        row = measured.get(str(prop.number), {})
        cells = [verdict(prop.number, name, row.get(name)) for name in FRAMEWORKS]
        link = f"[{prop.title}](#{anchor(prop)})"
        yield f"| {prop.number} | {link} | {ours(prop, row)} | {' | '.join(cells)} |"
    yield ""
    yield AGAIN
    for prop in PROPERTIES:
        yield from section(prop, measured.get(str(prop.number), {}))


def ours(prop: Property, row: dict[str, Any]) -> str:
    if "scaffold" in row:
        return verdict(prop.number, "scaffold", row["scaffold"])
    return prop.state


def anchor(prop: Property) -> str:
    text = f"{prop.number}. {prop.title}".lower()
    return "".join(c for c in text if c.isalnum() or c in " -").replace(" ", "-")


def section(prop: Property, row: dict[str, Any]) -> Iterator[str]:
    yield f"## {prop.number}. {prop.title}"
    yield ""
    yield prop.meaning
    yield ""
    yield f"How: {prop.how}"
    if prop.where:
        yield f"Where: {', '.join(lines(where) for where in prop.where)}."
    yield ""
    if not row:
        yield "Who else: not measured."
        yield ""
        return
    yield "| | verdict | measured |"
    yield "| --- | --- | --- |"
    for name in ("scaffold", *FRAMEWORKS):
        if name in row:
            yield f"| {name} | {verdict(prop.number, name, row[name])} | {evidence(row[name])} |"
    yield ""


def main() -> None:
    results = json.loads((DOCS / "guarantees.json").read_text(encoding="utf-8"))
    (DOCS / "guarantees.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
