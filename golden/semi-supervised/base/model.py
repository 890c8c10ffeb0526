"""A small residual network (He et al., 2016) with group normalisation (Wu and He, 2018).

Group normalisation looks at one picture at a time, whatever views are beside it in the batch.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels)
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, in_channels: int, num_classes: int, depth: int, width: int) -> None:
        super().__init__()
        widths = (16 * width, 32 * width)
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        blocks: list[nn.Module] = []
        for before, channels in zip(widths[:1] + widths, widths):
            blocks.append(Block(before, channels, stride=2 if before < channels else 1))
            blocks += [Block(channels, channels, stride=1) for _ in range(depth - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1] * 4 * 4, num_classes)  # in 8x8 pixels it matters where something is

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(images))  # (batch, channels, height, width)
        return self.head(x.flatten(1))  # (batch, classes)
