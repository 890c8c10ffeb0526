"""What a generated project promises of a run, on real processes; each promise also broken on purpose."""

from __future__ import annotations

import itertools
import json
import math
import os
import pty
import random
import signal
import subprocess
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import projects
from tests.projects import (
    Result,
    checkpoints,
    drive,
    edit,
    load,
    metrics,
    render,
    same_bits,
    same_run,
    server,
    train,
    train_ranks,
    until,
    values,
)

TASKS = ["image-classification", "tabular"]
NUM_TRAIN = {"image-classification": 1437, "tabular": 455}
SHORT = ["--batch-size", 16, "--epochs", 3, "--max-steps", 40, "--log-every", 4, "--checkpoint-every", 7]


def with_dropout(project: Path) -> Path:
    """Randomness in the model, so that a resumed run has to repeat that too."""
    if (text := (project / "model.py").read_text()).count("nn.GELU(),"):
        (project / "model.py").write_text(
            text.replace("nn.GELU(),", "nn.GELU(),\n            nn.Dropout(0.1),")
        )
    else:
        edit(
            project / "model.py",
            "self.head(x.mean(dim=(2, 3)))",
            "self.head(F.dropout(x.mean(dim=(2, 3)), 0.1))",
        )
    return project


PARTIAL = '    partial = directory / "checkpoint.partial"\n'
BEST_FIRST = "    if best:  # first"


def suicidal(project: Path) -> Path:
    """The process kills itself where KILL says: a place and the optimizer step it is at."""
    train_py, checkpoint_py = project / "train.py", project / "checkpoint.py"
    edit(
        train_py, "        optimizer.step()\n", '        kill_at("before", step)\n        optimizer.step()\n'
    )
    edit(train_py, "        step += 1\n", '        step += 1\n        kill_at("after", step)\n')
    edit(
        train_py,
        "        check_finite(metrics",
        '        kill_at("evaluated", step)\n        check_finite(metrics',
    )
    edit(train_py, "        counters = {", '        kill_at("logged", step)\n        counters = {')
    edit(train_py, "PROJECT = ", "import signal\nfrom checkpoint import kill_at\n\nPROJECT = ")
    edit(checkpoint_py, BEST_FIRST, "    saving['step'] = counters['step']\n" + BEST_FIRST)
    edit(
        checkpoint_py,
        "    partial.replace(path)\n",
        "    saving_at('saved', path)\n    partial.replace(path)\n    saving_at('renamed', path)\n",
    )
    helper = """

def kill_at(place, step):
    if os.environ.get("KILL") == f"{place} {step}" and os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), 9)


saving = {}


def saving_at(place, path):
    kill_at("best " * (path.name == "best.pt") + place, saving["step"])
"""
    checkpoint_py.write_text(checkpoint_py.read_text() + helper)
    return project


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A project for some answers, rendered once a module: no test may change it."""
    known: dict[str, Path] = {}

    def make(*changes: Callable[[Path], Path], **given: object) -> Path:
        key = repr(([change.__name__ for change in changes], sorted(given.items())))
        if key not in known:
            project = render(tmp_path_factory.mktemp("made") / "demo", **given)
            for change in changes:
                change(project)
            known[key] = project
        return known[key]

    return make


@pytest.fixture(scope="module")
def whole(made: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The output directory of a run that nothing interrupted, made once a module."""
    known: dict[str, Path] = {}

    def run_whole(project: Path, *options: object, ranks: int = 0) -> Path:
        key = repr((project, options, ranks))
        if key not in known:
            known[key] = tmp_path_factory.mktemp("whole") / "run"
            train_ranks(project, "--output-dir", known[key], *options, ranks=ranks)
        return known[key]

    return run_whole


# steps and the learning rate


def closed_form(step: int, peak: float, warmup: int, total: int) -> float:
    """The learning rate with which step number `step` (from 1) was made."""
    done = step - 1
    if done < warmup:
        return peak * (done + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (total - warmup)))


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
def test_max_steps_leaves_the_schedule_alone(
    made: Make, tmp_path: Path, task: str, features: tuple[str, ...], batch: int, accum: int
) -> None:
    total = math.ceil(3 * NUM_TRAIN[task] / (batch * accum))
    options = [*SCHEDULE, "--batch-size", batch, "--max-steps", 28, "--output-dir", tmp_path]
    train(made(task=task, features=features), *options)
    check_schedule(tmp_path, total, 28)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_schedule_over_ranks_and_resumes(made: Make, tmp_path: Path, task: str, distributed: str) -> None:
    project = made(task=task, distributed=distributed, features=("grad-accum",))
    options = [*SCHEDULE, "--batch-size", 4, "--grad-accum", 2, "--output-dir", tmp_path]
    train_ranks(project, *options, "--max-steps", 12)
    train_ranks(project, *options, "--max-steps", 28, "--resume")
    check_schedule(tmp_path, math.ceil(3 * NUM_TRAIN[task] / 16), 28)


def test_a_whole_run_ends_at_its_last_step(made: Make, tmp_path: Path) -> None:
    train(made(task="tabular"), *SCHEDULE, "--batch-size", 50, "--output-dir", tmp_path)
    total = math.ceil(3 * NUM_TRAIN["tabular"] / 50)
    assert load(checkpoints(tmp_path)[-1])["counters"]["step"] == total == 28
    assert sorted(values(tmp_path, "val/loss")) == [10, 19, 28]
    check_schedule(tmp_path, total, total)


