"""It learns, and it resumes exactly."""

from pathlib import Path

import numpy as np
import torch

from checkpoint import newest_checkpoint
from model import ActorCritic
from rollout import Rollouts
from train import compute_loss, main, parse_args


def run(output_dir: Path, *options: str) -> dict[str, torch.Tensor]:
    """Train and return the final parameters."""
    fixed = ["--output-dir", str(output_dir), "--device", "cpu"]
    fixed += "--num-envs 2 --num-steps 8 --update-epochs 2 --eval-every 1 --eval-episodes 3 --width 8".split()
    main(parse_args([*fixed, "--batch-size", "8", *options]))
    newest = newest_checkpoint(output_dir / "checkpoints")
    return torch.load(newest, weights_only=True)["model"]


def test_learns_one_batch() -> None:
    torch.manual_seed(0)
    rollouts = Rollouts(num_envs=2, steps=32, seed=0, workers=0)
    env, device = rollouts.envs[0].env, torch.device("cpu")
    model = ActorCritic(env.observation_space, env.action_space, width=32)
    rollouts.collect(model, 0, device, gamma=0.5, gae_lambda=0.95)
    batch = observations, actions, log_probs, advantages, returns = rollouts[np.arange(8)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(500):
        compute_loss(model, batch, device, clip=0.2, entropy_coef=0.0).backward()
        optimizer.step()
        optimizer.zero_grad()
    policy, values = model(observations)
    gains = (policy.log_prob(actions) - log_probs) * advantages
    assert gains.mean() > 0  # what was good has become likelier
    assert (values - returns).square().mean() < returns.square().mean() / 10


def test_resumes_exactly(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "--max-steps", "6")
    run(tmp_path / "parts", "--max-steps", "3")
    parts = run(tmp_path / "parts", "--max-steps", "6", "--resume")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    records = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert records[0] == records[1]
