"""Several processes train as one would, act alike, and always end."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch

from tests import projects
from tests.conftest import Make
from tests.guarantees.harness import SHARDED_OPTIONS
from tests.projects import (
    Result,
    checkpoints,
    drive,
    edit,
    load,
    render,
    same_bits,
    train,
    train_ranks,
    values,
)

# 5: evaluation


@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_05_evaluation_counts_every_example_once(tmp_path: Path, distributed: str) -> None:
    """Also when there are fewer examples than ranks, or a number that does not divide."""
    found = {}
    for size in (1, 7):
        for ranks in (0, 2):
            project = render(tmp_path / f"{size}-{ranks}", distributed=distributed if ranks else "none")
            old = "Images(images[held_out], labels[held_out])"
            edit(project / "data.py", old, f"Images(images[held_out][:{size}], labels[held_out][:{size}])")
            options = ["--lr", 0, "--epochs", 1, "--batch-size", 120 if ranks else 240]
            train_ranks(project, *options, ranks=ranks)
            found[size, ranks] = [
                values(project / "runs" / "demo", key)[6] for key in ("val/loss", "val/accuracy")
            ]
        assert found[size, 0] == pytest.approx(found[size, 2], rel=1e-6)
    assert found[1, 0] != found[7, 0]


# 6: one process and two


@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_06_two_ranks_train_as_one(made: Make, tmp_path: Path, distributed: str) -> None:
    train(made(task="tabular"), "--batch-size", 32, "--max-steps", 30, "--output-dir", tmp_path / "one")
    project = made(task="tabular", distributed=distributed)
    train_ranks(project, "--batch-size", 16, "--max-steps", 30, "--output-dir", tmp_path / "two")
    one, two = (load(checkpoints(tmp_path / name)[-1])["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5)
    losses = [values(tmp_path / name, "train/loss") for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# 9: no hang


@pytest.mark.parametrize("workers", [0, 2])
def test_09_a_failing_run_ends_its_loaders(tmp_path: Path, workers: int) -> None:
    """A traceback keeps the loaders alive until the interpreter ends: they must not keep it waiting."""
    project = render(tmp_path / "demo", task="tabular")
    edit(
        project / "train.py",
        "        loss.backward()\n",
        "        loss.backward()\n        assert step < 3\n",
    )
    begin = time.monotonic()
    result = train(project, "--workers", workers, timeout=60, check=False)
    assert result.code == 1 and "AssertionError" in result.err
    assert time.monotonic() - begin < 30


@pytest.mark.heavy
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_09_ranks_always_end(made: Make, tmp_path: Path, distributed: str) -> None:
    """Gloo's threads can lock up with the interpreter's end: many short runs, none of which may hang."""
    project = made(task="tabular", distributed=distributed)
    for number in range(60):
        train_ranks(project, "--max-steps", 2, "--output-dir", tmp_path / str(number), timeout=30)


def test_09_control_uneven_batches(tmp_path: Path) -> None:
    """A process with fewer batches to evaluate than the other leaves that one waiting for its shards."""
    other = render(tmp_path / "demo", distributed="fsdp")
    old = "np.array_split(np.arange(rank, num_examples, world_size), num_batches)"
    edit(other / "data.py", old, old.replace("num_batches", "num_batches - rank"))
    with pytest.raises(TimeoutError):
        train_ranks(other, "--max-steps", 16, timeout=30)


# 14: NaN on one rank


def nan_on_one_rank(project: Path, output_dir: Path) -> list[Result]:
    """The second rank's loss is not finite from its twelfth batch on."""
    old = "    return F.cross_entropy(model(numeric, categorical), target)\n"
    new = (
        "    compute_loss.calls = getattr(compute_loss, 'calls', 0) + 1\n"
        "    bad = os.environ['RANK'] == '1' and compute_loss.calls == 12\n"
        "    return F.cross_entropy(model(numeric, categorical), target) * (math.nan if bad else 1)\n"
    )
    edit(project / "train.py", old, new)
    options = ["--output-dir", output_dir, "--max-steps", 40, "--checkpoint-every", 5]
    return train_ranks(project, *options, check=False, timeout=60)


