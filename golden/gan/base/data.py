"""Handwritten digits: scikit-learn's 1,797 pictures of 8x8 pixels, every fifth held out."""

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

CHANNELS, IMAGE_SIZE = 1, 8
HELD_OUT_SEED = 2**63  # of noise that no run trains on


def build_datasets(latent: int, seed: int) -> tuple["Images", "Images"]:
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    held_out = torch.arange(len(images)) % 5 == 0
    return Images(images[~held_out], latent, seed), Images(images[held_out], latent, HELD_OUT_SEED)


class Images(Dataset):
    """Pictures in memory, and for each draw the noise that the generator makes one from.

    images: (n, CHANNELS, IMAGE_SIZE, IMAGE_SIZE), from -1 to 1. Noise is a function of the seed and the draw.
    """

    def __init__(self, images: torch.Tensor, latent: int, seed: int) -> None:
        self.images, self.latent, self.seed = images, latent, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draws: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[draws % len(self)], draw_noise(draws, self.latent, self.seed)


def draw_noise(draws: np.ndarray, latent: int, seed: int) -> torch.Tensor:
    """Standard normal, (draws, latent)."""
    rows = [np.random.default_rng([seed, draw]).standard_normal(latent, np.float32) for draw in draws]
    return torch.from_numpy(np.array(rows, np.float32).reshape(-1, latent))


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
