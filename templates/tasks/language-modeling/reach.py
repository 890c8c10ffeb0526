"""What the sample run must reach, run in its project: fewer bits per byte than a trigram model.

That is interpolated with shorter ones (Witten and Bell, 1991) and sees the same split.
"""

import json
import math
from collections import Counter, defaultdict

from data import build_datasets

ORDER = 3


def texts(dataset):
    """The texts that a set was made of."""
    found, start = [], 0
    for end in sorted(set(dataset.ends.tolist())):
        found.append(bytes(dataset.tokens[start + 1 : end].astype("uint8")))  # without START
        start = end
    return found


def count(train):
    """For each number of bytes before: those bytes -> how often each byte followed."""
    counts = [defaultdict(Counter) for _ in range(ORDER)]
    for text in train:
        for place, byte in enumerate(text):
            for before in range(min(place + 1, ORDER)):
                counts[before][text[place - before : place]][byte] += 1
    return counts


def bits_per_byte(counts, held_out):
    sums = [{context: sum(found.values()) for context, found in level.items()} for level in counts]
    bits = 0.0
    for text in held_out:
        for place, byte in enumerate(text):
            chance = 1 / 256
            for before in range(min(place + 1, ORDER)):
                context = text[place - before : place]
                if context not in sums[before]:
                    break
                found, total = counts[before][context], sums[before][context]
                chance = (found[byte] + len(found) * chance) / (total + len(found))
            bits -= math.log2(chance)
    return bits / sum(map(len, held_out))


train_set, val_set = build_datasets(128)
bar = bits_per_byte(count(texts(train_set)), texts(val_set))
print(json.dumps({"metric": "val/bits_per_byte", "best_at_most": bar, "last_at_most": bar}))
