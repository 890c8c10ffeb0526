"""Shards within a machine, copies on each: four processes as two machines do what one process does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from tests.conftest import Make
from tests.guarantees.harness import NOTES, suicidal, until_the_first_ends
from tests.projects import checkpoints, edit, load, render, same_run, train, train_ranks, values

pytestmark = pytest.mark.heavy
OPTIONS = ["--epochs", 3, "--log-every", 1, "--checkpoint-every", 7]
HYBRID = {"task": "tabular", "distributed": "fsdp", "features": ("hybrid-shard",)}
TWO_MACHINES = {"LOCAL_WORLD_SIZE": "2"}  # of four processes


def four(project: Path, place: Path, *options: object, machines: dict[str, str] = TWO_MACHINES) -> Path:
    given = [*OPTIONS, "--batch-size", 8, "--output-dir", place, *options]
    train_ranks(project, *given, ranks=4, env=machines)
    return place


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that was never told of others."""
    project = render(tmp_path_factory.mktemp("plain") / "demo", task="tabular")
    train(project, *OPTIONS, "--batch-size", 32, "--max-steps", 20)
    return project / "runs" / "demo"


@pytest.fixture(scope="module")
def hybrid(made: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four(made(**HYBRID), tmp_path_factory.mktemp("hybrid") / "out", "--max-steps", 20)


def distance(one: Path, other: Path) -> float:
    """The largest difference of a parameter."""
    left, right = (load(checkpoints(place)[-1])["model"] for place in (one, other))
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def test_06_four_equal_one(alone: Path, hybrid: Path) -> None:
    assert distance(alone, hybrid) < 1e-6
    losses = [list(values(place, "train/loss").values()) for place in (alone, hybrid)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_06_control_machines_by_themselves(alone: Path, tmp_path: Path) -> None:
    """Gradients that stay within a machine."""
    project = render(tmp_path / "demo", **HYBRID)
    edit(project / "train.py", 'mesh_dim_names=("replicate", "shard"))', 'mesh_dim_names=("a", "b"))["b"]')
    assert distance(alone, four(project, tmp_path / "out", "--max-steps", 20)) > 1e-3


# how many numbers a process has of all parameters
NOTE_NUMBERS = NOTES + """
from torch.optim.optimizer import register_optimizer_step_pre_hook

def hook(optimizer, args, options):
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    note((sum(value.to_local().numel() for value in parameters), sum(value.numel() for value in parameters)))

register_optimizer_step_pre_hook(hook)
"""


@pytest.mark.parametrize("local", [1, 2, 4])
def test_a_machine_holds_the_whole(made: Make, tmp_path: Path, local: int) -> None:
    env = {"LOCAL_WORLD_SIZE": str(local), "NOTES": str(tmp_path / "notes.pt")}
    train_ranks(
        made(**HYBRID), "--max-steps", 1, "--output-dir", tmp_path, ranks=4, env=env, first=NOTE_NUMBERS
    )
    mine, all_of_them = torch.load(tmp_path / "notes.pt")[0]
    assert mine == pytest.approx(all_of_them / local, rel=0.05)


def test_20_each_number_is_saved_once(hybrid: Path, alone: Path) -> None:
    """Copies are left out, and every file is on the list of digests."""
    newest = checkpoints(hybrid)[-1]
    listed = json.loads((newest / "digests.json").read_text())
    assert {path.name for path in newest.iterdir()} == {*listed, "digests.json"}
    contents = FileSystemReader(newest).read_metadata()
    on_disk = sum(path.stat().st_size for path in newest.glob("*.distcp"))
    assert on_disk == sum(entry.length for entry in contents.storage_data.values())
    whole = load(checkpoints(alone)[-1])["model"]
    for name, value in whole.items():
        chunks = contents.state_dict_metadata[f"model.{name}"].chunks
        assert sum(chunk.sizes.numel() for chunk in chunks) == value.numel()


def test_20_another_layout(made: Make, hybrid: Path, tmp_path: Path) -> None:
    """Two machines of two, one of four, four of one, and back."""
    project = made(**HYBRID)
    for steps, local in ((5, 2), (10, 4), (15, 1), (20, 2)):
        machines = {"LOCAL_WORLD_SIZE": str(local)}
        four(project, tmp_path, "--max-steps", steps, "--resume", machines=machines)
    assert distance(hybrid, tmp_path) < 1e-6


@pytest.mark.parametrize("moment", ["after 9", "saved 14", "renamed 14"])
def test_01_killed(hybrid: Path, tmp_path: Path, moment: str) -> None:
    project = suicidal(render(tmp_path / "demo", **HYBRID))
    options = [*OPTIONS, "--batch-size", 8, "--max-steps", 20, "--output-dir", tmp_path / "out", "--resume"]
    until_the_first_ends(project, *options, ranks=4, env=TWO_MACHINES | {"KILL": moment})
    train_ranks(project, *options, ranks=4, env=TWO_MACHINES)
    assert same_run(hybrid, tmp_path / "out")


def test_20_async(hybrid: Path, tmp_path: Path) -> None:
    features = ("hybrid-shard", "async-checkpoint")
    project = render(tmp_path / "demo", **HYBRID | {"features": features})
    assert same_run(hybrid, four(project, tmp_path / "out", "--max-steps", 20))
