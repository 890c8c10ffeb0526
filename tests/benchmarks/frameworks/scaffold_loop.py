"""A rendered project's own train.py, with the model, the data and the optimizer that all loops share."""

import argparse
import importlib
import json
import sys
import types
from typing import Any

import torch
from common import PEAK, WARMUP, Net, Watched, build_datasets, fail, finish, parse_args
from torch.utils.data import Dataset


class Rows(Dataset):
    """A set that hands out whole batches, as the project's own does."""

    cardinalities: tuple[int, ...] = ()
    num_outputs = 2

    def __init__(self, rows: Any) -> None:
        self.numeric, self.target = rows.tensors

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, draws: Any) -> tuple[torch.Tensor, ...]:
        index = torch.from_numpy(draws % len(self))
        return self.numeric[index], torch.empty(len(index), 0), self.target[index]


class Writer:
    """A tracker's client that fails as it is told to."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        fail(args, "init")

    def add_scalar(self, *_: Any) -> None:
        fail(self.args, "log")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        fail(self.args, "finish")


def main() -> None:
    args = parse_args()
    sys.path.insert(0, str(args.project))
    nets: list[Net] = []

    def build_model(*_: Any) -> Net:
        nets.append(Net(args))
        return nets[-1]

    model = sys.modules["model"] = types.ModuleType("model")
    model.TableNet = build_model  # type: ignore[attr-defined]
    writer = sys.modules["torch.utils.tensorboard"] = types.ModuleType("torch.utils.tensorboard")
    writer.SummaryWriter = lambda *_, **__: Writer(args)  # type: ignore[attr-defined]
    data, train = importlib.import_module("data"), importlib.import_module("train")
    train.build_datasets = data.build_datasets = lambda *_: [  # type: ignore[attr-defined]
        Rows(rows) for rows in build_datasets(args.val_size)
    ]
    torch.optim.AdamW = Watched  # type: ignore[misc]
    options = {
        "--output-dir": args.output_dir,
        "--epochs": args.epochs,
        "--batch-size": args.batch_size,
        "--lr": PEAK,
        "--warmup-steps": WARMUP,
        "--seed": args.seed,
        "--workers": args.workers,
        "--device": "cpu",
        "--log-every": 1,
        "--checkpoint-every": args.save_every,
    }
    if args.accum > 1:
        options["--grad-accum"] = args.accum
    words = [str(word) for option in options.items() for word in option]
    train.main(train.parse_args([*words, *(["--resume"] if args.resume else [])]))
    rows = [json.loads(line) for line in (args.output_dir / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if "val/loss" in row)
    finish(args, nets[0], {"loss": last["val/loss"], "accuracy": last["val/accuracy"]})


if __name__ == "__main__":
    main()
