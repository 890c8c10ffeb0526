"""FixMatch (Sohn et al., 2020) on scikit-learn's handwritten digits, 40 of them labelled.

Launch: python train.py
"""

import argparse
import copy
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
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from checkpoint import check_parameters, load_checkpoint, newest_checkpoint, save_checkpoint
from data import build_datasets, ordered_batches, shuffled_batches
from model import ResNet
from record import check_finite, open_metrics, write_metrics, write_run

PROJECT = "semi-supervised"
THRESHOLD = 0.8  # the least confidence of a pseudo-label; 0.95 in the paper
LAMBDA_U = 1.0  # weight of the loss of unlabelled pictures


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
    parser.add_argument("--epochs", type=within(1), default=40, help="passes over the unlabelled pictures")
    parser.add_argument("--max-steps", type=within(1), help="stop after this many optimizer steps")
    parser.add_argument("--batch-size", type=within(1), default=8, help="examples per process and pass")
    parser.add_argument("--lr", type=within(0.0), default=1e-2, help="learning rate at its peak")
    parser.add_argument("--warmup-steps", type=within(0), default=20, help="steps until the peak")
    parser.add_argument("--weight-decay", type=within(0.0), default=0.05, help="AdamW's")
    parser.add_argument("--seed", type=within(0, 2**63 - 1), default=0, help="of weights and order")
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="where to compute")
    parser.add_argument("--workers", type=within(0), default=0, help="processes that load data; 0 for none")
    parser.add_argument("--log-every", type=within(1), default=10, help="steps between log lines")
    parser.add_argument("--checkpoint-every", type=within(1), default=200, help="steps between checkpoints")
    parser.add_argument("--ema-decay", type=within(0.0, 1.0), default=0.99, help="of the average, at most")
    parser.add_argument("--depth", type=within(1), default=1, help="residual blocks at each resolution")
    parser.add_argument("--width", type=within(1), default=1, help="channels of the first blocks, times 16")
    parser.add_argument("--mu", type=within(1), default=7, help="unlabelled pictures for each labelled one")
    return parser.parse_args(argv)


def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up, then half a cosine down to zero. A function of the step alone: no state to save."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    for average, value in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
        if value.is_floating_point():
            average.lerp_(value, 1 - decay)
        else:  # a counter, say
            average.copy_(value)


def compute_loss(model: nn.Module, batch: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """What the model is sure of in a weak view is the label of the strong view of the same picture."""
    labelled, labels, weak, strong = (tensor.to(device, non_blocking=True) for tensor in batch)
    logits = model(torch.cat([labelled, weak, strong]))
    of_labelled, of_weak, of_strong = logits.split([len(labelled), len(weak), len(strong)])
    confidence, pseudo_labels = of_weak.detach().softmax(dim=1).max(dim=1)
    losses = F.cross_entropy(of_strong, pseudo_labels, reduction="none") * (confidence >= THRESHOLD)
    return F.cross_entropy(of_labelled, labels) + LAMBDA_U * losses.mean()


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device) -> dict[str, float]:
    model.eval()
    loss = correct = confident = count = 0
    for batch in loader:
        images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
        logits = model(images)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(dim=1) == labels).sum().item()
        confident += (logits.softmax(dim=1).amax(dim=1) >= THRESHOLD).sum().item()
        count += len(labels)
    model.train()
    return {
        "val/loss": loss / count,
        "val/accuracy": correct / count,
        "val/confident": confident / count,  # the share that would get a pseudo-label
    }


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

    train_set, val_set = build_datasets(args.mu, args.seed)
    global_batch = args.batch_size  # examples per optimizer step
    epoch_ends = {math.ceil(epoch * len(train_set) / global_batch) for epoch in range(1, args.epochs + 1)}
    total_steps = max(epoch_ends)
    last_step = min(total_steps, args.max_steps or total_steps)

    model = ResNet(train_set.channels, train_set.num_classes, args.depth, args.width)
    model.to(device, memory_format=torch.channels_last)
    ema = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    parts = {"model": model, "optimizer": optimizer, "ema": ema}
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
        update_ema(ema, model, min(args.ema_decay, (1 + step) / (10 + step)))  # a short memory at first
        step += 1
        progress.update()

        metrics = {}
        if step < 10 or step % args.log_every == 0:  # the first steps are where runs go wrong
            metrics |= {"train/loss": loss.item(), "train/lr": lr}
        if step in epoch_ends:
            metrics |= evaluate(ema, val_loader, device)
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
