"""Projects for GPUs on a GPU: every precision and distribution, no waiting, the speed of a bare loop.

One GPU is enough: DDP and FSDP run their whole code path with a single process over NCCL.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scaffold.answers import Answers
from scaffold.trial import rank_variables
from tests import projects
from tests.conftest import Make
from tests.projects import Result, catalog, checkpoints, load, metrics, render, run, same_run, values
from tests.support import CORE, core_combinations, leave

GPU = [answers for answers in core_combinations(catalog()) if answers.hardware == "gpu"]
TASKS = list(catalog().tasks)
START = "import runpy, sys\nsys.argv[0] = 'train.py'\n"
GO = "\nrunpy.run_path('train.py', run_name='__main__')\n"


def label(answers: Answers) -> str:
    return "-".join(answers.to_dict()[key] for key in CORE)


def train(project: Path, output_dir: Path, *options: object, first: str = "") -> Result:
    """One process on the GPU, which torchrun's variables tell that it is the only one.

    It is not forked, as on processors: what looked at a GPU cannot fork others that use it.
    """
    distributed = '"RANK" not in os.environ' in (project / "train.py").read_text()
    (env,) = rank_variables(int(distributed))
    words = ["--output-dir", output_dir, "--warmup-steps", 2, *options]
    command = projects.python("-c", f"{START}{first}{GO}", *words)
    return run(project, command, timeout=300, env=env)


def check_ran_on_the_gpu(output_dir: Path) -> None:
    ran = json.loads((output_dir / "run.json").read_text())
    assert torch.device(ran["device"]).type == torch.accelerator.current_accelerator().type  # type: ignore[union-attr]


@pytest.mark.parametrize("answers", GPU, ids=label)
def test_trains_and_resumes(tmp_path: Path, answers: Answers) -> None:
    given = answers.to_dict()
    project = render(tmp_path / "demo", **{key: given[key] for key in CORE}, features=answers.features)
    out = tmp_path / "out"
    train(project, out, "--max-steps", 3)
    train(project, out, "--max-steps", 6, "--resume")
    check_ran_on_the_gpu(out)
    losses = values(out, "train/loss")
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(value) for row in metrics(out) for value in row.values())
    if given["distributed"] != "deepspeed":  # whose folders are its own
        settings = load(checkpoints(out)[-1]).get("optimizer", {}).get("param_groups", [])
        assert all(group["fused"] for group in settings if "fused" in group)
    result = {"answers": given, "ran": "trained-gpu", "processes": 1, "steps": 6, "resumed_at": 3}
    leave(f"gpu-{label(answers)}", **result, device=torch.cuda.get_device_name())


@pytest.mark.parametrize("task", TASKS)
def test_as_on_processors(made: Make, tmp_path: Path, task: str) -> None:
    """The same project, the same losses: 32-bit floats differ by rounding alone."""
    project = made(task=task, hardware="gpu", precision="fp32")
    short = [*projects.small_options(task), "--max-steps", 20, "--log-every", 1]
    train(project, tmp_path / "gpu", *short)
    train(project, tmp_path / "cpu", *short, "--device", "cpu")
    gpu, cpu = (values(tmp_path / name, "train/loss") for name in ("gpu", "cpu"))
    assert list(gpu.values()) == pytest.approx(list(cpu.values()), rel=1e-2)


@pytest.mark.parametrize("distributed", ["none", "ddp", "fsdp"])
@pytest.mark.parametrize("task", TASKS)
def test_01_resumes_to_the_same_bits(made: Make, tmp_path: Path, task: str, distributed: str) -> None:
    chosen = {"task": task, "distributed": distributed, "precision": "bf16", "features": ("deterministic",)}
    if not projects.is_offered(hardware="gpu", **chosen):
        pytest.skip("not offered")
    project = made(hardware="gpu", **chosen)
    train(project, tmp_path / "whole", "--max-steps", 6)
    train(project, tmp_path / "parts", "--max-steps", 3)
    train(project, tmp_path / "parts", "--max-steps", 6, "--resume")
    assert same_run(tmp_path / "whole", tmp_path / "parts")


# From the twelfth step on any wait for the GPU is an error, but where the metrics of a logged step are read,
# which is after the bar moved.
NO_WAITING = """
import torch
import tqdm

update, steps = tqdm.tqdm.update, []

def after_step(bar, number=1):
    update(bar, number)
    steps.append(number)
    torch.cuda.set_sync_debug_mode("error" if len(steps) >= 12 and len(steps) % 10 else "default")

