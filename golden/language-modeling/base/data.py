"""The source of Python's own asyncio package, as bytes; every fifth file is held out."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset


def build_datasets(context: int) -> tuple["Texts", "Texts"]:
    files = sorted(Path(asyncio.__file__).parent.glob("*.py"))
    texts = [path.read_bytes() for path in files]
    train = [text for number, text in enumerate(texts) if number % 5]
    return Texts(train, context), Texts(texts[::5], context)


START = 256  # stands before each text
IGNORED = -100  # a target that does not count, for PyTorch's losses too


class Texts(Dataset):
    """Texts in pieces of at most `context` bytes, handed out a batch at a time.

    tokens: (n, context). targets: (n, context), the byte that follows each; IGNORED after a text's end.
    Every byte of every text is a target once.
    """

    vocab_size = 257  # the bytes and START

    def __init__(self, texts: list[bytes], context: int) -> None:
        self.context = context
        start = np.array([START], np.uint16)
        parts = [part for text in texts for part in (start, np.frombuffer(text, np.uint8))]
        self.tokens = np.concatenate(parts)
        ends = np.cumsum([len(text) + 1 for text in texts])
        starts = [np.arange(end - len(text) - 1, end - 1, context) for text, end in zip(texts, ends)]
        self.starts = np.concatenate(starts)
        self.ends = np.repeat(ends, [len(own) for own in starts])

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, draws: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        index = draws % len(self)
        positions = self.starts[index, None] + np.arange(self.context + 1)
        tokens = self.tokens[np.minimum(positions, len(self.tokens) - 1)].astype(np.int64)
        targets = np.where(positions < self.ends[index, None], tokens, IGNORED)
        return torch.from_numpy(tokens[:, :-1]), torch.from_numpy(targets[:, 1:])


def shuffled_batches(
    num_examples: int,
    batch_size: int,
    seed: int,
    first: int,
) -> Iterator[np.ndarray]:
    """Yield the training batches from number `first` on, without end, as arrays of draws.

    Draw d is example d % num_examples in epoch d // num_examples, and every epoch is a new permutation.
    Batches are always full: the last one of an epoch goes on into the next.
    """
    start, width = first * batch_size, batch_size
    epoch, done = divmod(start, num_examples)
    draws = shuffled(num_examples, seed, epoch)[done:]
    while True:
        while len(draws) < width:
            epoch += 1
            draws = np.concatenate([draws, shuffled(num_examples, seed, epoch)])
        yield draws[:width]
        draws = draws[width:]


def shuffled(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return epoch * num_examples + np.random.default_rng([seed, epoch]).permutation(num_examples)


def ordered_batches(num_examples: int, batch_size: int) -> list[np.ndarray]:
    """Every example once, in order."""
    num_batches = -(-num_examples // batch_size)  # rounded up
    return np.array_split(np.arange(num_examples), num_batches)
