"""Runs of a project in real processes: whole, killed, stopped, and what they left on the disk.

Failures are made from outside: a small program around train.py strikes at an optimizer step or in a save.
Nothing is imported from the project here, and nothing of torch: its own Python does that.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaffold.errors import RequestError

# Around train.py: strikes where TRIAL says, at the k-th optimizer step or at the k-th rename of a file.
AROUND = """
import json, os, runpy, sys
from torch.optim.optimizer import register_optimizer_step_post_hook

strike = json.loads(os.environ["TRIAL"])
seen = {"step": 0, "rename": 0}

def count(place):
    seen[place] += 1
    here = os.environ.get("RANK", "0") == strike.get("rank", "0")
    if here and place == strike.get("at") and seen[place] == strike["number"]:
        os.kill(os.getpid(), strike["signal"])

replace = os.replace
def counted_replace(*arguments, **options):
    count("rename")
    return replace(*arguments, **options)

os.replace = counted_replace
register_optimizer_step_post_hook(lambda *_: count("step"))
sys.argv, sys.path[0] = sys.argv[1:], os.getcwd()
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# What checkpoints hold: for each path a digest of every leaf, whether all is finite, or why it did not load.
LOOK = """
import hashlib, json, sys, tempfile
import torch

def leaves(value, name=""):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else None
    if items is None:
        yield name, value
    else:
        for key, part in items:
            yield from leaves(part, f"{name}.{key}")

def look(path):
    if not path.endswith(".pt"):
        from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
        with tempfile.NamedTemporaryFile() as file:
            dcp_to_torch_save(path, file.name)
            state = torch.load(file.name, map_location="cpu", weights_only=True)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    found, finite = {}, True
    for name, leaf in leaves(state):
        if isinstance(leaf, torch.Tensor):
            finite = finite and bool(leaf.isfinite().all())
            leaf = hashlib.sha256(leaf.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        found[name] = repr(leaf)
    return {"leaves": found, "finite": finite}

results = []
for path in sys.argv[1:]:
    try:
        results.append(look(path))
    except Exception as error:
        results.append({"error": f"{type(error).__name__}: {error}".splitlines()[0]})
print(json.dumps(results))
"""


@dataclass(frozen=True)
class Strike:
    """Send `signal` to one process at the `number`-th optimizer step or rename since it started."""

    at: str
    number: int
    signal: int = signal.SIGKILL
    rank: int = 0


@dataclass(frozen=True)
class Outcome:
    codes: tuple[int, ...]
    err: str

    @property
    def last_line(self) -> str:
        return self.err.strip().rpartition("\n")[2]


@dataclass
class Trial:
    """One project, run with the same options into folders of `scratch`."""

    project: Path
    python: str
    ranks: int
    options: tuple[str, ...]
    scratch: Path
    timeout: float = 300
    looked: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def check(self) -> None:
        """Can this Python run the project at all?"""
        command = [self.python, "-c", "import torch"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=120, cwd=self.project)
        except OSError as error:
            raise RequestError(f"{self.python} cannot be run: {error.strerror}") from None
        if done.returncode:
            raise RequestError(
                f"{self.python} has no torch: name the Python of the project's environment with --python"
            )

    def run(
        self,
        name: str,
        *options: object,
        strike: Strike | None = None,
        ranks: int | None = None,
        batch_size: int = 8,
        env: dict[str, str] | None = None,
    ) -> Outcome:
        """Run train.py to its end; `--resume` is always given, so a run goes on where there is one."""
        count = self.ranks if ranks is None else ranks
        fixed = ["--device", "cpu", "--batch-size", batch_size, "--output-dir", self.scratch / name]
        words = [*self.options, *fixed, "--resume", *options]
        command = [self.python, "-c", AROUND, "train.py", *map(str, words)]
        trial = {"at": strike.at, "number": strike.number, "signal": strike.signal} if strike else {}
        trial |= {"rank": str(strike.rank)} if strike else {}
        shared = os.environ | {"OMP_NUM_THREADS": "1", "TRIAL": json.dumps(trial)} | (env or {})
        logs = [self.scratch / f"{name}.{rank}.err" for rank in range(max(1, count))]
        processes = []
        for log, variables in zip(logs, rank_variables(count), strict=True):
            with log.open("w") as err:
                processes.append(
                    subprocess.Popen(
                        command,
                        cwd=self.project,
                        env=shared | variables,
                        stdout=subprocess.DEVNULL,
                        stderr=err,
                        start_new_session=True,
                    )
                )
        killed = strike is not None and strike.signal == signal.SIGKILL
        codes = wait(processes, self.timeout, first=killed)
        return Outcome(codes, "\n".join(log.read_text(errors="replace") for log in logs))

    def copy(self, name: str, new: str) -> Path:
        return Path(shutil.copytree(self.scratch / name, self.scratch / new))

    def record(self, name: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.scratch / name / "metrics.jsonl"
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError):
            return []

    def checkpoints(self, name: str) -> list[Path]:
        """The step checkpoints, oldest first."""
        found = (self.scratch / name / "checkpoints").glob("step-*")
        return sorted(path for path in found if path.is_dir() or path.suffix == ".pt")

    def look(self, *paths: Path) -> list[dict[str, Any]]:
        """What checkpoints hold, as the project's Python reads them."""
        command = [self.python, "-W", "ignore", "-c", LOOK, *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=self.timeout, cwd=self.project)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found


def project_python(project: Path) -> str:
    """The Python of the project's own environment where there is one, else this one."""
    own = project / ".venv" / "bin" / "python"
    return str(own.absolute()) if own.exists() else sys.executable


def rank_variables(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each of its processes; nothing for a program that is one process."""
    if not ranks:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def wait(processes: list[subprocess.Popen[bytes]], timeout: float, first: bool) -> tuple[int, ...]:
    """The exit codes; with `first`, the others are killed as soon as one has ended, as by a launcher."""
    codes = []
    try:
        for process in processes:
            codes.append(process.wait(timeout))
            if first:
                break
    except subprocess.TimeoutExpired:
        codes.append(-1)
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return tuple(codes)
