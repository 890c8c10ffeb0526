"""One project, every backend: the losses of each step, for docs/backends.md.

python -m tests.backends    # needs DeepSpeed in this environment, and .venv-xla, the one of tests/xla
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.projects import render, values

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TASKS = {
    "image-classification": ["--batch-size", "64", "--lr", "3e-5"],
    "language-modeling": ["--batch-size", "8", "--context", "64", "--heads", "1", "--depth", "2"],
}
STEPS = 60
COLOURS = ("#1f2933", "#d35400", "#2471a3", "#1e8449", "#8e44ad")


@dataclass(frozen=True)
class Backend:
    """How a project is chosen and run; `ranks` processes share the examples of a step."""

    name: str
    choice: Mapping[str, str]
    ranks: int = 0
    python: Path = Path(sys.executable)
    env: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()


BACKENDS = (
    Backend("one process", {"distributed": "none"}),
    Backend("DDP", {"distributed": "ddp"}, ranks=2),
    Backend("FSDP2", {"distributed": "fsdp"}, ranks=2),
    Backend("DeepSpeed ZeRO-2", {"distributed": "deepspeed"}, ranks=2, env={"DS_ACCELERATOR": "cpu"}),
    Backend(
        "SPMD on XLA",
        {"hardware": "tpu", "precision": "fp32", "distributed": "spmd"},
        python=ROOT / ".venv-xla" / "bin" / "python",
        env={"CPU_NUM_DEVICES": "2"},
        options=("--device", "cpu"),
    ),
)


def losses(task: str, backend: Backend, folder: Path) -> list[float]:
    """Of each optimizer step, at the same examples per step for every backend."""
    project = render(folder / "demo", task=task, **backend.choice)
    options = list(TASKS[task])
    torchrun = []
    if backend.ranks:
        options[1] = str(int(options[1]) // backend.ranks)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(backend.ranks)]
    steps = ["--warmup-steps", "10", "--max-steps", str(STEPS), "--log-every", "1"]
    command = [str(backend.python), *torchrun, "train.py", *options, *steps, *backend.options]
    subprocess.run(
        command,
        check=True,
        cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | backend.env,
        stdout=subprocess.DEVNULL,
        timeout=600,
    )
    return list(values(project / "runs" / "demo", "train/loss").values())


def furthest(curves: Mapping[str, list[float]], steps: int) -> float:
    """The largest relative difference to one process, over the first steps."""
    alone = curves["one process"][:steps]
    return max(
        abs(other - own) / abs(own)
        for curve in curves.values()
        for other, own in zip(curve[:steps], alone, strict=True)
    )


def chart(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    """A panel a task; each curve thinner than the one below it, so that equal ones are seen."""
    left, top, width, height, gap = 50, 50, 330, 210, 70
    whole = left + (width + gap) * len(found), top + height + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole[0]}" height="{whole[1]}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{whole[0]}" height="{whole[1]}" fill="white"/>',
        '<text x="10" y="18" font-size="14">Training loss by optimizer step: five backends, one curve</text>',
    ]
    for place, (task, curves) in enumerate(found.items()):
        x0 = left + (width + gap) * place
        ends = [value for curve in curves.values() for value in curve]
        low, high = min(ends), max(ends)
        parts.append(f'<text x="{x0}" y="{top - 8}" font-weight="bold">{task}</text>')
        parts.append(
            f'<rect x="{x0}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#ccc"/>'
        )
        for value, y in ((high, top + 10), (low, top + height)):
            parts.append(f'<text x="{x0 - 6}" y="{y}" text-anchor="end">{value:.2f}</text>')
        for number, (name, curve) in enumerate(curves.items()):
            xs = [x0 + width * step / (len(curve) - 1) for step in range(len(curve))]
            ys = [top + height * (high - value) / (high - low) for value in curve]
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{COLOURS[number]}" '
                f'stroke-width="{2 * (len(curves) - number) - 1}"><title>{name}</title></polyline>'
            )
        parts.append(f'<text x="{x0 + width}" y="{top + height + 16}" text-anchor="end">step {STEPS}</text>')
    for number, name in enumerate(next(iter(found.values()))):
        x = left + 150 * number
        parts.append(f'<rect x="{x}" y="{whole[1] - 22}" width="12" height="12" fill="{COLOURS[number]}"/>')
        parts.append(f'<text x="{x + 18}" y="{whole[1] - 12}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


PAGE = """# Backends

Made by `python -m tests.backends` from docs/backends.json. The same project, the same seed, the same
examples in each step, in 32-bit floats on processors: one process, two under DDP, FSDP2 and DeepSpeed's
ZeRO-2 (gloo), two devices of XLA's client under SPMD.

![training loss by optimizer step](backends.svg)

The largest relative difference to one process:

| task | over 20 steps | over {steps} steps |
| --- | --- | --- |
{rows}

The losses are equal but for rounding. The classifier has a small learning rate here, because a ReLU decides
by a sign, which rounding may turn, and a digit's many equal pixels turn together: at a rate of 1e-4 the same
loop parts by 1.6e-3 within 20 steps over two processes, and by 4e-4 in one with 64-bit floats. The tests of
two processes and of TPUs ([tests/guarantees](../tests/guarantees), [tests/xla](../tests/xla)) choose a small
rate, or an optimizer that does not magnify rounding, for the same reason.
"""


def page(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    rows = [
        f"| `{task}` | {furthest(curves, 20):.1e} | {furthest(curves, STEPS):.1e} |"
        for task, curves in found.items()
    ]
    return PAGE.format(steps=STEPS, rows="\n".join(rows))


def main() -> None:
    found: dict[str, dict[str, list[float]]] = {}
    for task in TASKS:
        found[task] = {}
        for backend in BACKENDS:
            with tempfile.TemporaryDirectory() as folder:
                found[task][backend.name] = losses(task, backend, Path(folder))
    (DOCS / "backends.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    (DOCS / "backends.svg").write_text(chart(found), encoding="utf-8")
    (DOCS / "backends.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
