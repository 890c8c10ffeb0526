"""N-BEATS (Oreshkin et al., 2020), its generic form: blocks of linear layers, each explains what is left."""

import torch
from torch import nn


class Block(nn.Module):
    """From what is left of the context: the part that is explained here, and what it adds to the forecast."""

    def __init__(self, context: int, horizon: int, width: int) -> None:
        super().__init__()
        self.sizes = [context, horizon]
        self.layers = nn.Sequential(
            nn.Linear(context, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, context + horizon),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.layers(x).split(self.sizes, dim=1)


class NBeats(nn.Module):
    def __init__(self, context: int, horizon: int, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(context, horizon, width) for _ in range(depth))

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """(batch, context) to the forecast, (batch, horizon)."""
        left, forecast = context, 0
        for block in self.blocks:
            explained, more = block(left)
            left, forecast = left - explained, forecast + more
        return forecast
