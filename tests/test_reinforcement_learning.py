"""Reinforcement learning: advantages, what a checkpoint has to hold, what two processes do as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Make
from tests.projects import drive, edit, metrics, render, same_run, small_options, train, values
from tests.test_project_bad_input import refused

TASK = {"task": "reinforcement-learning"}
GYM = TASK | {"data": "gymnasium"}
SMALL = [*small_options("reinforcement-learning"), "--batch-size", 8, "--log-every", 1]

ADVANTAGES = """
import json
import torch
from rollout import estimate_advantages

generator = torch.Generator().manual_seed(0)
gamma, lam, steps, envs = 0.9, 0.8, 40, 3
draw = lambda: torch.randn(steps, envs, generator=generator, dtype=torch.float64)
terminated, truncated = draw() > 1, draw() > 1
ended = terminated | truncated

rewards, values, next_values = draw(), draw(), draw()
found = estimate_advantages(rewards, values, next_values, terminated, ended, gamma, lam)
gap = 0.0
for env in range(envs):
    for first in range(steps):
        expected, weight = 0.0, 1.0
        for t in range(first, steps):
            future = 0.0 if terminated[t, env] else gamma * next_values[t, env]
            expected += weight * (rewards[t, env] + future - values[t, env])
            weight *= gamma * lam
            if ended[t, env]:
                break
        gap = max(gap, abs(found[first, env] - expected).item())

# a reward of 1 for ever, and values that know it: nothing is better or worse than expected
ones = torch.ones(steps, envs)
for_ever = ones / (1 - gamma)
never = torch.zeros_like(truncated)
endless = estimate_advantages(ones, for_ever, for_ever, never, truncated, gamma, lam).abs().max().item()
over = estimate_advantages(ones, for_ever, for_ever, truncated, truncated, gamma, lam)[truncated].max().item()
print(json.dumps([gap < 1e-5, endless < 1e-5, over < -1]))
"""


def test_a_time_limit_is_no_end(made: Make) -> None:
    assert json.loads(drive(made(**TASK), ADVANTAGES)) == [True, True, True]


def test_control_a_time_limit_is_no_end(tmp_path: Path) -> None:
    """As if a truncated episode were over."""
    project = render(tmp_path / "demo", **TASK)
    edit(project / "rollout.py", "next_values * ~terminated", "next_values * ~ended")
    assert json.loads(drive(project, ADVANTAGES)) == [False, False, True]


def resumed(project: Path, place: Path, *options: object) -> bool:
    """Is a run that goes on in the middle of a rollout and of episodes the run that never stopped?"""
    for name, *steps in (("whole", 26), ("parts", 18, 26)):
        for last in steps:
            train(project, *SMALL, *options, "--max-steps", last, "--output-dir", place / name, "--resume")
    return same_run(place / "whole", place / "parts")


ENVS = ["Pendulum-v1", "Acrobot-v1", "FrozenLake-v1"]  # continuous, discrete, numbered states and chance


@pytest.mark.parametrize("env_id", ENVS)
def test_environments_come_back(made: Make, tmp_path: Path, env_id: str) -> None:
    assert resumed(made(**GYM), tmp_path, "--env-id", env_id)


@pytest.mark.parametrize("line", ["self.begin(state", "self.step(action)"])
def test_control_environments_come_back(tmp_path: Path, line: str) -> None:
    """Episodes that begin with other seeds, or anew."""
    project = render(tmp_path / "demo", **TASK)
    new = {"self.begin(state": "(state", "self.step(action)": "pass"}[line]
    edit(project / "data.py", f"    {line}", f"    {new}")
    assert not resumed(project, tmp_path)


def kl(project: Path, output_dir: Path) -> list[float]:
    """How far the policy is from the one that acted, where nothing is learned."""
    options = [*SMALL, "--lr", 0, "--max-steps", 16, "--output-dir", output_dir]
    train(project, *options)
    return list(values(output_dir, "train/kl").values())


def test_what_is_learned_from_is_what_was_seen(made: Make, tmp_path: Path) -> None:
    """The statistics of observations do not move between acting and learning."""
    found = kl(made(**TASK), tmp_path)
    assert len(found) == 4
    assert max(found) < 1e-12


def test_control_what_is_learned_from_is_what_was_seen(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **TASK)
    line = "        self.columns = [column.flatten(0, 1) for column in columns]\n"
    edit(project / "rollout.py", line, line + "        model.norm.update(self.columns[0])\n")
    assert max(kl(project, tmp_path / "out")) > 1e-9


POLICY = """
import json
import sys
import torch
from data import make_env
from model import ActorCritic

