"""Generated projects as real folders and real processes."""

from __future__ import annotations

import gzip
import inspect
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from scaffold.answers import Answers
from scaffold.catalog import Catalog, load_catalog
from scaffold.errors import RequestError
from scaffold.plan import make_plan
from scaffold.project import with_manifest, write
from scaffold.render import Renderer, Tree
from scaffold.rules import complete
from scaffold.trial import rank_variables
from scaffold.warm import spare_modules

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}

# A process that has torch imported already. Each job is forked from it, its output goes to files, and from
# there on it is what `python train.py` is: its exit code and its last words are the interpreter's own. Only
# the modules imported before are not taken apart at its end, as in `scaffold verify`.
SPARE = f"""
import atexit, ctypes, sys
from collections.abc import Callable
from typing import Any

{inspect.getsource(spare_modules)}
spare = spare_modules()
"""
IMPORTS = """
import numpy, pandas, sklearn.datasets, PIL.Image, torch, torch.distributed, torch.utils.data, tqdm
import torch._dynamo, torch.utils.tensorboard
"""
SERVER = """
import gc, json, os, runpy, sys
import torch
torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True).step()
gc.freeze()
spare()
print("ready", flush=True)
mine = None
for line in sys.stdin:
    pids = []
    for job in json.loads(line):
        pids.append(os.fork())
        if pids[-1] == 0:
            mine = job
            break
    if mine:
        break
    print(json.dumps(pids), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
if mine:
    os.setsid()
    for number, name in enumerate([os.devnull, mine["out"], mine["err"]]):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY
        os.dup2(os.open(name, flags), number)
    os.chdir(mine["project"])
    os.environ.update(mine["env"])
    sys.argv, sys.path[0] = mine["argv"], mine["project"]
    exec(mine["first"], {})
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@cache
def catalog() -> Catalog:
    return load_catalog()


@cache
def renderer() -> Renderer:
    return Renderer(catalog())


def choose(**given: Any) -> Answers:
    """A demo project's answers; keys are the axis keys, `features` for `with`."""
    if "features" in given:
        given["with"] = given.pop("features")
    return complete({"name": "demo", "hardware": "cpu"} | given, catalog())


def is_offered(**given: Any) -> bool:
    try:
        choose(**given)
    except RequestError:
        return False
    return True


def tree_of(answers: Answers) -> Tree:
    return renderer().tree(make_plan(answers, catalog()))


def render(folder: Path, **given: Any) -> Path:
    """Write the project of `choose` into `folder`."""
    answers = choose(**given)
    write(with_manifest(tree_of(answers), answers), folder)
    return folder


def edit(path: Path, old: str, new: str, count: int = 1) -> None:
    """Replace text that must be there exactly `count` times."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == count, f"{path} holds {old!r} {text.count(old)} times, not {count}"
    path.write_text(text.replace(old, new), encoding="utf-8")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The last line on standard error."""
        return self.err.strip().rpartition("\n")[2]


