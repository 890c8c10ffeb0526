"""Checkpoints that are complete or absent, and found again without help."""

import os
import shutil
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

KEEP = 2  # step checkpoints; best.pt stays beside them


def check_parameters(model: nn.Module, step: int) -> None:
    if not nn.utils.get_total_norm(model.parameters()).isfinite():
        sys.exit(f"step {step}: parameters are not finite, nothing saved; a lower --lr may help")


def save_checkpoint(directory: Path, parts: dict[str, Any], counters: dict[str, float], best: bool) -> None:
    """Save the state of every part, so that a crash at any moment leaves the old files or the new ones."""
    state = {name: part.state_dict() for name, part in parts.items()}
    partial = directory / "checkpoint.partial"
    path = directory / f"step-{counters['step']:08d}.pt"
    try:
        sync(directory.parent / "metrics.jsonl")  # first: what was recorded up to this step
        torch.save(state | {"counters": counters}, partial)
        if best:  # first: a run that goes on from this step has its best
            publish(shutil.copyfile(partial, directory / "best.partial"), directory / "best.pt")
        publish(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save has the second for a full disk
        cannot_write(directory, error)
    older = [other for other in directory.glob("step-*.pt") if other.name < path.name]
    for old in sorted(older, reverse=True)[KEEP - 1 :]:
        old.unlink()


def cannot_write(directory: Path, error: BaseException) -> NoReturn:
    sys.exit(f"cannot write to {directory}: {str(error).partition(os.linesep)[0]}; earlier ones are intact")


def publish(partial: Path, path: Path) -> None:
    """Give what was saved its name once it is on the disk, and wait until the name is too."""
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest intact step checkpoint; damaged ones are passed over with a warning."""
    found = sorted(directory.glob("step-*"), reverse=True)
    for path in found:
        if is_intact(path):
            return path
        warnings.warn(f"{path} is damaged, trying the one before it", stacklevel=2)
    if found:
        sys.exit(f"no checkpoint in {directory} is intact and of such a project: choose a new --output-dir")
    return None


def is_intact(path: Path) -> bool:
    """Check the archive's own checksums: torch.save writes them, torch.load ignores them."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:
            # a record marked as a folder would be read as zeros
            marked = any(record.external_attr for record in archive.infolist())
            return archive.testzip() is None and not marked
    except Exception:  # damage shows in as many ways as there are bytes
        return False


def load_checkpoint(path: Path, parts: dict[str, Any]) -> dict[str, float]:
    """Restore every part and return the counters."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError):
            sys.exit(f"{path} does not fit: its {name} differs; choose a new --output-dir")
    return state["counters"]
