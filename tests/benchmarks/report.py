"""Measures everything and rewrites docs/performance.md and its chart.

python tests/benchmarks/report.py [--rounds 15]
"""

import argparse
import datetime
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path

import commands
import rendering
import training
from test_performance import TARGETS
from workloads import ROUNDS

DOCS = Path(__file__).parents[2] / "docs"

# Whole epochs, processor time, as a part of the hand-written loop's, from an earlier run of the comparison
# that this one grew out of: each framework as its first page shows it, with its bar, logs and checkpoints.
EARLIER = {
    "Fabric": (1.16, 1.03, 1.00),
    "Ignite": (1.16, 1.05, 1.04),
    "skorch": (1.17, 1.02, 1.02),
    "Catalyst": (1.36, 1.08, 1.06),
    "torchbearer": (1.38, 1.03, 1.01),
    "Accelerate": (1.39, 1.05, 1.04),
    "HF Trainer": (1.76, 1.09, 1.08),
    "fastai": (1.94, 1.11, 1.03),
    "Lightning": (2.35, 1.22, 1.12),
}

PAGE = """# Performance

![Time beside the hand-written loop](performance.svg)

Measured {date} on {machine}, Python {python}, PyTorch {torch}.
`python tests/benchmarks/report.py` rewrites this page; `pytest -m heavy tests/benchmarks` fails when a
ratio is worse than the noise of a shared machine explains.

## The training loop

| time as a part of the naive loop's | MLP | CNN | GPT |
| --- | --- | --- | --- |
| naive hand-written loop | 1 | 1 | 1 |
| shortest tuned loop | {tuned} |
| **generated project** | {generated} |
| the same by wall clock | {wall} |
| aim | {limits} |
| generated, as a part of the tuned loop's | {beside} |
| aim | {beside_limits} |

{missed}

{rounds} rounds; load average {load:.1f} on two processors, one of it the measurement. Medians of the ratios
within a round, the middle half of which lies in {spread}.

* The naive loop: `DataLoader(shuffle=True)`, `AdamW` as it comes, `loss.item()` at each step; no log, no
  checkpoint.
* The tuned loop: rows indexed by a permutation, fused AdamW, channels last for images, a line every 50 steps,
  a plain `torch.save` an epoch.
* The generated project: its own `main()`, rendered now, with model, data and the lines its README names
  replaced. It draws its progress bar on a pseudo-terminal, writes its record, and saves a checkpoint an epoch
  and the best.
* All evaluate one held-out batch an epoch. They run in one process in turn, on one thread, the first round
  thrown away, from the first training step to the end of the run, in processor time. Runs are written to
  memory: waiting for a disk to make a checkpoint durable is not in these figures.
* MLP 32-64-64-10, batches of 64; CNN of two convolutions, 32 pictures of 32x32; GPT of two layers, width 128,
  8 x 64 tokens.

## Frameworks, from an earlier run

| whole epochs, as a part of a hand-written loop's time | MLP | CNN | GPT |
| --- | --- | --- | --- |
{earlier}

These come from an earlier run of the harness that this one is a simplification of, not from the day and
machine above: each framework as its first page shows it, Lightning at 2.6.6, beside a plain loop over a
`DataLoader` in order that never reads the loss. Compare the order of magnitude, not the second digit.

## The command line

| | measured | limit |
| --- | --- | --- |
| `scaffold new x --yes`, as a part of cookiecutter's time for a ten-file local template | {new:.2f} | 0.75 |
| milliseconds each, cold start to written project | {scaffold:.0f} and {cookiecutter:.0f} | |
| projects a second on one core, all {rendered:,} valid ones rendered in memory | {speed:.0f} | 200 |
"""


def percent_of(loops: dict[str, list[dict[str, dict[str, float]]]], *words: str) -> str:
    return " | ".join(f"{training.ratio(rounds, *words):.2f}" for rounds in loops.values())


