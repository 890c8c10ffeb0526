"""Segmentation: masks follow their pictures, the metric is the known one, pictures reach loggers."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import Make, files_under
from tests.projects import (
    drive,
    edit,
    few_examples,
    render,
    small_options,
    train,
    train_ranks,
    values,
    write_data,
)
from tests.test_project_bad_input import Damage, garbage, refused, train_on

TASK = {"task": "segmentation"}
SHORT = [*small_options("segmentation"), "--batch-size", 8, "--epochs", 2, "--log-every", 1]

# Pictures that are their own masks: what is done to one must be seen in the other.
CROPS = """
import json, sys
from pathlib import Path
import numpy as np
from data import IGNORED, build_datasets
train_set, val_set = build_datasets(Path(sys.argv[1]), seed=0)
images, masks = train_set[np.arange(200)]
again, _ = train_set[np.arange(200)]
classes = ((images[:, 0] * 0.25 + 0.5) * 255).round() // 80
inside = masks != IGNORED
same = (classes == masks)[inside].float().mean().item()
shares = inside.flatten(1).float().mean(dim=1)
epochs = train_set[np.arange(len(train_set))][0], train_set[np.arange(len(train_set)) + len(train_set)][0]
print(json.dumps({
    "same": same, "least": shares.min().item(), "most": shares.max().item(),
    "steady": bool((images == again).all()),
    "differ": bool((epochs[0] != epochs[1]).flatten(1).any(dim=1).all()),
    "black outside": bool(((images[:, 0] * 0.25 + 0.5)[~inside].abs() < 1e-6).all()),
    "held out": [len(val_set), val_set[np.array([0])][1].shape[1:]],
}))
"""


def write_pairs(folder: Path) -> Path:
    """Pictures of three flat shades, whose masks are the same shapes."""
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(10):
        labels = np.kron(rng.integers(0, 3, size=(4, 3)), np.ones((40, 40))).astype(np.uint8)
        Image.fromarray(labels).save(folder / "masks" / f"{number}.png")
        Image.fromarray(labels * 80).convert("RGB").save(folder / "images" / f"{number}.png")
    return folder


def cropped(project: Path, tmp_path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(drive(project, CROPS, write_pairs(tmp_path / "data")))
    return found


def test_masks_follow_their_pictures(made: Make, tmp_path: Path) -> None:
    found = cropped(made(**TASK, data="files"), tmp_path)
    assert found.pop("same") > 0.97  # all but the edges, which are smoothed in pictures
    assert found.pop("least") < 0.6 and found.pop("most") == 1  # some are smaller than the crop
    assert found == {"steady": True, "differ": True, "black outside": True, "held out": [2, [128, 128]]}


def test_control_masks_follow_their_pictures(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **TASK, data="files")
    edit(project / "data.py", "labels[:, ::step].copy()", "labels.copy()")
    assert cropped(project, tmp_path)["same"] < 0.9


IOU = """
import sys
from pathlib import Path
import torch
from sklearn.metrics import jaccard_score
from torch import nn
from torch.utils.data import DataLoader
from data import build_datasets, ordered_batches
from train import evaluate

class Guess(nn.Module):
    def forward(self, images):
        rows = images[:, 0] * 7 + torch.arange(images.shape[2])[:, None] / 9
        return -(rows[:, None] - torch.arange(11)[:, None, None]).abs()

_, val_set = build_datasets(seed=0)
loader = DataLoader(val_set, batch_size=None, sampler=ordered_batches(len(val_set), 7))
batches = list(loader)
truth = torch.cat([masks for _, masks in batches])
said = torch.cat([Guess()(images).argmax(dim=1) for images, _ in batches])
found = evaluate(Guess(), loader, torch.device("cpu"), Path(sys.argv[1]))["val/mean_iou"]
print(abs(found - jaccard_score(truth.flatten(), said.flatten(), average="macro")) < 1e-6)
"""


def test_mean_iou_is_that_of_scikit_learn(made: Make, tmp_path: Path) -> None:
    assert drive(made(**TASK), IOU, tmp_path / "picture.png") == "True\n"


LOSS = """
import sys
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from data import IGNORED, build_datasets, ordered_batches
from train import evaluate

