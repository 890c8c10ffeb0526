"""What one optimizer step does: its gradient, its learning rate, its average, and what it does without."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Make, Whole
from tests.guarantees.harness import (
    NOTE_GRADIENTS,
    NOTE_STATES,
    NOTES,
    NUM_TRAIN,
    RANKS,
    TASKS,
    closed_form,
    everywhere,
    mostly_alone,
    noted,
)
from tests.projects import checkpoints, edit, load, render, same_run, train, train_ranks, values

# 4: the gradient of a window


def gradients(project: Path, folder: Path, *options: object, ranks: int = 0) -> torch.Tensor:
    """The gradient of each of 20 steps, a row each, all at the parameters of the start."""
    fixed = ["--lr", 0, "--max-steps", 20]
    return torch.stack(noted(project, folder, NOTE_GRADIENTS, *fixed, *options, ranks=ranks))


def windows(project: Path, folder: Path, distributed: str, accum: int) -> torch.Tensor:
    """The gradients of the same 24 examples a step, over processes and forward passes."""
    ranks = RANKS[distributed]
    size = 24 // accum // (ranks or 1)
    return gradients(project, folder, "--batch-size", size, "--grad-accum", accum, ranks=ranks)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Between two lists of vectors: the largest, relative to the vectors' length."""
    return float(((one - other).norm(dim=1) / other.norm(dim=1)).max())


def deep(project: Path) -> Path:
    """The network takes part from the start."""
    edit(project / "model.py", "nn.init.zeros_(self.deep[-1].weight)", "pass")
    return project


@everywhere
def test_04_gradient_of_a_window(made: Make, tmp_path: Path, distributed: str) -> None:
    """It is that of the concatenated batch, also where the window goes on over an epoch's end (step 19)."""
    whole = gradients(made(deep, task="tabular"), tmp_path / "whole", "--batch-size", 24)
    assert len(whole) == 20 and distance(whole[1:], whole[:-1]) > 0.1
    project = made(deep, task="tabular", distributed=distributed, features=("grad-accum",))
    for accum in (1, 2, 4):
        assert distance(windows(project, tmp_path / str(accum), distributed, accum), whole) < 1e-6


@mostly_alone
def test_04_control_window_not_averaged(made: Make, tmp_path: Path, distributed: str) -> None:
    whole = gradients(made(deep, task="tabular"), tmp_path / "whole", "--batch-size", 24)
    project = deep(
        render(tmp_path / "demo", task="tabular", distributed=distributed, features=("grad-accum",))
    )
    edit(project / "train.py", "            loss = loss / args.grad_accum\n", "")
    assert distance(windows(project, tmp_path / "two", distributed, 2), whole) > 0.1


# 10: fp16, steps that overflow


# the scale starts far too high
OVERFLOW = """
import torch

class Huge(torch.amp.GradScaler):
    def __init__(self, device):
        super().__init__(device, init_scale=2.0**30)

torch.amp.GradScaler = Huge
"""
# the scale doubles at every other step, so some step overflows again and again
OVERFLOW_AGAIN = OVERFLOW.replace("init_scale=2.0**30", "growth_interval=2")


FP16 = {"hardware": "gpu", "precision": "fp16", "features": ("grad-accum", "ema")}


FP16_OPTIONS = ["--device", "cpu", "--grad-accum", 2, "--log-every", 1, "--lr", "2e-3",
                "--warmup-steps", 4, "--epochs", 2, "--checkpoint-every", 3]  # fmt: skip


def overflowing(project: Path, output_dir: Path, *options: object, distributed: str = "none") -> None:
    fixed = [*FP16_OPTIONS, "--batch-size", 4 if RANKS[distributed] else 8, "--output-dir", output_dir]
    train_ranks(project, *fixed, *options, ranks=RANKS[distributed], first=OVERFLOW)


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


def fused(project: Path) -> Path:
    return project


