"""Text classification: like lengths come together, padding changes nothing, metrics are the known ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.conftest import Make
from tests.projects import drive, edit, few_examples, render, same_run, small_options, train_ranks, write_data
from tests.test_project_bad_input import Damage, garbage, refused, train_on

TASK = {"task": "text-classification"}
SMALL = small_options("text-classification")

ORDER = """
import json
from itertools import islice
import numpy as np
from data import build_datasets, shuffled, shuffled_batches
train_set, _ = build_datasets()
n = len(train_set)

def padded(epoch):
    batches = np.array_split(epoch, n // 32)
    return 1 - sum(train_set.lengths[epoch % n]) / sum(train_set[batch][0].numel() for batch in batches)

epochs = [shuffled(n, 0, epoch) for epoch in (0, 1)]
neighbours = [{tuple(sorted(pair)) for pair in zip(epoch % n, epoch[1:] % n)} for epoch in epochs]
print(json.dumps({
    "once": [sorted(epoch.tolist()) == list(range(e * n, e * n + n)) for e, epoch in enumerate(epochs)],
    "neighbours": len(neighbours[0] & neighbours[1]) / n,
    "padded": padded(epochs[0]),
    "plain": padded(np.random.default_rng(0).permutation(n)),
    "steps": [draws.tolist() for draws in islice(shuffled_batches(n, 20, 0, 250), 30)],
}))
"""


def test_like_lengths_come_together(made: Make) -> None:
    found = json.loads(drive(made(**TASK), ORDER))
    assert found["once"] == [True, True]
    assert found["neighbours"] < 0.05  # of one epoch, that are so in the next
    assert found["padded"] < 0.25 < 0.4 < found["plain"]


def test_control_like_lengths(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **TASK)
    edit(project / "data.py", "np.split(np.arange(num_examples), cuts)", "[np.arange(num_examples)]")
    assert json.loads(drive(project, ORDER))["padded"] > 0.4


def test_order_knows_nothing_of_processes(made: Make) -> None:
    """Twenty at a time, or ten for each of two."""
    two = "zip(*(shuffled_batches(n, 10, 0, 250, rank, 2) for rank in (0, 1)))"
    both = ORDER.replace("shuffled_batches(n, 20, 0, 250)", two)
    both = both.replace("[draws.tolist() for draws in", "[np.concatenate(pair).tolist() for pair in")
    found = json.loads(drive(made(**TASK, distributed="ddp"), both))["steps"]
    expected = json.loads(drive(made(**TASK), ORDER))["steps"]
    assert [sorted(step) for step in found] == [sorted(step) for step in expected]


PADDING = """
import numpy as np
import torch
from data import build_datasets
from model import TextClassifier
train_set, _ = build_datasets()
torch.manual_seed(0)
model = TextClassifier(train_set.vocab_size, train_set.num_classes, heads=2, depth=2, dropout=0.5).eval()
alone, among = train_set[np.array([0])][0], train_set[np.array([0, len(train_set) - 1])][0]
assert alone.shape[1] < among.shape[1]
with torch.no_grad():
    print((model(alone)[0] - model(among)[0]).abs().max().item() < 1e-6)
"""


def test_padding_changes_nothing(made: Make) -> None:
    assert drive(made(**TASK), PADDING) == "True\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [("attn_mask=mask)", "attn_mask=mask | True)"), ("masked_fill(~real[..., None], 0)", "clone()")],
)
def test_control_padding(tmp_path: Path, old: str, new: str) -> None:
    project = render(tmp_path / "demo", **TASK)
    edit(project / "model.py", old, new)
    assert drive(project, PADDING) == "False\n"


SETS = """
import numpy as np
import data
given = []
whole = data.build_sets
data.build_sets = lambda *parts: given.extend(parts) or whole(*parts)
train_set, val_set = data.build_datasets()
train, held_out = [[text for text, _ in part] for part in given]
assert len(set(train)) == len(train) and len(set(held_out)) == len(held_out)
assert not set(train) & set(held_out)
assert set(train_set.labels) == set(val_set.labels) == set(range(train_set.num_classes))
words = {word for text in train for word in data.tokenize(text)}
assert {word for text in held_out for word in data.tokenize(text)} - words
assert (val_set.tokens == data.UNKNOWN).any() and train_set.vocab_size <= len(words) + 2
for part in (train_set, val_set):
    assert (np.diff(part.lengths) >= 0).all() and part.lengths[0] >= 10
print("good")
"""


def test_no_text_is_in_both_sets(made: Make) -> None:
    assert drive(made(**TASK), SETS) == "good\n"


def test_control_no_text_is_in_both_sets(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **TASK)
    edit(project / "data.py", "if text not in train}", "if text}")
    edit(project / "data.py", ">= 10 and text not in train", ">= 10")
    with pytest.raises(AssertionError, match="line 10"):  # where the two parts meet
        drive(project, SETS)


METRICS = """
import sys
from pathlib import Path
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from torch.utils.data import DataLoader
from data import build_datasets, ordered_batches
from train import evaluate

class Guess(nn.Module):
    def forward(self, tokens):
        return -(tokens.sum(dim=1, keepdim=True) % 4 - torch.arange(5)).abs().float()  # never class 4

_, val_set = build_datasets()
loader = DataLoader(val_set, batch_size=None, sampler=ordered_batches(len(val_set), 7))
said = torch.cat([Guess()(tokens).argmax(dim=1) for tokens, _ in loader])
found = evaluate(Guess(), loader, torch.device("cpu"), Path(sys.argv[1]))
assert abs(found["val/accuracy"] - accuracy_score(val_set.labels, said)) < 1e-9
assert abs(found["val/macro_f1"] - f1_score(val_set.labels, said, average="macro")) < 1e-9
print("good")
"""


def test_metrics_are_those_of_scikit_learn(made: Make, tmp_path: Path) -> None:
    assert drive(made(**TASK), METRICS, tmp_path / "pictures" / "one.png") == "good\n"
    with Image.open(tmp_path / "pictures" / "one.png") as picture:
        assert picture.size == (160 + 5 * 48, 5 * 48)


def test_dropout_resumes(made: Make, tmp_path: Path) -> None:
    """The words that are left out are a function of the step."""
    for place, *steps in (("whole", 6), ("parts", 3, 6)):
        for last in steps:
            options = ["--dropout", 0.5, "--batch-size", 8, "--max-steps", last, "--resume"]
            given = [*SMALL, *options, "--output-dir", tmp_path / place]
            train_ranks(made(**TASK), *given, ranks=0, first=few_examples(20))
    assert same_run(tmp_path / "whole", tmp_path / "parts")


def test_csv_and_jsonl_are_one(made: Make, tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": range(20), "text": [f'"One", {n}\nand two' for n in range(20)]})
    frame["label"] = frame["id"] % 2
    frame.to_csv(tmp_path / "one.csv", index=False)
    frame.to_json(tmp_path / "one.jsonl", orient="records", lines=True)
    script = """
import sys
from pathlib import Path
from data import build_datasets
csv, jsonl = (build_datasets(Path(path)) for path in sys.argv[1:])
assert [len(part) for part in csv] == [16, 4] and csv[0].classes == ["0", "1"]
print(all((a.tokens == b.tokens).all() and (a.labels == b.labels).all() for a, b in zip(csv, jsonl)))
"""
    found = drive(made(**TASK, data="files"), script, tmp_path / "one.csv", tmp_path / "one.jsonl")
    assert found == "True\n"


def rows(*given: str) -> Damage:
    return lambda data: data.write_text("\n".join(given))


FILES: dict[str, tuple[Damage, str]] = {
    "no file": (Path.unlink, "is not there"),
    "a folder": (lambda data: (data.unlink(), data.mkdir()), "is not a .csv or .jsonl file"),
    "empty": (rows(""), "is not a .csv or .jsonl file"),
    "garbage": (garbage, "is not a .csv or .jsonl file"),
    "no label": (rows("text,class", "one,1"), "has no column label"),
    "no text": (rows("text,label", "one,1", " ,2"), "row 2 has no text"),
    "a row without label": (rows("text,label", "one,1", "two,"), "row 2 has no label"),
    "one label": (rows("text,label", *(f"{n},1" for n in range(20))), "at least two labels"),
    "one text": (rows("text,label", *(f"one,{n}" for n in range(20))), "ten different texts"),
}
AG_NEWS: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "train.csv is not there"),
    "no test": (lambda data: (data / "test.csv").unlink(), "test.csv is not there"),
    "empty": (lambda data: (data / "test.csv").write_text(""), "is not of AG News"),
    "garbage": (lambda data: garbage(data / "train.csv"), "train.csv is not"),
    "a header": (
        lambda data: (data / "train.csv").write_text("class,title,description\n1,one,two\n"),
        "train.csv is not of AG News",
    ),
}
IMDB: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "holds no reviews"),
    "one class": (lambda data: shutil.rmtree(data / "test" / "neg"), "holds no reviews"),
    "garbage": (lambda data: garbage(data / "train" / "pos" / "1_1.txt"), "not text in UTF-8"),
}
DAMAGES = {
    (source, name): how
    for source, found in (("files", FILES), ("ag-news", AG_NEWS), ("imdb", IMDB))
    for name, how in found.items()
}


@pytest.mark.parametrize(("source", "damage"), DAMAGES)
def test_bad_data(made: Make, tmp_path: Path, source: str, damage: str) -> None:
    data = Path(write_data(tmp_path, "text-classification", source)[1])
    spoil, words = DAMAGES[source, damage]
    spoil(data)
    refused(train_on(made(**TASK, data=source), data, *SMALL), str(data), words)


def test_bad_jsonl(made: Make, tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    for text, words in (("{", "is not a .csv"), ('{"text": null, "label": 1}', "row 1 has no text")):
        path.write_text(text)
        refused(train_on(made(**TASK, data="files"), path, *SMALL), str(path), words)
