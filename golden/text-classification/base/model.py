"""A Transformer encoder (Vaswani et al., 2017) whose outputs are averaged over the words of a text.

Norms before each layer (Xiong et al., 2020), rotary position embedding (Su et al., 2021), and dropout of
whole words (Iyyer et al., 2015).
"""

import torch
import torch.nn.functional as F
from torch import nn

from data import PAD

HEAD_WIDTH = 32  # channels of an attention head


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(2, (3, -1, HEAD_WIDTH))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (batch, heads, tokens, channels) each
        mask = real[:, None, None, :]  # every token looks at the real ones
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels by an angle that grows with the position; in 32 bits."""
    positions = torch.arange(x.shape[2], device=x.device)
    channels = torch.arange(0, HEAD_WIDTH, 2, device=x.device)
    angles = torch.outer(positions, 10_000 ** (-channels / HEAD_WIDTH))
    cos, sin = angles.cos(), angles.sin()
    one, two = x.float().chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1).type_as(x)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), real)
        return x + self.feed_forward(self.feed_forward_norm(x))


class TextClassifier(nn.Module):
    def __init__(self, vocab_size: int, num_classes: int, heads: int, depth: int, dropout: float) -> None:
        super().__init__()
        width = heads * HEAD_WIDTH
        self.embedding = nn.Embedding(vocab_size, width)
        self.dropout = nn.Dropout1d(dropout)  # all channels of a word or none
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)  # as in BERT

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) to logits, (batch, classes)."""
        real = tokens != PAD
        x = self.dropout(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, real)
        x = self.norm(x).masked_fill(~real[..., None], 0)
        return self.head(x.sum(dim=1) / real.sum(dim=1, keepdim=True))