tqdm.tqdm.update = after_step
"""
WAITING = {"precision": "bf16", "features": ("grad-accum", "grad-clip", "ema")}
# three log intervals; no evaluation among them, and the last checkpoint at a logged step
BETWEEN = ["--epochs", 100, "--batch-size", 4, "--max-steps", 30, "--checkpoint-every", 1000]


def supervised() -> Iterator[Any]:
    for task in TASKS:
        for distributed in ("none", "ddp", "fsdp"):
            if projects.is_offered(task=task, hardware="gpu", distributed=distributed, **WAITING):
                yield pytest.param(task, distributed, id=f"{task}-{distributed}")


@pytest.mark.parametrize(("task", "distributed"), list(supervised()))
def test_23_no_waiting(made: Make, tmp_path: Path, task: str, distributed: str) -> None:
    project = made(task=task, hardware="gpu", distributed=distributed, **WAITING)
    train(project, tmp_path / "out", *BETWEEN, *projects.small_options(task), first=NO_WAITING)
    check_ran_on_the_gpu(tmp_path / "out")


def test_23_control_waiting(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", hardware="gpu", **WAITING)
    old = "        if step < 10 or step % args.log_every == 0:"
    projects.edit(project / "train.py", old, "        window_loss.item()\n" + old)
    with pytest.raises(AssertionError, match="synchronizing CUDA operation"):
        train(project, tmp_path / "out", *BETWEEN, first=NO_WAITING)


CHANNELS_LAST = """
import torch
forward = torch.nn.Conv2d.forward

def looking(self, x):
    assert x.is_contiguous(memory_format=torch.channels_last), x.stride()
    assert self.weight.is_contiguous(memory_format=torch.channels_last), self.weight.stride()
    return forward(self, x)

torch.nn.Conv2d.forward = looking
"""


@pytest.mark.parametrize("task", ["image-classification", "segmentation"])
def test_channels_last(made: Make, tmp_path: Path, task: str) -> None:
    train(made(task=task, hardware="gpu"), tmp_path / "out", "--max-steps", 3, first=CHANNELS_LAST)


@pytest.mark.parametrize("distributed", ["none", "ddp", "fsdp"])
@pytest.mark.parametrize("task", ["image-classification", "language-modeling", "tabular"])
def test_compiled(made: Make, tmp_path: Path, task: str, distributed: str) -> None:
    """With the compiler that users have, and the parameters of the run that was not compiled."""
    chosen = {"task": task, "hardware": "gpu", "precision": "fp32", "distributed": distributed}
    for name, features in (("eager", ()), ("compiled", ("compile",))):
        train(made(features=features, **chosen), tmp_path / name, "--max-steps", 6)
    eager, compiled = (values(tmp_path / name, "train/loss") for name in ("eager", "compiled"))
    assert list(eager.values()) == pytest.approx(list(compiled.values()), rel=1e-2)


@pytest.mark.parametrize("distributed", ["none", "ddp", "fsdp", "deepspeed"])
def test_activations_computed_again(made: Make, tmp_path: Path, distributed: str) -> None:
    """The same losses in less memory of the device, which is logged."""
    chosen = {"task": "language-modeling", "precision": "fp32", "distributed": distributed}
    sizes = ["--context", 512, "--heads", 4, "--depth", 8, "--batch-size", 16, "--max-steps", 10]
    for name, features in (("kept", ()), ("again", ("activation-checkpointing",))):
        project = made(hardware="gpu", features=(*features, "throughput"), **chosen)
        train(project, tmp_path / name, *sizes, *(["--zero-stage", 3] if distributed == "deepspeed" else []))
    kept, again = (values(tmp_path / name, "train/loss") for name in ("kept", "again"))
    assert list(kept.values()) == pytest.approx(list(again.values()), rel=1e-3)
    peaks = [max(values(tmp_path / name, "speed/device_memory_gib").values()) for name in ("kept", "again")]
    assert peaks[1] < 0.7 * peaks[0], peaks


def test_hybrid_sharding(made: Make, tmp_path: Path) -> None:
    """A mesh of one machine and one device, and a resume."""
    project = made(task="language-modeling", hardware="gpu", distributed="fsdp", features=("hybrid-shard",))
    small = [*projects.small_options("language-modeling"), "--checkpoint-every", 3]
    train(project, tmp_path / "out", *small, "--max-steps", 3)
    train(project, tmp_path / "out", *small, "--max-steps", 6, "--resume")
    assert sorted(values(tmp_path / "out", "train/loss")) == [1, 2, 3, 4, 5, 6]


def test_a_bare_loop_is_no_faster(made: Make, tmp_path: Path) -> None:
    """Tokens a second of a GPT-2-sized model, beside a loop on one batch that stays on the GPU."""
    project = made(task="language-modeling", hardware="gpu", precision="bf16", features=("compile",))
    script = Path(__file__).with_name("throughput.py")
    found = [json.loads(run(project, projects.python(script), timeout=300).out) for _ in range(2)]
    ratio = statistics.median(pair["generated"] / pair["bare"] for pair in found)
    leave("gpu-throughput", throughput=found, device=torch.cuda.get_device_name())
    assert ratio > 0.95, found
