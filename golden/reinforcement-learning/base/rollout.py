"""Rollouts: what a policy does in all environments, and what there is to learn from it."""

from itertools import starmap
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import torch

from data import Environment, Transition
from model import ActorCritic


def estimate_advantages(
    rewards: torch.Tensor,
    values: torch.Tensor,
    next_values: torch.Tensor,
    terminated: torch.Tensor,
    ended: torch.Tensor,
    gamma: float,
    gae_lambda: float,
) -> torch.Tensor:
    """Generalised advantage estimation (Schulman et al., 2016); all tensors are (steps, environments).

    Only a terminated episode is worth nothing from there on. Where a time limit or the end of the rollout
    cuts one off, the value of the observation that it came to stands for what would have followed.
    """
    errors = rewards + gamma * next_values * ~terminated - values
    advantages, following = torch.empty_like(errors), torch.zeros_like(errors[0])
    for step in reversed(range(len(errors))):
        advantages[step] = following = errors[step] + gamma * gae_lambda * ~ended[step] * following
    return advantages


class Rollouts:
    """Rollout after rollout in the same environments; the newest is handed out a batch at a time."""

    def __init__(self, num_envs: int, steps: int, seed: int, workers: int) -> None:
        self.num_envs, self.steps, self.seed = num_envs, steps, seed
        numbers = range(1, num_envs + 1)  # 0 is for evaluation
        self.envs = [Environment(seed, number) for number in numbers]
        self.starmap = ThreadPool(workers).starmap if workers else starmap
        self.states: list[dict[str, Any]] = []  # of all environments after the newest rollout
        self.columns: list[torch.Tensor] = []  # its transitions
        self.metrics: dict[str, float] = {}  # what there is to say about it

    def __len__(self) -> int:
        return self.steps * self.num_envs

    def __getitem__(self, draws: np.ndarray) -> list[torch.Tensor]:
        """Observations, actions, their log-probabilities, advantages and returns."""
        return [column[draws % len(self)] for column in self.columns]

    @torch.no_grad()
    def collect(
        self, model: ActorCritic, number: int, device: torch.device, gamma: float, gae_lambda: float
    ) -> None:
        """Act in every environment, on from where the rollout before this `number` left it."""
        if self.columns:  # not before: what is learned from must look as it did to the policy that acted
            model.norm.update(self.columns[0].to(device))
        generator = torch.Generator().manual_seed(hash((self.seed, number)))
        noise = model.noise(self.steps, self.num_envs, generator=generator)
        rows = []
        for step_noise in noise.to(device):
            observations = torch.from_numpy(np.stack([env.observation for env in self.envs]))
            actions = model.act(observations.to(device), step_noise).cpu().numpy()
            rows.append(zip(*self.starmap(Environment.step, zip(self.envs, actions))))
        arrays = [np.array(column) for column in zip(*rows)]  # (steps, environments, ...)
        self.states = [env.state_dict() for env in self.envs]
        played = Transition(*map(torch.from_numpy, arrays))

        policy, values = model(played.observation.to(device))
        log_probs = policy.log_prob(played.action.to(device)).cpu()
        next_values = model(played.next_observation.to(device))[1].cpu()
        advantages = estimate_advantages(
            played.reward, values.cpu(), next_values, played.terminated, played.ended, gamma, gae_lambda
        )
        returns = advantages + values.cpu()
        scaled = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
        columns = (played.observation, played.action, log_probs, scaled, returns)
        self.columns = [column.flatten(0, 1) for column in columns]

        unexplained = advantages.var() / returns.var().clamp(min=1e-8)
        self.metrics = {"train/explained_variance": 1 - unexplained.item()}
        if played.ended.any():
            self.metrics["train/return"] = played.total[played.ended].mean().item()

    def state_dict(self) -> dict[str, Any]:
        return {"envs": self.states, "columns": self.columns, "metrics": self.metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (len(state["envs"]), len(state["columns"][0])) != (self.num_envs, len(self)):
            raise ValueError("another number of environments or steps")
        self.states, self.columns, self.metrics = state["envs"], state["columns"], state["metrics"]
        for env, own in zip(self.envs, self.states):
            env.load_state_dict(own)
