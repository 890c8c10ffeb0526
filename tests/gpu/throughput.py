"""Run in a language-modeling project: tokens a second of its loop and of a bare one, as JSON."""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
import tqdm

sys.path.insert(0, str(Path.cwd()))

from data import build_datasets
from model import Transformer
from train import compute_loss, main, parse_args

STEPS, WARM_UP = 80, 20  # an epoch has more
SIZES = {"context": 512, "heads": 12, "depth": 12, "batch-size": 8}
DEVICE = torch.accelerator.current_accelerator()
TOKENS = SIZES["context"] * SIZES["batch-size"] * (STEPS - WARM_UP)


class Clock:
    """Seconds from the end of step WARM_UP to the end of step STEPS, all work of the GPU included."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.steps = 0

    def tick(self) -> None:
        self.steps += 1
        if self.steps in (WARM_UP, STEPS):
            torch.accelerator.synchronize()
            self.marks.append(time.perf_counter())

    @property
    def tokens_per_second(self) -> float:
        return TOKENS / (self.marks[1] - self.marks[0])


def generated() -> float:
    clock, update = Clock(), tqdm.tqdm.update

    def after_step(bar: tqdm.tqdm, number: int = 1) -> None:
        update(bar, number)
        clock.tick()

    tqdm.tqdm.update = after_step
    sizes = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        main(parse_args([*sizes, "--output-dir", folder, "--epochs", "1000", "--max-steps", str(STEPS)]))
    tqdm.tqdm.update = update
    return clock.tokens_per_second


def bare() -> float:
    train_set, _ = build_datasets(SIZES["context"])
    batch = [tensor.to(DEVICE) for tensor in train_set[torch.arange(SIZES["batch-size"]).numpy()]]
    model = Transformer(train_set.vocab_size, SIZES["heads"], SIZES["depth"]).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.compile()
    clock = Clock()
    for _ in range(STEPS):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = compute_loss(model, batch, DEVICE) / TOKENS
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    return clock.tokens_per_second


bare()  # compiles
print(json.dumps({"generated": generated(), "bare": bare()}))