def test_control_schedule(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "train.py", "args.warmup_steps, total_steps)", "args.warmup_steps, last_step)")
    train(project, *SCHEDULE, "--batch-size", 16, "--max-steps", 28, "--output-dir", tmp_path / "out")
    with pytest.raises(AssertionError):
        check_schedule(tmp_path / "out", math.ceil(3 * NUM_TRAIN["tabular"] / 16), 28)


# kill -9 and resume


def test_resume_without_anything_starts_fresh(made: Make, whole: Callable[..., Path], tmp_path: Path) -> None:
    project = made(task="tabular")
    train(project, *SHORT, "--output-dir", tmp_path / "out", "--resume")
    assert same_run(whole(project, *SHORT), tmp_path / "out")


MOMENTS = {
    "first step": "after 1",
    "mid-epoch": "before 18",
    "last step of an epoch": "after 29",
    "after an evaluation": "evaluated 29",
    "between log and save": "logged 35",
    "saving": "saved 21",
    "saving the best": "best saved 29",
    "between the best and the step": "best renamed 29",
    "after the rename": "renamed 28",
    "last step": "before 39",
    "last save": "saved 40",
}


def killed_and_resumed(project: Path, output_dir: Path, moment: str, workers: int, ranks: int = 0) -> None:
    options = [*SHORT, "--output-dir", output_dir, "--workers", workers, "--resume"]
    if ranks:
        server().start(project, *options, ranks=ranks, env={"KILL": moment})
        until(lambda: not Path(f"/proc/{server().pids[0]}/fd/1").exists())
        server().kill()
        server().wait()
    else:
        assert train(project, *options, env={"KILL": moment}, check=False).code == -signal.SIGKILL
    train_ranks(project, *options, ranks=ranks)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at(made: Make, whole: Callable[..., Path], tmp_path: Path, moment: str) -> None:
    project = made(with_dropout, suicidal, task="tabular")
    killed_and_resumed(project, tmp_path, MOMENTS[moment], workers=0)
    assert same_run(whole(project, *SHORT), tmp_path)
    best = [load(place / "checkpoints" / "best.pt") for place in (whole(project, *SHORT), tmp_path)]
    assert same_bits(*best)


@pytest.mark.parametrize("moment", ["mid-epoch", "last step of an epoch", "saving"])
def test_killed_with_workers(made: Make, whole: Callable[..., Path], tmp_path: Path, moment: str) -> None:
    """Pictures are augmented by the workers; the uninterrupted run has none."""
    project = made(with_dropout, suicidal)
    moment = MOMENTS[moment].replace("29", "30")
    killed_and_resumed(project, tmp_path, moment, workers=2)
    assert same_run(whole(project, *SHORT), tmp_path)


