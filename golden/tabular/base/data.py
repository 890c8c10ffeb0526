"""The breast cancer set of scikit-learn: 569 tumours, benign or malignant, from thirty measurements."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_breast_cancer
from torch.utils.data import Dataset


def build_datasets() -> tuple["Table", "Table"]:
    return build_from_frame(load_breast_cancer(as_frame=True).frame, "target")


def build_from_frame(frame: pd.DataFrame, target: str) -> tuple["Table", "Table"]:
    """Hold out a fifth of the rows; all that is learnt about the columns comes from the others."""
    held_out = np.zeros(len(frame), dtype=bool)
    held_out[np.random.default_rng(0).permutation(len(frame))[::5]] = True
    columns = Columns(frame[~held_out], target, sorted(frame[target].unique(), key=str))
    return Table(frame[~held_out], columns), Table(frame[held_out], columns)


class Columns:
    """What the training rows tell about the columns: their kind, scale, categories and the target's."""

    def __init__(self, train: pd.DataFrame, target: str, classes: list) -> None:
        self.target, self.classes = target, classes
        inputs = train.drop(columns=target)
        self.numeric = list(inputs.select_dtypes("number").columns)
        self.mean = inputs[self.numeric].mean().fillna(0)
        self.std = inputs[self.numeric].std().fillna(0).replace(0, 1)
        others = [name for name in inputs.columns if name not in self.numeric]
        self.categories = {name: sorted(inputs[name].dropna().astype(str).unique()) for name in others}


class Table(Dataset):
    """The rows as tensors, handed out a batch at a time.

    numeric: (n, 2 x numeric columns), standardised, 0 and a flag where missing. categorical: (n, columns),
    codes from 1, 0 where missing or never seen in training. target: (n).
    """

    def __init__(self, frame: pd.DataFrame, columns: Columns) -> None:
        numeric = (frame[columns.numeric] - columns.mean) / columns.std
        flags = numeric.isna().to_numpy(np.float32)
        self.numeric = torch.tensor(np.hstack([numeric.fillna(0).to_numpy(np.float32), flags]))
        codes = [encode(frame[name], known) for name, known in columns.categories.items()]
        self.categorical = torch.tensor(np.array(codes, dtype=np.int64).reshape(len(codes), len(frame)).T)
        self.cardinalities = [len(known) + 1 for known in columns.categories.values()]
        self.num_outputs = len(columns.classes)
        target = pd.Categorical(frame[columns.target], categories=columns.classes).codes
        self.target = torch.tensor(target, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, draws: np.ndarray) -> tuple[torch.Tensor, ...]:
        index = torch.from_numpy(draws % len(self))
        columns = self.numeric, self.categorical, self.target
        return tuple(column.index_select(0, index) for column in columns)


def encode(column: pd.Series, known: list[str]) -> np.ndarray:
    return pd.Categorical(column.astype(str).where(column.notna()), categories=known).codes + 1


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
