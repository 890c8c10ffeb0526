"""Recommendation: negatives are what a user did not take, metrics are the known ones, features resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Make
from tests.guarantees.harness import RANKS
from tests.guarantees.test_every_task import FEW, given, one_and_two
from tests.projects import (
    drive,
    edit,
    few_examples,
    metric,
    metrics,
    python,
    render,
    run,
    same_run,
    train,
    train_ranks,
    values,
    write_data,
)
from tests.test_project_bad_input import Damage, garbage, refused, train_on

TASK = {"task": "recommendation"}
FEATURES = [("implicit",), ("neural",), ("implicit", "neural")]

NEGATIVES = """
import json
import numpy as np
import torch
from data import build_datasets
train_set, _ = build_datasets(negatives=5, seed=0)
draws = np.arange(2 * len(train_set))
users, items, taken = train_set[draws]
known = set(zip(train_set.users.tolist(), train_set.items.tolist()))
pairs = list(zip(users[:, 1:].flatten().tolist(), items[:, 1:].flatten().tolist()))
mixed = np.random.default_rng(0).permutation(draws)[:1000]
again, other = train_set[mixed], build_datasets(negatives=5, seed=1)[0][draws]
first, second = items[: len(train_set)], items[len(train_set) :]
# how often the first user met each item that was not taken, beside what is expected
mine = items[:, 1:][users[:, 1:] == 0].bincount(minlength=train_set.num_items)
mine = np.delete(mine.numpy(), train_set.by_user[0])
print(json.dumps({
    "taken": sum(pair in known for pair in pairs),
    "inside": bool((items >= 0).all() and (items < train_set.num_items).all()),
    "positives": bool((first[:, 0] == second[:, 0]).all() and (taken == torch.eye(6)[0]).all()),
    "steady": all(bool((a == b[mixed]).all()) for a, b in zip(again, (users, items, taken))),
    "epochs differ": (first[:, 1:] != second[:, 1:]).float().mean().item() > 0.9,
    "seeds differ": (items != other[1])[:, 1:].float().mean().item() > 0.9,
    "even": bool(mine.min() > 0 or ((mine - mine.mean()) ** 2 / mine.mean()).sum() < 2 * len(mine)),
}))
"""
SOUND = (
    '{"taken": 0, "inside": true, "positives": true, "steady": true, "epochs differ": true, '
    '"seeds differ": true, "even": true}\n'
)


def test_negatives_were_not_taken(made: Make) -> None:
    assert drive(made(**TASK, features=("implicit",)), NEGATIVES) == SOUND


def test_control_negatives(tmp_path: Path) -> None:
    """Any item but those taken before it in the list is not enough."""
    project = render(tmp_path / "demo", **TASK, features=("implicit",))
    edit(project / "data.py", 'side="right")', 'side="left")')
    assert '"taken": 0' not in drive(project, NEGATIVES)


PLACES = """
import json, math
import torch
from torch import nn
from torch.utils.data import DataLoader
from data import build_datasets, ordered_batches
from train import evaluate

class Guess(nn.Module):  # has many equal scores
    def forward(self, users, items):
        return ((users * 31 + items * 17) % 97 % 40).float()

train_set, val_set = build_datasets(negatives=1, seed=0)
known = set(zip(train_set.users.tolist(), train_set.items.tolist()))
hits = gain = 0
for user, item in zip(val_set.users.tolist(), val_set.items.tolist()):
    assert (user, item) not in known
    score = lambda other: (user * 31 + other * 17) % 97 % 40
    others = [i for i in range(train_set.num_items) if i != item and (user, i) not in known]
    place = 1 + sum(score(other) >= score(item) for other in others)
    hits, gain = hits + (place <= 10), gain + (place <= 10) / math.log2(1 + place)