class Server:
    """Runs a program in forked processes: one job at a time, of one process or of several ranks."""

    def __init__(
        self, interpreter: str = sys.executable, imports: str = IMPORTS, program: str = "train.py"
    ) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.program = program
        self.process = subprocess.Popen(
            [interpreter, "-c", SPARE + imports + SERVER],
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pids: list[int] = []
        self.received = b""
        self.line(60)

    def line(self, timeout: float) -> str:
        """The server's next line. What select() is asked about must not wait in a buffer of ours already."""
        assert self.process.stdout
        while b"\n" not in self.received:
            if not select.select([self.process.stdout], [], [], timeout)[0]:
                raise TimeoutError(f"no answer within {timeout} s")
            if not (more := os.read(self.process.stdout.fileno(), 1 << 16)):
                raise EOFError("the process that runs the jobs has ended")
            self.received += more
        line, _, self.received = self.received.partition(b"\n")
        return line.decode()

    def start(
        self,
        project: Path,
        *options: object,
        ranks: int = 0,
        env: dict[str, str] | None = None,
        err: str | None = None,
        first: str = "",
    ) -> list[int]:
        """Start the program, its output in files (`err` may be a terminal); the process ids.

        `first` is Python that each process runs before it: for faults and measurements.
        """
        jobs = [
            {
                "project": str(project),
                "argv": [self.program, *map(str, options)],
                "env": variables | (env or {}),
                "out": f"{self.folder.name}/out{number}",
                "err": err or f"{self.folder.name}/err{number}",
                "first": first,
            }
            for number, variables in enumerate(rank_variables(ranks))
        ]
        assert self.process.stdin
        self.process.stdin.write(json.dumps(jobs) + "\n")
        self.process.stdin.flush()
        self.pids = json.loads(self.line(20))
        return self.pids

    def wait(self, timeout: float = 120) -> list[Result]:
        """The end of every process; what they started and left behind is ended too."""
        try:
            codes = json.loads(self.line(timeout))
        except TimeoutError:
            self.kill()
            self.line(20)
            raise
        return [
            Result(code, *(Path(self.folder.name, f"{name}{number}").read_text() for name in ("out", "err")))
            for number, code in enumerate(codes)
        ]

    def kill(self) -> None:
        for pid in self.pids:
            kill_tree(pid)


@cache
def server() -> Server:
    return Server()


def train_ranks(
    project: Path,
    *options: object,
    ranks: int = 2,
    timeout: float = 120,
    env: dict[str, str] | None = None,
    check: bool = True,
    first: str = "",
) -> list[Result]:
    """Run train.py to its end in several processes that know each other, as torchrun starts them."""
    server().start(project, *options, ranks=ranks, env=env, first=first)
    results = server().wait(timeout)
    for result in results:
        assert not check or result.code == 0, result.err
    return results


def train(
    project: Path,
    *options: object,
    timeout: float = 120,
    env: dict[str, str] | None = None,
    check: bool = True,
) -> Result:
    """Run train.py to its end in one process."""
    return train_ranks(project, *options, ranks=0, timeout=timeout, env=env, check=check)[0]


def python(*words: object) -> list[str]:
    return [sys.executable, *map(str, words)]


def torchrun(*words: object, processes: int = 2) -> list[str]:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes)
    return python(*launch, *words)


