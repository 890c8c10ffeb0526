"""What is trained in the comparisons: three small models, data made in memory, one loss.

| name | model                                                     | batch | steps an epoch | epochs |
| ---- | --------------------------------------------------------- | ----- | -------------- | ------ |
| mlp  | 32-64-64-10                                               | 64    | 100            | 10     |
| cnn  | two 3x3 convolutions with batch norm, 32x32 images        | 32    | 16             | 8      |
| gpt  | two layers, width 128, four heads, 64 tokens              | 8     | 16             | 4      |
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
LOG_EVERY = 50
ROUNDS = 15  # many short ones: a burst of work beside them spoils a few, and no median

Tensors = tuple[torch.Tensor, torch.Tensor]


class Timed(nn.Module):
    """Remembers when training first called it: imports, data and set-up come before that moment."""

    started: tuple[int, int] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and Timed.started is None:
            Timed.started = time.perf_counter_ns(), time.process_time_ns()
        return self.net(x)


class MLP(Timed):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )


class CNN(Timed):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 8 * 8, 10))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, vocab: int, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.places = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places)))


class GPT(Timed):
    def __init__(self) -> None:
        super().__init__()
        self.net = Transformer(vocab=128, width=128, layers=2, heads=4, context=64)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy over the last axis, for (batch, class) and (batch, time, class)."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def labelled(count: int, shape: tuple[int, ...], seed: int) -> Tensors:
    """Noise, labelled by a fixed linear teacher."""
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    teacher = torch.randn(math.prod(shape), 10, generator=torch.Generator().manual_seed(99))
    return x, (x.flatten(1) @ teacher).argmax(1)


def token_walks(count: int, seed: int, context: int = 64, vocab: int = 128) -> Tensors:
    """Walks through the vocabulary with noise: the next token is mostly 5t + 1."""
    g = torch.Generator().manual_seed(seed)
    walks = torch.randint(vocab, (count, context + 1), generator=g)
    keep = torch.rand(count, context + 1, generator=g) < 0.8
    for t in range(1, context + 1):
        walks[:, t] = torch.where(keep[:, t], (5 * walks[:, t - 1] + 1) % vocab, walks[:, t])
    return walks[:, :-1].contiguous(), walks[:, 1:].contiguous()


@dataclass(frozen=True)
class Workload:
    name: str
    model: Callable[[], nn.Module]
    make: Callable[[int, int], Tensors]
    batch_size: int
    steps: int  # an epoch
    epochs: int
    images: bool = False

    def data(self) -> tuple[Tensors, Tensors]:
        """A training set of whole batches, and one batch to evaluate on."""
        return self.make(self.steps * self.batch_size, 1), self.make(self.batch_size, 2)


WORKLOADS = {
    "mlp": Workload("mlp", MLP, lambda n, seed: labelled(n, (32,), seed), 64, 100, 10),
    "cnn": Workload("cnn", CNN, lambda n, seed: labelled(n, (3, 32, 32), seed), 32, 16, 8, images=True),
    "gpt": Workload("gpt", GPT, token_walks, 8, 16, 4),
}
