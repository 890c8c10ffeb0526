"""What a checkpoint holds: one set of names, plain values; and projects without warnings."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from tests import projects
from tests.conftest import Make, files_under
from tests.guarantees.harness import (
    RANKS,
    SHARDED_OPTIONS,
    TASKS,
    everywhere,
    mostly_alone,
    until_the_first_ends,
    with_few_pictures,
)
from tests.projects import Result, checkpoints, edit, load, render, train_ranks

# 21: one set of names


# compiles all there is to compile, but to nothing
EAGER = """
import torch

compile, compile_module = torch.compile, torch.nn.Module.compile
torch.compile = lambda model, **options: compile(model, backend="eager")
torch.nn.Module.compile = lambda self: compile_module(self, backend="eager")
"""
AN_EPOCH = ["--epochs", 1, "--batch-size", 455]


def names(project: Path, output_dir: Path, distributed: str) -> dict[str, list[str]]:
    """The names of what a step and the best checkpoint hold of the model and its average."""
    options = [*AN_EPOCH, "--output-dir", output_dir]
    train_ranks(project, *options, ranks=RANKS[distributed], first=EAGER)
    states = {"step": load(checkpoints(output_dir)[-1]), "best": load(output_dir / "checkpoints" / "best.pt")}
    return {
        f"{name}/{part}": list(state[part]) for name, state in states.items() for part in ("model", "ema")
    }


def plain_names(made: Make) -> list[str]:
    """Those of the module, of which the project's own `model.py` knows."""
    [result] = train_ranks(made(task="tabular"), ranks=0, first=NAMES)
    found: list[str] = json.loads(result.out)
    return found


# instead of training
NAMES = """
import json
from model import TableNet

print(json.dumps(list(TableNet(60, [], 2).state_dict())))
raise SystemExit
"""


@pytest.mark.parametrize("features", [("ema",), ("ema", "compile")], ids=["eager", "compiled"])
@everywhere
def test_21_names(made: Make, tmp_path: Path, distributed: str, features: tuple[str, ...]) -> None:
    project, expected = made(task="tabular", distributed=distributed, features=features), plain_names(made)
    for place, found in names(project, tmp_path, distributed).items():
        assert found == expected, place


WRAPPED = {  # what puts a prefix to every name
    "none": ("    model.compile()\n", '    model = parts["model"] = torch.compile(model)\n'),
    # only while saving: a DDP model held to the end would keep its threads beyond the interpreter
    "ddp": ("(checkpoints, parts, counters", '(checkpoints, parts | {"model": ddp_model}, counters'),
    "fsdp": ("    model.compile()\n", '    model = parts["model"] = torch.compile(model)\n'),
}


@everywhere
def test_21_control_wrapped(made: Make, tmp_path: Path, distributed: str) -> None:
    given = {"task": "tabular", "distributed": distributed, "features": ("ema", "compile")}
    project = render(tmp_path / "demo", **given)
    edit(project / "train.py", *WRAPPED[distributed])
    assert names(project, tmp_path / "out", distributed)["step/model"] != plain_names(made)


@pytest.mark.parametrize(
    "turns", [["none", "none", "ddp", "ddp", "none"], ["fsdp", "fsdp", "fsdp"]], ids=["file", "shards"]
)
def test_21_any_into_any(made: Make, tmp_path: Path, turns: list[str]) -> None:
    """The same run goes on, a step each, as another kind of project: every second one is compiled."""
    for number, distributed in enumerate(turns, start=1):
        features = ("ema", "compile") if number % 2 == 0 else ("ema",)
        project, ranks = made(task="tabular", distributed=distributed, features=features), RANKS[distributed]
        options = [
            "--max-steps",
            number,
            "--batch-size",
            32 // (ranks or 1),
            "--resume",
            "--output-dir",
            tmp_path,
        ]
        results = train_ranks(project, *options, ranks=ranks, first=EAGER)
        assert all(result.err == "" for result in results)
        assert load(checkpoints(tmp_path)[-1])["counters"]["step"] == number


