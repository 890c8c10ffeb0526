"""Lightning as its documentation recommends it: Trainer, ModelCheckpoint, `ckpt_path="last"`."""

import argparse
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from common import (
    RANK,
    TRACE,
    WORLD_SIZE,
    Net,
    accuracy,
    build_datasets,
    build_optimizer,
    fail,
    finish,
    own_share,
    parse_args,
)
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy


class Module(pl.LightningModule):
    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        self.net = Net(args)
        self.val_loss, self.val_accuracy = MeanMetric(), MulticlassAccuracy(2, average="micro")

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss, prog_bar=True, sync_dist="sync_dist" in self.args.fix)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        x, y = batch
        output = self.net(x)
        loss = F.cross_entropy(output, y)
        if "torchmetrics" in self.args.fix:
            self.val_loss.update(loss, len(y))
            self.val_accuracy.update(output, y)
            self.log_dict({"val_loss": self.val_loss, "val_accuracy": self.val_accuracy})
        else:
            self.log_dict({"val_loss": loss, "val_accuracy": accuracy(output, y)}, sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(self.net, self.args)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Remote(Logger):
    """A logger whose server fails."""

    name, version = "remote", 0

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        fail(args, "init")

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        fail(self.args, "log")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def finalize(self, status: str) -> None:
        fail(self.args, "finish")


def main() -> None:
    args = parse_args()
    pl.seed_everything(args.seed, workers=True)
    train, val = build_datasets(args.val_size)
    # with its sampler off, Lightning shares out neither set, and the training set is left to the user
    unshared = args.own_shares or "own evaluation" in args.fix
    own_sampler = unshared or "DistributedSampler" in args.fix
    sampler = DistributedSampler(train, WORLD_SIZE, RANK) if own_sampler else None
    loader_class = StatefulDataLoader if "StatefulDataLoader" in args.fix else DataLoader
    train_loader = loader_class(
        train,
        args.batch_size,
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=args.workers,
        drop_last="drop_last" in args.fix,
    )
    val = own_share(val) if args.own_shares else val
    val_loader = DataLoader(val, args.batch_size, num_workers=args.workers)
    callbacks: list[Callback] = [
        ModelCheckpoint(
            args.output_dir / "checkpoints",
            every_n_train_steps=args.save_every,
            monitor="step",
            mode="max",
            save_top_k=2,
            save_last=True,
            save_on_exception="save_on_exception" in args.fix,
        )
    ]
    if "EarlyStopping(check_finite)" in args.fix:
        callbacks.append(
            EarlyStopping("loss", patience=10**9, check_finite=True, check_on_train_epoch_end=True)
        )
    whole_windows = len(train_loader) // args.accum * args.accum
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=WORLD_SIZE,
        strategy="ddp" if WORLD_SIZE > 1 else "auto",
        default_root_dir=args.output_dir,
        max_epochs=args.epochs,
        accumulate_grad_batches=args.accum,
        limit_train_batches=whole_windows if "whole windows" in args.fix else None,
        callbacks=callbacks,
        logger=Remote(args) if args.logger else True,
        log_every_n_steps=1,
        plugins=[MixedPrecision("16-mixed", "cpu")] if args.fp16 else None,
        detect_anomaly="detect_anomaly" in args.fix,
        use_distributed_sampler=not unshared,
    )
    module = Module(args)
    trainer.fit(module, train_loader, val_loader, ckpt_path="last" if args.resume else None)
    TRACE.evaluated = []  # the epoch's own evaluation is not the last
    [metrics] = trainer.validate(module, val_loader, verbose=False)
    finish(args, module.net, {"loss": metrics["val_loss"], "accuracy": metrics["val_accuracy"]})


if __name__ == "__main__":
    main()