env = make_env(*sys.argv[1:])
torch.manual_seed(0)
model = ActorCritic(env.observation_space, env.action_space, width=16)
parts = [torch.randn(n, env.observation_space.shape[0]) * 3 + 5 for n in (1, 50, 400)]
for part in parts:
    model.norm.update(part)
everything = torch.cat(parts)
moments = torch.allclose(model.norm.mean, everything.mean(0), atol=1e-4)
moments &= torch.allclose(model.norm.var, everything.var(0, correction=0), rtol=1e-3)

model.actor[-1].weight.data *= 100  # far from even
observation, number = everything[:1], 20_000
noise = model.noise(number, generator=torch.Generator().manual_seed(1))
draws = model.act(observation.expand(number, -1), noise)
policy, _ = model(observation)
if draws.ndim == 1:
    shares = draws.bincount(minlength=model.num_actions) / number
    drawn = (shares - policy.probs[0]).abs().max().item() < 0.02
    best = model.act(observation).item() == policy.probs.argmax().item()
else:
    drawn = torch.allclose(draws.mean(0), policy.mean[0], atol=0.05)
    drawn &= torch.allclose(draws.std(0), policy.stddev[0], atol=0.05)
    best = torch.equal(model.act(observation), policy.mean)
print(json.dumps([moments, drawn, best]))
"""


@pytest.mark.parametrize("env_id", [None, "Acrobot-v1", "Pendulum-v1"])
def test_actions_are_draws_from_the_policy(made: Make, env_id: str | None) -> None:
    given = [env_id] if env_id else []
    assert json.loads(drive(made(**(GYM if env_id else TASK)), POLICY, *given)) == [True, True, True]


def test_threads_change_nothing(made: Make, tmp_path: Path) -> None:
    for workers in (0, 2):
        place = tmp_path / str(workers)
        train(made(**TASK), *SMALL, "--max-steps", 8, "--workers", workers, "--output-dir", place)
    assert metrics(tmp_path / "0") == metrics(tmp_path / "2")
    assert same_run(tmp_path / "0", tmp_path / "2")


@pytest.mark.parametrize(
    ("env_id", "word"),
    [
        ("Pendulum-v9", "Pendulum"),
        ("NoSuchThing-v0", "NoSuchThing"),
        ("no_such_module:Thing-v0", "no_such_module"),
        ("Blackjack v1", "Blackjack v1"),
    ],
)
def test_unknown_environments(made: Make, tmp_path: Path, env_id: str, word: str) -> None:
    result = train(made(**GYM), "--env-id", env_id, "--output-dir", tmp_path, check=False)
    refused(result, "--env-id", word)


def test_batches_that_do_not_fit(made: Make, tmp_path: Path) -> None:
    result = train(made(**TASK), *SMALL, "--batch-size", 5, "--output-dir", tmp_path, check=False)
    refused(result, "no whole batches of 5")


def test_resumed_with_other_environments(made: Make, tmp_path: Path) -> None:
    train(made(**TASK), *SMALL, "--max-steps", 2, "--output-dir", tmp_path)
    options = [*SMALL, "--num-envs", 4, "--resume", "--output-dir", tmp_path]
    refused(train(made(**TASK), *options, check=False), "its rollouts differs")
