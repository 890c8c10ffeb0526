"""Every target of an optimizer step has the same weight, however the step is split up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Make
from tests.guarantees.harness import RANKS, everywhere, mostly_alone
from tests.projects import all_finite, checkpoints, edit, load, render, small_options, train_ranks, values

TASK: dict[str, Any] = {"task": "language-modeling", "data": "files"}
EXAMPLES = 16  # of an optimizer step
# Texts of other lengths than a piece, so that no two batches have as many targets.
RAGGED = [b"abc" * (1 + number * number % 37) for number in range(200)]
NO_TARGETS = """
import data
items = data.Texts.__getitem__

def only_ignored(self, draws):
    tokens, targets = items(self, draws)
    return tokens, targets.fill_(data.IGNORED)

data.Texts.__getitem__ = only_ignored
"""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(RAGGED):
        (folder / f"{number:03}.txt").write_bytes(text)
    return folder


def given(distributed: str, accum: int) -> dict[str, Any]:
    return TASK | {"distributed": distributed, "features": ("grad-accum",) if accum > 1 else ()}


def trained(project: Path, texts: Path, place: Path, ranks: int, accum: int, first: str = "") -> Path:
    options = ["--data", texts, *small_options("language-modeling"), "--output-dir", place]
    options += ["--batch-size", EXAMPLES // (accum * (ranks or 1)), "--max-steps", 4, "--warmup-steps", 0]
    options += ["--grad-accum", accum] if accum > 1 else []
    train_ranks(project, *options, ranks=ranks, first=first)
    return place


def gap(one: Path, other: Path) -> float:
    """The largest relative distance of what two runs logged, and of the parameters they ended with."""
    losses = [torch.tensor(list(values(place, "train/loss").values())) for place in (one, other)]
    states = [load(checkpoints(place)[-1])["model"] for place in (one, other)]
    pairs = [losses, *([state[name] for state in states] for name in states[0])]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.parametrize("accum", [1, 2, 4])
@everywhere
def test_07_targets_weigh_alike(
    made: Make, texts: Path, tmp_path: Path, distributed: str, accum: int
) -> None:
    whole = trained(made(**given("none", 1)), texts, tmp_path / "whole", 0, 1)
    parts = trained(made(**given(distributed, accum)), texts, tmp_path / "parts", RANKS[distributed], accum)
    assert gap(parts, whole) < 1e-5


@pytest.mark.parametrize(("distributed", "accum"), [("none", 2), ("ddp", 1), ("fsdp", 2)])
def test_07_control_mean_of_means(
    made: Make, texts: Path, tmp_path: Path, distributed: str, accum: int
) -> None:
    whole = trained(made(**given("none", 1)), texts, tmp_path / "whole", 0, 1)
    broken = render(tmp_path / "demo", **given(distributed, accum))
    edit(broken / "train.py", " / num_targets\n", f" / count_targets(batch) / {accum}\n")
    parts = trained(broken, texts, tmp_path / "parts", RANKS[distributed], accum)
    assert gap(parts, whole) > 1e-4


@pytest.mark.parametrize("accum", [1, 2])
@everywhere
def test_07_no_targets_at_all(made: Make, texts: Path, tmp_path: Path, distributed: str, accum: int) -> None:
    project = made(**given(distributed, accum))
    place = trained(project, texts, tmp_path / "out", RANKS[distributed], accum, first=NO_TARGETS)
    assert list(values(place, "train/loss").values()) == [0, 0, 0, 0]
    assert all_finite(checkpoints(place)[-1])


@mostly_alone
def test_07_control_no_targets_at_all(tmp_path: Path, texts: Path, distributed: str) -> None:
    broken = render(tmp_path / "demo", **given(distributed, 1))
    guard = (".clamp(min=1)\n", "\n") if distributed == "none" else (" or 1  #", "  #")
    edit(broken / "train.py", *guard)
    with pytest.raises(AssertionError, match=r"train/loss is nan|division by zero"):
        trained(broken, texts, tmp_path / "out", RANKS[distributed], 1, first=NO_TARGETS)