def unfused(project: Path) -> Path:
    edit(project / "train.py", ", fused=True", "")
    return project


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("distributed", "kind"),
    [
        *((distributed, fused) for distributed in RANKS),
        ("none", unfused),
        pytest.param("ddp", unfused, marks=pytest.mark.heavy),
        pytest.param("fsdp", unfused, marks=pytest.mark.heavy),
    ],
)
def test_10_skipped_steps(
    made: Make, tmp_path: Path, task: str, kind: Callable[[Path], Path], distributed: str
) -> None:
    project = made(kind, task=task, distributed=distributed, **FP16)
    overflowing(project, tmp_path / "whole", "--max-steps", 6, distributed=distributed)
    check_skipped(tmp_path / "whole", task, 6)
    overflowing(project, tmp_path / "parts", "--max-steps", 3, distributed=distributed)
    overflowing(project, tmp_path / "parts", "--max-steps", 6, "--resume", distributed=distributed)
    assert same_run(tmp_path / "whole", tmp_path / "parts")


@mostly_alone
def test_10_control_skipped(tmp_path: Path, distributed: str) -> None:
    project = render(tmp_path / "demo", task="tabular", distributed=distributed, **FP16)
    edit(project / "train.py", "            continue\n", "            pass\n")
    overflowing(project, tmp_path / "out", "--max-steps", 30, distributed=distributed)
    with pytest.raises(AssertionError):
        check_skipped(tmp_path / "out", "tabular", 30)


@everywhere
def test_10_average_over_skipped_steps(made: Make, tmp_path: Path, distributed: str) -> None:
    """Overflows on the way leave no trace in the average."""
    project = made(task="tabular", distributed=distributed, **FP16)
    states = average(project, tmp_path, distributed, first=OVERFLOW_AGAIN)
    assert len({state["skipped"] for state in states}) > 2
    check_average(states)


