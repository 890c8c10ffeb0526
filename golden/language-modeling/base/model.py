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
    """Keys and values of earlier tokens, (batch, heads, tokens, channels), for one layer."""

    def __init__(self) -> None:
        self.kept: tuple[torch.Tensor, ...] | None = None

    def extend(self, *new: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.kept = tuple(torch.cat(pair, dim=2) for pair in zip(self.kept, new)) if self.kept else new
        return self.kept

    def __len__(self) -> int:
        return self.kept[0].shape[2] if self.kept else 0


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(2, (3, -1, HEAD_WIDTH))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (batch, heads, tokens, channels) each
        start = 0 if cache is None else len(cache)
        q, k = rotate(q, start), rotate(k, start)
        if cache is not None:
            k, v = cache.extend(k, v)
        # each token looks at itself and those before it; after a cache they come one at a time
        y = F.scaled_dot_product_attention(q, k, v, is_causal=start == 0)
        return self.out(y.transpose(1, 2).flatten(2))


def rotate(x: torch.Tensor, start: int) -> torch.Tensor:
    """Turn each pair of channels by an angle that grows with the position, from `start` on; in 32 bits."""
    positions = torch.arange(start, start + x.shape[2], device=x.device)
    channels = torch.arange(0, HEAD_WIDTH, 2, device=x.device)
    angles = torch.outer(positions, 10_000 ** (-channels / HEAD_WIDTH))
    cos, sin = angles.cos(), angles.sin()
    one, two = x.float().chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1).type_as(x)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-8 * width // 3 // 64) * 64  # as many parameters as 4 x width without the gate
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

    def forward(self, x: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), cache)
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
        x = self.embedding(tokens)
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks)):
            x = block(x, cache)
        return F.linear(self.norm(x), self.embedding.weight)