@pytest.mark.parametrize("moment", ["mid-epoch", "after an evaluation", "saving", "last save"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_ranks_killed(
    made: Make, whole: Callable[..., Path], tmp_path: Path, moment: str, workers: int, distributed: str
) -> None:
    project = made(with_dropout, suicidal, task="tabular", distributed=distributed)
    killed_and_resumed(project, tmp_path, MOMENTS[moment].replace("29", "15"), workers, ranks=2)
    assert same_run(whole(project, *SHORT, ranks=2), tmp_path)


RICH = {
    "hardware": "gpu",
    "precision": "fp16",
    "features": ("grad-accum", "grad-clip", "ema", "early-stopping"),
    "logger": ("tensorboard", "wandb"),
}


SLOW_IMAGES = [pytest.param("image-classification", marks=pytest.mark.heavy), "tabular"]


@pytest.mark.parametrize("task", SLOW_IMAGES)
def test_rich_project_killed(made: Make, whole: Callable[..., Path], tmp_path: Path, task: str) -> None:
    project = made(task=task, **RICH)
    options = [*SHORT, "--device", "cpu", "--grad-accum", 2, "--max-steps", 20]
    reference = whole(project, *options)
    server().start(project, *options, "--output-dir", tmp_path, "--resume")
    until(lambda: checkpoints(tmp_path))
    server().kill()
    server().wait()
    train(project, *options, "--output-dir", tmp_path, "--resume")
    assert same_run(reference, tmp_path)


def storm(project: Path, output_dir: Path, kills: int, seed: int, ranks: int, *options: object) -> None:
    """The same command over and over, killed at random moments, then left alone."""
    rng = random.Random(seed)
    command = [*options, "--output-dir", output_dir, "--resume"]
    for _ in range(kills):
        server().start(project, *command, "--workers", rng.choice([0, 2]), ranks=ranks)
        time.sleep(rng.uniform(0.2, 2.5))
        server().kill()
        server().wait()
    train_ranks(project, *command, ranks=ranks)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("distributed", ["none", "ddp", "fsdp"])
@pytest.mark.parametrize("task", TASKS)
def test_killed_at_random(
    made: Make, whole: Callable[..., Path], tmp_path: Path, task: str, distributed: str, seed: int
) -> None:
    project = made(with_dropout, task=task, distributed=distributed)
    ranks = 0 if distributed == "none" else 2
    options = ["--epochs", 4, "--checkpoint-every", 9, "--batch-size", 16 if ranks else 32]
    storm(project, tmp_path, 8, seed, ranks, *options)
    assert same_run(whole(project, *options, ranks=ranks), tmp_path)


def test_control_order_forgotten(tmp_path: Path) -> None:
    """Starting again at the first batch after a restart is seen."""
    project = suicidal(render(tmp_path / "demo", task="tabular"))
    train(project, *SHORT, "--output-dir", tmp_path / "whole")
    edit(project / "train.py", "args.batch_size, args.seed, step)", "args.batch_size, args.seed, 0)")
    killed_and_resumed(project, tmp_path / "parts", "before 18", workers=0)
    assert not same_run(tmp_path / "whole", tmp_path / "parts")


def test_control_dropout_not_seeded_by_step(tmp_path: Path) -> None:
    project = suicidal(with_dropout(render(tmp_path / "demo", task="tabular")))
    train(project, *SHORT, "--output-dir", tmp_path / "whole")
    edit(
        project / "train.py", "manual_seed(hash((args.seed, step)))", "manual_seed(hash((args.seed, 'x')))", 1
    )
    killed_and_resumed(project, tmp_path / "parts", "before 18", workers=0)
    assert not same_run(tmp_path / "whole", tmp_path / "parts")


def test_control_metrics_not_cut(tmp_path: Path) -> None:
    project = suicidal(render(tmp_path / "demo", task="tabular"))
    train(project, *SHORT, "--output-dir", tmp_path / "whole")
    edit(project / "record.py", "    file.truncate(end)\n", "")
    killed_and_resumed(project, tmp_path / "parts", "before 18", workers=0)
    assert not same_run(tmp_path / "whole", tmp_path / "parts")


def test_control_save_in_place(tmp_path: Path) -> None:
    """Without the rename, a crash while saving leaves half a file under the real name."""
    project = suicidal(render(tmp_path / "demo", task="tabular"))
    in_place = "    partial = directory / f\"step-{counters['step']:08d}.pt\"\n"
    edit(project / "checkpoint.py", PARTIAL, in_place)
    edit(
        project / "checkpoint.py", "    sync(partial)\n", "    os.truncate(partial, 999)\n    sync(partial)\n"
    )
    options = [*SHORT, "--output-dir", tmp_path / "out"]
    train(project, *options, env={"KILL": "saved 21"}, check=False)
    assert "is damaged" in train(project, *options, "--resume", check=False).err


# SIGTERM


def stopped(project: Path, output_dir: Path, *options: object, group: bool = False) -> Result:
    """SIGTERM some way into the run, to the process alone or to its whole group as Slurm and timeout do."""
    [pid] = server().start(project, *options, "--output-dir", output_dir, "--resume")
    until(lambda: (output_dir / "metrics.jsonl").exists() and len(metrics(output_dir)) > 5)
    if group:
        os.killpg(pid, signal.SIGTERM)
    else:
        os.kill(pid, signal.SIGTERM)
    return server().wait(60)[0]


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", TASKS)
def test_sigterm(
    made: Make, whole: Callable[..., Path], tmp_path: Path, task: str, workers: int, group: bool
) -> None:
    project = made(with_dropout, task=task)
    options = ["--epochs", 4, "--batch-size", 8, "--max-steps", 180]
    result = stopped(project, tmp_path, *options, "--workers", workers, group=group)
    assert (result.code, result.err) == (143, "")
    step = load(checkpoints(tmp_path)[-1])["counters"]["step"]
    assert 4 < step < 180, "the run was not stopped on its way"
    train(project, *options, "--output-dir", tmp_path, "--resume")
    assert same_run(whole(project, *options), tmp_path)


@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.01])
def test_sigterm_while_loaders_start(made: Make, tmp_path: Path, delay: float) -> None:
    """Each evaluation starts loaders; a signal to the group finds them at any moment of their birth."""
    project = made(task="tabular")
    options = ["--epochs", 3000, "--batch-size", 240, "--workers", 2, "--output-dir", tmp_path]
    [pid] = server().start(project, *options)
    until(lambda: (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) > 5)
    children = Path(f"/proc/{pid}/task/{pid}/children")
    known = set(children.read_text().split())
    until(lambda: set(children.read_text().split()) - known, every=0)
    time.sleep(delay)
    os.killpg(pid, signal.SIGTERM)
    [result] = server().wait(60)
    assert (result.code, result.err) == (143, "")
    last = metrics(tmp_path)[-1]["step"]
    assert load(checkpoints(tmp_path)[-1])["counters"]["step"] in (last, last + 1)


def test_control_loaders_in_the_group(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "train.py", "os.register_at_fork(after_in_child=os.setpgrp)", "pass")
    options = ["--epochs", 4, "--batch-size", 8, "--max-steps", 180, "--workers", 2]
    results = (stopped(project, tmp_path / str(strike), *options, group=True) for strike in range(5))
    assert any((result.code, result.err) != (143, "") for result in results)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_sigterm_to_one_rank(
    made: Make, whole: Callable[..., Path], tmp_path: Path, victim: int, distributed: str
) -> None:
    project = made(with_dropout, task="tabular", distributed=distributed)
    options = ["--epochs", 20, "--batch-size", 8, "--max-steps", 500]
    pids = server().start(project, *options, "--output-dir", tmp_path, ranks=2)
    until(lambda: (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) > 5)
    os.kill(pids[victim], signal.SIGTERM)
    assert [(result.code, result.err) for result in server().wait(60)] == [(143, ""), (143, "")]
    assert load(checkpoints(tmp_path)[-1])["counters"]["step"] < 500
    train_ranks(project, *options, "--output-dir", tmp_path, "--resume")
    assert same_run(whole(project, *options, ranks=2), tmp_path)


