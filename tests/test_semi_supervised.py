"""Semi-supervised: views are functions of seed and draw, and the loss is FixMatch's, whose labels are few."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Make
from tests.projects import drive, edit, render, small_options, train_ranks, write_data
from tests.test_project_bad_input import Damage, garbage, refused, train_on

TASK = {"task": "semi-supervised"}

VIEWS = """
import json
import numpy as np
import torch
from data import build_datasets

def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))

def part(batch, rows):
    images, labels, weak, strong = batch
    views = [view.unflatten(0, (-1, 7))[rows].flatten(0, 1) for view in (weak, strong)]
    return images[rows], labels[rows], *views

train_set, val_set = build_datasets(7, 0)
draws = np.array([5, 2, 1000, 40])
batch = train_set[draws]
numbers = [[n % len(train_set.unlabelled) for n in range(7 * d, 7 * d + 7)] for d in range(2000)]
counts = np.bincount(np.ravel(numbers))
# draws that hold the same pictures, a pass over them later
train_set.unlabelled = train_set.unlabelled[:70]
first, later = train_set[np.arange(10)], train_set[np.arange(10, 20)]
print(json.dumps({
    "same again": same(batch, build_datasets(7, 0)[0][draws]),
    "same in another batch": same(part(batch, slice(2, 4)), build_datasets(7, 0)[0][draws[2:]]),
    "other seed": same(batch[2:], build_datasets(7, 1)[0][draws][2:]),
    "strong is weak": (batch[2] == batch[3]).flatten(1).all(dim=1).float().mean().item(),
    "weak by draw": (first[2] == later[2]).flatten(1).all(dim=1).float().mean().item(),
    "strong by draw": (first[3] == later[3]).flatten(1).all(dim=1).float().mean().item(),
    "uses of a picture": int(counts.max() - counts.min()),
    "labels": sorted(train_set.labelled.labels.tolist()) == sorted(4 * list(range(10))),
    "all": len(train_set.labelled.labels) + len(build_datasets(7, 0)[0].unlabelled) + len(val_set),
}))
"""


def views(project: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(drive(project, VIEWS))
    return found


def test_views_are_functions_of_seed_and_draw(made: Make) -> None:
    found = views(made(**TASK))
    assert found.pop("strong is weak") < 0.1
    assert 0.02 < found.pop("weak by draw") < 0.3  # one of nine shifts
    assert found.pop("strong by draw") < 0.1
    expected = {"same again": True, "same in another batch": True, "other seed": False}
    assert found == expected | {"uses of a picture": 1, "labels": True, "all": 1797}


@pytest.mark.parametrize(
    ("seed", "broken", "value"),
    [("[self.seed]", "strong by draw", 1), ("None", "same again", False)],
)
def test_control_views(tmp_path: Path, seed: str, broken: str, value: object) -> None:
    """The same augmentation for all draws, and another one each time."""
    project = render(tmp_path / "demo", **TASK)
    edit(project / "views.py", "default_rng([self.seed, draw])", f"default_rng({seed})")
    assert views(project)[broken] == value


LOSS = """
import json
import torch
import torch.nn.functional as F
from train import LAMBDA_U, THRESHOLD, compute_loss

torch.manual_seed(0)
labels = torch.tensor([3, 1])
batch = [torch.zeros(2, 1), labels, torch.zeros(6, 1), torch.zeros(6, 1)]

def loss_of(weak):
    logits = torch.cat([torch.randn(2, 10), weak, torch.randn(6, 10)]).requires_grad_()
    loss = compute_loss(lambda images: logits, batch, torch.device("cpu"))
    loss.backward()
    unsupervised = loss - F.cross_entropy(logits[:2], labels)
    return logits.detach()[8:], logits.grad.split([2, 6, 6]), unsupervised.item()

