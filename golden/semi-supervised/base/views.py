"""Weak and strong views of pictures, after FixMatch (Sohn et al., 2020), handed out a batch at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import Dataset

IMAGE_SIZE, CHANNELS = 8, 1
MEAN, STD = 0.5, 0.25


class Labelled(Dataset):
    """Pictures as they are, and their labels; `load` opens a picture."""

    def __init__(
        self, pictures: Sequence[Any], labels: torch.Tensor, load: Callable[[Any], Image.Image]
    ) -> None:
        self.pictures, self.labels, self.load = pictures, labels, load

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, draws: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        index = draws % len(self)
        return to_batch([self.load(self.pictures[i]) for i in index]), self.labels[index]


class PartlyLabelled(Dataset):
    """A labelled picture and mu unlabelled ones for each draw.

    Draw d takes labelled picture d and unlabelled ones d * mu to d * mu + mu - 1, counted round and round, so
    all are drawn equally often. An epoch is one pass over the unlabelled ones. How pictures are augmented is
    a function of the seed and the draw.
    """

    channels = CHANNELS

    def __init__(self, labelled: Labelled, unlabelled: Sequence[Any], mu: int, seed: int) -> None:
        self.labelled, self.unlabelled, self.mu, self.seed = labelled, unlabelled, mu, seed
        self.num_classes = int(labelled.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.unlabelled) // self.mu

    def __getitem__(self, draws: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Labelled pictures, their labels, and a weak and a strong view of each unlabelled picture."""
        pictures, labels, load = self.labelled.pictures, self.labelled.labels, self.labelled.load
        labelled, weak, strong = [], [], []
        for draw in map(int, draws):
            rng = np.random.default_rng([self.seed, draw])
            labelled.append(augment_weakly(load(pictures[draw % len(pictures)]), rng))
            for number in range(draw * self.mu, (draw + 1) * self.mu):
                image = load(self.unlabelled[number % len(self.unlabelled)])
                weak.append(augment_weakly(image, rng))
                strong.append(augment_strongly(image, rng))
        return to_batch(labelled), labels[draws % len(labels)], to_batch(weak), to_batch(strong)


def to_batch(images: list[Image.Image]) -> torch.Tensor:
    """(n, CHANNELS, IMAGE_SIZE, IMAGE_SIZE), about -2 to 2; channels lie last in memory."""
    pixels = np.array([np.asarray(image) for image in images], np.float32)
    pixels = pixels.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, CHANNELS)
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - MEAN) / STD


def augment_weakly(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shift by up to an eighth."""
    right, down = rng.integers(-(IMAGE_SIZE // 8), IMAGE_SIZE // 8 + 1, size=2)
    return warp(image, (1, 0, 0, 1), right, down)


def augment_strongly(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Three OPERATIONS as in RandAugment (Cubuk et al., 2020), then Cutout (DeVries and Taylor, 2017)."""
    image = augment_weakly(image, rng)
    for number in rng.integers(len(OPERATIONS), size=3):
        image = OPERATIONS[number](image, rng.uniform(-1, 1))
    side = int(rng.integers(IMAGE_SIZE // 4 + 1))  # more would make another digit of some
    left, top = (int(middle) - side // 2 for middle in rng.integers(IMAGE_SIZE, size=2))
    image.paste(Image.new(image.mode, (side, side), "gray"), (left, top))
    return image


def warp(
    image: Image.Image, matrix: tuple[float, float, float, float], right: float = 0, down: float = 0
) -> Image.Image:
    """Shift by pixels and map linearly about the middle: `matrix` says where each pixel comes from."""
    (a, b, c, d), half = matrix, IMAGE_SIZE / 2
    rows = (a, b, half - (a + b) * half - right, c, d, half - (c + d) * half - down)
    return image.transform(image.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)


# Each takes a strength from -1 to 1. A strong view must keep its class: these are what of RandAugment leaves
# so small a digit legible, and stretches.
OPERATIONS = [
    lambda image, strength: image,
    lambda image, strength: ImageEnhance.Contrast(image).enhance(0.5 + 0.45 * strength),
    lambda image, strength: image.rotate(30 * strength, Image.Resampling.BILINEAR),
    lambda image, strength: warp(image, (1, 0.3 * strength, 0, 1)),
    lambda image, strength: warp(image, (1, 0, 0.3 * strength, 1)),
    lambda image, strength: warp(image, (2 ** (0.3 * strength), 0, 0, 1)),
    lambda image, strength: warp(image, (1, 0, 0, 2 ** (0.3 * strength))),
]
