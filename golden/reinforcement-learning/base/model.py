"""Actor and critic of proximal policy optimisation: two MLPs that share nothing but their input."""

import math

import torch
from gymnasium.spaces import Box, Discrete
from torch import nn
from torch.distributions import Categorical


class RunningNorm(nn.Module):
    """Observations in units of the mean and standard deviation of all that were seen so far."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.tensor(0))

    @torch.no_grad()
    def update(self, x: torch.Tensor) -> None:
        """Merge the moments of (batch, size) more observations (Chan, Golub and LeVeque, 1979)."""
        self.count += len(x)
        share, shift = len(x) / self.count, x.mean(dim=0) - self.mean
        self.mean += share * shift
        self.var.lerp_(x.var(dim=0, correction=0), share).add_(share * (1 - share) * shift**2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - self.mean) / (self.var + 1e-8).sqrt()).clamp(-10, 10)


def mlp(inputs: int, width: int, outputs: int, gain: float) -> nn.Sequential:
    """Two hidden layers; orthogonal weights (Saxe et al., 2014), those of the output scaled by `gain`."""
    layers = [nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, outputs)]
    for layer, scale in zip(layers, [math.sqrt(2), math.sqrt(2), gain]):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class ActorCritic(nn.Module):
    def __init__(self, observation_space: Box, action_space: Discrete, width: int) -> None:
        super().__init__()
        num_inputs, self.num_actions = observation_space.shape[0], int(action_space.n)
        self.norm = RunningNorm(num_inputs)
        self.actor = mlp(num_inputs, width, self.num_actions, gain=0.01)  # at first, all are as likely
        self.critic = mlp(num_inputs, width, 1, gain=1.0)

    def forward(self, observations: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        """(batch, inputs) to the policy, a distribution over actions for each, and values, (batch)."""
        x = self.norm(observations)
        return Categorical(logits=self.actor(x)), self.critic(x).squeeze(-1)

    def noise(self, *shape: int, generator: torch.Generator) -> torch.Tensor:
        """Gumbel's, (*shape, actions): the largest of logits and noise is a draw from the policy."""
        return -torch.empty(*shape, self.num_actions).exponential_(generator=generator).log()

    def act(self, observations: torch.Tensor, noise: torch.Tensor | float = 0.0) -> torch.Tensor:
        """(batch, inputs) to actions, (batch); without noise, the likeliest."""
        return (self.actor(self.norm(observations)) + noise).argmax(dim=-1)
