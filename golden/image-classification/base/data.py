"""Handwritten digits: scikit-learn's 1,797 pictures of 8x8 pixels, every fifth held out."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

MAX_SHIFT = 1  # pixels


def build_datasets(seed: int) -> tuple["Images", "Images"]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(images)) % 5 == 0
    return Images(images[~held_out], labels[~held_out], seed), Images(images[held_out], labels[held_out])


class Images(Dataset):
    """Pictures in memory, handed out a batch at a time.

    images: (n, channels, height, width), labels: (n). With a seed, pictures are shifted by up to MAX_SHIFT
    pixels, as a function of the seed and the draw.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, seed: int | None = None) -> None:
        self.images, self.labels, self.seed = images, labels, seed
        self.channels, self.num_classes = images.shape[1], 10

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draws: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        index = draws % len(self)
        images = self.images[index]
        if self.seed is not None:
            generators = [np.random.default_rng([self.seed, draw]) for draw in draws]
            images = torch.stack([augment(image, rng) for image, rng in zip(images, generators)])
        return images.contiguous(memory_format=torch.channels_last), self.labels[index]


def augment(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    top, left = rng.integers(0, 2 * MAX_SHIFT + 1, size=2)
    height, width = image.shape[1:]
    return F.pad(image, [MAX_SHIFT] * 4)[:, top : top + height, left : left + width]


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
