"""What the loops share: options, data, model, and a trace of what really happened.

The model notes the rows that it is given and the optimizer each step that it really makes, so nothing has to
be asked of a framework. Faults come from the environment: KILL, TERM, NAN and OVERFLOW name a step.
"""

import argparse
import copy
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import Subset, TensorDataset

SEED, PEAK, WARMUP = 0, 1e-2, 5
RANK = int(os.environ.get("RANK", "0"))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--project", type=Path, help="the rendered project; for scaffold's own loop")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--total-steps", type=int, default=30, help="optimizer steps of the schedule")
    parser.add_argument("--batch-size", type=int, default=32, help="per process")
    parser.add_argument("--accum", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=4, help="optimizer steps")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--val-size", type=int, default=114)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--check-gradients", action="store_true")
    parser.add_argument("--seeds-apart", action="store_true", help="another seed on every rank")
    parser.add_argument("--own-shares", action="store_true", help="evaluate 80 rows here, the rest there")
    parser.add_argument("--logger", default="", help="where it fails: WHAT:PLACE, as in raise:log")
    parser.add_argument("--fix", default="", help="the framework's own options that help, with commas")
    args = parser.parse_args()
    args.fix = args.fix.split(",")
    args.seed = SEED + RANK * args.seeds_apart
    TRACE.open(args.output_dir)
    return args


def build_datasets(val_size: int) -> tuple[TensorDataset, TensorDataset]:
    """Rows of their number and thirty measurements; a fifth is held out."""
    bunch = load_breast_cancer()
    held_out = np.zeros(len(bunch.data), dtype=bool)
    held_out[np.random.default_rng(0).permutation(len(bunch.data))[::5]] = True
    mean, std = bunch.data[~held_out].mean(0), bunch.data[~held_out].std(0)
    sets = []
    for chosen in (~held_out, held_out):
        rows = (bunch.data[chosen] - mean) / std
        numbered = np.hstack([np.arange(len(rows))[:, None], rows])
        sets.append((torch.tensor(numbered, dtype=torch.float32), torch.tensor(bunch.target[chosen])))
    train, val = sets
    TRACE.rows = train
    return TensorDataset(*train), TensorDataset(*(tensor[:val_size] for tensor in val))


def own_share(val: TensorDataset) -> Subset:
    """What a rank evaluates where the user shares out the rows."""
    return Subset(val, range(80) if RANK == 0 else range(80, len(val)))


def factor(step: int, total: int) -> float:
    """Linear warm-up, then half a cosine: what a learning rate is to be multiplied with at a step."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return (1 + math.cos(math.pi * (step - WARMUP) / max(1, total - WARMUP))) / 2


def strike(name: str, step: int) -> bool:
    """Does the environment ask for this fault here? Its value is a step, or a rank and a step."""
    rank, _, wanted = os.environ.get(name, "").rpartition(" ")
    return wanted == str(step) and rank in ("", str(RANK))


def fail(args: argparse.Namespace, place: str) -> None:
    """What a logger's server may do to a program."""
    if args.logger == f"raise:{place}":
        raise ConnectionError("the logger's server is away")
    if args.logger == f"hang:{place}":
        signal.pause()


class Trace:
    """A line per optimizer step that was really made, in trace-RANK.jsonl."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.evaluated: list[int] = []
        self.steps = 0  # of this process
        self.off = False

    def open(self, output_dir: Path) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        self.file = (output_dir / f"trace-{RANK}.jsonl").open("a", buffering=1)
        self.write(start=True)

    def write(self, **row: Any) -> None:
        self.file.write(json.dumps(row) + "\n")

    def forward(self, model: nn.Module, x: torch.Tensor) -> None:
        if self.off:
            return
        if model.training:
            self.evaluated = []  # of the last evaluation only
        (self.seen if model.training else self.evaluated).extend(x[:, 0].int().tolist())
        if not model.training and self.steps and os.environ.get("KILL") == "evaluation":
            os.kill(os.getpid(), signal.SIGKILL)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Before a step, its gradients at hand."""
        self.steps += 1
        if strike("KILL", self.steps):
            os.kill(os.getpid(), signal.SIGKILL)
        row = {"rows": self.seen, "lr": optimizer.param_groups[0]["lr"]}
        if self.model is not None:
            row["gradient_error"] = self.gradient_error()
        self.write(**row)
        self.seen = []
        if strike("TERM", self.steps):
            os.kill(os.getpid(), signal.SIGTERM)

    model: nn.Module | None = None  # where gradients are checked

    def gradient_error(self) -> float:
        """How far the gradients are from those of all rows since the last step as one batch, relatively."""
        assert self.model
        model = copy.deepcopy(self.model)
        self.off = True
        inputs, targets = (tensor[self.seen] for tensor in self.rows)
        with torch.enable_grad():
            loss = F.cross_entropy(model.layers(inputs[:, 1:]), targets)
            wanted = torch.autograd.grad(loss, list(model.parameters()))
        self.off = False
        pairs = zip(self.model.parameters(), wanted, strict=True)
        difference = sum((parameter.grad - right).square().sum() for parameter, right in pairs)
        return math.sqrt(difference / sum(right.square().sum() for right in wanted))


TRACE = Trace()


class Net(nn.Module):
    """A perceptron with dropout that notes which rows it is given."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(30, args.width), nn.ReLU(), nn.Dropout(args.dropout), nn.Linear(args.width, 2)
        )
        if args.check_gradients:
            object.__setattr__(TRACE, "model", self)

    def forward(self, x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        TRACE.forward(self, x)
        output = self.layers(x[:, 1:])
        if self.training and strike("NAN", TRACE.steps):
            output = output * math.nan
        if output.requires_grad and strike("OVERFLOW", TRACE.steps):
            os.environ["OVERFLOW"] = ""  # once
            output.register_hook(lambda gradient: gradient * math.inf)
        return output


class Watched(torch.optim.AdamW):
    """AdamW that notes the steps it makes; closures as Lightning passes them."""

    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure:
            with torch.enable_grad():
                loss = closure()
        if not getattr(self, "found_inf", 0):  # what a scaler tells a fused optimizer
            TRACE.step(self)
        super().step()
        return loss


def build_optimizer(model: nn.Module, args: argparse.Namespace) -> tuple[Watched, Any]:
    optimizer = Watched(model.parameters(), lr=PEAK, fused=args.fused)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: factor(step, args.total_steps)
    )


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(dim=1) == target).float().mean()


@torch.no_grad()
def finish(args: argparse.Namespace, model: nn.Module, reported: dict[str, float]) -> None:
    """Leave the parameters, and the metrics as reported and as they are."""
    TRACE.write(evaluated=TRACE.evaluated)
    torch.save(model.state_dict(), args.output_dir / f"final-{RANK}.pt")
    TRACE.off = True
    inputs, targets = build_datasets(args.val_size)[1].tensors
    output = model.eval()(inputs)
    exact = {
        "loss": F.cross_entropy(output, targets).item(),
        "accuracy": accuracy(output, targets).item(),
    }
    if RANK == 0:
        text = json.dumps({"reported": reported, "exact": exact})
        (args.output_dir / "metrics.json").write_text(text)
