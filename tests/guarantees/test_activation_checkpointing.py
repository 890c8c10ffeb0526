"""Activations that are computed again: less memory, and otherwise the same run to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Make
from tests.guarantees.harness import NOTES, RANKS, noted
from tests.projects import catalog as known
from tests.projects import edit, is_offered, render, same_run, small_options, train_ranks

RECOMPUTED = ("activation-checkpointing",)
AGAIN = "block.forward = partial(checkpoint, block.forward, use_reentrant=False)"
# the blocks of the translator draw dropout, and those of its decoder are given caches
TRANSLATION = [*small_options("translation"), "--dropout", 0.1]
WITH_BLOCKS = [task for task in known().tasks if is_offered(task=task, features=RECOMPUTED)]
EVERYWHERE = [
    pytest.param("translation", "none"),
    *(pytest.param("translation", name, marks=pytest.mark.heavy) for name in ("ddp", "fsdp")),
    *(pytest.param(task, "none", marks=pytest.mark.heavy) for task in WITH_BLOCKS if task != "translation"),
]


def trained(project: Path, place: Path, task: str, distributed: str) -> Path:
    """Three steps, an average of which is evaluated."""
    small = TRANSLATION if task == "translation" else small_options(task)
    options = ["--batch-size", 4, "--max-steps", 3, "--output-dir", place, *small]
    train_ranks(project, *options, ranks=RANKS[distributed])
    return place


@pytest.mark.parametrize(("task", "distributed"), EVERYWHERE)
def test_the_same_bits_under_the_same_names(made: Make, tmp_path: Path, task: str, distributed: str) -> None:
    chosen = {"task": task, "distributed": distributed}
    kept, again = (
        trained(
            made(**chosen, features=("ema", "grad-clip", *more)), tmp_path / str(len(more)), task, distributed
        )
        for more in ((), RECOMPUTED)
    )
    assert same_run(kept, again)


def test_control_other_draws(made: Make, tmp_path: Path) -> None:
    """Without the state of the generator the second pass drops other channels than the first."""
    project = render(tmp_path / "demo", task="translation", features=("ema", "grad-clip", *RECOMPUTED))
    edit(project / "train.py", "use_reentrant=False", "use_reentrant=False, preserve_rng_state=False")
    plain = made(task="translation", features=("ema", "grad-clip"))
    runs = [trained(each, tmp_path / each.parent.name, "translation", "none") for each in (plain, project)]
    assert not same_run(*runs)


# the bytes that the first step keeps between its forward and its backward pass, parameters left out
NOTE_KEPT = NOTES + """
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.optimizer import register_optimizer_step_pre_hook

kept = {}

def pack(tensor):
    if not tensor.is_leaf:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return tensor

hooks = saved_tensors_hooks(pack, lambda tensor: tensor)
hooks.__enter__()
register_optimizer_step_pre_hook(lambda *_: note(sum(kept.values())))
"""


def kept_bytes(project: Path, folder: Path, depth: int) -> int:
    options = ["--batch-size", 2, "--max-steps", 1, "--context", 64, "--heads", 1, "--depth", depth]
    return int(noted(project, folder, NOTE_KEPT, *options)[0])


def test_memory_falls(made: Make, tmp_path: Path) -> None:
    """What a block more costs is its input alone: 2 x 64 x 64 numbers, where it was its activations."""
    plain, again = (made(task="language-modeling", features=more) for more in ((), RECOMPUTED))
    grows = [
        kept_bytes(project, tmp_path / f"{number}-6", 6) - kept_bytes(project, tmp_path / f"{number}-2", 2)
        for number, project in enumerate((plain, again))
    ]
    assert grows[1] == 4 * (2 * 64 * 64 * 4)
    assert grows[0] > 10 * grows[1]


def test_control_nothing_is_computed_again(made: Make, tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="language-modeling", features=RECOMPUTED)
    edit(project / "train.py", AGAIN, "pass")
    plain = made(task="language-modeling")
    assert kept_bytes(project, tmp_path / "one", 4) == kept_bytes(plain, tmp_path / "other", 4)


@pytest.mark.heavy
@pytest.mark.parametrize("distributed", RANKS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_beside_other_choices(made: Make, tmp_path: Path, distributed: str, precision: str) -> None:
    """With accumulation and 16-bit floats."""
    features = ("grad-accum", "ema")
    chosen = {"task": "language-modeling", "distributed": distributed, "precision": precision}
    runs = []
    for more in ((), RECOMPUTED):
        project = made(**chosen, features=(*features, *more))
        runs.append(trained(project, tmp_path / str(len(more)), "language-modeling", distributed))
    assert same_run(*runs)
