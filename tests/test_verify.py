"""`scaffold verify` on whole projects, and on copies that were damaged on purpose: each names its property."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.projects import ENVIRONMENT, edit, render

pytestmark = pytest.mark.heavy


def verify(project: Path, *words: str, code: int) -> dict[int, dict[str, Any]]:
    """Number -> finding."""
    command = [sys.executable, "-m", "scaffold", "verify", str(project), "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=None)
    assert done.returncode == code, done.stdout + done.stderr
    return {finding["number"]: finding for finding in json.loads(done.stdout)}


@pytest.mark.parametrize("distributed", ["none", "ddp", "fsdp"])
@pytest.mark.parametrize("task", ["tabular", "image-classification"])
def test_a_project_as_it_was_written(tmp_path: Path, task: str, distributed: str) -> None:
    found = verify(render(tmp_path / "demo", task=task, distributed=distributed), code=0)
    apart = {"none": {6, 20}, "ddp": {20}, "fsdp": set()}[distributed]
    assert {number for number, finding in found.items() if finding["state"] == "not applicable"} == apart
    assert all(finding["state"] == "kept" for number, finding in found.items() if number not in apart)


# property -> file, what stands there, what comes instead
DAMAGES: dict[int, tuple[str, str, str]] = {
    1: ("train.py", "args.batch_size, args.seed, step)", "args.batch_size, args.seed, 0)"),
    3: ("checkpoint.py", "            return archive.testzip() is None and not marked\n", "            return True\n"),
    8: ("train.py", "        stopping = stop.is_set()\n", "        stopping = False\n"),
    14: ("record.py", "        if not math.isfinite(value):\n", "        if False:\n"),
    15: ("data.py", "np.random.default_rng([self.seed, draw])", "np.random.default_rng(torch.initial_seed())"),
    17: ("train.py", "args.warmup_steps, total_steps)", "args.warmup_steps, last_step)"),
    22: ("train.py", 'counters = {"step": step, ', 'counters = {"where": args.output_dir, "step": step, '),
    24: ("record.py", "    file.truncate(end)\n", ""),
}


@pytest.mark.parametrize("number", DAMAGES)
def test_a_damaged_project(tmp_path: Path, number: int) -> None:
    project = render(tmp_path / "demo")
    edit(project / DAMAGES[number][0], *DAMAGES[number][1:])
    assert verify(project, code=1)[number]["state"] == "broken"


def test_a_save_in_place(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    old = '    partial = directory / "checkpoint.partial"\n'
    edit(project / "checkpoint.py", old, "    partial = directory / f\"step-{counters['step']:08d}.pt\"\n")
    edit(project / "checkpoint.py", "    sync(partial)\n", "    os.truncate(partial, 999)\n    sync(partial)\n")
    assert verify(project, code=1)[2]["state"] == "broken"


def test_ranks_that_draw_the_same(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", distributed="ddp")
    edit(project / "data.py", "draws[rank:width:world_size]", "draws[0:width:world_size]")
    assert verify(project, code=1)[6]["state"] == "broken"


def test_not_a_project(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scaffold", "verify", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "is not a scaffold project" in done.stderr


def test_a_python_without_torch(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    done = subprocess.run(
        [sys.executable, "-m", "scaffold", "verify", str(project), "--python", "/bin/false"],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT | {"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 2 and "has no torch" in done.stderr
