"""What the tests of the guarantees share: options, ways to break a project, and what is noted."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.projects import Result, edit, server, train_ranks, until

RANKS = {"none": 0, "ddp": 2, "fsdp": 2}  # processes; 0 is one that is not told of any others
everywhere = pytest.mark.parametrize("distributed", RANKS)
over_ranks = pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
# for controls: over ranks in the heavy run only
mostly_alone = pytest.mark.parametrize(
    "distributed", ["none", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("ddp", "fsdp"))]
)
TASKS = [pytest.param("image-classification", marks=pytest.mark.heavy), "tabular"]
# a fork beside a process group's threads: python/cpython#112275; docs/guarantees.md says it to users
FORKS_CAN_HANG = sys.version_info < (3, 11, 10)
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
    loop = "    for batch in loader:\n"
    edit(train_py, loop, loop + '        kill_at("evaluating")\n')
    edit(train_py, "        counters = {", '        kill_at("logged", step)\n        counters = {')
    edit(train_py, "PROJECT = ", "import signal\nfrom checkpoint import kill_at\n\nPROJECT = ")
    doc = 'leaves the old files or the new ones."""\n'
    edit(checkpoint_py, doc, doc + "    saving['step'] = counters['step']\n")
    edit(
        checkpoint_py,
        "    partial.replace(path)\n",
        "    saving_at('saved', path)\n    partial.replace(path)\n    saving_at('renamed', path)\n",
    )
    helper = """

def kill_at(place, step=None):
    if step is not None:
        kill_at.step = step
    if os.environ.get("KILL") == f"{place} {kill_at.step}" and os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), 9)


saving = {}


def saving_at(place, path):
    kill_at("best " * (path.name == "best.pt") + place, saving["step"])
"""
    checkpoint_py.write_text(checkpoint_py.read_text() + helper)
    return project


RICH = {
    "hardware": "gpu",
    "precision": "fp16",
    "features": ("grad-accum", "grad-clip", "ema", "early-stopping"),
    "logger": ("tensorboard", "wandb"),
}


def first_ended() -> bool:
    """Has the first process come to an end, though the server may still wait for others?"""
    return not Path(f"/proc/{server().pids[0]}/fd/1").exists()


def until_the_first_ends(project: Path, *options: object, ranks: int, **settings: Any) -> Result:
    """Run the program until its first process ends, which the others may wait for in vain."""
    server().start(project, *options, ranks=ranks, **settings)
    until(first_ended)
    server().kill()
    return server().wait()[0]


def killed(project: Path, *options: object, ranks: int, **settings: Any) -> bool:
    return until_the_first_ends(project, *options, ranks=ranks, **settings).code == -signal.SIGKILL


def killed_and_resumed(
    project: Path,
    output_dir: Path,
    moment: str,
    workers: int = 0,
    ranks: int = 0,
    given: Sequence[object] = SHORT,
) -> None:
    options = [*given, "--output-dir", output_dir, "--workers", workers, "--resume"]
    assert killed(project, *options, ranks=ranks, env={"KILL": moment})
    try:
        train_ranks(project, *options, ranks=ranks)
    except TimeoutError:
        if not (ranks and workers and FORKS_CAN_HANG):
            raise
        train_ranks(project, *options, ranks=ranks)  # what was killed once more is resumed once more


def closed_form(step: int, peak: float, warmup: int, total: int) -> float:
    """The learning rate with which step number `step` (from 1) was made."""
    done = step - 1
    if done < warmup:
        return peak * (done + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (total - warmup)))


def with_few_pictures(size: int) -> Callable[[Path], Path]:
    """Only so many to evaluate, and 120 to train on."""

    def with_pictures(project: Path) -> Path:
        for name, number in (("~held_out", 120), ("held_out", size)):
            old = f"Images(images[{name}], labels[{name}]"
            edit(project / "data.py", old, old.replace("]", f"][:{number}]"))
        return project

    with_pictures.__name__ += f"_{size}"
    return with_pictures


