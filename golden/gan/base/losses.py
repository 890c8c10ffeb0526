"""What the two networks learn from: either loss is for the optimizer of one of them."""

import torch
import torch.nn.functional as F
from torch import nn


def discriminator_loss(
    generator: nn.Module, discriminator: nn.Module, batch: list[torch.Tensor], device: torch.device
) -> torch.Tensor:
    """The cross-entropy of telling pictures of the data from made ones."""
    images, noise = (tensor.to(device, non_blocking=True) for tensor in batch)
    with torch.no_grad():
        made = generator(noise)
    logits = discriminator(torch.cat([images, made]))
    real_logits, made_logits = logits.chunk(2)
    return F.softplus(-real_logits).mean() + F.softplus(made_logits).mean()


def generator_loss(
    generator: nn.Module, discriminator: nn.Module, batch: list[torch.Tensor], device: torch.device
) -> torch.Tensor:
    """The one that does not saturate (Goodfellow et al., 2014): minus the log of being taken for real."""
    _, noise = batch
    logits = discriminator(generator(noise.to(device, non_blocking=True)))
    return F.softplus(-logits).mean()
