"""Train an agent in CartPole-v1; proximal policy optimisation (Schulman et al., 2017).

Launch: python train.py
"""

import argparse
import math
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from checkpoint import check_parameters, load_checkpoint, newest_checkpoint, save_checkpoint
from data import Environment, ordered_batches, shuffled_batches
from model import ActorCritic
from record import check_finite, open_metrics, write_metrics, write_run
from rollout import Rollouts

PROJECT = "reinforcement-learning"


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
    parser.add_argument("--epochs", type=within(1), default=40, help="rollouts to learn from")
    parser.add_argument("--max-steps", type=within(1), help="stop after this many optimizer steps")
    parser.add_argument("--batch-size", type=within(1), default=128, help="examples per process and pass")
    parser.add_argument("--lr", type=within(0.0), default=1e-3, help="learning rate at its peak")
    parser.add_argument("--warmup-steps", type=within(0), default=0, help="steps until the peak")
    parser.add_argument("--seed", type=within(0, 2**63 - 1), default=0, help="of weights and order")
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="where to compute")
    parser.add_argument("--workers", type=within(0), default=0, help="threads of environments; 0 for none")
    parser.add_argument("--log-every", type=within(1), default=10, help="steps between log lines")
    parser.add_argument("--checkpoint-every", type=within(1), default=200, help="steps between checkpoints")
    parser.add_argument("--clip-grad", type=within(1e-6), default=0.5, help="maximum gradient norm")
    parser.add_argument("--num-envs", type=within(1), default=8, help="environments")
    parser.add_argument("--num-steps", type=within(1), default=128, help="of each of them in an epoch")
    parser.add_argument("--update-epochs", type=within(1), default=10, help="passes over each rollout")
    parser.add_argument("--gamma", type=within(0.0, 1.0), default=0.98, help="discount of rewards, a step")
    parser.add_argument("--gae-lambda", type=within(0.0, 1.0), default=0.95, help="of advantage estimation")
    parser.add_argument("--clip", type=within(0.0), default=0.2, help="limit of a probability's change")
    parser.add_argument("--entropy-coef", type=within(0.0), default=0.0, help="weight of the entropy bonus")
    parser.add_argument("--eval-every", type=within(1), default=10, help="epochs between evaluations")
    parser.add_argument("--eval-episodes", type=within(1), default=100, help="episodes of an evaluation")
    parser.add_argument("--width", type=within(1), default=64, help="of hidden layers")
    return parser.parse_args(argv)


def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up, then half a cosine down to zero. A function of the step alone: no state to save."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


def compute_loss(
    model: nn.Module, batch: list[torch.Tensor], device: torch.device, clip: float, entropy_coef: float
) -> torch.Tensor:
    """The clipped surrogate objective, the error of the values, and a bonus for policies that stay open."""
    observations, actions, log_probs, advantages, returns = (
        tensor.to(device, non_blocking=True) for tensor in batch
    )
    policy, values = model(observations)
    ratio = (policy.log_prob(actions) - log_probs).exp()
    gain = torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    value_loss = (values - returns).square().mean() / 2
    return value_loss - gain.mean() - entropy_coef * policy.entropy().mean()


@torch.no_grad()
def measure(model: ActorCritic, rollouts: Rollouts, device: torch.device, clip: float) -> dict[str, float]:
    """How far the policy has come from the one that acted, over the whole rollout."""
    observations, actions, log_probs, _, _ = (column.to(device) for column in rollouts.columns)
    policy, _ = model(observations)
    log_ratio = (policy.log_prob(actions) - log_probs).cpu().double()
    return rollouts.metrics | {
        "train/entropy": policy.entropy().mean().item(),
        "train/kl": (log_ratio.expm1() - log_ratio).mean().item(),  # never below 0 (Schulman, 2020)
        "train/clip_fraction": (log_ratio.expm1().abs() > clip).double().mean().item(),
    }


@torch.no_grad()
def evaluate(
    model: ActorCritic, envs: list[Environment], episodes: list[np.ndarray], device: torch.device
) -> dict[str, float]:
    """The mean return of the likeliest actions, in episodes of its own that are always the same."""
    total = count = 0
    for numbers in episodes:
        playing = envs[: len(numbers)]
        for env, number in zip(playing, numbers):
            env.begin(int(number))
        while playing:
            observations = torch.from_numpy(np.stack([env.observation for env in playing]))
            actions = model.act(observations.to(device)).cpu().numpy()
            played = [env.step(action) for env, action in zip(playing, actions)]
            total += sum(transition.total for transition in played if transition.ended)
            playing = [env for env, transition in zip(playing, played) if not transition.ended]
        count += len(numbers)
    return {"val/return": total / count}


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
    device = torch.device(args.device)
    torch.manual_seed(args.seed)

    rollouts = Rollouts(args.num_envs, args.num_steps, args.seed, args.workers)
    global_batch = args.batch_size  # transitions per optimizer step
    epoch_steps, rest = divmod(len(rollouts) * args.update_epochs, global_batch)
    if rest:
        sys.exit(f"{args.update_epochs} x {len(rollouts)} transitions are no whole batches of {global_batch}")
    total_steps = args.epochs * epoch_steps
    last_step = min(total_steps, args.max_steps or total_steps)

    env = rollouts.envs[0].env
    model = ActorCritic(env.observation_space, env.action_space, args.width).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    parts = {"model": model, "optimizer": optimizer, "rollouts": rollouts}
    newest = newest_checkpoint(checkpoints) if args.resume else None
    saved = load_checkpoint(newest, parts) if newest else {}
    step, best = saved.get("step", 0), saved.get("best", -math.inf)

    order = shuffled_batches(len(rollouts), args.batch_size, args.seed, step)
    batches = map(rollouts.__getitem__, order)
    val_envs = [Environment(seed=0, number=0) for _ in rollouts.envs]
    val_episodes = ordered_batches(args.eval_episodes, len(val_envs))
    metrics_file = open_metrics(args.output_dir / "metrics.jsonl", step)
    write_run(args.output_dir / "run.json", vars(args), device)
    progress = tqdm(total=last_step, initial=step, disable=None)

    stopping = False
    while step < last_step:
        lr = learning_rate(step, args.lr, args.warmup_steps, total_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        if step % epoch_steps == 0:
            rollouts.collect(model, step // epoch_steps, device, args.gamma, args.gae_lambda)
        loss = compute_loss(model, next(batches), device, args.clip, args.entropy_coef)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        progress.update()

        metrics = {}
        if step < 10 or step % args.log_every == 0:  # the first steps are where runs go wrong
            metrics |= {"train/loss": loss.item(), "train/lr": lr}
        if step % epoch_steps == 0:
            metrics |= measure(model, rollouts, device, args.clip)
        if step % (args.eval_every * epoch_steps) == 0 or step == total_steps:
            metrics |= evaluate(model, val_envs, val_episodes, device)
        check_finite(metrics, step)
        improved = metrics.get("val/return", best) > best
        if improved:
            best = metrics["val/return"]
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
