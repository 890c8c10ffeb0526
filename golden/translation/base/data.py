"""Dates as people write them, and in ISO 8601: "Tue 3 Mar '87" is 1987-03-03. Held-out days are new ones."""

import datetime
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

FIRST, DAYS = datetime.date(1950, 1, 1), 36525  # a hundred years: two digits name one
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth twenty-first twenty-second twenty-third "
    "twenty-fourth twenty-fifth twenty-sixth twenty-seventh twenty-eighth twenty-ninth thirtieth thirty-first"
).split()


def build_datasets() -> tuple["Pairs", "Pairs"]:
    rng = np.random.default_rng(0)
    days = [FIRST + datetime.timedelta(days=int(number)) for number in rng.permutation(DAYS)[:10_500]]
    pairs = [(written(day, rng), day.isoformat()) for day in days]
    return Pairs(pairs[500:]), Pairs(pairs[:500])


def written(day: datetime.date, rng: np.random.Generator) -> str:
    """One of the ways to write a date; with dots the day comes first, with slashes the month."""
    number, month, weekday = day.day, MONTHS[day.month - 1], WEEKDAYS[day.weekday()]
    suffix = "th" if 10 < number < 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    ways = [
        f"the {ORDINALS[number - 1]} of {month}, {day.year}",
        f"{weekday}, {month} {number}, {day.year}",
        f"{number} {month} {day.year}",
        f"{month[:3]} {number}{suffix} {day.year}",
        f"{weekday[:3]} {number} {month[:3]} '{day.year % 100:02}",
        f"{number}.{day.month}.{day.year}",
        f"{day.month}/{number}/{day.year}",
    ]
    text = ways[rng.integers(len(ways))]
    return text.lower() if rng.random() < 0.5 else text


PAD, START, END = range(3)  # START stands before a translation, END after it and after a source
OFFSET = 3  # tokens from here on are bytes


class Pairs(Dataset):
    """Sentences and their translations as UTF-8 bytes, handed out a batch at a time.

    source: (n, length). tokens: (n, target length), START and the translation.
    targets: (n, target length), the token that follows each; PAD, after END, does not count.
    """

    vocab_size = OFFSET + 256

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.sources, self.targets = (padded(texts) for texts in zip(*pairs))
        self.longest = self.targets.shape[1]  # tokens of a translation

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, draws: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        index = draws % len(self)
        source, targets = (torch.from_numpy(trimmed(rows[index])) for rows in (self.sources, self.targets))
        tokens = F.pad(targets[:, :-1], (1, 0), value=START)
        return source, tokens, targets


def encode(text: str) -> list[int]:
    return [*(OFFSET + byte for byte in text.encode()), END]


def decode(tokens: list[int]) -> str:
    """What stands before END; half a character becomes a question mark."""
    end = tokens.index(END) if END in tokens else len(tokens)
    return bytes(token - OFFSET for token in tokens[:end]).decode(errors="replace")


def padded(texts: Iterable[str]) -> np.ndarray:
    rows = [encode(text) for text in texts]
    matrix = np.full((len(rows), max(map(len, rows))), PAD, np.int16)
    for row, tokens in zip(matrix, rows):
        row[: len(tokens)] = tokens
    return matrix


def trimmed(rows: np.ndarray) -> np.ndarray:
    """As wide as the longest row needs, in steps of 8: few shapes, which kernels like."""
    longest = (rows != PAD).sum(axis=1).max(initial=1)
    return rows[:, : -(-longest // 8) * 8].astype(np.int64)


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
