"""The forward process and the sampler, with data whose noise is known without a model."""

import pytest
import torch
from torch import nn

from diffusion import TIMESTEPS, alpha_bar, ddim_sample, q_sample

MEAN, STD = 0.2, 0.1  # of every pixel


class Gaussian(nn.Module):
    """The best model of independent normal pixels: the noise that is to be expected in x_t."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = alpha_bar(t).view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x_t - a.sqrt() * MEAN) / (a * STD**2 + 1 - a)


def test_the_schedule_falls_from_one_to_zero() -> None:
    values = alpha_bar(torch.arange(TIMESTEPS + 1))
    assert values[0] == 1 and values[1] > 0.9999 and 0 < values[-1] < 1e-4
    assert (values.diff() < 0).all()


@pytest.mark.parametrize("step", [1, 300, TIMESTEPS])
def test_noise_is_added_as_the_schedule_says(step: int) -> None:
    torch.manual_seed(0)
    x_0, t = torch.full((1000, 1, 8, 8), 0.5), torch.full((1000,), step)
    x_t, a = q_sample(x_0, t, torch.randn_like(x_0)), alpha_bar(torch.tensor(step))
    torch.testing.assert_close(x_t.mean(), 0.5 * a.sqrt(), rtol=0, atol=0.01)
    torch.testing.assert_close(x_t.var(), 1 - a, rtol=0.02, atol=0)


@pytest.mark.parametrize(("steps", "eta"), [(TIMESTEPS, 0.0), (TIMESTEPS, 1.0), (250, 0.0)])
def test_samples_are_distributed_as_the_data(steps: int, eta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(64, 1, 8, 8, generator=generator)
    x_0 = ddim_sample(Gaussian(), x_t, steps, eta, generator)
    assert x_0.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert x_0.std().item() == pytest.approx(STD, rel=0.05)


def test_only_eta_adds_noise_on_the_way() -> None:
    x_t = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    one, two = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    for eta in (0.0, 1.0):
        samples = [ddim_sample(Gaussian(), x_t, 10, eta, generator) for generator in (one, two)]
        assert torch.equal(*samples) == (eta == 0)