loader = DataLoader(val_set, batch_size=None, sampler=ordered_batches(len(val_set), 7))
found = evaluate(Guess(), loader, torch.device("cpu"))
expected = {"val/hr_at_10": hits / len(val_set), "val/ndcg_at_10": gain / len(val_set)}
assert 0 < expected["val/hr_at_10"] < 1
print(all(abs(found[name] - value) < 1e-6 for name, value in expected.items()))
"""


def test_places_are_those_of_a_search(made: Make) -> None:
    assert drive(made(**TASK, features=("implicit",)), PLACES) == "True\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scores[seen] = -math.inf", "scores[seen] += 0"),
        ("(~below).sum(dim=1)", "1 + (scores > scores.gather(1, held_out[:, None])).sum(dim=1)"),
    ],
    ids=["those of training are ranked, too", "equal scores are forgiven"],
)
def test_control_places(tmp_path: Path, old: str, new: str) -> None:
    project = render(tmp_path / "demo", **TASK, features=("implicit",))
    edit(project / "train.py", old, new)
    assert drive(project, PLACES) == "False\n"


ERRORS = """
import math
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error
from torch import nn
from torch.utils.data import DataLoader
from data import build_datasets, ordered_batches
from train import evaluate

class Guess(nn.Module):
    def forward(self, users, items):
        return (users % 7 + items % 3).float()

train_set, val_set = build_datasets()
assert set(val_set.users.tolist()) <= set(train_set.users.tolist())
assert set(val_set.items.tolist()) <= set(train_set.items.tolist())
loader = DataLoader(val_set, batch_size=None, sampler=ordered_batches(len(val_set), 7))
found = evaluate(Guess(), loader, torch.device("cpu"))
said = Guess()(val_set.users, val_set.items)
print(abs(found["val/rmse"] - math.sqrt(mean_squared_error(val_set.ratings, said))) < 1e-5,
      abs(found["val/mae"] - mean_absolute_error(val_set.ratings, said)) < 1e-5)
