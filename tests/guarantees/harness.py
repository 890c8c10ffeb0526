"""What the tests of the guarantees share: options, ways to break a project, and what is noted."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.projects import edit, server, train, train_ranks, until

TASKS = ["image-classification", "tabular"]


SLOW_IMAGES = [pytest.param("image-classification", marks=pytest.mark.heavy), "tabular"]


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


BEST_FIRST = "    if best:  # first"


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
    edit(train_py, "        counters = {", '        kill_at("logged", step)\n        counters = {')
    edit(train_py, "PROJECT = ", "import signal\nfrom checkpoint import kill_at\n\nPROJECT = ")
    edit(checkpoint_py, BEST_FIRST, "    saving['step'] = counters['step']\n" + BEST_FIRST)
    edit(
        checkpoint_py,
        "    partial.replace(path)\n",
        "    saving_at('saved', path)\n    partial.replace(path)\n    saving_at('renamed', path)\n",
    )
    helper = """

def kill_at(place, step):
    if os.environ.get("KILL") == f"{place} {step}" and os.environ.get("RANK", "0") == "0":
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


def killed_and_resumed(project: Path, output_dir: Path, moment: str, workers: int, ranks: int = 0) -> None:
    options = [*SHORT, "--output-dir", output_dir, "--workers", workers, "--resume"]
    if ranks:
        server().start(project, *options, ranks=ranks, env={"KILL": moment})
        until(lambda: not Path(f"/proc/{server().pids[0]}/fd/1").exists())
        server().kill()
        server().wait()
    else:
        assert train(project, *options, env={"KILL": moment}, check=False).code == -signal.SIGKILL
    train_ranks(project, *options, ranks=ranks)


def closed_form(step: int, peak: float, warmup: int, total: int) -> float:
    """The learning rate with which step number `step` (from 1) was made."""
    done = step - 1
    if done < warmup:
        return peak * (done + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (total - warmup)))


def with_spy(project: Path) -> Path:
    """compute_loss notes a hash of every example it is given, a line a call, a file a rank."""
    signature = "(model: nn.Module, batch: list[torch.Tensor], device: torch.device) -> torch.Tensor:\n"
    edit(project / "train.py", signature, signature + "    spy.note(batch)\n")
    edit(project / "train.py", "PROJECT = ", "import spy\n\nPROJECT = ")
    (project / "spy.py").write_text(
        "import hashlib, json, os\n\n"
        "def note(batch):\n"
        "    rows = [b''.join(t.contiguous().numpy().tobytes() for t in row) for row in zip(*batch)]\n"
        "    with open(os.environ['SPY'] + os.environ.get('RANK', '0'), 'a') as file:\n"
        "        file.write(json.dumps([hashlib.md5(row).hexdigest() for row in rows]) + '\\n')\n"
    )
    return project


def joined(lists: Iterable[list[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(lists))


SHARDED_OPTIONS = ["--epochs", 3, "--batch-size", 16, "--log-every", 4, "--checkpoint-every", 7]
