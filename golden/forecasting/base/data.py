"""Four monthly series; the last three years of each are held out.

Airline passengers (Box and Jenkins, 1976), carbon dioxide on Mauna Loa (Keeling and Whorf, 1997), degrees
at Nottingham Castle (Anderson, 1976), and British drivers killed or badly hurt (Harvey and Durbin, 1986).
"""

import csv
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

Split = tuple[np.ndarray, np.ndarray]  # of a series: what to train on, and what comes later and is held out

HELD_OUT = 36  # months


def build_datasets(context: int, horizon: int, season: int) -> tuple["Stretches", "Stretches"]:
    lines = Path(__file__).with_name("monthly.csv").read_text().splitlines()[1:]
    series = {}
    for name, years in groupby(csv.reader(lines), key=lambda year: year[0]):
        values = np.array([year[2:] for year in years], dtype=float).ravel()
        series[name] = values[:-HELD_OUT], values[-HELD_OUT:]
    return split_into_sets(series, context, horizon, season)


def split_into_sets(
    series: dict[str, Split], context: int, horizon: int, season: int
) -> tuple["Stretches", "Stretches"]:
    """Both sets; what is held out is forecast from all that was known before, also from training values."""
    scales = [np.abs(train[season:] - train[:-season]).mean() for train, _ in series.values()]
    whole = [train for train, _ in series.values()]
    ends = [np.concatenate([train[-context:], held_out]) for train, held_out in series.values()]
    return Stretches(whole, scales, context, horizon), Stretches(ends, scales, context, horizon)


class Stretches(Dataset):
    """Every stretch of some series, a context and the horizon after it, handed out a batch at a time.

    context: (n, context) and target: (n, horizon), in units in which the context has mean 0 and deviation 1.
    mean, std: (n, 1), to go back. scale: (n, 1), the seasonal naive forecast's mean error in training.
    """

    def __init__(self, series: list[np.ndarray], scales: list[float], context: int, horizon: int) -> None:
        self.context, self.horizon = context, horizon
        self.values = np.concatenate(series)
        ends = np.cumsum([len(values) for values in series])
        counts = [len(values) - context - horizon + 1 for values in series]
        firsts = [end - len(values) for values, end in zip(series, ends)]
        self.starts = np.concatenate([first + np.arange(count) for first, count in zip(firsts, counts)])
        self.scales = np.repeat(scales, counts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, draws: np.ndarray) -> tuple[torch.Tensor, ...]:
        index = draws % len(self)
        stretch = self.values[self.starts[index, None] + np.arange(self.context + self.horizon)]
        context, target = stretch[:, : self.context], stretch[:, self.context :]
        scale = self.scales[index, None]
        mean = context.mean(axis=1, keepdims=True)
        std = np.maximum(context.std(axis=1, keepdims=True), scale / 10)  # a context may be flat
        batch = (context - mean) / std, (target - mean) / std, mean, std, scale
        return tuple(torch.from_numpy(part.astype(np.float32)) for part in batch)


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
