"""A linear model and a small network side by side (Cheng et al., 2016, "Wide & Deep Learning")."""

import torch
from torch import nn


class TableNet(nn.Module):
    """numeric: (batch, num_numeric) floats, categorical: (batch, columns) codes below each cardinality."""

    def __init__(self, num_numeric: int, cardinalities: list[int], num_outputs: int, width: int = 64) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, min(16, size)) for size in cardinalities)
        num_inputs = num_numeric + sum(min(16, size) for size in cardinalities)
        self.wide = nn.Linear(num_inputs, num_outputs)
        self.deep = nn.Sequential(
            nn.Linear(num_inputs, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, num_outputs),
        )
        nn.init.zeros_(self.deep[-1].weight)  # starts as a linear model

    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        embedded = [embedding(codes) for embedding, codes in zip(self.embeddings, categorical.unbind(1))]
        x = torch.cat([numeric, *embedded], dim=1)  # (batch, num_inputs)
        return self.wide(x) + self.deep(x)  # (batch, num_outputs)
