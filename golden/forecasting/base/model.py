"""N-BEATS (Oreshkin et al., 2020), its generic form: blocks of linear layers, each explains what is left."""

import torch
from torch import nn


def make_block(context: int, horizon: int, width: int) -> nn.Sequential:
    """From what is left of the context to the part explained here, then what that adds to the forecast."""
    return nn.Sequential(
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


class NBeats(nn.Module):
    def __init__(self, context: int, horizon: int, width: int, depth: int) -> None:
        super().__init__()
        self.sizes = [context, horizon]
        self.blocks = nn.ModuleList(make_block(context, horizon, width) for _ in range(depth))

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """(batch, context) to the forecast, (batch, horizon)."""
        left, forecast = context, 0
        for block in self.blocks:
            explained, more = block(left).split(self.sizes, dim=1)
            left, forecast = left - explained, forecast + more
        return forecast
