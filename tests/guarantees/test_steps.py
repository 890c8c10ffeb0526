"""What one optimizer step does: its gradient, its learning rate, its average, and what it does without."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests import projects
from tests.conftest import Make
from tests.guarantees.harness import NUM_TRAIN, SLOW_IMAGES, TASKS, closed_form
from tests.projects import checkpoints, drive, edit, load, render, same_run, train, train_ranks, values

# 10: fp16, steps that overflow


OVERFLOW = """
import sys
import torch
import train

class Huge(torch.amp.GradScaler):
    def __init__(self, device):
        super().__init__(device, init_scale=2.0**30)

torch.amp.GradScaler = Huge
train.main(train.parse_args(sys.argv[1:]))
"""


FP16 = {"hardware": "gpu", "precision": "fp16", "features": ("grad-accum", "ema")}


FP16_OPTIONS = ["--device", "cpu", "--grad-accum", 2, "--batch-size", 8, "--log-every", 1, "--lr", "2e-3",
                "--warmup-steps", 4, "--epochs", 2, "--checkpoint-every", 3]  # fmt: skip


def overflowing(project: Path, output_dir: Path, *options: object) -> None:
    drive(project, OVERFLOW, *FP16_OPTIONS, "--output-dir", output_dir, *options)


def check_skipped(output_dir: Path, task: str, steps: int) -> None:
    """Nothing but the scale and the place in the data moved on the steps that were skipped."""
    state = load(checkpoints(output_dir)[-1])
    assert state["counters"]["step"] == steps
    assert state["counters"]["skipped"] > 3
    assert state["scaler"]["scale"] == 2.0 ** (30 - state["counters"]["skipped"])
    assert {int(row["step"]) for row in state["optimizer"]["state"].values()} == {steps}
    total = math.ceil(2 * NUM_TRAIN[task] / 16)
    rates = values(output_dir, "train/lr")
    assert list(rates) == list(range(1, steps + 1))
    for step, rate in rates.items():
        assert rate == pytest.approx(closed_form(step, 2e-3, 4, total), rel=1e-12)


@pytest.mark.parametrize("task", SLOW_IMAGES)
def test_10_skipped_steps(made: Make, tmp_path: Path, task: str) -> None:
    project = made(task=task, **FP16)
    overflowing(project, tmp_path / "whole", "--max-steps", 6)
    check_skipped(tmp_path / "whole", task, 6)
    overflowing(project, tmp_path / "parts", "--max-steps", 3)
    overflowing(project, tmp_path / "parts", "--max-steps", 6, "--resume")
    assert same_run(tmp_path / "whole", tmp_path / "parts")


def test_10_control_skipped(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", **FP16)
    edit(project / "train.py", "            continue\n", "            pass\n")
    overflowing(project, tmp_path / "out", "--max-steps", 30)
    with pytest.raises(AssertionError):
        check_skipped(tmp_path / "out", "tabular", 30)


# 17: the learning rate


def check_schedule(output_dir: Path, total: int, last: int, warmup: int = 10) -> None:
    rates = values(output_dir, "train/lr")
    assert max(rates) == last
    assert set(rates) >= set(range(4, last + 1, 4))
    for step, rate in rates.items():
        assert rate == pytest.approx(closed_form(step, 2e-3, warmup, total), rel=1e-12)
    assert load(checkpoints(output_dir)[-1])["counters"]["step"] == last


SCHEDULE = ["--lr", "2e-3", "--warmup-steps", 10, "--log-every", 4, "--epochs", 3]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("features", "batch", "accum"), [((), 16, 1), (("grad-accum",), 8, 2)])
def test_17_max_steps_leaves_the_schedule_alone(
    made: Make, tmp_path: Path, task: str, features: tuple[str, ...], batch: int, accum: int
) -> None:
    total = math.ceil(3 * NUM_TRAIN[task] / (batch * accum))
    options = [*SCHEDULE, "--batch-size", batch, "--max-steps", 28, "--output-dir", tmp_path]
    train(made(task=task, features=features), *options)
    check_schedule(tmp_path, total, 28)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_17_schedule_over_ranks_and_resumes(made: Make, tmp_path: Path, task: str, distributed: str) -> None:
    project = made(task=task, distributed=distributed, features=("grad-accum",))
    options = [*SCHEDULE, "--batch-size", 4, "--grad-accum", 2, "--output-dir", tmp_path]
    train_ranks(project, *options, "--max-steps", 12)
    train_ranks(project, *options, "--max-steps", 28, "--resume")
    check_schedule(tmp_path, math.ceil(3 * NUM_TRAIN[task] / 16), 28)


def test_17_a_whole_run_ends_at_its_last_step(made: Make, tmp_path: Path) -> None:
    train(made(task="tabular"), *SCHEDULE, "--batch-size", 50, "--output-dir", tmp_path)
    total = math.ceil(3 * NUM_TRAIN["tabular"] / 50)
    assert load(checkpoints(tmp_path)[-1])["counters"]["step"] == total == 28
    assert sorted(values(tmp_path, "val/loss")) == [10, 19, 28]
    check_schedule(tmp_path, total, total)


def test_17_control_schedule(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "train.py", "args.warmup_steps, total_steps)", "args.warmup_steps, last_step)")
    train(project, *SCHEDULE, "--batch-size", 16, "--max-steps", 28, "--output-dir", tmp_path / "out")
    with pytest.raises(AssertionError):
        check_schedule(tmp_path / "out", math.ceil(3 * NUM_TRAIN["tabular"] / 16), 28)


# 18: the moving average


AVERAGE = """
import sys
import torch
import train