class Guess(nn.Module):
    def forward(self, images):
        return images * torch.tensor([1.0, 2, 3])[:, None, None]

_, val_set = build_datasets(Path(sys.argv[1]), seed=0)
loader = DataLoader(val_set, batch_size=None, sampler=ordered_batches(len(val_set), 1))
images, masks = val_set[np.arange(len(val_set))]
assert (masks == IGNORED).any()
expected = F.cross_entropy(Guess()(images), masks, ignore_index=IGNORED).item()
found = evaluate(Guess(), loader, torch.device("cpu"), Path(sys.argv[2]))["val/loss"]
print(abs(found - expected) < 1e-5)
"""


def test_ignored_pixels_do_not_count(made: Make, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data")
    project = made(**TASK, data="files")
    assert drive(project, LOSS, data, tmp_path / "picture.png") == "True\n"


def test_control_ignored_pixels(tmp_path: Path) -> None:
    """The mean over all pixels, those outside the picture too."""
    data, project = write_pairs(tmp_path / "data"), render(tmp_path / "demo", **TASK, data="files")
    edit(project / "train.py", '"none")[masks != IGNORED])', '"none"))')
    assert drive(project, LOSS, data, tmp_path / "picture.png") == "False\n"


def test_pictures_are_paired_by_name(made: Make, tmp_path: Path) -> None:
    """Also beside files whose names begin alike, with brackets, and with capital letters."""
    data = write_pairs(tmp_path / "data")
    for place in ("images", "masks"):
        (data / place / "3.png").rename(data / place / "3[a].png")
    (data / "images" / "4.png").rename(data / "images" / "4.PNG")
    Image.new("RGB", (1, 1)).save(data / "images" / "5.edges.png")
    (data / "images" / "notes.txt").touch()
    script = """
