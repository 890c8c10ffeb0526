"""The record of a run: metrics.jsonl, one line of metrics a step, and run.json, what ran."""

import json
import math
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm


def check_finite(metrics: dict[str, float], step: int) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            sys.exit(f"step {step}: {name} is {value}; earlier checkpoints are intact, a lower --lr may help")


def open_metrics(path: Path, step: int) -> TextIO:
    """Open for appending, cut off behind `step`: what comes after it is about to be run again."""
    file = path.open("a+")
    file.seek(0)
    end = 0
    while is_up_to(step, file.readline()):
        end = file.tell()
    file.truncate(end)
    return file


def is_up_to(step: int, line: str) -> bool:
    try:
        return line == "\n" or line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):  # half a line, from a crash of the machine
        return False


def write_metrics(file: TextIO, step: int, metrics: dict[str, float]) -> None:
    file.write(json.dumps({"step": step, **metrics}) + "\n")
    file.flush()
    tqdm.write(f"step {step:>6}  " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))


def write_run(path: Path, arguments: dict[str, Any], device: torch.device) -> None:
    here = Path(__file__).parent
    # through the shell: there, to have no git is no error
    git = subprocess.run("git rev-parse --verify HEAD", shell=True, cwd=here, capture_output=True, text=True)
    run = {
        "arguments": arguments,
        "seed": arguments["seed"],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "device": device,
        "world_size": 1,
        "git_commit": git.stdout.strip() or None,
    }
    text = json.dumps(run, indent=2, default=str)
    for change in changes(path, json.loads(text)):
        tqdm.write(f"resumed with another {change}")
    path.write_text(text + "\n")


def changes(path: Path, run: dict[str, Any]) -> list[str]:
    """What the run before was given and this one is not."""
    try:
        before = json.loads(path.read_text())
        old, new = ({**record["arguments"], "world_size": record["world_size"]} for record in (before, run))
    except (OSError, ValueError, KeyError, TypeError):  # there was none, or half of one
        return []
    free = {"resume", "max_steps"}  # they change nothing of the steps that are run
    names = [name for name in new if name in old and new[name] != old[name] and name not in free]
    return [f"{name}: {new[name]}, not {old[name]}" for name in names]