sure = 20 * F.one_hot(torch.arange(6), 10).float()
unsure = torch.randn(6, 10)
mixed = torch.where(torch.arange(6)[:, None] < 2, sure, unsure)
assert unsure.softmax(dim=1).max() < THRESHOLD
_, grads, unsupervised = loss_of(unsure)
found = {"unsure": unsupervised, "gradients of unsure": grads[2].abs().sum().item()}
strong, grads, unsupervised = loss_of(mixed)
right = -strong.log_softmax(dim=1)[[0, 1], [0, 1]].sum().item() / 6
found["mean over all"] = abs(unsupervised / (LAMBDA_U * right) - 1) < 1e-5
found["gradients of weak"] = grads[1].abs().sum().item()
found["gradients of strong"] = (grads[2].abs().sum(dim=1) > 0).tolist()
print(json.dumps(found))
"""


def losses(project: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(drive(project, LOSS))
    return found


def test_loss_is_that_of_fixmatch(made: Make) -> None:
    """Only what the model is sure of counts, divided by all, and labels that it gives get no gradient."""
    found = losses(made(**TASK))
    assert abs(found.pop("unsure")) < 1e-6
    assert found == {
        "gradients of unsure": 0,
        "mean over all": True,
        "gradients of weak": 0,
        "gradients of strong": [True] * 2 + [False] * 4,
    }


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        (" * (confidence >= THRESHOLD)", "", "gradients of unsure"),
        ("(of_strong, pseudo_labels,", "(of_strong, of_weak.softmax(dim=1),", "gradients of weak"),
    ],
)
def test_control_loss(tmp_path: Path, old: str, new: str, broken: str) -> None:
    project = render(tmp_path / "demo", **TASK)
    edit(project / "train.py", old, new)
    assert losses(project)[broken] != 0


# The chosen 40 stay as they are; the labels of some others change places.
SHUFFLED = """
import numpy as np
import sklearn.datasets
from sklearn.datasets import load_digits

def shuffled():
    digits = load_digits()
    train = np.flatnonzero(np.arange(len(digits.target)) % 5)
    order, seen = np.random.default_rng(3).permutation(len(train)), [0] * 10
    for place in train[order]:
        label = digits.target[place]
        if {others}:
            digits.target[place] = 9 - label
        seen[label] += 1
    return digits

sklearn.datasets.load_digits = shuffled
"""


def trained(project: Path, output_dir: Path, first: str) -> str:
    options = ["--batch-size", 4, "--max-steps", 3, *small_options("semi-supervised")]
    train_ranks(project, *options, "--output-dir", output_dir, ranks=0, first=first)
    return (output_dir / "metrics.jsonl").read_text()


def test_labels_of_unlabelled_pictures_are_not_read(made: Make, tmp_path: Path) -> None:
    project = made(**TASK)
    plain = trained(project, tmp_path / "plain", "")
    # all have been chosen once four of each class were seen
    others = SHUFFLED.format(others="min(seen) >= 4")
    assert trained(project, tmp_path / "others", others) == plain
    chosen = SHUFFLED.format(others="seen[label] < 4")
    assert trained(project, tmp_path / "chosen", chosen) != plain


FILES: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "labelled is not a folder"),
    "no labelled": (lambda data: shutil.rmtree(data / "labelled"), "labelled is not a folder"),
    "one class": (lambda data: shutil.rmtree(data / "labelled" / "cats"), "holds 1 folders"),
    "an empty class": (lambda data: (data / "labelled" / "birds").mkdir(), "birds holds no pictures"),
    "one picture": (
        lambda data: [path.unlink() for path in (data / "labelled" / "cats").glob("[1-9]*.png")],
        "labelled/cats holds one picture",
    ),
    "no unlabelled": (lambda data: shutil.rmtree(data / "unlabelled"), "unlabelled holds 0 pictures"),
    "few unlabelled": (
        lambda data: [path.unlink() for path in (data / "unlabelled").glob("[1-9]*.png")],
        "unlabelled holds 1 pictures: --mu asks for 2",
    ),
    "garbage": (lambda data: garbage(data / "labelled" / "cats" / "3.png"), "3.png is not a readable"),
    "unlabelled garbage": (lambda data: garbage(data / "unlabelled" / "3.png"), "3.png is not a readable"),
}


@pytest.mark.parametrize("damage", FILES)
def test_damaged_files(made: Make, tmp_path: Path, damage: str) -> None:
    data = Path(write_data(tmp_path, "semi-supervised", "files")[1])
    spoil, words = FILES[damage]
    spoil(data)
    refused(train_on(made(**TASK, data="files"), data, "--mu", 2), str(data), words)


@pytest.mark.heavy
def test_pictures_of_every_kind(made: Make, tmp_path: Path) -> None:
    """Palettes, greys, odd shapes, deeper folders, and files that are no pictures."""
    data = Path(write_data(tmp_path, "semi-supervised", "files")[1])
    (data / "unlabelled" / "deeper").mkdir()
    for mode, suffix in (("P", "gif"), ("RGBA", "png"), ("L", "jpg"), ("LA", "webp"), ("1", "bmp")):
        Image.new(mode, (70, 9)).save(data / "unlabelled" / "deeper" / f"x{mode}.{suffix}")
    (data / "unlabelled" / "notes.txt").write_text("no picture")
    assert train_on(made(**TASK, data="files"), data, "--mu", 2).code == 0
