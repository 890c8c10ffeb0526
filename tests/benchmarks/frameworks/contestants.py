"""The four programs as processes: started, watched, killed, and what they left behind."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tests.projects import Result, Server, render, same_bits, started

HERE = Path(__file__).parent
NUM_TRAIN = 455
IMPORTS = "import numpy, pandas, sklearn.datasets, torch, torch.distributed, torch.utils.data, tqdm, {}\n"


@dataclass(frozen=True)
class Contestant:
    """A training loop that is started, killed and resumed the same way as the others."""

    name: str
    program: str
    package: str  # imported once, before processes are forked
    python: str
    checkpoints: Callable[[Path], list[Path]]  # what resuming looks for, oldest first
    total: int = 30  # optimizer steps of two epochs
    known: dict[str, Path] = field(default_factory=dict)  # projects and whole runs, made once
    place: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    @cached_property
    def server(self) -> Server:
        return Server(self.python, IMPORTS.format(self.package), self.program)

    def restart(self) -> None:
        """Another server, after one that a failure left in disorder."""
        server: Server = self.__dict__.pop("server")
        server.kill()
        server.process.kill()

    def words(self, out: Path, fix: str, ranks: int, **options: Any) -> list[str]:
        options = {"total_steps": self.total, "output_dir": out, "fix": fix} | options
        if self.name == "scaffold":
            options["project"] = self.project(ranks, options)
        words = []
        for key, value in options.items():
            if value is not False:
                words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
        return words

    def project(self, ranks: int, options: dict[str, Any]) -> Path:
        """Rendered for the case at hand; the others' options are arguments."""
        given: dict[str, Any] = {"task": "tabular"}
        if ranks:
            given["distributed"] = "ddp"
        if options.get("accum", 1) > 1:
            given["features"] = ("grad-accum",)
        if options.get("fp16"):
            given |= {"hardware": "gpu", "precision": "fp16"}
        if options.get("logger"):
            given["logger"] = ("tensorboard",)
        key = repr(given)
        if key not in self.known:
            self.known[key] = render(self.new() / "demo", **given)
        return self.known[key]

    def run(
        self,
        out: Path,
        fix: str = "",
        ranks: int = 0,
        timeout: float = 60,
        grace: float = 1,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> list[Result]:
        """Run to the end; TimeoutError, and all of it killed, if that does not come."""
        # for Lightning: as torchrun starts them
        environment = (env or {}) | ({"TORCHELASTIC_RUN_ID": "none"} if ranks else {})
        words = self.words(out, fix, ranks, **options)
        self.server.start(HERE, *words, ranks=ranks, env=environment)
        return self.wait(timeout, grace)

    def wait(self, timeout: float, grace: float) -> list[Result]:
        """Every end. A rank that waits for one that is gone is killed in the end, as a launcher would do."""
        end, lonely = time.monotonic() + timeout, float("inf")
        while time.monotonic() < min(end, lonely):
            with suppress(TimeoutError):
                return self.results(0.05)
            alive = sum(is_running(pid) for pid in self.server.pids)
            if 0 < alive < len(self.server.pids):
                lonely = min(lonely, time.monotonic() + grace)
        self.server.kill()
        results = self.results(20)
        if lonely > end:
            raise TimeoutError
        return results

    def results(self, timeout: float) -> list[Result]:
        folder = Path(self.server.folder.name)
        return [
            Result(
                code, *((folder / f"{name}{number}").read_text(errors="replace") for name in ("out", "err"))
            )
            for number, code in enumerate(json.loads(self.server.line(timeout)))
        ]

    def new(self) -> Path:
        """A folder for a run."""
        return Path(tempfile.mkdtemp(dir=self.place.name))

    def whole(self, fix: str = "", ranks: int = 0, **options: Any) -> Path:
        """The folder of a run that nothing interrupted; made once."""
        key = repr((fix, ranks, sorted(options.items())))
        if key not in self.known:
            out = self.new()
            self.complete(out, fix, ranks, **options)
            self.known[key] = out
        return self.known[key]

    def complete(self, out: Path, fix: str = "", ranks: int = 0, **options: Any) -> None:
        for result in self.run(out, fix, ranks, **options):
            assert result.code == 0, f"{self.name}: {result.err[-3000:]}"

    @contextmanager
    def fresh(self, *words: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
        """A process that was not forked from one with imports."""
        command = [self.python, *words]
        with tempfile.TemporaryFile() as log, started(HERE, command, env, stdout=log, stderr=log) as process:
            yield process


def is_running(pid: int) -> bool:
    """Not ended, not a zombie."""
    return Path(f"/proc/{pid}/fd/1").exists()


def numbered(folder: Path, pattern: str) -> list[Path]:
    """Files or folders in the order of the steps in their names."""
    return sorted(folder.glob(pattern), key=step_of)


def step_of(path: Path) -> int:
    [step] = re.findall(r"(?:step|checkpoint)[=_-](\d+)", path.name)
    return int(step)


def contestants(python: str) -> list[Contestant]:
    return [
        Contestant(
            "scaffold",
            "scaffold_loop.py",
            "torch",
            python,
            lambda out: numbered(out / "checkpoints", "step-*.pt"),
            total=29,  # batches are always full: the last one of an epoch goes on into the next
        ),
        Contestant(
            "Lightning",
            "lightning_loop.py",
            "lightning.pytorch, torchdata.stateful_dataloader, torchmetrics.classification",
            python,
            lambda out: [
                *numbered(out / "checkpoints", "epoch=*.ckpt"),
                *(out / "checkpoints").glob("last*.ckpt"),
            ],
        ),
        Contestant(
            "Ignite",
            "ignite_loop.py",
            "ignite.distributed, ignite.engine, ignite.handlers, ignite.metrics",
            python,
            lambda out: numbered(out / "checkpoints", "checkpoint_*.pt"),
        ),
        Contestant(
            "Accelerate",
            "accelerate_loop.py",
            "accelerate, accelerate.tracking, torchdata.stateful_dataloader",
            python,
            lambda out: numbered(out, "step_*"),
        ),
    ]


# what a run left


def starts(out: Path, rank: int = 0) -> list[list[dict[str, Any]]]:
    """For each start of the program, the optimizer steps that it made."""
    found: list[list[dict[str, Any]]] = []
    for line in (out / f"trace-{rank}.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "start" in row:
            found.append([])
        elif "rows" in row:
            found[-1].append(row)
    return found


def steps(out: Path, ranks: int = 0) -> list[list[int]]:
    """The rows of each optimizer step of the last start, over all ranks, sorted."""
    traces = [starts(out, rank)[-1] for rank in range(max(1, ranks))]
    return [sorted(row for one in ranked for row in one["rows"]) for ranked in zip(*traces, strict=True)]


def evaluated(out: Path, ranks: int = 0) -> list[int]:
    """The rows of the evaluations of the last start, over all ranks."""
    rows = []
    for rank in range(max(1, ranks)):
        rows += json.loads((out / f"trace-{rank}.jsonl").read_text().splitlines()[-1])["evaluated"]
    return rows


def parameters(out: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(out / f"final-{rank}.pt", weights_only=True)


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def same_parameters(one: Path, other: Path) -> bool:
    return same_bits(parameters(one), parameters(other))


def holds_finite(path: Path) -> bool:
    """Are the parameters in a checkpoint finite?"""
    if path.is_dir():
        state = read_safetensors(path / "model.safetensors")
    else:
        content = torch.load(path, map_location="cpu", weights_only=False)
        state = content["state_dict" if "state_dict" in content else "model"]
    return all(bool(tensor.isfinite().all()) for tensor in state.values())


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    """32-bit floats only, which the model's are: a length, a table as JSON, then the bytes."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:start])
    return {
        name: torch.frombuffer(bytearray(content[start + low : start + high]), dtype=torch.float32)
        for name, (low, high) in ((n, e["data_offsets"]) for n, e in table.items() if n != "__metadata__")
    }
