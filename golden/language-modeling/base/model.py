"""A decoder-only Transformer (Vaswani et al., 2017) with the parts of Llama (Touvron et al., 2023).

Root-mean-square norms before each layer (Zhang and Sennrich, 2019), rotary position embedding (Su et al.,
2021), SwiGLU (Shazeer, 2020), and an embedding that is also the output layer (Press and Wolf, 2017).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

HEAD_WIDTH = 64  # channels of an attention head


class Cache:
    """Keys and values of earlier tokens, for one layer."""

    length = 0

    def extend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.length:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values, self.length = keys, values, keys.shape[2]
        return keys, values


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], cache: Cache | None
    ) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(2, (3, -1, HEAD_WIDTH))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (batch, heads, tokens, channels) each
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
        # each token looks at those before it; one that follows a cache looks at all of them
        y = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] == k.shape[2])
        return self.out(y.transpose(1, 2).flatten(2))


def rotation_at(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of each position's angles, (positions, HEAD_WIDTH / 2)."""
    channels = torch.arange(0, HEAD_WIDTH, 2, device=positions.device)
    angles = torch.outer(positions, 10_000 ** (-channels / HEAD_WIDTH))
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels by an angle that grows with the position."""
    one, two = x.float().chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1).type_as(x)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * width // 3  # as many parameters as 4 x width without the gate
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.attention = Attention(width)
        self.feed_forward_norm = nn.RMSNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], cache: Cache | None = None
    ) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Transformer(nn.Module):
    def __init__(self, vocab_size: int, heads: int, depth: int) -> None:
        super().__init__()
        width = heads * HEAD_WIDTH
        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):  # add little at first, as in GPT-2
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor, caches: list[Cache] | None = None) -> torch.Tensor:
        """(batch, tokens) to logits, (batch, tokens, vocabulary); caches hold what came before."""
        start = caches[0].length if caches else 0
        rotation = rotation_at(torch.arange(start, start + tokens.shape[1], device=tokens.device))
        x = self.embedding(tokens)
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks)):
            x = block(x, rotation, cache)
        return F.linear(self.norm(x), self.embedding.weight)