states = []

def note(directory, parts, counters, best):
    both = [parts[name].state_dict() for name in ("model", "ema")]
    states.append([{key: value.clone() for key, value in state.items()} for state in both])

train.save_checkpoint = note
train.main(train.parse_args(sys.argv[1:]))
first = states[0]
for step in range(1, len(states)):
    for key, average in states[step][1].items():
        expected = first[1][key].double()
        for k in range(1, step + 1):
            decay = min(0.9, (1 + k) / (10 + k))  # states[0] is that of step 1
            expected = decay * expected + (1 - decay) * states[k][0][key].double()
        assert torch.allclose(average.double(), expected, rtol=1e-5, atol=1e-6), (step, key)
        assert step < 3 or not torch.equal(average, states[step][0][key]) or "embed" in key, key
"""


EMA_OPTIONS = [
    "--ema-decay",
    0.9,
    "--checkpoint-every",
    1,
    "--max-steps",
    12,
    "--lr",
    "1e-2",
    "--batch-size",
    8,
]


@pytest.mark.parametrize("task", TASKS)
def test_18_moving_average(made: Make, tmp_path: Path, task: str) -> None:
    drive(made(task=task, features=("ema",)), AVERAGE, *EMA_OPTIONS, "--output-dir", tmp_path)


def test_18_average_is_what_is_evaluated(made: Make, tmp_path: Path) -> None:
    """Without a memory it is the model, with one it is not; training is the same either way."""
    losses = {}
    for name, features, *options in (
        ("plain", ()),
        ("none", ("ema",), "--ema-decay", 0),
        ("long", ("ema",), "--ema-decay", 0.999),
    ):
        project = made(task="tabular", features=features)
        train(project, *options, "--epochs", 2, "--lr", "1e-2", "--output-dir", tmp_path / name)
        losses[name] = [values(tmp_path / name, key) for key in ("train/loss", "val/loss")]
    assert losses["plain"] == losses["none"]
    assert losses["plain"][0] == losses["long"][0]
    assert not set(losses["plain"][1].values()) & set(losses["long"][1].values())


def test_18_control_average(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", features=("ema",))
    edit(project / "train.py", "lerp_(value, 1 - decay)", "lerp_(value, decay)")
    command = projects.python("-c", AVERAGE, *EMA_OPTIONS, "--output-dir", tmp_path / "out")
    assert projects.run(project, command, check=False).code == 1
