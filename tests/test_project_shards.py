"""Sharded checkpoints: any number of processes can go on from them, and one file holds whole parameters."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests import projects
from tests.projects import checkpoints, drive, edit, load, render, same_bits, train_ranks, values

OPTIONS = ["--epochs", 3, "--batch-size", 16, "--log-every", 4, "--checkpoint-every", 7]

RESHARD = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from data import build_datasets
from model import TableNet
from train import shard

dist.init_process_group()
train_set, _ = build_datasets()
model = TableNet(train_set.numeric.shape[1], train_set.cardinalities, train_set.num_outputs)
shard(model, init_device_mesh("cpu", (dist.get_world_size(),)))
parts = {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), fused=True)}
source, target = map(Path, sys.argv[1:])
counters = load_checkpoint(newest_checkpoint(source), parts)
target.mkdir(exist_ok=True)
save_checkpoint(target, parts, counters, best=True)
dist.destroy_process_group()
"""
PLAIN = """
import sys
import torch
from data import build_datasets
from model import TableNet

train_set, _ = build_datasets()
model = TableNet(train_set.numeric.shape[1], train_set.cardinalities, train_set.num_outputs)
model.load_state_dict(torch.load(sys.argv[1], weights_only=True)["model"])
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("made") / "demo", task="tabular", distributed="fsdp")


@pytest.fixture(scope="module")
def trained(project: Path) -> Path:
    """What two processes wrote in twenty steps."""
    train_ranks(project, *OPTIONS, "--max-steps", 20, "--output-dir", project / "two")
    return project / "two"


def resharded(project: Path, source: Path, target: Path, processes: int) -> Path:
    script = project / "reshard.py"
    script.write_text(RESHARD)
    projects.run(project, projects.torchrun(script, source, target, processes=processes))
    return target


def test_two_to_one_to_two(project: Path, trained: Path, tmp_path: Path) -> None:
    """To the last bit, parameters and the optimizer's state."""
    one = resharded(project, trained / "checkpoints", tmp_path / "one", 1)
    two = resharded(project, one, tmp_path / "two", 2)
    states = [load(checkpoints(trained)[-1]), *(load(max(place.glob("step-*"))) for place in (one, two))]
    assert any("exp_avg" in name for name in projects.leaves(states[0]["optimizer"]))
    assert same_bits(states[0], states[1])
    assert same_bits(states[0], states[2])


