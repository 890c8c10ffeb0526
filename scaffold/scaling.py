"""Memory per device and bytes sent per step, from the number of parameters: the sums of docs/scaling.md.

Sources: ZeRO (Rajbhandari et al., 2020, arXiv:1910.02054) for what is kept where, PyTorch FSDP (Zhao et al.,
2023, arXiv:2304.11277) for gathering and for sharding within machines, Patarasuk and Yuan (2009) for what a
ring sends. All sizes are bytes; a GiB is 2**30 of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from scaffold.axes import BY_KEY
from scaffold.errors import RequestError
from scaffold.rules import RULES

GIB = 2**30
# bytes of a number that is computed with, from the bits in the precision's name
WIDTHS = {name: int(name[2:]) // 8 for name in BY_KEY["precision"].values or ()}
OPTIMIZERS = {"adamw": 2, "momentum": 1, "sgd": 0}  # 32-bit numbers kept for each parameter
FULL = 4  # bytes of a number that is added up over steps or over processes


@dataclass(frozen=True, eq=False)
class Backend:
    """A way to spread a run over devices, and the answers that choose it."""

    name: str
    answers: Mapping[str, str]
    sharded: tuple[str, ...] = ()  # what each device has only its part of

    def has(self, value: str) -> bool:
        return value in self.answers.values()

    @property
    def stage(self) -> int:
        """Of ZeRO: how much of the state is split."""
        return len(self.sharded)


PARTS = ("parameters", "gradients", "optimizer")
BACKENDS = (
    Backend("none", {"distributed": "none"}),
    Backend("ddp", {"distributed": "ddp"}),
    Backend("fsdp hybrid", {"distributed": "fsdp", "with": "hybrid-shard"}, PARTS),
    Backend("fsdp", {"distributed": "fsdp"}, PARTS),
    Backend("deepspeed 1", {"distributed": "deepspeed"}, PARTS[2:]),
    Backend("deepspeed 2", {"distributed": "deepspeed"}, PARTS[1:]),
    Backend("deepspeed 3", {"distributed": "deepspeed"}, PARTS),
    Backend("deepspeed 3 offload", {"distributed": "deepspeed", "with": "offload"}, PARTS),
)
BY_NAME = {backend.name: backend for backend in BACKENDS}


@dataclass(frozen=True)
class Run:
    """What is trained, and on how much.

    `root` is how many parameters are in no block: they stay gathered from the forward to the backward pass.
    """

    parameters: int
    precision: str = "bf16"
    optimizer: str = "adamw"
    devices: int = 1
    per_node: int = 1
    blocks: int = 1
    root: int = 0
    accumulation: int = 1

    @property
    def width(self) -> int:
        return WIDTHS[self.precision]

    def group(self, backend: Backend) -> int:
        """The devices over which a model is split."""
        return min(self.per_node, self.devices) if backend.has("hybrid-shard") else self.devices


@dataclass(frozen=True)
class Memory:
    """Bytes per device of all but activations, each kept through a whole step but `passing`."""

    parameters: float
    gradients: float
    master: float  # DeepSpeed's own 32-bit copy of the parameters
    optimizer: float
    passing: float  # most that is there at a time of gathered blocks, of buckets, of copies in 16 bits
    start: float  # parameters before the first step, which DeepSpeed splits on the device
    host: float  # most in the memory of the machine, for each device: each process builds the whole model

    @property
    def states(self) -> float:
        return self.parameters + self.gradients + self.master + self.optimizer

    @property
    def most(self) -> float:
        return max(self.states + self.passing, self.start)


@dataclass(frozen=True)
class Traffic:
    """Bytes that each device sends in an optimizer step, by rings; `between` is what leaves a machine."""

    gather: float
    reduce: float
    between: float

    @property
    def total(self) -> float:
        return self.gather + self.reduce


def memory(run: Run, backend: Backend, kept_by_zero: int = FULL) -> Memory:
    """Bytes per device that do not depend on the batch (ZeRO, section 3.1; FSDP, section 3.2).

    Projects keep parameters and gradients in 32 bits and compute in 16. Under DeepSpeed there is a master
    copy beside them, though they are in 32 bits; `kept_by_zero` is 2 where they are as ZeRO's authors do.
    """
    number, group = run.parameters, run.group(backend)
    part = {key: number / group if key in backend.sharded else float(number) for key in PARTS}
    kept, built = part["optimizer"] * FULL * OPTIMIZERS[run.optimizer], float(number) * FULL
    if backend.has("deepspeed"):
        whole, gradients = part["parameters"] * kept_by_zero, part["gradients"] * kept_by_zero
        master = part["optimizer"] * FULL
        copies = number * run.width if run.width < kept_by_zero else 0.0
        block = 2 * number / run.blocks * run.width if "parameters" in backend.sharded else copies
        if not backend.has("offload"):
            return Memory(whole, gradients, master, kept, block, built, built)
        return Memory(whole, 0.0, 0.0, 0.0, block, built, max(built, gradients + master + kept))
    whole, gradients = part["parameters"] * FULL, part["gradients"] * FULL
    return Memory(whole, gradients, 0.0, kept, passing(run, backend), whole, built)


def passing(run: Run, backend: Backend) -> float:
    """What is there for a while: copies for autocast, buckets of DDP, gathered blocks of FSDP."""
    if not backend.sharded:
        copies = run.parameters * run.width if run.width < FULL else 0
        buckets = run.parameters * FULL if backend.has("ddp") else 0
        return copies + buckets
    block = (run.parameters - run.root) / run.blocks
    # two gathered blocks, of which one is prefetched, gradients of one, and what is sent of them
    gathered = (run.root + 2 * block) * run.width + block * (run.width + FULL)
    # until the last pass gradients are not split
    whole = run.parameters * FULL if run.accumulation > 1 else 0
    return gathered + whole


def traffic(run: Run, backend: Backend, kept_by_zero: int = FULL) -> Traffic:
    """Bytes that a device sends in a step (ZeRO, section 7; FSDP, section 3.2).

    In a ring of n, gathering or reduce-scattering m bytes sends (n - 1) / n * m, all-reducing twice that.
    """
    number, group, width = run.parameters, run.group(backend), run.width
    around = (group - 1) / group
    if not backend.sharded:
        reduced = 2 * around * number * FULL if backend.has("ddp") else 0.0
        return Traffic(0.0, reduced, leaving(run, reduced))
    if backend.has("deepspeed"):
        split = "parameters" in backend.sharded  # gathered for each pass, else once, as they are kept
        times = run.accumulation if "gradients" in backend.sharded else 1
        gathered = around * number * (2 * run.accumulation * width if split else kept_by_zero)
        reduced = times * around * number * width
        return Traffic(gathered, reduced, leaving(run, gathered + reduced))
    gathered = run.accumulation * around * width * (2 * (number - run.root) + run.root)
    reduced = around * number * FULL
    if not backend.has("hybrid-shard"):
        return Traffic(gathered, reduced, leaving(run, gathered + reduced))
    machines = run.devices // group
    across = 2 * (machines - 1) / machines * number / group * FULL
    return Traffic(gathered, reduced + across, group * across)


def leaving(run: Run, sent: float) -> float:
    """What leaves a machine: a ring goes from machine to machine, by one device of each."""
    return sent if run.devices > run.per_node else 0.0


def chosen(run: Run, backend: Backend) -> dict[str, tuple[str, ...]]:
    """The answers of a project for a run: a backend's, on GPUs, in the run's precision."""
    answers = {"hardware": "gpu", "precision": run.precision, **backend.answers}
    return {key: (value,) for key, value in answers.items()}


def offered(run: Run) -> tuple[Backend, ...]:
    """The backends for so many devices, of those that the rules let pass."""
    known = [b for b in BACKENDS if not any(rule.applies(chosen(run, b)) for rule in RULES)]
    if run.devices == 1:
        return tuple(b for b in known if b.has("none") or b.has("offload"))
    several = run.devices > run.per_node > 1
    return tuple(b for b in known if not b.has("none") and (several or not b.has("hybrid-shard")))


@dataclass(frozen=True)
class Row:
    """A backend for a run on devices of some memory: what it takes, and what is left for activations."""

    backend: Backend
    memory: Memory
    traffic: Traffic
    left: float

    @property
    def fits(self) -> bool:
        return self.left > 0

    def spares(self, device_memory: float) -> bool:
        """Whether enough is left."""
        return self.left >= SPARE * device_memory


SPARE = 0.2  # of a device: for activations and for what the libraries take


def rows(run: Run, device_memory: float) -> list[Row]:
    """All backends, in order of what they ask of a project: the plainest first."""
    found, shown = [], {*offered(run), BY_NAME["none"]}
    for backend in BACKENDS:
        if backend in shown:
            needs = memory(run, backend)
            found.append(Row(backend, needs, traffic(run, backend), device_memory - needs.most))
    return found


def advice(run: Run, device_memory: float) -> tuple[Row | None, str]:
    """The plainest backend that leaves a fifth of each device for activations, and why it is that."""
    choices = offered(run)
    possible = [row for row in rows(run, device_memory) if row.backend in choices]
    for row in possible:
        if not row.spares(device_memory):
            continue
        name, left = row.backend.name, f"{row.left / GIB:.1f} GiB are left for activations"
        host = f"the host has to hold {show(row.memory.host)} per device"
        if row.backend.has("offload"):
            return row, f"{name}: nothing else leaves a fifth, and {host}"
        if not row.backend.sharded:
            return row, f"{name}: every device holds all of it, and {left}"
        if row.backend.has("hybrid-shard"):
            return row, f"{name}: a machine holds all of it, only gradients go between machines, and {left}"
        return (
            row,
            f"{name}: with all of it no device keeps a fifth free, with a part {left}; at first {host}",
        )
    tight = [row.backend.name for row in possible if row.fits]
    rest = (
        f"nothing leaves a fifth of a device for activations; {tight[0]} is tight"
        if tight
        else "nothing fits"
    )
    return None, f"{rest}: take more devices or a smaller model"


def show(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def as_number(text: str, option: str, whole: bool = False, most: float = 1e15) -> float:
    """A positive number, with K, M, B or T behind it if it is large."""
    match = re.fullmatch(r"(\d+\.?\d*(?:e\d{1,2})?)([KMBT]?)", text.strip(), re.IGNORECASE)
    # decimal, so that 16.4B is a whole number
    value = Decimal(match[1]) * 1000 ** " KMBT".index(match[2].upper() or " ") if match else Decimal()
    example = "8" if most < 7e9 else "8 or 7e9 or 1.3B"
    if not 0 < value <= most or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        limit = f", at most {most:g}" if value > most else ""
        raise RequestError(f"{option} {text!r} is not {kind} above 0{limit}, such as {example}")
    return float(value)


def read_run(given: Mapping[str, str]) -> tuple[Run, float]:
    """What the command line names: a run, and the memory of a device."""
    parameters = int(as_number(given["parameters"], "--parameters", True))
    device_memory = as_number(given["device-memory"], "--device-memory")
    counts = ("devices", "per-node", "blocks", "grad-accum")
    whole = {key: int(as_number(given[key], f"--{key}", True, 1e6)) for key in counts}
    for key, known in (("precision", WIDTHS), ("optimizer", OPTIMIZERS)):
        if given[key] not in known:
            raise RequestError(f"--{key} {given[key]!r} is not known: choose from {', '.join(known)}")
    devices, per_node = whole["devices"], min(whole["per-node"], whole["devices"])
    if devices % per_node:
        raise RequestError(
            f"--devices {devices} are not machines of {per_node}: choose a multiple of --per-node"
        )
    run = Run(
        parameters,
        given["precision"],
        given["optimizer"],
        devices,
        per_node,
        whole["blocks"],
        accumulation=whole["grad-accum"],
    )
    return run, device_memory * GIB


def lines(run: Run, device_memory: float) -> Iterator[str]:
    """The table of `scaffold plan`, and its advice."""
    heads = ("states", "passing", "start", "left", "sent", "between")
    yield f"{'':<20}{''.join(f'{head:>10}' for head in heads)}  GiB per device"
    for row in rows(run, device_memory):
        needs, sent = row.memory, row.traffic
        numbers = (needs.states, needs.passing, needs.start, row.left, sent.total, sent.between)
        text = "".join(f"{value / GIB:>10.1f}" for value in numbers)
        verdict = "does not fit" if not row.fits else "fits" if row.spares(device_memory) else "is tight"
        yield f"{row.backend.name:<20}{text}  {verdict}"
    best, why = advice(run, device_memory)
    yield ""
    yield why
    if best:
        yield f"scaffold new {choice(run, best)}"
        if words := train_options(run, best):
            yield f"and its train.py with {words}"


def choice(run: Run, row: Row) -> str:
    """The words of `scaffold new` that choose it."""
    words = [f"--{key} {value}" for key, (value,) in chosen(run, row.backend).items()]
    return " ".join([*words, *(["--with grad-accum"] if run.accumulation > 1 else [])])


def train_options(run: Run, row: Row) -> str:
    """And what its train.py has to be told."""
    stage = [f"--zero-stage {row.backend.stage}"] if row.backend.has("deepspeed") else []
    return " ".join([*stage, *([f"--grad-accum {run.accumulation}"] if run.accumulation > 1 else [])])


def report(run: Run, device_memory: float) -> dict[str, Any]:
    """The same for programs; sizes are bytes."""
    best, why = advice(run, device_memory)
    table = [
        {
            "backend": row.backend.name,
            "parameters": row.memory.parameters,
            "gradients": row.memory.gradients,
            "master": row.memory.master,
            "optimizer": row.memory.optimizer,
            "states": row.memory.states,
            "passing": row.memory.passing,
            "start": row.memory.start,
            "host": row.memory.host,
            "left": row.left,
            "fits": row.fits,
            "sent": row.traffic.total,
            "between": row.traffic.between,
        }
        for row in rows(run, device_memory)
    ]
    new = None
    if best:
        new = {"backend": best.backend.name, "new": choice(run, best), "train": train_options(run, best)}
    return {"backends": table, "advice": why, "choice": new}
