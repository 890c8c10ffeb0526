"""The forward process of DDPM (Ho et al., 2020) and the sampler of DDIM (Song et al., 2021)."""

import math
from itertools import pairwise

import torch
from torch import nn

TIMESTEPS = 1000  # T


def alpha_bar(t: torch.Tensor) -> torch.Tensor:
    """The share of x_0 in the variance of x_t, t from 0 to T: a cosine (Nichol and Dhariwal, 2021)."""

    def f(t: torch.Tensor) -> torch.Tensor:
        return torch.cos((t / TIMESTEPS + 0.008) / 1.008 * math.pi / 2).square()

    return (f(t) / f(torch.zeros_like(t))).clamp(min=1e-8)  # samplers divide by it


def q_sample(x_0: torch.Tensor, t: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    """x_t, drawn from q(x_t | x_0) with the noise epsilon; a step of its own for each example."""
    alpha_bar_t = alpha_bar(t).view(-1, 1, 1, 1)
    return alpha_bar_t.sqrt() * x_0 + (1 - alpha_bar_t).sqrt() * epsilon


@torch.no_grad()
def ddim_sample(
    model: nn.Module, x_t: torch.Tensor, steps: int, eta: float, generator: torch.Generator
) -> torch.Tensor:
    """From x_T to x_0 in some of the T steps.

    With eta 0 no noise is added on the way; with eta 1 and all steps this is DDPM's sampler.
    """
    timesteps = torch.linspace(TIMESTEPS, 0, steps + 1, device=x_t.device).round().long()
    for t, s in pairwise(timesteps):
        alpha_bar_t, alpha_bar_s = alpha_bar(t), alpha_bar(s)
        epsilon = model(x_t, t.expand(len(x_t)))
        x_0 = ((x_t - (1 - alpha_bar_t).sqrt() * epsilon) / alpha_bar_t.sqrt()).clamp(-1, 1)
        epsilon = (x_t - alpha_bar_t.sqrt() * x_0) / (1 - alpha_bar_t).sqrt()  # of the clamped x_0
        sigma = eta * ((1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)).sqrt()
        x_t = alpha_bar_s.sqrt() * x_0 + (1 - alpha_bar_s - sigma**2).clamp(min=0).sqrt() * epsilon
        x_t = x_t + sigma * torch.randn(x_t.shape, generator=generator).to(x_t.device)
    return x_t
