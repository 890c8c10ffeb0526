"""Environments that can be brought back to where they stood, and the order in which transitions are drawn."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch


def make_env() -> gym.Env:
    return gym.make("CartPole-v1", disable_env_checker=True)


class Transition(NamedTuple):
    observation: np.ndarray
    action: np.ndarray
    reward: np.float32
    next_observation: np.ndarray  # before any reset
    terminated: bool  # the episode is over; one that a time limit ended would have gone on
    ended: bool  # of either kind
    total: float  # rewards of the episode so far


class Environment:
    """An environment with a state_dict, whatever simulates it.

    The seed of an episode is a function of (seed, number, episode). With the actions since its reset it leads
    to the state of any simulator that draws randomness from that seed alone.
    """

    def __init__(self, seed: int, number: int) -> None:
        self.env = make_env()
        self.name = seed, number
        self.begin(0)

    def begin(self, episode: int) -> None:
        self.episode, self.total = episode, 0.0
        self.actions: list[np.ndarray] = []  # since the reset
        seed = np.random.SeedSequence([*self.name, episode]).generate_state(1)
        self.observation = np.asarray(self.env.reset(seed=int(seed[0]))[0], np.float32)

    def step(self, action: np.ndarray) -> Transition:
        """Act, and begin another episode where one ends."""
        before = self.observation
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self.observation = after = np.asarray(observation, np.float32)
        self.actions.append(action)
        self.total += float(reward)
        ended, total = terminated or truncated, self.total
        if ended:
            self.begin(self.episode + 1)
        return Transition(before, action, np.float32(reward), after, terminated, ended, total)

    def state_dict(self) -> dict[str, Any]:
        return {"episode": self.episode, "actions": torch.from_numpy(np.array(self.actions))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin(state["episode"])
        for action in state["actions"].numpy():
            self.step(action)


def shuffled_batches(
    num_examples: int,
    batch_size: int,
    seed: int,
    first: int,
) -> Iterator[np.ndarray]:
    """Yield the training batches from number `first` on, without end, as arrays of draws.

    Draw d is example d % num_examples in epoch d // num_examples, and every epoch is a new permutation.
    Batches are always full: the last one of an epoch goes on into the next.
    """
    start, width = first * batch_size, batch_size
    epoch, done = divmod(start, num_examples)
    draws = shuffled(num_examples, seed, epoch)[done:]
    while True:
        while len(draws) < width:
            epoch += 1
            draws = np.concatenate([draws, shuffled(num_examples, seed, epoch)])
        yield draws[:width]
        draws = draws[width:]


def shuffled(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return epoch * num_examples + np.random.default_rng([seed, epoch]).permutation(num_examples)


def ordered_batches(num_examples: int, batch_size: int) -> list[np.ndarray]:
    """Every example once, in order."""
    num_batches = -(-num_examples // batch_size)  # rounded up
    return np.array_split(np.arange(num_examples), num_batches)