def test_goes_on_with_another_number_of_processes(project: Path, trained: Path, tmp_path: Path) -> None:
    """The same examples a step: the same run, but for the order of sums."""
    shutil.copytree(trained, tmp_path / "one")
    more = ["--epochs", 3, "--log-every", 4, "--max-steps", 40, "--resume", "--output-dir"]
    [result] = train_ranks(project, *more, tmp_path / "one", "--batch-size", 32, ranks=1)
    assert result.err == ""
    shutil.copytree(trained, tmp_path / "two")
    train_ranks(project, *more, tmp_path / "two", "--batch-size", 16)
    losses = [values(tmp_path / name, "train/loss") for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_best_is_whole(project: Path, trained: Path) -> None:
    """It loads into a plain module, strictly."""
    drive(project, PLAIN, trained / "checkpoints" / "best.pt")


def test_one_set_of_keys(project: Path, trained: Path, tmp_path: Path) -> None:
    plain = render(tmp_path / "demo", task="tabular")
    projects.train(plain, "--max-steps", 1)
    expected = load(checkpoints(plain / "runs" / "demo")[-1])["model"].keys()
    assert load(trained / "checkpoints" / "best.pt")["model"].keys() == expected
    assert load(checkpoints(trained)[-1])["model"].keys() == expected


def test_nothing_is_unpickled(project: Path, trained: Path, tmp_path: Path) -> None:
    """torch.load is told to take nothing but tensors and plain values, whoever calls it."""
    shutil.copytree(trained, tmp_path / "out")
    options = [*OPTIONS, "--max-steps", 22, "--resume", "--output-dir", tmp_path / "out"]
    train_ranks(project, *options, env={"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"})


def test_another_architecture(project: Path, trained: Path, tmp_path: Path) -> None:
    other = render(tmp_path / "demo", task="tabular", distributed="fsdp")
    edit(other / "model.py", "width: int = 64", "width: int = 32")
    before = projects.metrics(trained)
    options = [*OPTIONS, "--max-steps", 22, "--resume", "--output-dir", trained]
    for result in train_ranks(other, *options, check=False):
        assert result.code == 1 and "does not fit" in result.message and "Traceback" not in result.err
    assert projects.metrics(trained) == before


def test_a_layer_less(trained: Path, tmp_path: Path) -> None:
    """Parameters that the model no longer has are not passed over."""
    other = render(tmp_path / "demo", task="tabular", distributed="fsdp")
    edit(other / "model.py", "            nn.Linear(width, width),\n            nn.GELU(),\n", "")
    edit(other / "model.py", "self.deep[-1]", "self.deep[2]")
    options = [*OPTIONS, "--max-steps", 22, "--resume", "--output-dir", trained]
    for result in train_ranks(other, *options, check=False):
        assert result.code == 1 and "does not fit" in result.message


@pytest.mark.parametrize("text", ["null", "{}", '{"counters.json": "0"}', '{"a'])
@pytest.mark.parametrize("name", ["digests.json", "counters.json"])
def test_damaged_papers(project: Path, trained: Path, tmp_path: Path, name: str, text: str) -> None:
    """What lies beside the shards is guarded as they are."""
    shutil.copytree(trained, tmp_path / "out")
    (checkpoints(tmp_path / "out")[-1] / name).write_text(text)
    (tmp_path / "out" / "checkpoints" / "checkpoint.partial").touch()  # what another kind of run may leave
    options = [*OPTIONS, "--max-steps", 20, "--resume", "--output-dir", tmp_path / "out"]
    assert "is damaged" in train_ranks(project, *options)[0].err
    assert same_bits(*(load(checkpoints(place)[-1]) for place in (trained, tmp_path / "out")))


def test_seeded_apart(project: Path, trained: Path, tmp_path: Path) -> None:
    """All processes start from the first one's parameters, whatever else they drew."""
    other = render(tmp_path / "demo", task="tabular", distributed="fsdp")
    edit(other / "train.py", "torch.manual_seed(args.seed)\n", "torch.manual_seed(args.seed + rank)\n")
    train_ranks(other, *OPTIONS, "--max-steps", 20, "--output-dir", tmp_path / "out")
    assert same_bits(*(load(checkpoints(place)[-1]) for place in (trained, tmp_path / "out")))


def test_control_seeded_apart(trained: Path, tmp_path: Path) -> None:
    other = render(tmp_path / "demo", task="tabular", distributed="fsdp")
    edit(other / "train.py", "torch.manual_seed(args.seed)\n", "torch.manual_seed(args.seed + rank)\n")
    edit(other / "train.py", "        dist.broadcast(value, src=0)", "        pass")
    train_ranks(other, *OPTIONS, "--max-steps", 20, "--output-dir", tmp_path / "out")
    assert not same_bits(*(load(checkpoints(place)[-1]) for place in (trained, tmp_path / "out")))


def test_control_uneven_batches(tmp_path: Path) -> None:
    """A process with fewer batches to evaluate than the other leaves that one waiting for its shards."""
    other = render(tmp_path / "demo", distributed="fsdp")
    old = "np.array_split(np.arange(rank, num_examples, world_size), num_batches)"
    edit(other / "data.py", old, old.replace("num_batches", "num_batches - rank"))
    with pytest.raises(TimeoutError):
        train_ranks(other, "--max-steps", 16, timeout=30)


def test_control_lost_shard(project: Path, trained: Path, tmp_path: Path) -> None:
    """The bits are compared: one that differs is seen."""
    state = load(checkpoints(trained)[-1])
    other = {"model": {name: value.clone() for name, value in state["model"].items()}}
    assert same_bits({"model": state["model"]}, other)
    torch.flatten(next(iter(other["model"].values())))[0] += 1
    assert not same_bits({"model": state["model"]}, other)
