"""An encoder-decoder Transformer (Vaswani et al., 2017).

Layer norms stand before each layer (Wang et al., 2019); source and target share one embedding, which is also
the output layer (Press and Wolf, 2017).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import PAD

HEAD_WIDTH = 32  # channels of an attention head


class Cache:
    """Keys and values that a block of the decoder keeps: of the source, and of the tokens so far."""

    def __init__(self) -> None:
        self.source: tuple[Tensor, ...] = ()
        self.tokens: tuple[Tensor, ...] = ()

    def extend(self, *new: Tensor) -> tuple[Tensor, ...]:
        self.tokens = tuple(torch.cat(pair, dim=2) for pair in zip(self.tokens, new)) if self.tokens else new
        return self.tokens

    def select(self, rows: Tensor) -> None:
        """Go on from these rows of the batch."""
        self.source = tuple(tensor[rows] for tensor in self.source)
        self.tokens = tuple(tensor[rows] for tensor in self.tokens)

    def __len__(self) -> int:
        return self.tokens[0].shape[2] if self.tokens else 0


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return split_heads(self.key(x)), split_heads(self.value(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        queries = split_heads(self.query(x))
        # without a mask each token looks at itself and those before; a single one is the last
        is_causal = mask is None and x.shape[1] > 1
        y = F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=is_causal)
        return self.out(y.transpose(1, 2).flatten(2))


def split_heads(x: Tensor) -> Tensor:
    """(batch, tokens, width) to (batch, heads, tokens, HEAD_WIDTH)."""
    return x.unflatten(2, (-1, HEAD_WIDTH)).transpose(1, 2)


def feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))


class EncoderBlock(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.attention_norm(x)
        x = x + self.dropout(self.attention(y, *self.attention.keys_values(y), mask))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class DecoderBlock(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.cross_attention_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor | None, mask: Tensor, cache: Cache | None) -> Tensor:
        """memory is the encoded source, or None where the cache has its keys and values."""
        if cache is None:
            cache = Cache()
        if memory is not None:
            cache.source = self.cross_attention.keys_values(memory)
        y = self.attention_norm(x)
        keys_values = cache.extend(*self.attention.keys_values(y))
        x = x + self.dropout(self.attention(y, *keys_values))
        y = self.cross_attention_norm(x)
        x = x + self.dropout(self.cross_attention(y, *cache.source, mask))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Transformer(nn.Module):
    def __init__(self, vocab_size: int, heads: int, depth: int, dropout: float) -> None:
        super().__init__()
        width = heads * HEAD_WIDTH
        self.embedding = nn.Embedding(vocab_size, width)
        self.encoder = nn.ModuleList(EncoderBlock(width, dropout) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(DecoderBlock(width, dropout) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Embeddings, plus sinusoids of the positions from `start` on."""
        x = self.embedding(tokens)
        length, width = x.shape[1:]
        positions = torch.arange(start, start + length, device=x.device)
        channels = torch.arange(0, width, 2, device=x.device)
        angles = torch.outer(positions, 10_000 ** (-channels / width))
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).type_as(x)
        return self.dropout(math.sqrt(width) * x + waves)

    def forward(self, source: Tensor, tokens: Tensor, caches: list[Cache] | None = None) -> Tensor:
        """(batch, source), (batch, tokens) to logits, (batch, tokens, vocabulary).

        With caches, which hold what came before, all but the first tokens come one at a time.
        """
        mask = (source != PAD)[:, None, None]  # (batch, 1, 1, source), for all heads and queries
        start, memory = len(caches[0]) if caches else 0, None
        if start == 0:
            memory = self.embed(source)
            for block in self.encoder:
                memory = block(memory, mask)
            memory = self.encoder_norm(memory)
        x = self.embed(tokens, start)
        for block, cache in zip(self.decoder, caches or [None] * len(self.decoder)):
            x = block(x, memory, mask, cache)
        return F.linear(self.decoder_norm(x), self.embedding.weight)