import json, sys
from pathlib import Path
from data import build_datasets
sets = build_datasets(Path(sys.argv[1]), seed=0)
print(json.dumps([[[path.name for path in pair] for pair in part.pairs] for part in sets]))
"""
    train, held_out = json.loads(drive(made(**TASK, data="files"), script, data))
    assert held_out == [["0.png", "0.png"], ["5.png", "5.png"]]
    assert sorted(train) == [
        ["1.png", "1.png"],
        ["2.png", "2.png"],
        ["3[a].png", "3[a].png"],
        ["4.PNG", "4.png"],
        *([f"{n}.png", f"{n}.png"] for n in (6, 7, 8, 9)),
    ]


def test_pictures_of_an_earlier_run_are_not_logged(made: Make, tmp_path: Path) -> None:
    project = made(**TASK, logger=("tensorboard",))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "00000001.png")
    train_ranks(project, *SHORT, "--output-dir", tmp_path, ranks=0, first=few_examples(12))
    assert sorted(logged_pictures(tmp_path)) == [2, 3]


def pictures(output_dir: Path) -> dict[int, np.ndarray]:
    """step -> pixels, as files."""
    found = (output_dir / "pictures").iterdir()
    return {int(path.stem): np.asarray(Image.open(path)) for path in found}


def logged_pictures(output_dir: Path) -> dict[int, np.ndarray]:
    """step -> pixels, as TensorBoard reads them."""
    reader = EventAccumulator(str(output_dir), size_guidance={"images": 0})
    reader.Reload()
    events = reader.Images("pictures")
    assert len({event.step for event in events}) == len(events)
    return {event.step: np.asarray(Image.open(BytesIO(event.encoded_image_string))) for event in events}


@pytest.mark.parametrize(("distributed", "ranks"), [("none", 0), ("ddp", 2), ("fsdp", 2)])
def test_pictures_are_drawn_and_logged(made: Make, tmp_path: Path, distributed: str, ranks: int) -> None:
    """One for each evaluation, also after a stop; those of a resumed run are those of a whole one."""
    project = made(**TASK, distributed=distributed, logger=("tensorboard",))
    few = few_examples(12)
    for place, *steps in (("whole", 3), ("parts", 2, 3)):
        for last in steps:
            options = ["--max-steps", last, "--output-dir", tmp_path / place, "--resume"]
            train_ranks(project, *SHORT, "--batch-size", 8 // (ranks or 1), *options, ranks=ranks, first=few)
    drawn = pictures(tmp_path / "parts")
    assert sorted(drawn) == sorted(values(tmp_path / "parts", "val/mean_iou")) == [2, 3]
    assert drawn[2].shape == (3 * 32, 8 * 32, 3)
    assert (drawn[2][32:64] == drawn[3][32:64]).all()  # the masks
    assert (drawn[2][64:] != drawn[3][64:]).any()  # what the model says
    assert files_under(tmp_path / "whole" / "pictures") == files_under(tmp_path / "parts" / "pictures")
    logged = logged_pictures(tmp_path / "parts")
    assert sorted(logged) == sorted(drawn)
    assert all((logged[step] == drawn[step]).all() for step in drawn)


def test_wandb_has_the_pictures(made: Make, tmp_path: Path) -> None:
    project = made(**TASK, logger=("wandb",))
    train_ranks(project, *SHORT, "--output-dir", tmp_path, ranks=0, first=few_examples(12))
    sent = [path for path in tmp_path.rglob("wandb/**/media/**/*.png") if not path.is_symlink()]
    found = {path.read_bytes() for path in sent}
    assert found == set(files_under(tmp_path / "pictures").values())
    assert len(found) == 2


FILES: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "holds 0 .png files"),
    "no masks": (lambda data: shutil.rmtree(data / "masks"), "holds 0 .png files"),
    "no picture": (lambda data: (data / "images" / "3.jpg").unlink(), "no picture for"),
    "garbage": (lambda data: garbage(data / "images" / "3.jpg"), "3.jpg is not a readable picture"),
    "a garbage mask": (lambda data: garbage(data / "masks" / "3.png"), "3.png is not a readable picture"),
    "a mask in colours": (
        lambda data: Image.new("RGB", (40, 30)).save(data / "masks" / "3.png"),
        "3.png has colours",
    ),
    "classes 0 and 255": (
        lambda data: [
            Image.fromarray(np.uint8(np.eye(30) * 255)).save(path) for path in (data / "masks").iterdir()
        ],
        "no mask has a class but 0",
    ),
    "16 bits": (
        lambda data: Image.fromarray(np.full((30, 40), 300, np.uint16)).save(data / "masks" / "3.png"),
        "3.png has a class above 254",
    ),
    "a picture of 16 bits": (
        lambda data: (
            (data / "images" / "3.jpg").unlink(),
            Image.fromarray(np.full((30, 40), 300, np.uint16)).save(data / "images" / "3.png"),
        ),
        "3.png has more than 8 bits a pixel",
    ),
    "two pictures": (
        lambda data: shutil.copy(data / "images" / "3.jpg", data / "images" / "3.jpeg"),
        "3.jpg and 3.jpeg are two pictures",
    ),
    "another size": (
        lambda data: Image.new("L", (41, 30)).save(data / "masks" / "3.png"),
        "another size than its picture",
    ),
}


VOC: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "--data names the folder VOC2012"),
    "an empty list": (
        lambda data: (data / "ImageSets" / "Segmentation" / "val.txt").write_text(""),
        "val.txt names no pictures",
    ),
    "a name of none": (
        lambda data: (data / "ImageSets" / "Segmentation" / "train.txt").write_text("one"),
        "one.jpg is not a readable picture",
    ),
    "a class too many": (
        lambda data: [
            Image.new("L", (40, 30), 21).save(path) for path in (data / "SegmentationClass").iterdir()
        ],
        "has a class above 20",
    ),
}


DAMAGES = {("files", name): how for name, how in FILES.items()} | {
    ("voc2012", n): how for n, how in VOC.items()
}


@pytest.mark.parametrize(("source", "damage"), DAMAGES)
def test_bad_data(made: Make, tmp_path: Path, source: str, damage: str) -> None:
    data = Path(write_data(tmp_path, "segmentation", source)[1])
    spoil, words = DAMAGES[source, damage]
    spoil(data)
    project = made(**TASK, data=source)
    refused(train_on(project, data, *small_options("segmentation")), str(data), words)


@pytest.mark.parametrize("options", [("--width", 0), ("--levels", 1), ("--levels", 6)])
def test_bad_sizes(made: Make, tmp_path: Path, options: tuple[object, ...]) -> None:
    result = train(made(**TASK), *options, "--output-dir", tmp_path, check=False)
    refused(result, str(options[0]))