"""


def test_errors_are_those_of_scikit_learn(made: Make) -> None:
    assert drive(made(**TASK), ERRORS) == "True True\n"


SPLIT = """
import json, sys
from pathlib import Path
from data import build_datasets
train_set, val_set = build_datasets(Path(sys.argv[1]), negatives=1, seed=0)
print(json.dumps([list(zip(part.users.tolist(), part.items.tolist())) for part in (train_set, val_set)]))
"""


def test_the_last_of_each_user_is_held_out(made: Make, tmp_path: Path) -> None:
    """Not an only item, nor what no one else took; what was taken twice counts once, the last time."""
    rows = ["a,x", "a,y", "b,x", "b,z", "c,x", "d,y", "d,x", "e,x", "e,y", "e,x"]
    (tmp_path / "data.csv").write_text("\n".join(["user,item", *rows]))
    project = made(**TASK, data="files", features=("implicit",))
    train_part = [[0, 0], [1, 0], [1, 2], [2, 0], [3, 1], [4, 1]]
    assert drive(project, SPLIT, tmp_path / "data.csv") == f"{[train_part, [[0, 1], [3, 0], [4, 0]]]}\n"


def test_films_are_held_out_by_time(made: Make, tmp_path: Path) -> None:
    """In both formats."""
    rows = ["1::5::4::10", "2::5::4::9", "1::6::3::30", "2::6::1::8", "1::7::3::20", "2::7::3::7"]
    (tmp_path / "ratings.dat").write_text("\n".join(rows))
    (tmp_path / "u.data").write_text("\n".join(rows).replace("::", "\t"))
    project = made(**TASK, data="movielens", features=("implicit",))
    for name in ("ratings.dat", "u.data"):
        # in order of time, user 2 took 7, 6 and 5, then user 1 took 5, 7 and 6
        expected = [[[0, 0], [0, 1], [1, 2], [1, 0]], [[0, 2], [1, 1]]]
        assert drive(project, SPLIT, tmp_path / name) == f"{expected}\n"


@pytest.mark.parametrize("data", ["files", "movielens"])
@pytest.mark.parametrize("features", FEATURES, ids="-".join)
def test_features_train(made: Make, tmp_path: Path, data: str, features: tuple[str, ...]) -> None:
    project = made(**TASK, data=data, features=features)
    options = write_data(tmp_path, "recommendation", data)
    options += ["--epochs", "2", "--batch-size", "64", "--output-dir", str(tmp_path / "out")]
    train(project, *options)
    assert len(values(tmp_path / "out", metric(project))) == 2


@pytest.mark.heavy
@pytest.mark.parametrize("distributed", ["none", "ddp", "fsdp"])
@pytest.mark.parametrize("features", FEATURES, ids="-".join)
def test_features_resume(made: Make, tmp_path: Path, features: tuple[str, ...], distributed: str) -> None:
    project, ranks = made(**TASK, features=features, distributed=distributed), RANKS[distributed]
    whole, parts = (given("recommendation", tmp_path / n, 8 // (ranks or 1)) for n in ("whole", "parts"))
    train_ranks(project, *whole, ranks=ranks, first=FEW)
    train_ranks(project, *parts, "--max-steps", 5, ranks=ranks, first=FEW)
    train_ranks(project, *parts, "--resume", ranks=ranks, first=FEW)
    assert same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.heavy
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
@pytest.mark.parametrize("features", FEATURES, ids="-".join)
def test_features_over_ranks(made: Make, tmp_path: Path, features: tuple[str, ...], distributed: str) -> None:
    one, two = (made(**TASK, features=features, distributed=kind) for kind in ("none", distributed))
    gaps = one_and_two(one, two, "recommendation", tmp_path)
    assert max(gap for row in gaps for gap in row.values()) < 1e-3


@pytest.mark.heavy
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_one_user_over_ranks(made: Make, tmp_path: Path, distributed: str) -> None:
    found = []
    for ranks in (0, 2):
        kind = distributed if ranks else "none"
        project = made(**TASK, features=("implicit",), distributed=kind)
        options = ["--batch-size", 2 // (ranks or 1), "--epochs", 1, "--lr", 0]
        train_ranks(
            project, *options, "--output-dir", tmp_path / str(ranks), ranks=ranks, first=few_examples(1)
        )
        found.append([row[metric(project)] for row in metrics(tmp_path / str(ranks))])
    assert found[0] == found[1]


@pytest.mark.heavy
@pytest.mark.parametrize("data", ["sample", "files", "movielens"])
@pytest.mark.parametrize("features", FEATURES, ids="-".join)
def test_own_tests_pass(tmp_path: Path, data: str, features: tuple[str, ...]) -> None:
    project = render(tmp_path / "demo", **TASK, data=data, features=features)
    result = run(project, python("-m", "pytest", "-q", "-p", "no:cacheprovider"), timeout=400, check=False)
    assert result.code == 0, result.out + result.err


def rows_of(*rows: str) -> Damage:
    return lambda path: path.write_text("\n".join(rows))


FILES: dict[str, tuple[Damage, str]] = {
    "absent": (lambda path: path.unlink(), "is not there"),
    "garbage": (garbage, "is not a CSV file"),
    "empty": (rows_of(""), "is not a CSV file"),
    "no rows": (rows_of("user,item,rating"), "has no rows"),
    "no column": (rows_of("user,film,rating", "a,b,3"), "has no column item"),
    "a gap": (rows_of("user,item,rating", "a,b,3", ",c,4"), "1 rows are not complete"),
    "words": (rows_of("user,item,rating", "a,b,3", "a,c,good"), "rating must be a finite number"),
    "infinite": (rows_of("user,item,rating", "a,b,3", "a,c,inf"), "rating must be a finite number"),
    "too small": (rows_of("user,item,rating", "a,b,3", "c,d,4"), "is too small"),
}
MOVIELENS: dict[str, tuple[Damage, str]] = {
    "absent": (lambda path: path.unlink(), "is not there"),
    "garbage": (garbage, "is not a file of MovieLens"),
    "commas": (rows_of("userId,movieId,rating,timestamp", "1,2,3,4"), "is not a file of MovieLens"),
    "cut off": (rows_of("1\t2\t3\t4", "1\t3"), "is cut off"),
}
IMPLICIT: dict[str, tuple[Damage, str]] = {
    "every item": (rows_of("user,item", "a,x", "a,y", "b,x"), "has every item"),
    "too small": (rows_of("user,item", "a,b", "c,d"), "is too small"),
}
DAMAGES = {
    (source, features, name): how
    for source, features, damages in (
        ("files", (), FILES),
        ("movielens", (), MOVIELENS),
        ("files", ("implicit",), IMPLICIT),
    )
    for name, how in damages.items()
}


@pytest.mark.parametrize(("source", "features", "damage"), DAMAGES)
def test_bad_data(made: Make, tmp_path: Path, source: str, features: tuple[str, ...], damage: str) -> None:
    data = Path(write_data(tmp_path, "recommendation", source)[1])
    spoil, words = DAMAGES[source, features, damage]
    spoil(data)
    refused(train_on(made(**TASK, data=source, features=features), data), str(data), words)