@pytest.mark.parametrize(
    ("task", "workers"),
    [
        pytest.param("tabular", 0, marks=pytest.mark.heavy),
        ("tabular", 2),
        pytest.param("image-classification", 0, marks=pytest.mark.heavy),
        pytest.param("image-classification", 2, marks=pytest.mark.heavy),
    ],
)
def test_sigterm_to_torchrun(
    made: Make, whole: Callable[..., Path], tmp_path: Path, task: str, workers: int
) -> None:
    """torchrun passes it on to its workers' groups, and exits 1 whatever they return."""
    project = made(with_dropout, task=task, distributed="ddp")
    options = ["--epochs", 20, "--batch-size", 4, "--max-steps", 400]
    arguments = [*options, "--output-dir", tmp_path, "--workers", workers, "--resume"]
    with projects.started(project, projects.torchrun("train.py", *arguments)) as launcher:
        until(lambda: (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) > 5)
        children = projects.descendants(launcher.pid)
        launcher.terminate()
        _, err = launcher.communicate(timeout=60)
        assert launcher.returncode != 0
        assert 'train.py", line' not in err, err
        until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), timeout=20)
    assert load(checkpoints(tmp_path)[-1])["counters"]["step"] < 400
    projects.run(project, projects.torchrun("train.py", *arguments))
    assert same_run(whole(project, *options, ranks=2), tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_run_ends_its_loaders(tmp_path: Path, workers: int) -> None:
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


def test_control_sigterm(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "train.py", "        stopping = stop.is_set()\n", "        stopping = False\n")
    options = ["--epochs", 4, "--batch-size", 8, "--max-steps", 180]
    assert stopped(project, tmp_path / "out", *options).code == 0


def test_control_sigterm_not_agreed(tmp_path: Path) -> None:
    """If each rank decided for itself, the one that is left would wait in vain (and is killed here)."""
    project = render(tmp_path / "demo", task="tabular", distributed="ddp")
    old = "mean_over_ranks(torch.tensor(float(stop.is_set()))) > 0"
    edit(project / "train.py", old, "stop.is_set()")
    pids = server().start(project, "--epochs", 200, "--output-dir", tmp_path / "out", ranks=2)
    until(lambda: (tmp_path / "out" / "metrics.jsonl").exists() and len(metrics(tmp_path / "out")) > 5)
    os.kill(pids[1], signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pids[1]}/fd/1").exists() or time.sleep(3) or True)
    server().kill()
    assert [result.code for result in server().wait()] != [143, 143]


# damaged checkpoints


def flip_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for number in range(1, 6):
        content[len(content) * number // 6] ^= 1
    path.write_bytes(content)


def shard(path: Path) -> Path:
    """The file to spoil: the checkpoint, or the last of its shards."""
    return max(path.glob("*.distcp")) if path.is_dir() else path


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "zero bytes": lambda path: os.truncate(path, 0),
    "zeros at the end": lambda path: path.write_bytes(path.read_bytes()[:-999] + bytes(999)),
    "flipped bits": flip_bits,
    "not a checkpoint": lambda path: path.write_text("hello"),
}


def damaged(project: Path, output_dir: Path, damage: str, ranks: int = 0) -> Result:
    """Stop at step 30, spoil the newest checkpoint, go on to step 40."""
    options = [*SHORT, "--output-dir", output_dir, "--resume"]
    train_ranks(project, *options, "--max-steps", 30, ranks=ranks)
    *older, newest = checkpoints(output_dir)
    assert older and newest.stem == "step-00000030"
    DAMAGES[damage](shard(newest))
    return train_ranks(project, *options, ranks=ranks)[0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint(made: Make, whole: Callable[..., Path], tmp_path: Path, damage: str) -> None:
    project = made(task="tabular")
    result = damaged(project, tmp_path, damage)
    assert "step-00000030.pt is damaged" in result.err
    assert same_run(whole(project, *SHORT), tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped bits"])
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_damaged_checkpoint_of_ranks(
    made: Make, whole: Callable[..., Path], tmp_path: Path, damage: str, distributed: str
) -> None:
    project = made(distributed=distributed)
    assert "step-00000030" in damaged(project, tmp_path, damage, ranks=2).err
    assert same_run(whole(project, *SHORT, ranks=2), tmp_path)


def test_all_damaged(made: Make, tmp_path: Path) -> None:
    """A run is not started over silently: one line, and everything is left as it is."""
    project = made(task="tabular")
    train(project, *SHORT, "--max-steps", 30, "--output-dir", tmp_path)
    for path in checkpoints(tmp_path):
        os.truncate(path, 1000)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = train(project, *SHORT, "--output-dir", tmp_path, "--resume", check=False)
    assert result.code == 1
    assert "Traceback" not in result.err
    assert str(tmp_path) in result.message and "--output-dir" in result.message
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


ANY_BIT = """
import random, shutil, sys
from pathlib import Path
import torch
from checkpoint import newest_checkpoint
sys.path.insert(0, sys.argv[2])
from tests.projects import same_bits
older, newer = sorted(Path(sys.argv[1]).glob("step-*.pt"))
content, rng = newer.read_bytes(), random.Random(0)
state = torch.load(newer, weights_only=True)
# most of the file is tensors, which checksums guard: try the rest, where the archive describes itself
edges = [k for k in range(len(content)) if k < 2000 or k > len(content) - 5000]
for _ in range(1500):
    changed = bytearray(content)
    changed[rng.choice(edges)] ^= 1 << rng.randrange(8)
    newer.write_bytes(changed)
    if newest_checkpoint(newer.parent) == newer:
        assert same_bits(torch.load(newer, weights_only=True), state), "other values, unnoticed"
"""


def test_any_flipped_bit(made: Make, tmp_path: Path) -> None:
    """Whichever bit flips: the file is passed over, or what it holds is what was saved."""
    project = made(task="tabular")
    train(project, *SHORT, "--output-dir", tmp_path)
    result = projects.run(
        project,
        projects.python(
            "-W", "ignore", "-c", ANY_BIT, tmp_path / "checkpoints", Path(__file__).parent.parent
        ),
        check=False,
    )
    assert result.code == 0, result.err


def test_control_damage_unnoticed(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    text = (project / "checkpoint.py").read_text()
    (project / "checkpoint.py").write_text(text + "\n\ndef is_intact(path: Path) -> bool:\n    return True\n")
    train(project, *SHORT, "--output-dir", tmp_path / "whole")
    with pytest.raises(AssertionError):
        damaged(project, tmp_path / "out", "truncated")
    with suppress(AssertionError):  # it may not even load
        damaged(project, tmp_path / "flipped", "flipped bits")
    assert not same_run(tmp_path / "whole", tmp_path / "flipped")


# which checkpoints there are


def check_kept(output_dir: Path, steps: list[int]) -> None:
    names = sorted(path.name for path in (output_dir / "checkpoints").iterdir())
    assert names == ["best.pt", *(f"step-{step:08d}.pt" for step in steps)]


def test_kept_checkpoints(made: Make, tmp_path: Path) -> None:
    """The best one is early (a huge learning rate ruins the rest) and stays."""
    options = ["--batch-size", 35, "--epochs", 8, "--checkpoint-every", 5, "--warmup-steps", 0]
    project = made(task="tabular")
    train(project, *options, "--max-steps", 26, "--output-dir", tmp_path)
    ruin = [*options, "--output-dir", tmp_path, "--resume", "--max-steps", 104]
    train(project, *ruin, "--lr", 5)
    check_kept(tmp_path, [100, 104])
    best = load(tmp_path / "checkpoints" / "best.pt")["counters"]
    scores = values(tmp_path, "val/accuracy")
    assert best["best"] == max(scores.values()) == scores[best["step"]]
    assert best["step"] < 100


def test_control_best_rotated(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    old = 'glob("step-*.pt") if other.name < path.name'
    edit(project / "checkpoint.py", old, 'glob("*.pt") if other.name != path.name')
    train(project, *SHORT, "--output-dir", tmp_path / "out")
    with pytest.raises(AssertionError):
        check_kept(tmp_path / "out", [35, 40])


# metrics.jsonl and run.json


def check_once(output_dir: Path) -> None:
    seen = Counter((row["step"], key) for row in metrics(output_dir) for key in row if key != "step")
    assert seen and set(seen.values()) == {1}
    steps = [row["step"] for row in metrics(output_dir)]
    assert steps == sorted(steps)


def torn(project: Path, output_dir: Path) -> None:
    """Stop at step 32, lose the newest checkpoint and half of the record's last line, go on."""
    options = [*SHORT, "--output-dir", output_dir]
    train(project, *options, "--max-steps", 32)
    checkpoints(output_dir)[-1].unlink()
    record = output_dir / "metrics.jsonl"
    os.truncate(record, record.stat().st_size - 9)
    train(project, *options, "--resume")


def test_record_holds_everything_once(made: Make, whole: Callable[..., Path], tmp_path: Path) -> None:
    project = made(task="tabular")
    torn(project, tmp_path)
    check_once(tmp_path)
    assert same_run(whole(project, *SHORT), tmp_path)


@pytest.mark.parametrize("tail", ['{"step": 29, "train/lo', "\0\0\0\0", "\0\0\n", '{"step": 29}\n{"st'])
def test_torn_last_line(made: Make, whole: Callable[..., Path], tmp_path: Path, tail: str) -> None:
    project = made(task="tabular")
    train(project, *SHORT, "--max-steps", 28, "--output-dir", tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as record:
        record.write(tail)
    train(project, *SHORT, "--output-dir", tmp_path, "--resume")
    assert same_run(whole(project, *SHORT), tmp_path)


def test_blank_lines_in_the_record(made: Make, tmp_path: Path) -> None:
    """A line that an editor left is no reason to lose what stands after it."""
    project = made(task="tabular")
    train(project, *SHORT, "--max-steps", 20, "--output-dir", tmp_path)
    record = tmp_path / "metrics.jsonl"
    first, rest = record.read_text().split("\n", 1)
    record.write_text(f"{first}\n\n{rest}")
    train(project, *SHORT, "--output-dir", tmp_path, "--resume")
    assert record.read_text().startswith(f"{first}\n\n{rest}")


def test_resume_with_other_options(made: Make, tmp_path: Path) -> None:
    """It goes on, but not in silence: the order of the data, or the schedule, is another from there."""
    project = made(task="tabular")
    options = ["--epochs", 2, "--output-dir", tmp_path, "--resume"]
    assert "another" not in train(project, *options, "--max-steps", 5).out
    assert "another" not in train(project, *options, "--max-steps", 8).out
    out = train(project, *options, "--batch-size", 16, "--seed", 7, "--max-steps", 10).out
    assert "resumed with another batch_size: 16, not 32" in out
    assert "resumed with another seed: 7, not 0" in out


@pytest.mark.parametrize("text", ['{"argum', "null", "{}"])
def test_resume_with_a_damaged_run_json(made: Make, tmp_path: Path, text: str) -> None:
    project = made(task="tabular")
    train(project, "--max-steps", 2, "--output-dir", tmp_path)
    (tmp_path / "run.json").write_text(text)
    train(project, "--max-steps", 3, "--output-dir", tmp_path, "--resume")
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 0


def test_control_torn(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "record.py", "    file.truncate(end)\n", "")
    with suppress(AssertionError):
        torn(project, tmp_path / "out")
    with pytest.raises((AssertionError, json.JSONDecodeError)):
        check_once(tmp_path / "out")


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("ranks", [0, 2])
def test_run_json(tmp_path: Path, ranks: int) -> None:
    project = render(tmp_path / "demo", distributed="ddp" if ranks else "none", task="tabular")
    options = ["--max-steps", 1, "--seed", 7]

    def ran(name: str, **env: str) -> dict[str, Any]:
        train_ranks(project, *options, "--output-dir", tmp_path / name, ranks=ranks, env=env)
        found: dict[str, Any] = json.loads((tmp_path / name / "run.json").read_text())
        return found

    outside = ran("outside", GIT_CEILING_DIRECTORIES=str(tmp_path))
    assert outside["git_commit"] is None
    assert outside["seed"] == outside["arguments"]["seed"] == 7
    assert outside["arguments"]["output_dir"] == str(tmp_path / "outside")
    assert outside["versions"]["torch"] == torch.__version__
    assert outside["device"] == "cpu"
    assert outside["world_size"] == (ranks or 1)
    git(project, "init", "-q")
    assert ran("empty")["git_commit"] is None
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    assert ran("inside")["git_commit"] == git(project, "rev-parse", "HEAD")
    assert ran("no-git", PATH=str(tmp_path))["git_commit"] is None


# the progress bar


def on_terminal(project: Path, *options: object, ranks: int = 0) -> str:
    """What is written to standard error when that is a terminal."""
    main, side = pty.openpty()
    termios.tcsetwinsize(main, (24, 100))
    seen: list[bytes] = []

    def read() -> None:
        with suppress(OSError):
            while text := os.read(main, 4096):
                seen.append(text)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    server().start(project, *options, ranks=ranks, err=os.ttyname(side))
    codes = [json.loads(server().line(60))]
    os.close(side)
    reader.join(10)
    os.close(main)
    assert codes == [[0] * (ranks or 1)]
    return b"".join(seen).decode()


def test_bar_on_a_terminal(made: Make, tmp_path: Path) -> None:
    text = on_terminal(made(task="tabular"), "--max-steps", 3, "--output-dir", tmp_path / "one")
    assert "3/3" in text
    quiet = train(made(task="tabular"), "--max-steps", 3, "--output-dir", tmp_path / "two")
    assert quiet.err == ""
    assert [line.split()[1] for line in quiet.out.splitlines()] == ["1", "2", "3"]


def count_bars(text: str) -> int:
    """Each bar is drawn at zero once."""
    return text.count("0/3 [")


def test_bar_of_the_first_rank_only(made: Make, tmp_path: Path) -> None:
    project = made(task="tabular", distributed="ddp")
    alone = on_terminal(project, "--max-steps", 3, "--output-dir", tmp_path / "one", ranks=1)
    both = on_terminal(project, "--max-steps", 3, "--output-dir", tmp_path / "two", ranks=2)
    assert count_bars(alone) == count_bars(both) == 1


def test_control_bar(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", distributed="ddp")
    edit(project / "train.py", "disable=rank != 0 or None", "disable=None")
    alone = on_terminal(project, "--max-steps", 3, "--output-dir", tmp_path / "one", ranks=1)
    both = on_terminal(project, "--max-steps", 3, "--output-dir", tmp_path / "two", ranks=2)
    assert (count_bars(alone), count_bars(both)) == (1, 2)


# gpu projects without a GPU


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_gpu_project_on_cpu(made: Make, tmp_path: Path, task: str, precision: str) -> None:
    project = made(task=task, hardware="gpu", precision=precision)
    train(project, "--device", "cpu", "--max-steps", 2, "--output-dir", tmp_path)
    assert sorted(values(tmp_path, "train/loss")) == [1, 2]


# early stopping


def stop_early(project: Path, output_dir: Path, *options: object, ranks: int = 0) -> None:
    """Nothing is learnt, so the first evaluation stays the best."""
    fixed = ["--lr", 0, "--patience", 2, "--batch-size", 65, "--output-dir", output_dir]
    train_ranks(project, *fixed, *options, ranks=ranks)


@pytest.mark.parametrize("ranks", [0, 2])
def test_early_stopping(made: Make, tmp_path: Path, ranks: int) -> None:
    project = made(task="tabular", features=("early-stopping",), distributed="ddp" if ranks else "none")
    stop_early(project, tmp_path, ranks=ranks)
    ends = [4, 7, 11] if ranks else [7, 14, 21]
    assert sorted(values(tmp_path, "val/loss")) == ends
    assert load(checkpoints(tmp_path)[-1])["counters"]["stale"] == 2
    kept = [*(tmp_path / "checkpoints").iterdir(), tmp_path / "metrics.jsonl"]
    before = {path: path.read_bytes() for path in kept}
    stop_early(project, tmp_path, "--resume", ranks=ranks)
    assert before == {path: path.read_bytes() for path in kept}


def test_early_stopping_survives_a_stop(made: Make, tmp_path: Path) -> None:
    project = made(task="tabular", features=("early-stopping",))
    stop_early(project, tmp_path / "whole")
    stop_early(project, tmp_path / "parts", "--max-steps", 15)
    stop_early(project, tmp_path / "parts", "--resume")
    assert same_run(tmp_path / "whole", tmp_path / "parts")


def test_control_early_stopping(tmp_path: Path) -> None:
    """A restart that forgets how long it has waited goes on for too long."""
    project = render(tmp_path / "demo", task="tabular", features=("early-stopping",))
    edit(project / "train.py", 'stale = saved.get("stale", 0)', "stale = 0")
    stop_early(project, tmp_path / "out", "--max-steps", 15)
    stop_early(project, tmp_path / "out", "--resume")
    assert sorted(values(tmp_path / "out", "val/loss")) != [7, 14, 21]


def test_finished_run_resumed(made: Make, whole: Callable[..., Path]) -> None:
    project = made(task="tabular")
    output_dir = whole(project, *SHORT)
    kept = [*(output_dir / "checkpoints").iterdir(), output_dir / "metrics.jsonl"]
    before = {path: path.read_bytes() for path in kept}
    assert train(project, *SHORT, "--output-dir", output_dir, "--resume").out == ""
    assert before == {path: path.read_bytes() for path in kept}


# fp16: steps that overflow

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
def test_skipped_steps(made: Make, tmp_path: Path, task: str) -> None:
    project = made(task=task, **FP16)
    overflowing(project, tmp_path / "whole", "--max-steps", 6)
    check_skipped(tmp_path / "whole", task, 6)
    overflowing(project, tmp_path / "parts", "--max-steps", 3)
    overflowing(project, tmp_path / "parts", "--max-steps", 6, "--resume")
    assert same_run(tmp_path / "whole", tmp_path / "parts")


def test_control_skipped(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", **FP16)
    edit(project / "train.py", "            continue\n", "            pass\n")
    overflowing(project, tmp_path / "out", "--max-steps", 30)
    with pytest.raises(AssertionError):
        check_skipped(tmp_path / "out", "tabular", 30)


# the moving average

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
def test_moving_average(made: Make, tmp_path: Path, task: str) -> None:
    drive(made(task=task, features=("ema",)), AVERAGE, *EMA_OPTIONS, "--output-dir", tmp_path)


def test_average_is_what_is_evaluated(made: Make, tmp_path: Path) -> None:
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


def test_control_average(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", features=("ema",))
    edit(project / "train.py", "lerp_(value, 1 - decay)", "lerp_(value, decay)")
    command = projects.python("-c", AVERAGE, *EMA_OPTIONS, "--output-dir", tmp_path / "out")
    assert projects.run(project, command, check=False).code == 1


# which examples a step sees


def with_spy(project: Path) -> Path:
    """compute_loss notes a hash of every example it is given, a line a call, a file a rank."""
    signature = "(model: nn.Module, batch: list[torch.Tensor], device: torch.device) -> torch.Tensor:\n"
    edit(project / "train.py", signature, signature + "    spy.note(batch)\n")
    edit(project / "train.py", "PROJECT = ", "import spy\n\nPROJECT = ")
    (project / "spy.py").write_text(
        "import hashlib, json, os\n\n"
        "def note(batch):\n"
        "    rows = [b''.join(t.contiguous().numpy().tobytes() for t in row) for row in zip(*batch)]\n"
        "    with open(os.environ['SPY'] + os.environ.get('RANK', '0'), 'a') as file:\n"
        "        file.write(json.dumps([hashlib.md5(row).hexdigest() for row in rows]) + '\\n')\n"
    )
    return project


def joined(lists: Iterable[list[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(lists))


def examples(
    project: Path, folder: Path, *options: object, ranks: int = 0, accum: int = 1
) -> list[list[str]]:
    """The examples of each optimizer step, sorted."""
    folder.mkdir()
    fixed = ["--output-dir", folder / "out", *options]
    train_ranks(project, *fixed, ranks=ranks, env={"SPY": f"{folder}/seen"})
    files = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("seen*"))
    ]
    assert len(files) == (ranks or 1)
    calls = [[row for file in files for row in file[number]] for number in range(len(files[0]))]
    return [sorted(joined(calls[i : i + accum])) for i in range(0, len(calls), accum)]


@pytest.mark.parametrize("task", TASKS)
def test_examples_of_a_step(made: Make, tmp_path: Path, task: str) -> None:
    """Ranks, workers and accumulation change nothing about which (augmented) examples make up a step."""
    plain = made(with_spy, task=task)
    accumulating = made(with_spy, task=task, features=("grad-accum",))
    distributed = made(with_spy, task=task, distributed="ddp")
    both = made(with_spy, task=task, distributed="ddp", features=("grad-accum",))
    steps = ["--max-steps", 33, "--epochs", 2, "--batch-size"]
    expected = examples(plain, tmp_path / "a", *steps, 20)
    assert len(expected) == 33 and {len(step) for step in expected} == {20}
    assert expected == examples(plain, tmp_path / "b", *steps, 20, "--workers", 2)
    assert expected == examples(accumulating, tmp_path / "c", *steps, 5, "--grad-accum", 4, accum=4)
    assert expected == examples(distributed, tmp_path / "d", *steps, 10, ranks=2)
    assert expected == examples(
        both, tmp_path / "e", *steps, 5, "--grad-accum", 2, "--workers", 2, ranks=2, accum=2
    )
    assert expected != examples(plain, tmp_path / "f", *steps, 20, "--seed", 1)


def test_control_examples(tmp_path: Path) -> None:
    """Every rank reading the same is seen."""
    plain = with_spy(render(tmp_path / "plain", task="tabular"))
    project = with_spy(render(tmp_path / "ddp", task="tabular", distributed="ddp"))
    edit(project / "data.py", "draws[rank:width:world_size]", "draws[: width // world_size]")
    steps = ["--max-steps", 4, "--batch-size"]
    expected = examples(plain, tmp_path / "a", *steps, 20)
    assert expected != examples(project, tmp_path / "b", *steps, 10, ranks=2)


def test_control_augmentation(tmp_path: Path) -> None:
    """Augmentation from the process' own generator depends on the workers."""
    project = with_spy(render(tmp_path / "demo"))
    edit(
        project / "data.py",
        "np.random.default_rng([self.seed, draw])",
        "np.random.default_rng(torch.initial_seed())",
    )
    steps = ["--max-steps", 4, "--batch-size", 20]
    assert examples(project, tmp_path / "a", *steps) != examples(
        project, tmp_path / "b", *steps, "--workers", 2
    )


def test_each_epoch_covers_the_set_once(made: Make, tmp_path: Path) -> None:
    """455 rows, all different: 13 steps of 35, over again in another order; steps of 36 go over the edge."""
    project = made(with_spy, task="tabular")
    even = examples(project, tmp_path / "even", "--epochs", 2, "--batch-size", 35)
    assert [len(set(joined(steps))) for steps in (even[:13], even[13:])] == [455, 455]
    assert even[0] != even[13]
    uneven = joined(examples(project, tmp_path / "uneven", "--epochs", 2, "--batch-size", 36))
    assert len(set(uneven[: 12 * 36])) == 12 * 36
    assert len(uneven) == 26 * 36
    assert set(Counter(uneven).values()) == {2, 3}


@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_each_epoch_over_ranks_covers_the_set_once(made: Make, tmp_path: Path, distributed: str) -> None:
    project = made(with_spy, task="tabular", distributed=distributed)
    seen = joined(examples(project, tmp_path / "run", "--epochs", 2, "--batch-size", 35, ranks=2))
    assert len(seen) == 910
    assert Counter(seen) == dict.fromkeys(seen, 2)


def test_control_epochs(tmp_path: Path) -> None:
    """Drawing with replacement is seen."""
    project = with_spy(render(tmp_path / "demo", task="tabular"))
    edit(project / "data.py", ".permutation(num_examples)", ".integers(0, num_examples, num_examples)")
    seen = joined(examples(project, tmp_path / "run", "--epochs", 1, "--batch-size", 35))
    assert len(set(seen)) < 455


def test_augmentation_differs_between_epochs(made: Make, tmp_path: Path) -> None:
    steps = examples(made(with_spy), tmp_path / "a", "--epochs", 2, "--batch-size", 479)
    first, second = Counter(joined(steps[:3])), Counter(joined(steps[3:6]))
    assert first.total() == second.total() == 1437
    assert 0 < (first & second).total() < 1437 * 0.4  # 3 x 3 shifts: about a ninth comes out alike


# evaluation and ranks


@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_evaluation_counts_every_example_once(tmp_path: Path, distributed: str) -> None:
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


@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_two_ranks_train_as_one(made: Make, tmp_path: Path, distributed: str) -> None:
    train(made(task="tabular"), "--batch-size", 32, "--max-steps", 30, "--output-dir", tmp_path / "one")
    project = made(task="tabular", distributed=distributed)
    train_ranks(project, "--batch-size", 16, "--max-steps", 30, "--output-dir", tmp_path / "two")
    one, two = (load(checkpoints(tmp_path / name)[-1])["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5)
    losses = [values(tmp_path / name, "train/loss") for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


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
def test_nan_on_one_rank(tmp_path: Path, distributed: str) -> None:
    results = nan_on_one_rank(
        render(tmp_path / "demo", task="tabular", distributed=distributed), tmp_path / "out"
    )
    for result in results:
        assert result.code == 1
        assert "Traceback" not in result.err
        assert "finite" in result.message or "nan" in result.message
    assert all(projects.all_finite(path) for path in checkpoints(tmp_path / "out"))


@pytest.mark.heavy
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_ranks_always_end(made: Make, tmp_path: Path, distributed: str) -> None:
    """Gloo's threads can lock up with the interpreter's end: many short runs, none of which may hang."""
    project = made(task="tabular", distributed=distributed)
    for number in range(60):
        train_ranks(project, "--max-steps", 2, "--output-dir", tmp_path / str(number), timeout=30)


# the launch lines of the README


@pytest.mark.parametrize(
    ("task", "distributed"),
    [
        ("tabular", "none"),
        pytest.param("image-classification", "none", marks=pytest.mark.heavy),
        ("tabular", "ddp"),
        pytest.param("image-classification", "ddp", marks=pytest.mark.heavy),
        ("tabular", "fsdp"),
        pytest.param("image-classification", "fsdp", marks=pytest.mark.heavy),
    ],
)
def test_as_the_readme_says(
    made: Make, whole: Callable[..., Path], tmp_path: Path, task: str, distributed: str
) -> None:
    """Python and torchrun themselves do what the forked processes of these tests do."""
    project = made(task=task, distributed=distributed)
    words = ["train.py", *SHORT, "--output-dir", tmp_path]
    alone = distributed == "none"
    projects.run(project, projects.python(*words) if alone else projects.torchrun(*words))
    assert same_run(whole(project, *SHORT, ranks=0 if alone else 2), tmp_path)
    assert same_bits(*(load(checkpoints(tmp_path)[-1]) for _ in range(2)))