def with_spy(project: Path) -> Path:
    """compute_loss notes a hash of every example it is given, a line a call, a file a rank."""
    signature = "(model: nn.Module, batch: list[torch.Tensor], device: torch.device) -> torch.Tensor:\n"
    return spying(project, signature, "    spy.note(batch)\n")


def with_evaluation_spy(project: Path) -> Path:
    """The same of the evaluation."""
    return spying(project, "    for batch in loader:\n", "        spy.note(batch)\n")


def spying(project: Path, after: str, line: str) -> Path:
    edit(project / "train.py", after, after + line)
    edit(project / "train.py", "PROJECT = ", "import spy\n\nPROJECT = ")
    (project / "spy.py").write_text(
        "import hashlib, json, os\n\n"
        "def note(batch):\n"
        "    rows = [b''.join(t.contiguous().numpy().tobytes() for t in row) for row in zip(*batch)]\n"
        "    with open(os.environ['SPY'] + os.environ.get('RANK', '0'), 'a') as file:\n"
        "        file.write(json.dumps([hashlib.md5(row).hexdigest() for row in rows]) + '\\n')\n"
    )
    return project


def seen(project: Path, folder: Path, *options: object, ranks: int = 0) -> list[list[list[str]]]:
    """Run the program; what the spy saw: per rank, per call, the examples."""
    folder.mkdir(exist_ok=True)
    train_ranks(project, *options, "--output-dir", folder / "out", ranks=ranks, env={"SPY": f"{folder}/seen"})
    return [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("seen*"))
    ]


def joined(lists: Iterable[list[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(lists))


SHARDED_OPTIONS = ["--epochs", 3, "--batch-size", 16, "--log-every", 4, "--checkpoint-every", 7]


# What processes run before train.py to note what it does; the first of them writes the file that NOTES names.
NOTES = """
import os
import torch

noted = []

def note(value):
    noted.append(value)
    if os.environ.get("RANK", "0") == "0":
        torch.save(noted, os.environ["NOTES"])

def whole(value):
    value = value.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
"""

# the gradient with which each step is made, as one vector
NOTE_GRADIENTS = NOTES + """
from torch.optim.optimizer import register_optimizer_step_pre_hook

def hook(optimizer, args, options):
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    note(torch.cat([whole(value.grad).flatten() for value in parameters]).double())

register_optimizer_step_pre_hook(hook)
"""

# the state at each checkpoint, which is not saved
NOTE_STATES = NOTES + """
import checkpoint

def note_state(directory, parts, counters, best):
    states = {name: parts[name].state_dict() for name in ("model", "ema") if name in parts}
    for name, state in states.items():
        states[name] = {key: whole(value) for key, value in state.items()}
    note(states | counters)

checkpoint.save_checkpoint = note_state
"""


def noted(project: Path, folder: Path, first: str, *options: object, ranks: int = 0) -> list[Any]:
    """Run the program; what the first process noted."""
    folder.mkdir(exist_ok=True)
    options = (*options, "--output-dir", folder / "out")
    train_ranks(project, *options, ranks=ranks, first=first, env={"NOTES": f"{folder}/notes.pt"})
    found: list[Any] = torch.load(folder / "notes.pt")
    return found


# From the last barrier on, every other thread of a process gets only what busy processors leave over: what is
# a matter of microseconds at the end of a run, and of luck, is then a matter of tens of milliseconds.
STARVED_THREADS = """
import os
import torch.distributed as dist
barrier = dist.barrier

def starving_barrier(*args, **options):
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread != os.getpid():
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    return barrier(*args, **options)

dist.barrier = starving_barrier
"""


@contextmanager
def busy_processors() -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    hogs = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def bad_ends(project: Path, place: Path, *options: object, runs: int) -> Iterator[str]:
    """How processes ended that did not end well, of many short runs with starved threads."""
    with busy_processors():
        for number in range(runs):
            given = ["--max-steps", 2, *options, "--output-dir", place / str(number)]
            try:
                results = train_ranks(project, *given, timeout=60, check=False, first=STARVED_THREADS)
            except TimeoutError:
                yield "hang"
            else:
                yield from (f"{result.code} {result.err}" for result in results if result.code or result.err)