@contextmanager
def started(
    project: Path, command: list[str], env: dict[str, str] | None = None, **streams: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process of which, and of whose children, nothing is left afterwards."""
    process = subprocess.Popen(
        command,
        cwd=project,
        env=os.environ | ENVIRONMENT | (env or {}),
        text=True,
        start_new_session=True,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
    )
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.wait(30)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def run(
    project: Path,
    command: list[str],
    timeout: float = 180,
    env: dict[str, str] | None = None,
    check: bool = True,
) -> Result:
    with started(project, command, env) as process:
        out, err = process.communicate(timeout=timeout)
    assert not check or process.returncode == 0, err
    return Result(process.returncode, out, err)


def drive(project: Path, source: str, *arguments: object, timeout: float = 180) -> str:
    """Run a script of ours that imports the project's modules; what it prints."""
    return run(project, python("-c", source, *arguments), timeout).out


def kill_tree(pid: int) -> None:
    """Kill -9 for a process and all that it started, whatever sessions they made."""
    for victim in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found


def until(condition: Callable[[], Any], timeout: float = 60, every: float = 0.005) -> Any:
    """Wait for something to become true, and return it."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(every)
    return value


def metrics(output_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def values(output_dir: Path, key: str) -> dict[int, float]:
    """step -> value of one metric."""
    return {int(row["step"]): row[key] for row in metrics(output_dir) if key in row}


def checkpoints(output_dir: Path) -> list[Path]:
    """The step checkpoints, oldest first."""
    return sorted((output_dir / "checkpoints").glob("step-*"))


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's contents; of a folder of shards, all of them put together."""
    state: dict[str, Any] = {}
    if path.is_dir() and (files := sorted(path.rglob("*.pt"))):  # DeepSpeed's: of its objects the tensors
        parts = {file.name: torch.load(file, weights_only=False) for file in files}
        return {key: leaf for key, leaf in leaves(parts).items() if isinstance(leaf, torch.Tensor)}
    if path.is_dir():
        state["counters"] = json.loads((path / "counters.json").read_text())
        with tempfile.NamedTemporaryFile() as file:
            dcp_to_torch_save(path, file.name)
            return state | torch.load(file.name, map_location="cpu", weights_only=True)
    return state | torch.load(path, map_location="cpu", weights_only=True)


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one flat dict."""
    if not isinstance(value, dict | list | tuple):
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, part in items for name, leaf in leaves(part, f"{prefix}/{key}").items()}


def same_bits(one: Any, other: Any) -> bool:
    """Are two checkpoints (or parts of them) equal to the last bit?"""
    left, right = leaves(one), leaves(other)
    return left.keys() == right.keys() and all(
        torch.equal(leaf, right[key]) if isinstance(leaf, torch.Tensor) else leaf == right[key]
        for key, leaf in left.items()
    )


def repeatable(record: str) -> list[str]:
    """The lines of a record as they are, but for speeds, which are the machine's."""
    if '"speed/' not in record:
        return record.splitlines(keepends=True)
    rows = [json.loads(line) for line in record.splitlines()]
    return [
        json.dumps({key: value for key, value in row.items() if not key.startswith("speed/")}) for row in rows
    ]


def same_run(one: Path, other: Path) -> bool:
    """Are the records and the last checkpoints of two runs equal to the last bit?"""
    records = [repeatable((place / "metrics.jsonl").read_text()) for place in (one, other)]
    newest = [checkpoints(place)[-1] for place in (one, other)]
    names = [path.name for path in newest]
    return records[0] == records[1] and names[0] == names[1] and same_bits(*map(load, newest))


def all_finite(path: Path) -> bool:
    found = leaves(load(path)).values()
    return all(bool(leaf.isfinite().all()) for leaf in found if isinstance(leaf, torch.Tensor))


def write_pictures(folder: Path, classes: tuple[str, ...] = ("cats", "dogs"), number: int = 20) -> Path:
    """A folder of pictures per class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = rng.integers(0, 256, size=(40, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")
    return folder


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def table(regression: bool = False, rows: int = 60) -> pd.DataFrame:
    """Numbers and words, both with gaps, and a target."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"height": rng.normal(size=rows), "colour": rng.choice(["red", "green"], size=rows)})
    frame["target"] = rng.normal(size=rows) if regression else rng.choice(["yes", "no"], size=rows)
    frame.loc[::7, "height"] = frame.loc[::5, "colour"] = None
    return frame


def write_data(folder: Path, task: str, data: str, regression: bool = False) -> list[str]:
    """The small set that a project's own tests write for its source of data; the options that name it."""
    if not catalog().task(task).sources[data].option:
        return []
    plan = make_plan(choose(task=task, data=data, features=("regression",) if regression else ()), catalog())
    macro = f'#: import "tasks/{task}/small_data.py.jinja" as small with context\n'
    template = renderer().env.from_string(macro + "def write(folder):\n    {{ small.write() }}\n")
    known: dict[str, Any] = {"np": np, "pd": pd, "Image": Image, "gzip": gzip, "json": json}
    exec(template.render(plan.facts), known)
    (folder / "data").mkdir()
    return ["--data", str(known["write"](folder / "data"))]


def metric(project: Path) -> str:
    """What the project's README says it is judged by."""
    found = re.search(r"metric is `(val/\w+)`", (project / "README.md").read_text())
    assert found, "the README names no metric"
    return found[1]


def small_options(task: str) -> list[str]:
    """What makes a run of the task short enough for a test."""
    return catalog().task(task).small_options


def few_examples(number: int) -> str:
    """For `first`: sets of at most so many examples, so that an epoch of any task is a few steps.

    Pictures are small: 16-bit convolutions of large ones take minutes on processors.
    """
    return f"""
import data
from torch.utils.data import Dataset

for kind in list(vars(data).values()):
    if isinstance(kind, type) and issubclass(kind, Dataset) and kind is not Dataset:
        kind.__len__ = lambda self, whole=kind.__len__: min(whole(self), {number})
if hasattr(data, "IMAGE_SIZE"):
    data.IMAGE_SIZE = min(data.IMAGE_SIZE, 64)
"""