def test_10_control_average_over_skipped_steps(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", **FP16)
    line = "        update_ema(ema, model, min(args.ema_decay, (1 + step) / (10 + step)))"
    where = "        optimizer.zero_grad()\n"
    edit(project / "train.py", where, where + line + "\n")
    edit(project / "train.py", line + "  #", "        #")
    states = average(project, tmp_path, "none", first=OVERFLOW_AGAIN)
    with pytest.raises(AssertionError):
        check_average(states)


# 11: unscale, clip, step


CLIPPED = {"task": "tabular", "hardware": "gpu", "precision": "fp16", "features": ("grad-accum", "grad-clip")}


EXACT = CLIPPED | {"precision": "fp32", "features": ("grad-accum",)}


def clipped(project: Path, exact: Path, folder: Path, distributed: str) -> list[torch.Tensor]:
    """The gradients of a project in 32 bits, of one in 16, and of that when their norm is limited to 0.05."""
    ranks = RANKS[distributed]
    options = ["--device", "cpu", "--grad-accum", 2, "--batch-size", 12 // (ranks or 1)]
    return [
        gradients(exact, folder / "exact", *options, ranks=ranks),
        gradients(project, folder / "free", *options, "--clip-grad", 1e9, ranks=ranks),
        gradients(project, folder / "clipped", *options, "--clip-grad", 0.05, ranks=ranks),
    ]


def check_clipping(exact: torch.Tensor, free: torch.Tensor, clipped: torch.Tensor) -> None:
    """A step is made with the true gradient, shortened to the largest norm."""
    assert distance(free, exact) < 0.02  # 16-bit numbers have three digits
    norms = free.norm(dim=1, keepdim=True)
    assert norms.min() > 0.05
    assert distance(clipped, free * 0.05 / (norms + 1e-6)) < 1e-6


@everywhere
def test_11_clipping(made: Make, tmp_path: Path, distributed: str) -> None:
    exact, project = made(distributed=distributed, **EXACT), made(distributed=distributed, **CLIPPED)
    check_clipping(*clipped(project, exact, tmp_path, distributed))


UNSCALE = "        scaler.unscale_(optimizer)\n"
CLIP = "        nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)\n"


@pytest.mark.parametrize(
    ("old", "new"), [(UNSCALE + CLIP, CLIP + UNSCALE), (CLIP, "")], ids=["scaled", "unclipped"]
)
@mostly_alone
def test_11_control_clipping(made: Make, tmp_path: Path, old: str, new: str, distributed: str) -> None:
    project = render(tmp_path / "demo", distributed=distributed, **CLIPPED)
    edit(project / "train.py", old, new)
    found = clipped(project, made(distributed=distributed, **EXACT), tmp_path, distributed)
    with pytest.raises(AssertionError):
        check_clipping(*found)


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
@everywhere
def test_17_schedule_over_ranks_and_resumes(made: Make, tmp_path: Path, task: str, distributed: str) -> None:
    project = made(task=task, distributed=distributed, features=("grad-accum",))
    ranks = RANKS[distributed]
    options = [*SCHEDULE, "--batch-size", 8 // (ranks or 1), "--grad-accum", 2, "--output-dir", tmp_path]
    train_ranks(project, *options, "--max-steps", 12, ranks=ranks)
    train_ranks(project, *options, "--max-steps", 28, "--resume", ranks=ranks)
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


EMA_OPTIONS = ["--ema-decay", 0.9, "--max-steps", 12, "--lr", "1e-2"]


def average(project: Path, folder: Path, distributed: str, first: str = "") -> list[dict[str, Any]]:
    """The model and its average after each of twelve steps."""
    ranks = RANKS[distributed]
    options = [*EMA_OPTIONS, "--checkpoint-every", 1, "--batch-size", 8 // (ranks or 1)]
    return noted(project, folder, NOTE_STATES + first, *options, ranks=ranks)


def check_average(states: list[dict[str, Any]]) -> None:
    assert [state["step"] for state in states] == list(range(1, 13))
    for key, first in states[0]["ema"].items():
        expected = first.double()
        for number, state in enumerate(states[1:], start=1):
            decay = min(0.9, (1 + number) / (10 + number))  # of steps before this one
            expected = decay * expected + (1 - decay) * state["model"][key].double()
            torch.testing.assert_close(state["ema"][key].double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(states[-1]["ema"][key], states[-1]["model"][key])


@pytest.mark.parametrize(
    ("task", "distributed"),
    [("image-classification", "none"), ("tabular", "none"), ("tabular", "ddp"), ("tabular", "fsdp")],
)
def test_18_moving_average(made: Make, tmp_path: Path, task: str, distributed: str) -> None:
    project = made(task=task, distributed=distributed, features=("ema",))
    check_average(average(project, tmp_path, distributed))


@everywhere
def test_18_resumed(made: Make, whole: Whole, tmp_path: Path, distributed: str) -> None:
    """To the last bit, the average with all the rest."""
    project, ranks = made(task="tabular", distributed=distributed, features=("ema",)), RANKS[distributed]
    train_ranks(project, *EMA_OPTIONS, "--output-dir", tmp_path, "--max-steps", 7, ranks=ranks)
    train_ranks(project, *EMA_OPTIONS, "--output-dir", tmp_path, "--resume", ranks=ranks)
    assert same_run(whole(project, *EMA_OPTIONS, ranks=ranks), tmp_path)


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


@mostly_alone
def test_18_control_average(tmp_path: Path, distributed: str) -> None:
    project = render(tmp_path / "demo", task="tabular", distributed=distributed, features=("ema",))
    edit(project / "train.py", "lerp_(value, 1 - decay)", "lerp_(value, decay)")
    states = average(project, tmp_path, distributed)
    with pytest.raises(AssertionError):
        check_average(states)


@mostly_alone
def test_18_control_average_forgotten(made: Make, whole: Whole, tmp_path: Path, distributed: str) -> None:
    """A restart that takes the model for its average is seen."""
    project, ranks = made(task="tabular", distributed=distributed, features=("ema",)), RANKS[distributed]
    other = render(tmp_path / "demo", task="tabular", distributed=distributed, features=("ema",))
    loop = "    while step < last_step:\n"
    edit(other / "train.py", loop, "    update_ema(ema, model, 0)\n" + loop)
    options = [*EMA_OPTIONS, "--output-dir", tmp_path / "out", "--resume"]
    for steps in (7, 12):
        train_ranks(other, *options, "--max-steps", steps, ranks=ranks)
    assert not same_run(whole(project, *EMA_OPTIONS, ranks=ranks), tmp_path / "out")


# 23: nothing waits for the device, nothing is compiled again


# the lines of main() at which a tensor's value is asked for, after each step
NOTE_WAITS = NOTES + """
import linecache, sys
import tqdm

def noting(function):
    def ask(*args, **options):
        frame = sys._getframe(1)
        while frame and frame.f_code.co_name != "main":
            frame = frame.f_back
        if frame and noted:
            noted[-1].append(linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip())
        return function(*args, **options)
    return ask

for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
    setattr(torch.Tensor, name, noting(getattr(torch.Tensor, name)))

update = tqdm.tqdm.update
def after_step(self):
    note([])
    update(self)

tqdm.tqdm.update = after_step
"""
WAITING = {"task": "tabular", "hardware": "gpu", "precision": "bf16"} | {
    "features": ("grad-accum", "grad-clip", "ema", "early-stopping")
}
AGREE = "stopping = mean_over_ranks(torch.tensor(float(stop.is_set()))) > 0"


def waits(project: Path, folder: Path, distributed: str) -> list[list[str]]:
    """What came after each of 24 steps, less than an epoch and without a checkpoint."""
    ranks = RANKS[distributed]
    options = ["--device", "cpu", "--grad-accum", 2, "--batch-size", 8 // (ranks or 1), "--max-steps", 25]
    return noted(project, folder, NOTE_WAITS, *options, ranks=ranks)[:24]


def check_waits(asked: list[list[str]], distributed: str) -> None:
    """Processes agree to go on by a tensor of the processor's; apart from that only steps that log wait."""
    for step, lines in enumerate(asked, start=1):
        others = [line for line in lines if not line.startswith(AGREE)]
        assert len(lines) - len(others) == (RANKS[distributed] > 0)
        assert bool(others) == (step < 10 or step % 10 == 0), (step, others)


@everywhere
def test_23_no_waiting(made: Make, tmp_path: Path, distributed: str) -> None:
    check_waits(waits(made(distributed=distributed, **WAITING), tmp_path, distributed), distributed)


@mostly_alone
def test_23_control_waiting(tmp_path: Path, distributed: str) -> None:
    project = render(tmp_path / "demo", distributed=distributed, **WAITING)
    old = "        if step < 10 or step % args.log_every == 0:"
    edit(project / "train.py", old, "        running_loss = window_loss.item()\n" + old)
    asked = waits(project, tmp_path, distributed)
    with pytest.raises(AssertionError):
        check_waits(asked, distributed)


# how many graphs there are after each step; what is made of them does not matter
NOTE_GRAPHS = NOTES + """
import tqdm
from torch._dynamo.utils import counters

compile_module = torch.nn.Module.compile
torch.nn.Module.compile = lambda self: compile_module(self, backend="eager")
update = tqdm.tqdm.update
def after_step(self):
    note(counters["stats"]["unique_graphs"])
    update(self)

tqdm.tqdm.update = after_step
"""


def graphs(project: Path, folder: Path, distributed: str) -> list[int]:
    """After each step of two epochs, but the last."""
    options = ["--batch-size", 64 // (RANKS[distributed] or 1), "--epochs", 2]
    return noted(project, folder, NOTE_GRAPHS, *options, ranks=RANKS[distributed])[:-1]


def check_graphs(found: list[int]) -> None:
    """The first step compiles, and the first evaluation, which is after the eighth; no other step does."""
    assert len(found) == 14 and found[0] > 0
    assert len(set(found[:8])) == len(set(found[8:])) == 1, found


COMPILED = {"task": "tabular", "features": ("compile",)}


@everywhere
def test_23_no_compilation(made: Make, tmp_path: Path, distributed: str) -> None:
    check_graphs(graphs(made(distributed=distributed, **COMPILED), tmp_path, distributed))


@mostly_alone
def test_23_control_compilation(tmp_path: Path, distributed: str) -> None:
    """A model that depends on something which changes at each step."""
    project = render(tmp_path / "demo", distributed=distributed, **COMPILED)
    begin = "    while step < last_step:\n"
    edit(project / "train.py", begin, begin + "        model.name = str(step)\n")
    forward = "        return self.wide(x) + self.deep(x)"
    edit(project / "model.py", forward, "        x = x if self.name else -x\n" + forward)
    found = graphs(project, tmp_path, distributed)
    with pytest.raises(AssertionError):
        check_graphs(found)
