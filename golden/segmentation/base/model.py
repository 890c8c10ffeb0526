"""A U-Net (Ronneberger et al., 2015) with padded convolutions and nearest-neighbour upsampling.

Instance normalisation (each channel a group) and leaky rectifiers as in nnU-Net (Isensee et al., 2021).
"""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Two convolutions; what comes over the skip connection, if any, is put beside the input."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(channels, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(channels, channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        if skip is not None:
            x = torch.cat([F.interpolate(x, skip.shape[2:], mode="nearest"), skip], dim=1)
        x = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        return F.leaky_relu(self.norm2(self.conv2(x)), 0.01)


class UNet(nn.Module):
    def __init__(self, in_channels: int, num_classes: int, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]  # at each level half the size
        self.down = nn.ModuleList(Block(*pair) for pair in zip([in_channels, *widths], widths))
        self.up = nn.ModuleList(Block(3 * beside, beside) for beside in widths[-2::-1])
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) to logits, (batch, classes, height, width)."""
        levels = [self.down[0](images)]
        for block in self.down[1:]:
            levels.append(block(F.max_pool2d(levels[-1], 2)))
        x = levels.pop()
        for block in self.up:
            x = block(x, levels.pop())
        return self.head(x)
