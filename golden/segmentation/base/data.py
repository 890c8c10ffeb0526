"""Scenes of four handwritten digits of scikit-learn, 32x32; every pixel of ink has its digit's class."""

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

IMAGE_SIZE = 32  # pixels
CLASSES = ["background", *"0123456789"]
IGNORED = 255  # a pixel that does not count; there are none here


def build_datasets(seed: int) -> tuple["Scenes", "Scenes"]:
    """Digits of the held-out scenes are in no scene to train on."""
    digits = load_digits()
    pixels = (digits.images / 16).astype(np.float32)  # (n, 8, 8)
    order = np.random.default_rng(0).permutation(len(pixels))
    held_out, train = order[::5], np.setdiff1d(order, order[::5])
    train_set = Scenes(pixels[train], digits.target[train], length=1000, seed=seed)
    return train_set, Scenes(pixels[held_out], digits.target[held_out], length=200)


class Scenes(Dataset):
    """Digits at random places, handed out a batch at a time; with a seed, each draw is another scene.

    images: (n, 1, IMAGE_SIZE, IMAGE_SIZE), 0 to 1. masks: (n, IMAGE_SIZE, IMAGE_SIZE), numbers of CLASSES.
    """

    channels, num_classes = 1, len(CLASSES)

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, length: int, seed: int | None = None) -> None:
        self.pixels, self.labels, self.length, self.seed = pixels, labels, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draws: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.zeros(len(draws), self.channels, IMAGE_SIZE, IMAGE_SIZE)
        masks = torch.zeros(len(draws), IMAGE_SIZE, IMAGE_SIZE, dtype=torch.int64)
        for image, mask, draw in zip(images, masks, draws):
            self.compose(image[0].numpy(), mask.numpy(), int(draw))
        return images.contiguous(memory_format=torch.channels_last), masks

    def compose(self, image: np.ndarray, mask: np.ndarray, draw: int) -> None:
        rng = np.random.default_rng(draw % len(self) if self.seed is None else [self.seed, draw])
        for top, left in ((0, 0), (0, 16), (16, 0), (16, 16)):  # a digit in each quarter
            digit, (down, right) = rng.integers(len(self.pixels)), rng.integers(0, 9, size=2)
            place = np.s_[top + down : top + down + 8, left + right : left + right + 8]
            image[place] = self.pixels[digit]
            mask[place] = np.where(self.pixels[digit] > 0, self.labels[digit] + 1, 0)


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
