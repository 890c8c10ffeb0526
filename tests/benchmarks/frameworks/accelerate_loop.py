"""Accelerate as its examples do it: prepare, accumulate, save_state, skip_first_batches."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    set_seed,
)
from common import Net, accuracy, build_datasets, build_optimizer, fail, finish, parse_args
from torch.utils.data import DataLoader


class Remote(GeneralTracker):
    """A tracker whose server fails."""

    name, requires_logging_directory, tracker = "remote", False, None

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        fail(args, "init")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        fail(self.args, "log")

    def finish(self) -> None:
        fail(self.args, "finish")


def newest(folder: Path) -> Path | None:
    """As in the checkpointing example, by the step in the name."""
    return max(folder.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")), default=None)


def windows(loader: Any, accum: int) -> Iterator[list[Any]]:
    """The batches of an optimizer step, as in the guide on batches of different sizes."""
    window: list[Any] = []
    for batch in loader:
        window.append(batch)
        if len(window) == accum:
            yield window
            window = []
    if window:
        yield window


def main() -> None:
    args = parse_args()
    fix = args.fix
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.accum, sync_with_dataloader="sync_with_dataloader=False" not in fix
        ),
        dataloader_config=DataLoaderConfiguration(
            split_batches="split_batches" in fix,
            use_seedable_sampler="use_seedable_sampler" in fix,
            use_stateful_dataloader="use_stateful_dataloader" in fix,
        ),
        project_config=ProjectConfiguration(project_dir=args.output_dir),
        log_with=[Remote(args)] if args.logger else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=600))],
    )
    if args.fp16:  # it makes no scaler on a processor; its own code does the rest
        accelerator.scaler = torch.amp.GradScaler("cpu")
    set_seed(args.seed)
    accelerator.init_trackers("run")
    train, val = build_datasets(args.val_size)
    global_batch = args.batch_size * (accelerator.num_processes if "split_batches" in fix else 1)
    loader = DataLoader(
        train, global_batch, shuffle=True, num_workers=args.workers, drop_last="drop_last" in fix
    )
    val_loader = DataLoader(val, global_batch, num_workers=args.workers)
    net = Net(args)
    optimizer, scheduler = build_optimizer(net, args)
    model, optimizer, loader, val_loader, scheduler = accelerator.prepare(
        net, optimizer, loader, val_loader, scheduler
    )

    starting_epoch = resume_step = overall_step = 0
    path = newest(args.output_dir) if args.resume else None
    if path:
        accelerator.load_state(str(path))
        overall_step = int(path.name.removeprefix("step_"))
        starting_epoch, resume_step = divmod(overall_step, len(loader))
    if "triggers" in fix:
        signal.signal(signal.SIGTERM, lambda *_: accelerator.set_trigger())

    def save() -> None:
        accelerator.save_state(str(args.output_dir / f"step_{overall_step}"))

    def after_batch(loss: torch.Tensor) -> None:
        nonlocal overall_step
        overall_step += 1
        accelerator.log({"loss": loss.item()}, step=overall_step)
        if "triggers" in fix:
            if not loss.isfinite():
                accelerator.set_trigger()
            if accelerator.check_trigger():
                if accelerator.reduce(loss.detach()).isfinite():
                    save()
                    sys.exit(143)
                sys.exit("the loss is not finite")
        if overall_step % (args.save_every * args.accum) == 0:
            save()

    metrics: dict[str, float] = {}
    for epoch in range(starting_epoch, args.epochs):
        model.train()
        active = loader
        if "use_seedable_sampler" in fix:
            loader.set_epoch(epoch)
        if path and epoch == starting_epoch and resume_step and "use_stateful_dataloader" not in fix:
            active = accelerator.skip_first_batches(loader, resume_step)
        if "num_items_in_batch" in fix:
            train_windows(accelerator, model, optimizer, scheduler, windows(active, args.accum))
        else:
            for x, y in active:
                with accelerator.accumulate(model):
                    loss = F.cross_entropy(model(x), y)
                    accelerator.backward(loss)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                after_batch(loss)
        metrics = evaluate(accelerator, model, val_loader)
    accelerator.end_training()
    finish(args, net, metrics)


def train_windows(
    accelerator: Accelerator, model: Any, optimizer: Any, scheduler: Any, batches: Iterator[list[Any]]
) -> None:
    """The guide's loop: the loss is summed and divided by the number of examples in the window."""
    for window in batches:
        count = torch.tensor(sum(len(y) for _, y in window))
        total = int(accelerator.gather(count).sum())
        for number, (x, y) in enumerate(window):
            last = number == len(window) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                loss = F.cross_entropy(model(x), y, reduction="sum") / total
                # backward divides by the number of passes, DDP by that of processes
                loss = loss * accelerator.gradient_accumulation_steps * accelerator.num_processes
                accelerator.backward(loss)
        accelerator.gradient_state._set_sync_gradients(True)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: Any, val_loader: Any) -> dict[str, float]:
    model.eval()
    outputs, targets = [], []
    for x, y in val_loader:
        output, target = accelerator.gather_for_metrics((model(x), y))
        outputs.append(output)
        targets.append(target)
    output, target = torch.cat(outputs), torch.cat(targets)
    return {
        "loss": F.cross_entropy(output, target).item(),
        "accuracy": accuracy(output, target).item(),
    }


if __name__ == "__main__":
    main()
