"""DCGAN (Radford et al., 2016) for pictures of any size that can be halved down to 4 to 7 pixels.

Convolutions at the full size are first in the discriminator and last in the generator (Miyato et al., 2018).
Batch normalisation is left out, so that what a picture gets does not depend on the others of its batch: the
generator has instance normalisation (each channel a group) in its place, the discriminator none.
"""

import torch
import torch.nn.functional as F
from torch import nn


def widths(size: int, width: int) -> list[int]:
    """Channels at each size, from that of the pictures down to 4 to 7 pixels."""
    return [width * 2**level for level in range((size // 4).bit_length())]


class Generator(nn.Module):
    def __init__(self, latent: int, channels: int, size: int, width: int) -> None:
        super().__init__()
        sizes = widths(size, width)[::-1]  # the smallest first
        self.stem = nn.ConvTranspose2d(latent, sizes[0], size >> len(sizes) - 1, bias=False)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(*pair, 4, stride=2, padding=1, bias=False) for pair in zip(sizes, sizes[1:])
        )
        self.norms = nn.ModuleList(nn.GroupNorm(own, own) for own in sizes)
        self.head = nn.Conv2d(width, channels, 3, padding=1)
        self.apply(init)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """(batch, latent) to pictures, (batch, channels, size, size) from -1 to 1."""
        x = noise[:, :, None, None]
        for up, norm in zip([self.stem, *self.ups], self.norms):
            x = F.relu(norm(up(x)))
        return self.head(x).tanh()


class Discriminator(nn.Module):
    def __init__(self, channels: int, size: int, width: int) -> None:
        super().__init__()
        sizes = widths(size, width)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.downs = nn.ModuleList(nn.Conv2d(*pair, 4, stride=2, padding=1) for pair in zip(sizes, sizes[1:]))
        self.head = nn.Conv2d(sizes[-1], 1, size >> len(sizes) - 1)
        self.apply(init)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, channels, size, size) to logits, (batch, 1, 1, 1)."""
        x = images
        for conv in [self.stem, *self.downs]:
            x = F.leaky_relu(conv(x), 0.2)
        return self.head(x)


def init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
