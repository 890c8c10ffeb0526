"""Asynchronous saves (20): training goes on meanwhile, and a folder has its name only when it is durable."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guarantees.harness import bad_ends
from tests.projects import checkpoints, edit, load, metrics, render, same_run, server, train_ranks, until

OPTIONS = ["--epochs", 30, "--batch-size", 8, "--log-every", 1, "--checkpoint-every", 7]
FSDP = {"task": "tabular", "distributed": "fsdp"}
WRITTEN = "    try:\n        shards.result()\n"
SLOW = "    import time\n\n    time.sleep(2)\n" + WRITTEN
NAMED_TOO_EARLY = """    early = partial.parent / f"step-{counters['step']:08d}"
    if dist.get_rank() == 0:
        early.mkdir()
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A run of so many steps that saves as it goes, and that nothing interrupts."""
    project = render(tmp_path_factory.mktemp("plain") / "demo", **FSDP)

    def run(steps: int) -> Path:
        train_ranks(project, *OPTIONS, "--max-steps", steps, "--output-dir", project / str(steps))
        return project / str(steps)

    return run


def killed_while_writing(project: Path, output_dir: Path) -> int:
    """Kill -9 while a save is under way and training some steps further; the step it was at."""
    server().start(project, *OPTIONS, "--output-dir", output_dir, ranks=2)
    until(lambda: checkpoints(output_dir))
    until(lambda: (output_dir / "checkpoints" / "shards.partial").exists())
    begun = metrics(output_dir)[-1]["step"]
    until(lambda: metrics(output_dir)[-1]["step"] > begun + 2)
    server().kill()
    server().wait()
    return int(metrics(output_dir)[-1]["step"])


def test_20_async_killed_while_writing(whole: Callable[[int], Path], tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **FSDP, features=("async-checkpoint",))
    edit(project / "checkpoint.py", WRITTEN, SLOW)
    step = killed_while_writing(project, tmp_path / "out")
    assert (tmp_path / "out" / "checkpoints" / "shards.partial").exists(), "the save was over before the kill"
    for path in checkpoints(tmp_path / "out"):
        assert load(path)["counters"]["step"] == int(path.name[5:]) < step
    edit(project / "checkpoint.py", SLOW, WRITTEN)
    train_ranks(project, *OPTIONS, "--max-steps", step + 5, "--output-dir", tmp_path / "out", "--resume")
    assert same_run(whole(step + 5), tmp_path / "out")


def test_20_async_sigterm(whole: Callable[[int], Path], tmp_path: Path) -> None:
    """The last save is waited for."""
    project = render(tmp_path / "demo", **FSDP, features=("async-checkpoint", "grad-clip"))
    pids = server().start(project, *OPTIONS, "--output-dir", tmp_path / "out", ranks=2)
    until(lambda: (tmp_path / "out" / "metrics.jsonl").exists() and len(metrics(tmp_path / "out")) > 5)
    os.kill(pids[1], signal.SIGTERM)
    assert [(result.code, result.err) for result in server().wait(60)] == [(143, ""), (143, "")]
    last = metrics(tmp_path / "out")[-1]["step"]
    assert load(checkpoints(tmp_path / "out")[-1])["counters"]["step"] == last


def test_20_control_async_named_too_early(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **FSDP, features=("async-checkpoint",))
    edit(project / "checkpoint.py", WRITTEN, NAMED_TOO_EARLY + SLOW)
    killed_while_writing(project, tmp_path / "out")
    with pytest.raises(Exception, match=r"counters\.json"):
        load(checkpoints(tmp_path / "out")[-1])


# the second process is slow to look for what the others have written
SLOW_LOOK = """
import os, time
from pathlib import Path

if os.environ["RANK"] == "1":
    exists = Path.exists
    Path.exists = lambda path: time.sleep(0.3) or exists(path)
"""
LOOKED = "  # all have looked before the folder gets its name\n"


@pytest.mark.parametrize("features", [(), ("async-checkpoint",)], ids=["fsdp", "fsdp-async"])
def test_20_a_slow_process(tmp_path: Path, features: tuple[str, ...]) -> None:
    project = render(tmp_path / "demo", **FSDP, features=features)
    train_ranks(project, *OPTIONS, "--max-steps", 14, "--output-dir", tmp_path / "out", first=SLOW_LOOK)
    assert [load(path)["counters"]["step"] for path in checkpoints(tmp_path / "out")] == [7, 14]


def test_20_control_a_slow_process(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **FSDP)
    edit(project / "checkpoint.py", f"    dist.barrier(){LOOKED}", "")
    results = train_ranks(project, *OPTIONS, "--max-steps", 14, first=SLOW_LOOK, check=False)
    assert "is not one folder for all processes" in results[1].err


@pytest.mark.heavy
def test_20_async_always_ends(tmp_path: Path) -> None:
    """A thread more, and a group more: none of many short runs may hang or abort."""
    project = render(tmp_path / "demo", **FSDP, features=("async-checkpoint",))
    assert list(bad_ends(project, tmp_path, "--max-steps", 3, "--checkpoint-every", 1, runs=20)) == []