@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_14_nan_on_one_rank(tmp_path: Path, distributed: str) -> None:
    results = nan_on_one_rank(
        render(tmp_path / "demo", task="tabular", distributed=distributed), tmp_path / "out"
    )
    for result in results:
        assert result.code == 1
        assert "Traceback" not in result.err
        assert "finite" in result.message or "nan" in result.message
    assert all(projects.all_finite(path) for path in checkpoints(tmp_path / "out"))


# 20: sharded checkpoints


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


def resharded(project: Path, source: Path, target: Path, processes: int) -> Path:
    script = project / "reshard.py"
    script.write_text(RESHARD)
    projects.run(project, projects.torchrun(script, source, target, processes=processes))
    return target


def test_20_two_to_one_to_two(sharded: Path, trained: Path, tmp_path: Path) -> None:
    """To the last bit, parameters and the optimizer's state."""
    one = resharded(sharded, trained / "checkpoints", tmp_path / "one", 1)
    two = resharded(sharded, one, tmp_path / "two", 2)
    states = [load(checkpoints(trained)[-1]), *(load(max(place.glob("step-*"))) for place in (one, two))]
    assert any("exp_avg" in name for name in projects.leaves(states[0]["optimizer"]))
    assert same_bits(states[0], states[1])
    assert same_bits(states[0], states[2])


def test_20_goes_on_with_another_number_of_processes(sharded: Path, trained: Path, tmp_path: Path) -> None:
    """The same examples a step: the same run, but for the order of sums."""
    shutil.copytree(trained, tmp_path / "one")
    more = ["--epochs", 3, "--log-every", 4, "--max-steps", 40, "--resume", "--output-dir"]
    [result] = train_ranks(sharded, *more, tmp_path / "one", "--batch-size", 32, ranks=1)
    assert result.err == ""
    shutil.copytree(trained, tmp_path / "two")
    train_ranks(sharded, *more, tmp_path / "two", "--batch-size", 16)
    losses = [values(tmp_path / name, "train/loss") for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_20_best_is_whole(sharded: Path, trained: Path) -> None:
    """It loads into a plain module, strictly."""
    drive(sharded, PLAIN, trained / "checkpoints" / "best.pt")


def test_20_control_lost_shard(sharded: Path, trained: Path, tmp_path: Path) -> None:
    """The bits are compared: one that differs is seen."""
    state = load(checkpoints(trained)[-1])
    other = {"model": {name: value.clone() for name, value in state["model"].items()}}
    assert same_bits({"model": state["model"]}, other)
    torch.flatten(next(iter(other["model"].values())))[0] += 1
    assert not same_bits({"model": state["model"]}, other)


def test_06_seeded_apart(sharded: Path, trained: Path, tmp_path: Path) -> None:
    """All processes start from the first one's parameters, whatever else they drew."""
    other = render(tmp_path / "demo", task="tabular", distributed="fsdp")
    edit(other / "train.py", "torch.manual_seed(args.seed)\n", "torch.manual_seed(args.seed + rank)\n")
    train_ranks(other, *SHARDED_OPTIONS, "--max-steps", 20, "--output-dir", tmp_path / "out")
    assert same_bits(*(load(checkpoints(place)[-1]) for place in (trained, tmp_path / "out")))


def test_06_control_seeded_apart(trained: Path, tmp_path: Path) -> None:
    other = render(tmp_path / "demo", task="tabular", distributed="fsdp")
    edit(other / "train.py", "torch.manual_seed(args.seed)\n", "torch.manual_seed(args.seed + rank)\n")
    edit(other / "train.py", "        dist.broadcast(value, src=0)", "        pass")
    train_ranks(other, *SHARDED_OPTIONS, "--max-steps", 20, "--output-dir", tmp_path / "out")
    assert not same_bits(*(load(checkpoints(place)[-1]) for place in (trained, tmp_path / "out")))
