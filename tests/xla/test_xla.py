"""Projects for TPUs on XLA's client for processors: they train, go on, compile once, and do as others do."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from scaffold.answers import Answers
from scaffold.rules import default
from tests import projects
from tests.conftest import Make
from tests.projects import (
    Result,
    Server,
    catalog,
    checkpoints,
    edit,
    few_examples,
    metrics,
    render,
    same_run,
    small_options,
    train_ranks,
    until,
    values,
)
from tests.support import CORE, core_combinations, leave
from tests.xla.conftest import PYTHON

# torch_xla takes seconds to import; what has not asked it for a device can be forked
IMPORTS = """
import os
os.environ |= {"PJRT_DEVICE": "CPU", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
import numpy, pandas, sklearn.datasets, PIL.Image, torch, torch.utils.data, tqdm
import torch_xla, torch_xla.core.xla_model, torch_xla.distributed.spmd, torch_xla.distributed.xla_backend
"""
TPU = [answers for answers in core_combinations(catalog()) if answers.hardware == "tpu"]
TASKS = sorted({answers.task for answers in TPU})
FEW = 20  # examples of either set: no multiple of the batch
SHORT = ["--batch-size", 8, "--warmup-steps", 2, "--checkpoint-every", 2]

# After each step: programs compiled, syncs, and values read from the device.
COUNTS = """
import json, torch_xla, torch_xla.debug.metrics, tqdm

sync, update, syncs = torch_xla.sync, tqdm.tqdm.update, []
torch_xla.sync = lambda *given, **named: syncs.append(sync(*given, **named))

def count(bar, number=1):
    update(bar, number)
    compiled = torch_xla.debug.metrics.metric_data("CompileTime")[0]
    read = torch_xla.debug.metrics.counter_value("aten::_local_scalar_dense") or 0
    with open("counts.jsonl", "a") as file:
        file.write(json.dumps([compiled, len(syncs), read]) + "\\n")

tqdm.tqdm.update = count
"""


@cache
def xla() -> Server:
    return Server(str(PYTHON), IMPORTS)


def train_xla(
    project: Path,
    output_dir: Path,
    *options: object,
    devices: int = 1,
    examples: int = FEW,
    first: str = "",
    check: bool = True,
) -> Result:
    words = [*SHORT, "--output-dir", output_dir, *options]
    if "torch_xla" in (project / "train.py").read_text():
        words = ["--device", "cpu", *words]
    first = few_examples(examples) + first
    xla().start(project, *words, env=environment(devices), first=first)
    (result,) = xla().wait(300)
    assert not check or result.code == 0, result.err
    return result


def environment(devices: int) -> dict[str, str]:
    """That many devices; the store where processes meet has a port of its own."""
    return {"CPU_NUM_DEVICES": str(devices), "MASTER_PORT": str(20000 + os.getpid() % 9000)}


def chosen(task: str, **given: Any) -> dict[str, Any]:
    """Answers with what the task has by default, in 32-bit floats."""
    features = default("with", {"task": task}, catalog())
    return {"task": task, "hardware": "tpu", "precision": "fp32", "features": features, **given}


def narrow(project: Path) -> Path:
    """Convolutions take XLA long to compile for processors; it is the same program with few channels."""
    edit(project / "model.py", "widths = (32, 64, 128)", "widths = (8, 16)")
    return project


def small(make: Make, *folder: Path, **given: Any) -> Path:
    """A project that is quickly compiled; `make` is the fixture, or `render` with its folder."""
    if folder:
        project = render(*folder, **given)
        return narrow(project) if given["task"] == "image-classification" else project
    return make(*[narrow] if given["task"] == "image-classification" else [], **given)


def devices_of(answers: Answers) -> int:
    return 2 if answers.distributed == "spmd" else 1


def label(answers: Answers) -> str:
    return "-".join(answers.to_dict()[key] for key in CORE)


def options_of(task: str) -> list[str]:
    return [*small_options(task), "--log-every", "1"]


@pytest.mark.parametrize("answers", TPU, ids=label)
def test_trains_and_resumes(made: Make, tmp_path: Path, answers: Answers) -> None:
    """To the same bits; what 16-bit floats and two devices do is near to one device in 32 bits."""
    project = small(
        made, **chosen(answers.task, precision=answers.precision, distributed=answers.distributed)
    )
    options, devices = options_of(answers.task), devices_of(answers)
    train_xla(project, tmp_path / "whole", *options, "--max-steps", 6, devices=devices)
    train_xla(project, tmp_path / "parts", *options, "--max-steps", 3, devices=devices)
    train_xla(project, tmp_path / "parts", *options, "--max-steps", 6, "--resume", devices=devices)
    assert same_run(tmp_path / "whole", tmp_path / "parts")
    assert sorted(values(tmp_path / "whole", "train/loss")) == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(value) for row in metrics(tmp_path / "whole") for value in row.values())
    result = {"answers": answers.to_dict(), "ran": "trained-xla-cpu", "processes": 1, "devices": devices}
    leave(f"xla-{label(answers)}", **result, steps=6, resumed_at=3, torch=xla_version())


@cache
def xla_version() -> str:
    version = projects.run(PYTHON.parent, [str(PYTHON), "-c", "import torch; print(torch.__version__)"]).out
    return version.split("+")[0].strip()


@pytest.mark.parametrize("task", TASKS)
def test_as_on_processors(made: Make, tmp_path: Path, task: str) -> None:
    """The losses, and what is said of a set that is no whole batches, of the project without XLA."""
    options = [*options_of(task), "--max-steps", 20, "--epochs", 100]
    train_xla(small(made, **chosen(task)), tmp_path / "xla", *options)
    train_xla(small(made, **chosen(task, hardware="cpu")), tmp_path / "cpu", *options)
    compare(tmp_path / "xla", tmp_path / "cpu", 1e-4)


def compare(one: Path, other: Path, tolerance: float) -> None:
    """Every metric of every step."""
    rows = [metrics(place) for place in (one, other)]
    assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
    assert len(rows[0]) == 20 and any(name.startswith("val/") for row in rows[0] for name in row)
    for left, right in zip(*rows, strict=True):
        assert left == pytest.approx(right, rel=tolerance, abs=1e-6)


def test_as_on_processors_control(tmp_path: Path) -> None:
    """An evaluation that counts what only fills up its last batch is seen."""
    project = render(tmp_path / "demo", **chosen("tabular"))
    edit(project / "train.py", "draws < len(loader.dataset)", "draws >= 0")
    options = [*options_of("tabular"), "--max-steps", 20]
    train_xla(project, tmp_path / "xla", *options)
    train_xla(render(tmp_path / "cpu", **chosen("tabular", hardware="cpu")), tmp_path / "out", *options)
    with pytest.raises(AssertionError):
        compare(tmp_path / "xla", tmp_path / "out", 1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_25_two_devices_do_what_one_does(made: Make, tmp_path: Path, task: str) -> None:
    project = small(made, **chosen(task, distributed="spmd"))
    options = [*options_of(task), "--max-steps", 20, "--epochs", 100]
    for devices in (1, 2):
        train_xla(project, tmp_path / str(devices), *options, devices=devices)
    compare(tmp_path / "1", tmp_path / "2", 1e-5)


def every_feature(task: str) -> tuple[str, ...]:
    """What meets in a step, as far as the task has it."""
    found: tuple[str, ...] = ()
    for name in ("grad-accum", "grad-clip", "ema", "early-stopping"):
        if projects.is_offered(**chosen(task, features=(*found, name))):
            found = (*found, name)
    return found


def counts(project: Path, tmp_path: Path, *options: object, devices: int = 1) -> list[list[int]]:
    """Of each step: programs compiled so far, syncs and reads since the step before."""
    (project / "counts.jsonl").unlink(missing_ok=True)
    patience = ["--patience", 100] if "--patience" in (project / "train.py").read_text() else []
    options = (*options, *patience, "--max-steps", 24, "--epochs", 100)
    train_xla(project, tmp_path / "out", *options, devices=devices, first=COUNTS)
    rows = [json.loads(line) for line in (project / "counts.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    return [
        [now[0], now[1] - before[1], now[2] - before[2]]
        for before, now in zip([[0, 0, 0], *rows], rows, strict=False)
    ]


@pytest.mark.parametrize("distributed", ["none", "spmd"])
@pytest.mark.parametrize("task", TASKS)
def test_25_compiles_once(tmp_path: Path, task: str, distributed: str) -> None:
    """Evaluations and checkpoints are among the first five steps, and no later one compiles anything."""
    features = () if distributed == "none" else every_feature(task)
    project = small(render, tmp_path / "demo", **chosen(task, distributed=distributed, features=features))
    devices = 2 if distributed == "spmd" else 1
    rows = counts(project, tmp_path, *small_options(task), devices=devices)
    compiled = [row[0] for row in rows]
    assert compiled[4] > 0 and set(compiled[5:]) == {compiled[5]}
    assert any(name.startswith("val/") for row in metrics(tmp_path / "out")[:4] for name in row)


SHRINKING = """def shrinking(train_set, order):
    for number, draws in enumerate(order):
        yield train_set[draws[number % 7 :]]


def main"""


def test_25_control_compiles_again(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **chosen("tabular"))
    edit(project / "train.py", "map(train_set.__getitem__, order)", "shrinking(train_set, order)")
    edit(project / "train.py", "def main", SHRINKING)
    compiled = [row[0] for row in counts(project, tmp_path)]
    assert compiled[-1] > compiled[5]


@pytest.mark.parametrize("task", TASKS)
def test_23_one_sync_a_step_and_no_waiting(tmp_path: Path, task: str) -> None:
    """Each step is handed over once; values are read where they are logged, judged or saved."""
    project = small(render, tmp_path / "demo", **chosen(task, features=()))
    options = [*small_options(task), "--batch-size", 2, "--checkpoint-every", 100]  # an epoch is 10 steps
    rows = counts(project, tmp_path, *options)
    between = rows[13:19]  # steps 14 to 19
    assert [row[1:] for row in between] == [[1, 0]] * 6


def test_23_control_waiting(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **chosen("tabular"))
    edit(project / "train.py", "        step += 1\n", "        step += 1\n        loss.item()\n")
    rows = counts(project, tmp_path, "--batch-size", 2, "--checkpoint-every", 100)
    assert all(row[2] for row in rows[13:19])


@pytest.mark.parametrize("task", TASKS)
def test_25_goes_on_without_xla(made: Make, tmp_path: Path, task: str) -> None:
    """A checkpoint is plain tensors: the project for processors, and another PyTorch, goes on from it."""
    given = chosen(task, distributed="spmd")
    train_xla(small(made, **given), tmp_path / "out", *options_of(task), "--max-steps", 4, devices=2)
    project = small(made, **given | {"hardware": "cpu", "distributed": "none"})
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    options = [*options_of(task), "--max-steps", 8, "--resume"]
    train_xla(small(made, **given), tmp_path / "out", *options, devices=2)
    options = [*SHORT, *options, "--output-dir", tmp_path / "copy"]
    train_ranks(project, *options, ranks=0, first=few_examples(FEW))
    losses = [list(values(tmp_path / name, "train/loss").values()) for name in ("out", "copy")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("distributed", ["none", "spmd"])
def test_sigterm_and_sigkill(made: Make, tmp_path: Path, distributed: str) -> None:
    """143 with a checkpoint, and a run that was killed goes on to the same bits."""
    project, out = small(made, **chosen("tabular", distributed=distributed)), tmp_path / "out"
    words = ["--device", "cpu", *SHORT, "--log-every", 1, "--epochs", 400, "--output-dir", out, "--resume"]
    devices = 2 if distributed == "spmd" else 1
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        [pid] = xla().start(project, *words, env=environment(devices))
        seen = len(metrics(out)) if (out / "metrics.jsonl").exists() else 0
        until(lambda seen=seen: (out / "metrics.jsonl").exists() and len(metrics(out)) > seen + 10)
        os.kill(pid, number)
        (result,) = xla().wait(60)
        assert result.code == code, result.err
        step = metrics(out)[-1]["step"]
        if code == 143:
            assert checkpoints(out)[-1].name == f"step-{step:08.0f}.pt"
    last = int(checkpoints(out)[-1].stem[5:]) + 4
    more = ["--log-every", 1, "--epochs", 400, "--max-steps", last]
    xla().start(project, *words, "--max-steps", last, env=environment(devices))
    assert xla().wait(60)[0].code == 0
    whole = ["--device", "cpu", *SHORT, *more, "--output-dir", tmp_path / "whole"]
    xla().start(project, *whole, env=environment(devices))
    assert xla().wait(60)[0].code == 0
    assert same_run(out, tmp_path / "whole")


def test_what_cannot_be_is_said_in_one_line(made: Make, tmp_path: Path) -> None:
    project = small(made, **chosen("tabular", distributed="spmd"))
    result = train_xla(project, tmp_path / "odd", "--batch-size", 7, devices=2, check=False)
    assert (result.code, result.message) == (1, "--batch-size must be a multiple of 2, the devices of a host")
    result = train_xla(project, tmp_path / "tpu", "--device", "tpu", check=False)
    assert result.code == 1 and "--device cpu" in result.message and "Traceback" not in result.err


def test_compiled_programs_are_kept(made: Make, tmp_path: Path) -> None:
    """XLA's client for processors writes them, and does not read them back yet."""
    kept = f"import os\nos.environ['XLA_PERSISTENT_CACHE_PATH'] = {str(tmp_path / 'kept')!r}\n"
    train_xla(small(made, **chosen("tabular")), tmp_path / "out", "--max-steps", 2, first=kept)
    assert any((tmp_path / "kept").iterdir())


def test_the_projects_own_tests_pass(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **chosen("tabular", distributed="spmd"))
    command = [str(PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    projects.run(project, command, timeout=300, env=environment(2) | {"PJRT_DEVICE": "CPU"})


def test_25_no_warnings(made: Make, tmp_path: Path) -> None:
    """No line of a project is deprecated by torch_xla."""
    strict = "import warnings\nfor kind in (FutureWarning, DeprecationWarning):\n    "
    strict += "warnings.filterwarnings('error', '', kind, '__main__|data|model|checkpoint|record')\n"
    project = small(made, **chosen("tabular", distributed="spmd", features=every_feature("tabular")))
    train_xla(project, tmp_path / "out", "--max-steps", 4, devices=2, first=strict)
