"""golden/TASK/base is a whole project; golden/TASK/CHOICE.diff is what one choice changes in it.

`pytest tests/test_golden.py --accept` rewrites them; the change is then for the reviewer to read.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import black
import pytest

from scaffold.answers import Answers
from scaffold.axes import BY_KEY
from scaffold.catalog import Catalog, load_catalog
from scaffold.compare import changed_lines, difference
from scaffold.plan import make_plan
from scaffold.render import Renderer, Tree
from scaffold.rules import complete
from tests.matrix import oracle

GOLDEN = Path(__file__).parent.parent / "golden"
CATALOG = load_catalog()

# The most lines that a choice may change in train.py, added and removed together.
BUDGETS = {
    "hardware=gpu": 20,
    "hardware=tpu": 60,
    "precision=tf32": 4,
    "precision=bf16": 8,
    "precision=fp16": 32,
    "distributed=ddp": 60,
    "distributed=fsdp": 60,
    "distributed=deepspeed": 90,
    "distributed=spmd": 60,
    "with=grad-accum": 22,
    "with=grad-clip": 4,
    "with=ema": 18,
    "with=early-stopping": 14,
    "with=compile": 4,
    "with=deterministic": 4,
    "with=async-checkpoint": 4,
    "with=activation-checkpointing": 4,
    "with=hybrid-shard": 4,
    "with=offload": 6,
    "with=throughput": 12,
    "with=log-best": 2,
} | {f"logger={name}": 4 for name in CATALOG.loggers}

# What a choice needs beside it, where the base alone does not allow it.
COMPANIONS = {
    "precision=tf32": {"hardware": "gpu"},
    "distributed=spmd": {"hardware": "tpu"},
    "with=async-checkpoint": {"distributed": "fsdp"},
    "with=hybrid-shard": {"distributed": "fsdp"},
    "with=offload": {"distributed": "deepspeed"},
    "with=log-best": {"logger": ("wandb",)},
}


def companions(task: str, name: str) -> dict[str, Any]:
    key, value = name.split("=")
    needed = CATALOG.tasks[task].sources[value].only_with if key == "data" else ()
    return COMPANIONS.get(name, {}) | ({"with": needed} if needed else {})


def base(task: str) -> Answers:
    return complete({"task": task, "name": task}, CATALOG)


def single_choices(task: str, catalog: Catalog) -> Iterator[tuple[str, Answers, Answers]]:
    """Each offered choice that the base does not make: its name, the project before and after."""
    plain = base(task)
    for key in ("data", "hardware", "precision", "distributed", "logger", "with"):
        for value in catalog.values(key, task):
            name = f"{key}={value}"
            before = plain.changed(companions(task, name))
            many = BY_KEY[key].many
            after = before.changed({key: (*before.chosen(key), value) if many else value})
            if value not in before.chosen(key) and oracle(after):
                yield name, before, after


CASES = [(task, *case) for task in CATALOG.tasks for case in single_choices(task, CATALOG)]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(CATALOG)


def tree(renderer: Renderer, answers: Answers) -> Tree:
    return renderer.tree(make_plan(answers, CATALOG))


def on_disk(folder: Path) -> Tree:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("task", CATALOG.tasks)
def test_base(task: str, renderer: Renderer, accept: bool) -> None:
    folder = GOLDEN / task / "base"
    project = tree(renderer, base(task))
    if accept:
        shutil.rmtree(folder, ignore_errors=True)
        for path, text in project.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    assert on_disk(folder) == project


@pytest.mark.parametrize(("task", "name", "before", "after"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_choice(
    task: str, name: str, before: Answers, after: Answers, renderer: Renderer, accept: bool
) -> None:
    change = difference(tree(renderer, before), tree(renderer, after), context=0)
    file = GOLDEN / task / f"{name}.diff"
    if accept:
        file.write_text(change, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == change
    if name in BUDGETS:
        train = difference(
            {"train.py": tree(renderer, before)["train.py"]}, {"train.py": tree(renderer, after)["train.py"]}
        )
        # an average by default, or a second network, is wrapped, or sharded, too
        more = 2 * (len(make_plan(before, CATALOG).facts["networks"]) - 1 + ("ema" in before.features))
        assert changed_lines(train) <= BUDGETS[name] + more


@pytest.mark.parametrize("name", CATALOG.loggers)
def test_one_more_logger_is_one_function(name: str, renderer: Renderer) -> None:
    """Beside another one it changes no line but that with their names, and nothing in the loop."""
    other = next(known for known in CATALOG.loggers if known != name)
    before = tree(renderer, base("segmentation").changed({"logger": (other,)}))
    after = tree(renderer, base("segmentation").changed({"logger": (other, name)}))
    assert before["train.py"] == after["train.py"]
    change = difference({"loggers.py": before["loggers.py"]}, {"loggers.py": after["loggers.py"]}, context=0)
    gone = [line for line in change.splitlines() if line.startswith("-") and not line.startswith("---")]
    assert gone == [f"-        functions = [log_to_{other.replace('-', '_')}]"]


def moved_by_the_name(project: Tree, name: str) -> set[str]:
    """Files of Python with the project's name in them that black would change, or with a line too long."""
    files = {path: text for path, text in project.items() if path.endswith(".py") and name in text}
    assert files
    mode = black.Mode(line_length=110)
    return {
        path
        for path, text in files.items()
        if black.format_str(text, mode=mode) != text or max(map(len, text.splitlines())) > 110
    }


@pytest.mark.parametrize("name", ["q_q", "a" + 63 * "z"], ids=["short", "long"])
@pytest.mark.parametrize("task", CATALOG.tasks)
def test_no_name_moves_a_line_break(task: str, name: str, renderer: Renderer) -> None:
    assert moved_by_the_name(tree(renderer, base(task).changed({"name": name})), name) == set()


@pytest.mark.parametrize("name", ["q_q", "a" + 63 * "z"], ids=["short", "long"])
def test_no_name_moves_a_line_break_of_a_logger(name: str, renderer: Renderer) -> None:
    answers = base("segmentation").changed({"name": name, "logger": tuple(CATALOG.loggers)})
    assert moved_by_the_name(tree(renderer, answers), name) == set()


def test_a_moved_line_break_is_noticed() -> None:
    text = 'parser.add_argument("--run", type=Path, default=Path("runs", "NAME"), help="the output folder")\n'
    assert moved_by_the_name({"a.py": text.replace("NAME", "demo")}, "demo") == set()
    assert moved_by_the_name({"a.py": text.replace("NAME", 64 * "z")}, 64 * "z") == {"a.py"}


def test_no_golden_is_left_over() -> None:
    known = {GOLDEN / task / f"{name}.diff" for task, name, *_ in CASES}
    assert set(GOLDEN.glob("*/*.diff")) == known
    assert {folder.name for folder in GOLDEN.iterdir()} == set(CATALOG.tasks)


def test_a_changed_template_is_noticed(renderer: Renderer) -> None:
    project = tree(renderer, base("tabular"))
    project["train.py"] = project["train.py"].replace("optimizer.step()", "optimizer.step() ")
    assert on_disk(GOLDEN / "tabular" / "base") != project
