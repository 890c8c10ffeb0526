"""Train a text classifier on paragraphs of Python's own library, by package.

Launch: python train.py
"""

import argparse
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from checkpoint import check_parameters, load_checkpoint, newest_checkpoint, save_checkpoint
from data import build_datasets, ordered_batches, shuffled_batches
from model import TextClassifier
from record import check_finite, open_metrics, write_metrics, write_run

PROJECT = "text-classification"


def within(low: float, high: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a number of the kind of `low`, from `low` to `high`."""

    def number(text: str) -> float:
        if not low <= (value := type(low)(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value

    return number


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs", PROJECT), help="what the run writes")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if any")
    parser.add_argument("--epochs", type=within(1), default=8, help="passes over the training set")
    parser.add_argument("--max-steps", type=within(1), help="stop after this many optimizer steps")
    parser.add_argument("--batch-size", type=within(1), default=32, help="examples per process and pass")
    parser.add_argument("--lr", type=within(0.0), default=3e-3, help="learning rate at its peak")
    parser.add_argument("--warmup-steps", type=within(0), default=50, help="steps until the peak")
    parser.add_argument("--weight-decay", type=within(0.0), default=0.1, help="AdamW's")
    parser.add_argument("--seed", type=within(0, 2**63 - 1), default=0, help="of weights and order")
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="where to compute")
    parser.add_argument("--workers", type=within(0), default=0, help="processes that load data; 0 for none")
    parser.add_argument("--log-every", type=within(1), default=10, help="steps between log lines")
    parser.add_argument("--checkpoint-every", type=within(1), default=200, help="steps between checkpoints")
    parser.add_argument("--heads", type=within(1), default=2, help="attention heads, of 32 channels each")
    parser.add_argument("--depth", type=within(1), default=1, help="blocks of the model")
    parser.add_argument("--dropout", type=within(0.0, 1.0), default=0.5, help="share of words to leave out")
    return parser.parse_args(argv)


def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up, then half a cosine down to zero. A function of the step alone: no state to save."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


def compute_loss(model: nn.Module, batch: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    tokens, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
    return F.cross_entropy(model(tokens), labels)


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device, picture: Path) -> dict[str, float]:
    model.eval()
    classes = loader.dataset.classes
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.float64)  # (true, predicted)
    loss = torch.zeros((), dtype=torch.float64)
    for batch in loader:
        tokens, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
        logits = model(tokens)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        pairs = labels * len(classes) + logits.argmax(dim=1)
        confusion += torch.bincount(pairs.cpu(), minlength=confusion.numel()).view_as(confusion)
    model.train()
    draw(confusion, classes, picture)
    count, correct = confusion.sum().item(), confusion.diag()
    accuracy = correct.sum().item() / count
    f1 = 2 * correct / (confusion.sum(dim=0) + confusion.sum(dim=1)).clamp(min=1)  # of each class
    return {"val/loss": loss.item() / count, "val/accuracy": accuracy, "val/macro_f1": f1.mean().item()}


def draw(confusion: torch.Tensor, classes: list[str], path: Path) -> None:
    """Save the confusion matrix: rows are true classes, columns predicted ones, blue for many."""
    side, left = max(1, min(48, 4096 // len(classes))), 160  # pixels of a cell, and of the names
    image = Image.new("RGB", (left + side * len(classes), side * len(classes)), "white")
    pen = ImageDraw.Draw(image)
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    for row, name in enumerate(classes):
        pen.text((left - 8, side * (row + 0.5)), name, "black", anchor="rm")
        for column, (count, share) in enumerate(zip(confusion[row].tolist(), shares[row].tolist())):
            x, y = left + side * column, side * row
            shade = round(255 - 128 * share)
            pen.rectangle((x, y, x + side, y + side), (shade, shade, 255))
            pen.text((x + side / 2, y + side / 2), f"{count:.0f}", "black", anchor="mm")
    path.parent.mkdir(exist_ok=True)
    image.save(path)


def main(args: argparse.Namespace) -> int:
    checkpoints = args.output_dir / "checkpoints"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"cannot write to {args.output_dir}: {error.strerror}")
    if any(checkpoints.iterdir()) and not args.resume:
        sys.exit(f"{args.output_dir} holds a run: go on with --resume, or start another with --output-dir")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    os.register_at_fork(after_in_child=os.setpgrp)  # a signal to the whole group must not end loaders
    device = torch.device(args.device)
    torch.manual_seed(args.seed)

    train_set, val_set = build_datasets()
    global_batch = args.batch_size  # examples per optimizer step
    epoch_ends = {math.ceil(epoch * len(train_set) / global_batch) for epoch in range(1, args.epochs + 1)}
    total_steps = max(epoch_ends)
    last_step = min(total_steps, args.max_steps or total_steps)

    model = TextClassifier(train_set.vocab_size, train_set.num_classes, args.heads, args.depth, args.dropout)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    parts = {"model": model, "optimizer": optimizer}
    newest = newest_checkpoint(checkpoints) if args.resume else None
    saved = load_checkpoint(newest, parts) if newest else {}
    step, best = saved.get("step", 0), saved.get("best", -math.inf)

    order = shuffled_batches(len(train_set), args.batch_size, args.seed, step)
    loader = partial(
        DataLoader,
        batch_size=None,  # the sets hand out whole batches
        num_workers=args.workers,
        # forkserver, what Python 3.14 takes, would be ended by a signal to the whole group
        multiprocessing_context="fork" if args.workers and sys.platform == "linux" else None,
        persistent_workers=args.workers > 0,
        generator=torch.Generator(),  # what loaders draw is not taken from the model's draws
    )
    # without workers a loader would only add to each step
    batches = iter(loader(train_set, sampler=order)) if args.workers else map(train_set.__getitem__, order)
    val_loader = loader(val_set, sampler=ordered_batches(len(val_set), args.batch_size))
    metrics_file = open_metrics(args.output_dir / "metrics.jsonl", step)
    write_run(args.output_dir / "run.json", vars(args), device)
    progress = tqdm(total=last_step, initial=step, disable=None)

    stopping = False
    while step < last_step:
        # makes dropout, and all else that is random in the model, a function of the step
        torch.default_generator.manual_seed(hash((args.seed, step)))
        lr = learning_rate(step, args.lr, args.warmup_steps, total_steps)
        for group in optimizer.param_groups:
            group.update(lr=lr, weight_decay=args.weight_decay)
        loss = compute_loss(model, next(batches), device)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        progress.update()

        metrics = {}
        if step < 10 or step % args.log_every == 0:  # the first steps are where runs go wrong
            metrics |= {"train/loss": loss.item(), "train/lr": lr}
        if step in epoch_ends:
            metrics |= evaluate(model, val_loader, device, args.output_dir / "pictures" / f"{step:08d}.png")
        check_finite(metrics, step)
        improved = metrics.get("val/accuracy", best) > best
        if improved:
            best = metrics["val/accuracy"]
        if metrics:
            write_metrics(metrics_file, step, metrics)

        stopping = stop.is_set()
        finished = step == last_step
        counters = {"step": step, "best": best}
        if improved or stopping or finished or step % args.checkpoint_every == 0:
            check_parameters(model, step)
            save_checkpoint(checkpoints, parts, counters, best=improved)
        if stopping:
            break

    progress.close()
    return 128 + signal.SIGTERM if stopping else 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