def spread(loops: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    parts = []
    for name, rounds in loops.items():
        ratios = [times["generated"]["processor"] / times["naive"]["processor"] for times in rounds]
        low, _, high = statistics.quantiles(ratios, n=4)
        parts.append(f"{low:.2f} to {high:.2f} ({name.upper()})")
    return ", ".join(parts)


def missed(loops: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    found = [
        f"{name.upper()} beside the {base} loop"
        for name, rounds in loops.items()
        for base, limit in zip(("naive", "tuned"), TARGETS[name], strict=True)
        if training.ratio(rounds, "generated", base) > limit
    ]
    return f"Aims missed in this run: {', '.join(found) or 'none'}."


def machine() -> str:
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return f"{os.cpu_count()} shared virtual processors ({models[0].partition(': ')[2]})"


def chart(bars: dict[str, dict[str, float]]) -> str:
    """Horizontal bars, a column a workload; ours and the hand-written ones in another colour."""
    left, column, row, top = 150, 190, 20, 46
    widest = max(max(values.values()) for values in bars.values())
    names = list(next(iter(bars.values())))
    width, height = left + column * len(bars) + 10, top + row * len(names) + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<text x="10" y="18" font-size="14">Time beside a naive hand-written loop (less is better)</text>',
    ]
    for number, name in enumerate(names):
        parts.append(f'<text x="{left - 8}" y="{top + row * number + 13}" text-anchor="end">{name}</text>')
    for place, (title, values) in enumerate(bars.items()):
        x = left + column * place
        parts.append(f'<text x="{x}" y="{top - 8}" font-weight="bold">{title}</text>')
        for number, (name, value) in enumerate(values.items()):
            y, length = top + row * number, (column - 50) * value / widest
            colour = "#9aa5b1" if name in EARLIER else "#7fb3d5" if name != "generated" else "#d35400"
            parts.append(
                f'<rect x="{x}" y="{y + 2}" width="{length:.1f}" height="{row - 6}" fill="{colour}"/>'
            )
            parts.append(f'<text x="{x + length + 4:.1f}" y="{y + 13}">{value:.2f}</text>')
    parts.append(f'<text x="10" y="{height - 8}" fill="#666">grey: frameworks, from an earlier run</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    loads = []
    loops = {}
    for name in TARGETS:
        loops[name] = training.race(name, args.rounds)
        loads.append(os.getloadavg()[0])
    new, matrix = commands.measure(), rendering.measure()
    bars = {}
    for place, (name, rounds) in enumerate(loops.items()):
        ours = {who: training.ratio(rounds, who, "naive") for who in ("generated", "tuned", "naive")}
        bars[name.upper()] = ours | {who: figures[place] for who, figures in EARLIER.items()}
    DOCS.mkdir(exist_ok=True)
    (DOCS / "performance.svg").write_text(chart(bars))
    page = PAGE.format(
        date=datetime.date.today(),
        machine=machine(),
        python=platform.python_version(),
        torch=version("torch"),
        tuned=percent_of(loops, "tuned", "naive"),
        generated=percent_of(loops, "generated", "naive"),
        wall=percent_of(loops, "generated", "naive", "wall"),
        limits=" | ".join(f"{limit[0]:.2f}" for limit in TARGETS.values()),
        beside=percent_of(loops, "generated", "tuned"),
        beside_limits=" | ".join(f"{limit[1]:.2f}" for limit in TARGETS.values()),
        missed=missed(loops),
        rounds=args.rounds,
        load=statistics.mean(loads),
        spread=spread(loops),
        earlier="\n".join(
            f"| {who} | {' | '.join(f'{v:.2f}' for v in figures)} |" for who, figures in EARLIER.items()
        ),
        new=new["wall ratio"],
        scaffold=new["scaffold ms"],
        cookiecutter=new["cookiecutter ms"],
        speed=matrix["per second"],
        rendered=int(matrix["rendered"]),
    )
    (DOCS / "performance.md").write_text(page)


if __name__ == "__main__":
    main()
