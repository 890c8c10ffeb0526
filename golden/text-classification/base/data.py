"""Paragraphs of Python's own library, by package; those of every fifth file are held out."""

import re
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

Examples = list[tuple[str, str]]  # texts and their classes
PACKAGES = ["asyncio", "email", "importlib", "multiprocessing", "xml"]
MAX_LENGTH = 64  # words and marks of a text that are looked at
VOCAB_SIZE = 10_000


def build_datasets() -> tuple["Texts", "Texts"]:
    train, held_out = {}, {}  # text -> package; each text once
    for package in PACKAGES:
        root = Path(find_spec(package).origin).parent
        for number, path in enumerate(sorted(root.rglob("*.py"))):
            part = train if number % 5 else held_out
            for text in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
                if len(tokenize(text)) >= 10 and text not in train:
                    part[text] = package
    held_out = {text: package for text, package in held_out.items() if text not in train}
    return build_sets([*train.items()], [*held_out.items()])


PAD, UNKNOWN = 0, 1  # what stands behind a text, and for a word that is not in the vocabulary
TOKEN = r"[^\W_]+|\S"  # a word or a number, or any other mark by itself


def tokenize(text: str) -> list[str]:
    return re.findall(TOKEN, text.lower())


def build_sets(train: Examples, held_out: Examples) -> tuple["Texts", "Texts"]:
    """All that is known of words comes from the training set: those that occur twice, the commonest first."""
    classes = sorted({label for _, label in train + held_out})
    counts = Counter(token for text, _ in train for token in tokenize(text))
    words = [word for word, count in counts.most_common(VOCAB_SIZE) if count > 1]
    vocabulary = {word: number for number, word in enumerate(words, start=UNKNOWN + 1)}
    return Texts(train, classes, vocabulary), Texts(held_out, classes, vocabulary)


class Texts(Dataset):
    """Texts as numbers of words, from the shortest to the longest, handed out a batch at a time.

    tokens: (n, length), PAD after a text's end; as long as the longest of the batch, in eighths of
    MAX_LENGTH, so that there are few shapes. labels: (n), numbers of `classes`.
    """

    def __init__(self, examples: Examples, classes: list[str], vocabulary: dict[str, int]) -> None:
        self.classes, self.num_classes = classes, len(classes)
        self.vocab_size = len(vocabulary) + UNKNOWN + 1
        tokens = np.full((len(examples), MAX_LENGTH), PAD, dtype=np.int32)
        for row, (text, _) in zip(tokens, examples):
            known = [vocabulary.get(token, UNKNOWN) for token in tokenize(text)[:MAX_LENGTH]]
            row[: len(known)] = known
        labels = np.array([classes.index(label) for _, label in examples])
        lengths = (tokens != PAD).sum(axis=1)
        # among texts of one length the order is random: files often have one class after the other
        order = np.lexsort([np.random.default_rng(0).permutation(len(examples)), lengths])
        self.tokens, self.labels, self.lengths = tokens[order], labels[order], lengths[order]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draws: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        index = draws % len(self)
        eighth = MAX_LENGTH // 8
        length = -(-self.lengths[index].max(initial=1) // eighth) * eighth  # rounded up
        tokens = self.tokens[index, :length].astype(np.int64)
        return torch.from_numpy(tokens), torch.from_numpy(self.labels[index])


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


BLOCK = 256  # examples of like length that are drawn one after the other; a step should take no more


def shuffled(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation for sets that are in order of length: blocks of neighbours, so that little is padded.

    What is in a block, in which order, and the order of the blocks are random, and know nothing of batches.
    """
    rng = np.random.default_rng([seed, epoch])
    cuts = np.arange(rng.integers(1, BLOCK + 1), num_examples, BLOCK)
    blocks = [rng.permutation(block) for block in np.split(np.arange(num_examples), cuts)]
    return epoch * num_examples + np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])


def ordered_batches(num_examples: int, batch_size: int) -> list[np.ndarray]:
    """Every example once, in order."""
    num_batches = -(-num_examples // batch_size)  # rounded up
    return np.array_split(np.arange(num_examples), num_batches)
