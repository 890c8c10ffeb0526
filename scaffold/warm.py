"""Runs of a project's train.py, each forked from one process that has imported torch already.

Scaffold never imports this file: the project's own Python runs it, with the project's folder as its argument.
It reads requests from standard input, a line of JSON each; when that is closed it ends all that it started.
"""

import ast
import atexit
import ctypes
import gc
import hashlib
import importlib
import json
import os
import runpy
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

GRACE = 20  # seconds for the others when one process has failed


def main() -> None:
    project = sys.argv[1]
    sys.path[0] = project
    spare = spare_modules()
    try:
        importlib.import_module("torch")
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}".splitlines()[0])
    warm_up(Path(project))
    spare()
    print("ready", flush=True)
    while line := sys.stdin.readline():
        request = json.loads(line)
        pids = []
        for job in request["jobs"]:
            pids.append(os.fork())
            if pids[-1] == 0:
                become(job, project)
                return
        print(json.dumps(ends(pids, request["limit"])), flush=True)


def spare_modules() -> Callable[[], None]:
    """Called later, the function returned has what is imported by then not taken apart at a run's end.

    That would write to, and so copy, all the pages on which it lies: a third of what a short run costs.
    Registered before anything is imported, this is the last that a run does.
    """
    stay = ("sys", "builtins", "__main__")
    spared: dict[str, Any] = {}
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(spared))
    atexit.register(lambda: [sys.modules.pop(name, None) for name in spared])

    def spare() -> None:
        spared.update({name: module for name, module in sys.modules.items() if name not in stay})

    return spare


def warm_up(project: Path) -> None:
    """Import what the project's files import, but for those files themselves."""
    own = {path.stem for path in project.iterdir()}
    # optimizers import the first at their first step, whoever reads shards the second
    names = {"torch._dynamo", "torch.distributed.checkpoint"}
    for file in project.glob("*.py"):
        with suppress(SyntaxError, ValueError, OSError):  # a run will say it
            for node in ast.parse(file.read_bytes()).body:
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module)
    for name in sorted(names):
        if name.partition(".")[0] not in own:
            with suppress(Exception, SystemExit), redirect_stdout(sys.stderr):  # our answers go to the other
                importlib.import_module(name)
    gc.freeze()


def ends(pids: list[int], limit: float) -> dict[str, Any]:
    """Wait for every process; as a launcher does, end the others when one was killed or has failed."""
    codes: dict[int, int] = {}
    end = last = time.monotonic() + limit
    while len(codes) < len(pids):
        alone = bool(select.select([sys.stdin], [], [], 0.01)[0])  # nothing comes now but its end
        for pid in pids:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
                if codes[pid]:
                    end = min(end, time.monotonic() + (0 if codes[pid] == -signal.SIGKILL else GRACE))
        if alone or time.monotonic() > end:
            for pid in pids:
                kill_session(pid, alive=pid not in codes)
        if alone:
            sys.exit()
    for pid in pids:
        kill_session(pid, alive=False)
    return {"codes": [codes[pid] for pid in pids], "late": time.monotonic() > last}


def kill_session(leader: int, alive: bool) -> None:
    """Kill a process and all that it started; loaders have process groups of their own."""
    members = [leader] if alive else []  # else its number may be another's by now
    for stat in Path("/proc").glob("[0-9]*/stat"):  # elsewhere loaders end by themselves, seconds later
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[3]) == leader:
                members.append(int(stat.parent.name))
    for pid in members:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def become(job: dict[str, Any], project: str) -> None:
    """From here on this process is `python train.py`, or a look at checkpoints."""
    os.setsid()
    for number, name in enumerate([os.devnull, job["out"], job["err"]]):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY
        os.dup2(os.open(name, flags), number)
    os.chdir(project)
    os.environ.update(job["env"])
    if "numpy" in sys.modules:  # else every run would draw the same without a seed
        sys.modules["numpy"].random.seed()
    if "look" in job:
        print(json.dumps([look(path) for path in job["look"]]))
        return
    if job["still"]:
        no_dropout()
    if job["strike"]:
        arm(**job["strike"])
    sys.argv = ["train.py", *job["words"]]
    runpy.run_path("train.py", run_name="__main__")


def arm(at: str, number: int, sends: int, rank: int) -> None:
    """Signal this process at its `number`-th optimizer step, rename of a file or torch.save (half done)."""
    if int(os.environ.get("RANK", "0")) != rank:
        return
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), sends)

    def before(function: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            count()
            return function(*arguments, **options)

        return counted

    def half_saved(state: Any, file: Any, *arguments: Any, **options: Any) -> None:
        save(state, file, *arguments, **options)
        if seen == number - 1 and isinstance(file, str | os.PathLike):
            os.truncate(file, os.path.getsize(file) // 2)
        count()

    save = torch.save
    if at == "step":
        register_optimizer_step_post_hook(count)
    elif at == "rename":
        os.replace, os.rename = before(os.replace), before(os.rename)
    else:
        torch.save = half_saved


def no_dropout() -> None:
    """Nothing random may be left that depends on the rank."""
    import torch.nn.functional as F

    for name in dir(F):
        if "dropout" in name and not name.startswith("_"):
            setattr(F, name, lambda value, *_, **__: value)


def look(path: str) -> dict[str, Any]:
    """What a checkpoint holds, and why it does not load with weights_only=True."""
    error = ""
    for weights_only in (True, False):
        try:
            return contents(load(path, weights_only)) | {"error": error}
        except Exception as problem:  # each kind of damage has its own
            error = error or f"{type(problem).__name__}: {problem}".splitlines()[0]
    return {"error": error, "leaves": {}, "norms": {}}


def load(path: str, weights_only: bool) -> Any:
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    if os.path.isfile(path):
        return torch.load(path, map_location="cpu", weights_only=weights_only)
    if not os.path.exists(os.path.join(path, ".metadata")):
        return engine_state(path)
    with tempfile.NamedTemporaryFile() as file:
        dcp_to_torch_save(path, file.name)
        return torch.load(file.name, map_location="cpu", weights_only=weights_only)


def engine_state(path: str) -> Any:
    """What DeepSpeed wrote: whole parameters, put together by its own tool, which talks."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with redirect_stdout(sys.stderr):
        model = get_fp32_state_dict_from_zero_checkpoint(path)
    return {"model": model, "about": json.loads(Path(path, "about.json").read_text())}


def contents(state: Any) -> dict[str, dict[str, Any]]:
    """Every leaf, of a tensor its digest; and the norm of every tensor of numbers."""
    import torch

    found: dict[str, dict[str, Any]] = {"leaves": {}, "norms": {}}
    for name, leaf in leaves(state):
        if isinstance(leaf, torch.Tensor):
            if leaf.dim() and leaf.is_floating_point():
                found["norms"][name] = leaf.double().norm().item()
            leaf = hashlib.sha256(leaf.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            found["leaves"][name] = f"sha256 {leaf.hexdigest()}"
        else:
            found["leaves"][name] = repr(leaf)
    return found


def leaves(value: Any, name: str = "") -> Any:
    """Nested dicts and lists as (name, leaf)."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        yield name, value
        return
    for key, part in items:
        yield from leaves(part, f"{name}.{key}".lstrip("."))


if __name__ == "__main__":
    main()
