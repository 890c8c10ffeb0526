"""Matrix factorisation with biases (Koren, Bell and Volinsky, 2009)."""

import torch
from torch import nn


class MatrixFactorization(nn.Module):
    def __init__(self, num_users: int, num_items: int, mean: float, factors: int) -> None:
        super().__init__()
        self.mean = mean
        self.user_bias = nn.Embedding(num_users, 1)
        self.item_bias = nn.Embedding(num_items, 1)
        self.user_factors = nn.Embedding(num_users, factors)
        self.item_factors = nn.Embedding(num_items, factors)
        nn.init.zeros_(self.user_bias.weight)
        nn.init.zeros_(self.item_bias.weight)
        nn.init.normal_(self.user_factors.weight, std=0.1)
        nn.init.normal_(self.item_factors.weight, std=0.1)

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Indices, two tensors of one shape, to ratings of that shape."""
        bias = (self.user_bias(users) + self.item_bias(items)).squeeze(-1)
        return self.mean + bias + (self.user_factors(users) * self.item_factors(items)).sum(dim=-1)