@pytest.mark.parametrize("turn", [("fsdp", "none"), ("none", "fsdp")], ids=" to ".join)
def test_21_another_kind_of_project(made: Make, tmp_path: Path, turn: tuple[str, str]) -> None:
    """Files are not for FSDP, nor folders for the plain loop: one line, and all is left as it is."""
    one, other = turn
    options = ["--max-steps", 3, "--batch-size", 16, "--output-dir", tmp_path]
    train_ranks(made(task="tabular", distributed=one), *options, ranks=RANKS[one])
    before = files_under(tmp_path)
    project = made(task="tabular", distributed=other)
    result = until_the_first_ends(project, *options, "--resume", ranks=RANKS[other])
    assert result.code == 1 and "Traceback" not in result.err
    assert "of such a project" in result.message and str(tmp_path) in result.message
    assert files_under(tmp_path) == before


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


EVERYTHING = {"task": "tabular", "hardware": "gpu", "precision": "fp16"} | {
    "features": ("grad-accum", "grad-clip", "ema", "early-stopping")
}


def saved(project: Path, output_dir: Path, distributed: str, check: bool = True) -> list[Path]:
    """The files that hold tensors."""
    options = ["--device", "cpu", "--epochs", 1, "--batch-size", 57, "--output-dir", output_dir]
    train_ranks(project, *options, ranks=RANKS[distributed], check=check)
    return [path for path in output_dir.rglob("*.pt") if path.is_file()]


@everywhere
def test_22_plain_values(made: Make, tmp_path: Path, distributed: str) -> None:
    files = saved(made(distributed=distributed, **EVERYTHING), tmp_path, distributed)
    assert "best.pt" in {file.name for file in files}
    for file in files:
        torch.load(file, weights_only=True)
    assert load(checkpoints(tmp_path)[-1])["counters"]["step"] > 0  # reads shards in the same way


@mostly_alone
def test_22_control_an_object_saved(tmp_path: Path, distributed: str) -> None:
    project = render(tmp_path / "demo", distributed=distributed, **EVERYTHING)
    edit(
        project / "train.py",
        'counters = {"step": step,',
        'counters = {"place": args.output_dir, "step": step,',
    )
    files = saved(project, tmp_path / "out", distributed, check=False)
    [best] = [file for file in files if file.name == "best.pt"]
    with pytest.raises(pickle.UnpicklingError):
        torch.load(best, weights_only=True)


def test_22_nothing_is_unpickled(sharded: Path, trained: Path, tmp_path: Path) -> None:
    """torch.load is told to take nothing but tensors and plain values, whoever calls it."""
    shutil.copytree(trained, tmp_path / "out")
    options = [*SHARDED_OPTIONS, "--max-steps", 22, "--resume", "--output-dir", tmp_path / "out"]
    train_ranks(sharded, *options, env={"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"})


# 25: no warnings


# a warning that the project's own lines raise is an error
STRICT = """
import warnings

for name in ("__main__", "model", "data", "checkpoint", "record", "loggers"):
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("error", category=category, module=rf"{name}\\Z")
"""


def strictly(project: Path, output_dir: Path, distributed: str) -> list[Result]:
    """A step, then the rest of an epoch."""
    ranks = RANKS[distributed]
    options = ["--device", "cpu", "--epochs", 1, "--batch-size", 20 // (ranks or 1), "--workers", 1]
    train = [*options, "--output-dir", output_dir, "--resume"]
    train_ranks(project, *train, "--max-steps", 1, ranks=ranks, first=STRICT, check=False)
    return train_ranks(project, *train, ranks=ranks, first=STRICT, check=False)


@pytest.mark.parametrize("task", TASKS)
@everywhere
def test_25_no_warnings(made: Make, tmp_path: Path, task: str, distributed: str) -> None:
    changes = [with_few_pictures(7)] if task == "image-classification" else []
    project = made(*changes, distributed=distributed, **(EVERYTHING | {"task": task}))
    for result in strictly(project, tmp_path, distributed):
        assert (result.code, result.err) == (0, "")


def test_25_control_deprecated(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **EVERYTHING)
    edit(
        project / "train.py", "torch.amp.GradScaler(device.type)", "torch.cuda.amp.GradScaler(enabled=False)"
    )
    [result] = strictly(project, tmp_path / "out", "none")
    assert result.code == 1 and "FutureWarning" in result.err
