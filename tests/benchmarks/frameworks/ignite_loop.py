"""Ignite as its documentation recommends it: idist, its own training step, Checkpoint, DiskSaver."""

import argparse
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from common import (
    Net,
    build_datasets,
    build_optimizer,
    fail,
    finish,
    own_share,
    parse_args,
)
from ignite.engine import (
    DeterministicEngine,
    Engine,
    Events,
    create_supervised_evaluator,
    supervised_training_step,
    supervised_training_step_amp,
)
from ignite.handlers import Checkpoint, DiskSaver, TerminateOnNan
from ignite.handlers.base_logger import BaseLogger, BaseOutputHandler
from ignite.handlers.param_scheduler import LRScheduler
from ignite.metrics import Accuracy, Loss
from ignite.utils import manual_seed
from torch.utils.data import DataLoader, DistributedSampler


class Remote(BaseLogger):
    """A logger whose server fails."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        fail(args, "init")

    def close(self) -> None:
        fail(self.args, "finish")

    def _create_output_handler(self, *args: Any, **kwargs: Any) -> BaseOutputHandler:
        raise NotImplementedError

    def _create_opt_params_handler(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class Output(BaseOutputHandler):
    def __call__(self, engine: Engine, logger: Remote, event_name: Any) -> None:
        fail(logger.args, "log")


def newest(folder: Path) -> Path | None:
    """The highest iteration in the names that Checkpoint gives."""
    found = {int(re.findall(r"\d+", path.stem)[-1]): path for path in folder.glob("checkpoint_*.pt")}
    return found[max(found)] if found else None


def main(local_rank: int, args: argparse.Namespace) -> None:
    manual_seed(args.seed)
    train, val = build_datasets(args.val_size)
    ranks = idist.get_world_size()
    # given one, auto_dataloader leaves it alone
    sampler = DistributedSampler(train, ranks, idist.get_rank()) if "DistributedSampler" in args.fix else None
    loader = idist.auto_dataloader(
        train,
        batch_size=args.batch_size * ranks,
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=args.workers * ranks,
        drop_last="drop_last" in args.fix,
    )
    if args.own_shares:
        val_loader = DataLoader(own_share(val), args.batch_size)
    elif "DataLoader" in args.fix:  # every process evaluates everything
        val_loader = DataLoader(val, args.batch_size)
    else:
        val_loader = idist.auto_dataloader(
            val, batch_size=args.batch_size * ranks, num_workers=args.workers * ranks
        )
    net = Net(args)
    model = idist.auto_model(net)
    optimizer, scheduler = build_optimizer(net, args)
    optimizer = idist.auto_optim(optimizer)
    scaler = torch.amp.GradScaler("cpu") if args.fp16 else None
    step = (
        supervised_training_step_amp(
            model, optimizer, F.cross_entropy, scaler=scaler, gradient_accumulation_steps=args.accum
        )
        if args.fp16
        else supervised_training_step(
            model, optimizer, F.cross_entropy, gradient_accumulation_steps=args.accum
        )
    )
    trainer = (DeterministicEngine if "DeterministicEngine" in args.fix else Engine)(step)
    evaluator = create_supervised_evaluator(
        model, metrics={"loss": Loss(F.cross_entropy), "accuracy": Accuracy()}
    )
    handler = LRScheduler(scheduler)
    first_of_window = Events.ITERATION_STARTED(lambda _, iteration: (iteration - 1) % args.accum == 0)
    trainer.add_event_handler(first_of_window, handler)
    if isinstance(loader.sampler, DistributedSampler):
        set_epoch = loader.sampler.set_epoch
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: set_epoch(engine.state.epoch))
    if "TerminateOnNan" in args.fix:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())

    to_save = {"trainer": trainer, "model": model, "optimizer": optimizer, "scheduler": handler}
    if scaler:
        to_save["scaler"] = scaler
    folder = args.output_dir / "checkpoints"
    checkpoint = Checkpoint(
        to_save,
        DiskSaver(str(folder), require_empty=False),
        n_saved=2,
        global_step_transform=lambda *_: trainer.state.iteration,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=args.save_every * args.accum), checkpoint)
    path = newest(folder) if args.resume else None
    if path:
        Checkpoint.load_objects(to_save, torch.load(path, map_location="cpu", weights_only=False))
    if args.logger:
        logger = Remote(args)
        logger.attach(
            trainer,
            Output("training", output_transform=lambda loss: {"loss": loss}),
            Events.ITERATION_COMPLETED,
        )
        trainer.add_event_handler(Events.COMPLETED, logger.close)
    if "terminate" in args.fix:
        trainer.add_event_handler(Events.TERMINATE, checkpoint)
        signal.signal(signal.SIGTERM, lambda *_: trainer.terminate())
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(val_loader))
    trainer.run(loader, max_epochs=args.epochs)
    if "terminate" in args.fix and trainer.state.iteration < args.epochs * len(loader):
        sys.exit(143)
    finish(args, net, evaluator.state.metrics)


if __name__ == "__main__":
    backend = "gloo" if "RANK" in os.environ else None
    arguments = parse_args()
    with idist.Parallel(backend=backend) as parallel:
        parallel.run(main, arguments)
