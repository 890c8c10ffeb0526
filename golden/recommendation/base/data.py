"""Generated ratings: biases, the product of a few traits, and noise of a known size."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

NUM_USERS, NUM_ITEMS, PER_USER, TRAITS = 1000, 400, 100, 3
NOISE = 0.5  # the standard deviation of what nothing can predict


def build_datasets() -> tuple["Ratings", "Ratings"]:
    rng = np.random.default_rng(0)
    user_traits = rng.normal(size=(NUM_USERS, TRAITS))
    item_traits = rng.normal(size=(NUM_ITEMS, TRAITS)) / np.sqrt(TRAITS)
    liking, popularity = user_traits @ item_traits.T, rng.normal(size=NUM_ITEMS)
    # the largest of these are a draw without replacement, with odds of exp(liking + popularity)
    keys = liking + popularity + rng.gumbel(size=liking.shape)
    items = rng.permuted(np.argsort(-keys, axis=1)[:, :PER_USER], axis=1).flatten()
    users = np.repeat(np.arange(NUM_USERS), PER_USER)
    biases = rng.normal(0, 0.5, size=NUM_USERS)[users] + 0.5 * popularity[items]
    ratings = 3.5 + biases + liking[users, items] + rng.normal(0, NOISE, size=len(users))
    return split(users, items, ratings)


def split(users: np.ndarray, items: np.ndarray, ratings: np.ndarray) -> tuple["Ratings", "Ratings"]:
    """Hold out a tenth of the ratings, where user and item occur in training, too."""
    held_out = np.zeros(len(users), dtype=bool)
    held_out[np.random.default_rng(0).permutation(len(users))[::10]] = True
    for known in (users, items):
        held_out &= np.bincount(known[~held_out], minlength=known.max() + 1)[known] > 0
    train_set = Ratings(users[~held_out], items[~held_out], ratings[~held_out])
    return train_set, Ratings(users[held_out], items[held_out], ratings[held_out])


class Ratings(Dataset):
    """users, items, ratings: (n) each, handed out a batch at a time."""

    def __init__(self, users: np.ndarray, items: np.ndarray, ratings: np.ndarray) -> None:
        self.users, self.items = torch.from_numpy(users), torch.from_numpy(items)
        self.ratings = torch.tensor(ratings, dtype=torch.float32)
        self.num_users, self.num_items = int(users.max(initial=0)) + 1, int(items.max(initial=0)) + 1
        self.mean = self.ratings.mean().item()

    def __len__(self) -> int:
        return len(self.ratings)

    def __getitem__(self, draws: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        index = torch.from_numpy(draws % len(self))
        return self.users[index], self.items[index], self.ratings[index]


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
