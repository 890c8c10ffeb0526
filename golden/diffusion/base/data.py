"""Handwritten digits: scikit-learn's 1,797 pictures of 8x8 pixels, every fifth held out."""

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

from diffusion import TIMESTEPS

IMAGE_SIZE = 8  # pixels
GOLDEN = (5**0.5 - 1) / 2  # its multiples spread evenly over 0 to 1


def build_datasets(seed: int) -> tuple["Images", "Images"]:
    pixels = load_digits().images[:, None] * 255 / 16  # (n, 1, 8, 8)
    held_out = np.arange(len(pixels)) % 5 == 0
    return Images(pixels[~held_out], seed), Images(pixels[held_out])


class Images(Dataset):
    """Pictures, each with a time step and noise, handed out a batch at a time.

    x_0: (n, *shape), -1 to 1. t: (n), 1 to TIMESTEPS. epsilon: (n, *shape), standard normal.
    With a seed, steps and noise are functions of the seed and the draw; without, they are functions of the
    example, and steps are spread evenly.
    """

    shape = (1, IMAGE_SIZE, IMAGE_SIZE)

    def __init__(self, pixels: np.ndarray, seed: int | None = None) -> None:
        self.pixels, self.seed = pixels, seed

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, draws: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x_0 = torch.empty(len(draws), *self.shape, memory_format=torch.channels_last)
        epsilon = torch.empty_like(x_0)
        t = torch.empty(len(draws), dtype=torch.int64)
        for i, draw in enumerate(draws):
            index = int(draw) % len(self)
            pixels = self.pixels[index]
            if self.seed is None:
                rng = np.random.default_rng(index)
                time = index * GOLDEN % 1
            else:
                rng = np.random.default_rng([self.seed, draw])
                time = rng.random()
            x_0[i] = torch.from_numpy(pixels / np.float32(127.5) - 1)
            t[i] = 1 + int(TIMESTEPS * time)
            epsilon[i] = torch.from_numpy(rng.standard_normal(self.shape, dtype=np.float32))
        return x_0, t, epsilon


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
