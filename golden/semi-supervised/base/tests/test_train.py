"""It learns, and it resumes exactly."""

from pathlib import Path

import numpy as np
import torch

from checkpoint import newest_checkpoint
from data import build_datasets
from model import ResNet
from train import compute_loss, main, parse_args


def run(output_dir: Path, *options: str) -> dict[str, torch.Tensor]:
    """Train and return the final parameters."""
    fixed = ["--output-dir", str(output_dir), "--device", "cpu"]
    fixed += ["--mu", "2", "--depth", "1", "--width", "1"]
    main(parse_args([*fixed, "--batch-size", "8", *options]))
    newest = newest_checkpoint(output_dir / "checkpoints")
    return torch.load(newest, weights_only=True)["model"]


def test_learns_one_batch() -> None:
    torch.manual_seed(0)
    train_set, _ = build_datasets(mu=2, seed=0)
    batch, device = train_set[np.arange(8)], torch.device("cpu")
    model = ResNet(train_set.channels, train_set.num_classes, depth=1, width=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    aim = compute_loss(model, batch, device).item() / 10
    for _ in range(500):
        loss = compute_loss(model, batch, device)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < aim:
            break
    assert loss < aim


def test_resumes_exactly(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "--max-steps", "6")
    run(tmp_path / "parts", "--max-steps", "3")
    parts = run(tmp_path / "parts", "--max-steps", "6", "--resume")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    records = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert records[0] == records[1]
