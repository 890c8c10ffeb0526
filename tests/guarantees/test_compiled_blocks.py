"""Blocks are compiled one by one before they are sharded: one graph for all of them, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Make
from tests.guarantees.harness import NOTES, noted
from tests.projects import (
    catalog,
    checkpoints,
    edit,
    few_examples,
    load,
    render,
    small_options,
    train_ranks,
    values,
)

pytestmark = pytest.mark.heavy
COMPILED = {"task": "language-modeling", "distributed": "fsdp"}
BLOCK = "        block.forward = torch.compile(block.forward)  # what gathers its parameters stays outside\n"

# what is made of graphs does not matter
EAGER = """
import torch

compile = torch.compile
torch.compile = lambda function, **options: compile(function, backend="eager")
"""
# how many there are after each step
NOTE_GRAPHS = NOTES + few_examples(40) + EAGER + """
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch._dynamo.utils import counters

register_optimizer_step_post_hook(lambda *_: note(counters["stats"]["unique_graphs"]))
"""


def graphs(project: Path, folder: Path, depth: int) -> list[int]:
    """After each step; 40 examples are five steps and an evaluation, whose batches have other sizes."""
    options = [*small_options("language-modeling"), "--depth", depth, "--batch-size", 4, "--max-steps", 12]
    return [int(value) for value in noted(project, folder, NOTE_GRAPHS, *options, ranks=2)]


@pytest.mark.parametrize("more", [(), ("activation-checkpointing",), ("ema",)], ids=["plain", "again", "ema"])
def test_23_as_many_graphs_for_any_depth(made: Make, tmp_path: Path, more: tuple[str, ...]) -> None:
    project = made(**COMPILED, features=("compile", *more))
    few, many = (graphs(project, tmp_path / str(depth), depth) for depth in (1, 5))
    assert few == many
    assert few[0] == few[4] == 1 and few[-1] == 2, few  # then for evaluations, of any size


def test_23_control_not_compiled(tmp_path: Path) -> None:
    """Computed again outside what is compiled by `__call__`, a block is not compiled at all."""
    project = render(tmp_path / "demo", **COMPILED, features=("compile", "activation-checkpointing"))
    edit(project / "train.py", BLOCK, "        block.compile()\n")
    assert graphs(project, tmp_path / "out", 2)[-1] == 0


def test_compiled_is_the_same_run(made: Make, tmp_path: Path) -> None:
    """With the compiler that users have."""
    options = [*small_options("language-modeling"), "--batch-size", 4, "--max-steps", 3]
    for name, features in (("eager", ()), ("compiled", ("compile", "activation-checkpointing"))):
        project = made(**COMPILED, features=features)
        train_ranks(project, *options, "--output-dir", tmp_path / name, timeout=300)
    eager, compiled = (tmp_path / name for name in ("eager", "compiled"))
    losses = [list(values(place, "train/loss").values()) for place in (eager, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    names = [list(load(checkpoints(place)[-1])["model"]) for place in (eager, compiled)]
    assert names[0] == names[1]


# the compiler's limit ends the run, instead of leaving the rest of the blocks as they are
WITHIN_LIMIT = few_examples(42) + EAGER + """
torch.compiler.config.fail_on_recompile_limit_hit = True
"""
WITH_BLOCKS = [name for name, task in catalog().tasks.items() if task.facts.get("blocks")]
LIMIT = "    torch.compiler.config.recompile_limit = 64\n"


def within_limit(project: Path, folder: Path, *more: object) -> bool:
    """At its default size, with evaluations whose last batch is smaller."""
    options = ["--batch-size", 4, "--epochs", 2, "--max-steps", 12, "--output-dir", folder, *more]
    results = train_ranks(project, *options, check=False, timeout=300, first=WITHIN_LIMIT)
    assert all(result.code == 0 or "FailOnRecompileLimitHit" in result.err for result in results)
    return all(result.code == 0 for result in results)


@pytest.mark.parametrize("task", WITH_BLOCKS)
def test_every_block_is_compiled(made: Make, tmp_path: Path, task: str) -> None:
    assert within_limit(made(task=task, distributed="fsdp", features=("compile",)), tmp_path)


@pytest.mark.parametrize(
    "task", [name for name in WITH_BLOCKS if catalog().tasks[name].facts.get("blocks_differ")]
)
def test_control_too_many_shapes(tmp_path: Path, task: str) -> None:
    project = render(tmp_path / "demo", task=task, distributed="fsdp", features=("compile",))
    edit(project / "train.py", LIMIT, "")
    more = ("--levels", 3) if task == "diffusion" else ()
    assert not within_limit(project, tmp_path / "out", *more)
