"""The U-Net of DDPM (Ho et al., 2020): residual blocks that know the time, attention at the lowest level."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def time_embedding(t: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of the time step (Vaswani et al., 2017); (batch) to (batch, 2 x width)."""
    angles = torch.outer(t, 10_000 ** (-torch.arange(width, device=t.device) / width))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, time_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time = nn.Linear(time_channels, channels)
        self.norm2 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # at first a block adds nothing

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(time)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Each pixel looks at all of them; one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (batch, pixels, channels of q, k and v)
        y = F.scaled_dot_product_attention(*pixels.unsqueeze(1).chunk(3, dim=3))
        return x + self.out(y.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class Level(nn.Module):
    """Two residual blocks, with attention between them at the lowest level."""

    def __init__(self, in_channels: int, channels: int, time_channels: int, attention: bool = False) -> None:
        super().__init__()
        self.block1 = ResidualBlock(in_channels, channels, time_channels)
        self.attention = Attention(channels) if attention else nn.Identity()
        self.block2 = ResidualBlock(channels, channels, time_channels)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.block2(self.attention(self.block1(x, time)), time)


class UNet(nn.Module):
    def __init__(self, channels: int, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]  # at each level half the size
        time = 4 * width  # channels of what every block is told
        self.width = width
        self.time = nn.Sequential(nn.Linear(2 * width, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(Level(*pair, time) for pair in zip([width, *widths], widths[:-1]))
        self.middle = Level(*widths[-2:], time, attention=True)
        self.up = nn.ModuleList(Level(3 * beside, beside, time) for beside in widths[-2::-1])
        self.head = nn.Sequential(group_norm(width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))
        nn.init.zeros_(self.head[-1].weight)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Pictures, (batch, channels, height, width), at the steps t, (batch), to the noise in them."""
        time = self.time(time_embedding(t, self.width).type_as(x_t))
        x = self.stem(x_t)
        skips = []
        for level in self.down:
            skips.append(level(x, time))
            x = F.avg_pool2d(skips[-1], 2)
        x = self.middle(x, time)
        for level in self.up:
            skip = skips.pop()
            x = level(torch.cat([F.interpolate(x, skip.shape[2:], mode="nearest"), skip], dim=1), time)
        return self.head(x)
