"""One process, one workload: the contestants in turn, on a terminal. Writes JSON.

python race.py mlp|cnn|gpt OUT [--rounds 15]
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import generated
import loops
import torch
from torch import nn
from workloads import ROUNDS, WORKLOADS, Tensors, Timed, Workload, loss_fn

Loop = Callable[[Workload, Tensors, Tensors], nn.Module]


def timed(loop: Loop, task: Workload, tensors: tuple[Tensors, Tensors]) -> dict[str, float]:
    """Seconds from the first training step to the end of the run, and what was learnt."""
    start = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Timed.started = None
        model = loop(task, *tensors)
        wall, processor = time.perf_counter_ns(), time.process_time_ns()
        os.chdir(start)
    assert Timed.started
    model.eval()
    with torch.no_grad():
        loss = loss_fn(model(tensors[0][0]), tensors[0][1]).item()
    return {
        "wall": (wall - Timed.started[0]) / 1e9,
        "processor": (processor - Timed.started[1]) / 1e9,
        "loss": loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = WORKLOADS[args.workload]
    tensors = task.data()
    out = args.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        contestants: dict[str, Loop] = {
            "generated": generated.contestant(task, Path(folder)),
            "naive": loops.naive,
            "tuned": loops.tuned,
        }
        rounds = []
        for number in range(args.rounds + 1):
            names = list(contestants)
            turn = names[number % 3 :] + names[: number % 3]
            times = {name: timed(contestants[name], task, tensors) for name in turn}
            if number:  # the first warms up
                rounds.append(times)
    out.write_text(json.dumps(rounds))


if __name__ == "__main__":
    main()
