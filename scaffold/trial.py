"""Runs of a project in real processes, whole, killed or stopped, and what they left on the disk.

Nothing of the project or of torch is imported here: the project's own Python does that, in warm.py.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scaffold.errors import RequestError
from scaffold.signals import sigterm_raises

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TORCHDYNAMO_DISABLE": "1",  # to compile would take longer than all the rest
    "PYTHONDONTWRITEBYTECODE": "1",  # nothing is left in the project
}


@dataclass(frozen=True)
class Strike:
    """A signal to one process at its `number`-th optimizer step, torch.save or rename of a file."""

    at: str
    number: int
    sends: int = signal.SIGKILL
    rank: int = 0


@dataclass(frozen=True)
class Outcome:
    """How the processes of a run ended, and what each said."""

    codes: tuple[int, ...]
    errs: tuple[str, ...]
    late: bool

    @property
    def failure(self) -> str:
        """Why it did not end well, in a line, or nothing."""
        if self.late:
            return "it did not end in time"
        failed = [(code, err) for code, err in zip(self.codes, self.errs, strict=True) if code]
        # of several, one that was not killed because of another
        code, err = next((one for one in failed if one[0] > 0), failed[0] if failed else (0, ""))
        lines = [line.partition("]: ")[2] if line.startswith("[rank") else line for line in err.splitlines()]
        said = [line.strip() for line in lines if line.strip() and not line.startswith("[")]
        return f"it ended with {code}: {said[-1] if said else 'it said nothing'}" if code else ""


@dataclass(frozen=True)
class Trial:
    """One project, run with the same options into folders of `scratch`."""

    project: Path
    ranks: int  # 0 for a program that is one process
    options: tuple[str, ...]
    scratch: Path
    warm: subprocess.Popen[str] = field(repr=False)
    batch_size: int = 8  # of all processes
    limit: float = 120  # seconds a run may take
    precision: str = "fp32"
    timed: frozenset[str] = frozenset()  # what differs between equal runs as seconds and paths do
    unsteady: str = ""  # how two runs differ that should not

    def run(
        self,
        name: str,
        *options: object,
        strike: Strike | None = None,
        still: bool = False,
        ranks: int | None = None,
    ) -> Outcome:
        """Run train.py to its end; `--resume` is always given, so a run goes on where there is one.

        `still` takes dropout away.
        """
        count = self.ranks if ranks is None else ranks
        fixed = {
            "--device": "cpu",
            "--batch-size": self.batch_size // max(1, count),
            "--output-dir": self.scratch / name,
        }
        words = [*self.options, "--resume", *(str(word) for pair in fixed.items() for word in pair)]
        words += map(str, options)
        common = {"words": words, "still": still, "strike": strike and asdict(strike), "out": os.devnull}
        errs = [self.scratch / f"{name}.{rank}.err" for rank in range(max(1, count))]
        jobs = [
            common | {"env": variables, "err": str(err)}
            for err, variables in zip(errs, rank_variables(count), strict=True)
        ]
        answer = self.ask(jobs)
        texts = tuple(err.read_text(errors="replace") for err in errs)
        return Outcome(tuple(answer["codes"]), texts, answer["late"])

    def ask(self, jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        assert self.warm.stdin and self.warm.stdout
        try:
            self.warm.stdin.write(json.dumps({"jobs": jobs, "limit": self.limit}) + "\n")
            self.warm.stdin.flush()
            answer: dict[str, Any] = json.loads(self.warm.stdout.readline())
        except (OSError, ValueError):
            raise RequestError("the process that the project's runs are forked from was ended") from None
        return answer

    def copy(self, name: str, new: str) -> None:
        shutil.copytree(self.scratch / name, self.scratch / new)

    def record(self, name: str) -> list[dict[str, float]]:
        """The numbers in the lines of metrics.jsonl."""
        path = self.scratch / name / "metrics.jsonl"
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError):
            return []
        numbers = [
            {
                key: value
                for key, value in row.items()
                if isinstance(value, int | float) and key not in self.timed
            }
            for row in rows
            if isinstance(row, dict)
        ]
        return [row for row in numbers if "step" in row]

    def checkpoints(self, name: str) -> list[Path]:
        """Those with a step in their names, oldest first."""
        found = (self.scratch / name / "checkpoints").glob("*[0-9]*")
        return sorted((path for path in found if path.suffix not in (".partial", ".tmp")), key=step_of)

    def look(self, *paths: Path) -> list[dict[str, Any]]:
        """What checkpoints hold, as the project's Python reads them."""
        out = self.scratch / "look"
        answer = self.ask([{"look": list(map(str, paths)), "env": {}, "out": str(out), "err": os.devnull}])
        if any(answer["codes"]):
            return [{"error": "its reader was ended", "leaves": {}, "norms": {}} for _ in paths]
        found: list[dict[str, Any]] = json.loads(out.read_text())
        return found


@contextmanager
def trial(
    project: Path, python: str | None, ranks: int, options: Sequence[str], env: Mapping[str, str]
) -> Iterator[Trial]:
    """A warm process and a scratch folder; nothing is left of either, however this ends."""
    if not hasattr(os, "fork"):
        raise RequestError("verify needs a POSIX system: it forks and signals the runs it makes")
    wanted = python or project_python(project)
    command = shutil.which(wanted)
    if command is None:
        raise RequestError(f"{wanted} is not a program: name the project's Python with --python")
    with (
        sigterm_raises(),
        tempfile.TemporaryDirectory(prefix="scaffold-verify-", ignore_cleanup_errors=True) as scratch,
    ):
        words = [os.path.abspath(command), str(Path(__file__).with_name("warm.py")), str(project)]
        complaint = Path(scratch, "warm.err")
        try:
            with complaint.open("w") as err:
                warm = subprocess.Popen(
                    words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=err,
                    text=True,
                    cwd=scratch,
                    env=os.environ | ENVIRONMENT | dict(env),
                    start_new_session=True,
                )
        except OSError as error:
            raise RequestError(f"{command} cannot be run: {error.strerror}") from None
        try:
            assert warm.stdin and warm.stdout
            if warm.stdout.readline() != "ready\n":
                said = complaint.read_text(errors="replace").strip().rpartition("\n")[2]
                reason = f" ({said})" if said else ""
                raise RequestError(f"{command} cannot import torch{reason}: name the project's with --python")
            yield Trial(project, ranks, tuple(options), Path(scratch), warm)
        finally:  # its standard input closed, it ends what it started, then itself
            with suppress(OSError, subprocess.TimeoutExpired):
                warm.communicate(timeout=20)
            warm.kill()


def step_of(checkpoint: Path) -> int:
    return int(re.findall(r"[0-9]+", checkpoint.name)[-1])


def project_python(project: Path) -> str:
    """The Python of the project's own environment, or of the one that is active, else this one."""
    places = [project / ".venv", *map(Path, filter(None, [os.environ.get("VIRTUAL_ENV")]))]
    found = (place / "bin" / "python" for place in places)
    return next((str(python) for python in found if python.exists()), sys.executable)


def rank_variables(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each of its processes; nothing for a program that is one process."""
    if not ranks:
        return [{}]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    shared["LOCAL_WORLD_SIZE"] = str(ranks)
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def free_port() -> int:
    """One below those that systems give to outgoing connections, which could take it in the meantime."""
    while True:
        port = 15_000 + secrets.randbelow(17_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
