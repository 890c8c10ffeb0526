"""It resumes exactly."""

from pathlib import Path

import torch

from checkpoint import newest_checkpoint
from train import main, parse_args


def run(output_dir: Path, *options: str) -> dict[str, torch.Tensor]:
    """Train and return the final parameters."""
    fixed = ["--output-dir", str(output_dir), "--device", "cpu"]
    fixed += ["--latent", "8", "--width", "8"]
    main(parse_args([*fixed, "--batch-size", "8", *options]))
    newest = newest_checkpoint(output_dir / "checkpoints")
    return torch.load(newest, weights_only=True)["generator"]


def test_resumes_exactly(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "--max-steps", "6")
    run(tmp_path / "parts", "--max-steps", "3")
    parts = run(tmp_path / "parts", "--max-steps", "6", "--resume")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    records = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert records[0] == records[1]
