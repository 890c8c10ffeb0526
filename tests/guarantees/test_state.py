"""What a checkpoint holds: one set of names, plain values; and projects without warnings."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests import projects
from tests.guarantees.harness import SHARDED_OPTIONS
from tests.projects import checkpoints, edit, load, render, train_ranks

# 21: one set of names


def test_21_one_set_of_keys(sharded: Path, trained: Path, tmp_path: Path) -> None:
    plain = render(tmp_path / "demo", task="tabular")
    projects.train(plain, "--max-steps", 1)
    expected = load(checkpoints(plain / "runs" / "demo")[-1])["model"].keys()
    assert load(trained / "checkpoints" / "best.pt")["model"].keys() == expected
    assert load(checkpoints(trained)[-1])["model"].keys() == expected


def test_21_another_architecture(sharded: Path, trained: Path, tmp_path: Path) -> None:
    other = render(tmp_path / "demo", task="tabular", distributed="fsdp")
    edit(other / "model.py", "width: int = 64", "width: int = 32")
    before = projects.metrics(trained)
    options = [*SHARDED_OPTIONS, "--max-steps", 22, "--resume", "--output-dir", trained]
    for result in train_ranks(other, *options, check=False):
        assert result.code == 1 and "does not fit" in result.message and "Traceback" not in result.err
    assert projects.metrics(trained) == before


def test_21_a_layer_less(trained: Path, tmp_path: Path) -> None:
    """Parameters that the model no longer has are not passed over."""
    other = render(tmp_path / "demo", task="tabular", distributed="fsdp")
    edit(other / "model.py", "            nn.Linear(width, width),\n            nn.GELU(),\n", "")
    edit(other / "model.py", "self.deep[-1]", "self.deep[2]")
    options = [*SHARDED_OPTIONS, "--max-steps", 22, "--resume", "--output-dir", trained]
    for result in train_ranks(other, *options, check=False):
        assert result.code == 1 and "does not fit" in result.message


# 22: plain values


def test_22_nothing_is_unpickled(sharded: Path, trained: Path, tmp_path: Path) -> None:
    """torch.load is told to take nothing but tensors and plain values, whoever calls it."""
    shutil.copytree(trained, tmp_path / "out")
    options = [*SHARDED_OPTIONS, "--max-steps", 22, "--resume", "--output-dir", tmp_path / "out"]
    train_ranks(sharded, *options, env={"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"})
