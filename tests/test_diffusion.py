"""Diffusion: the process and its sampler, what is drawn and where, samples of a run, bad pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Make, files_under
from tests.projects import (
    catalog,
    drive,
    edit,
    few_examples,
    python,
    render,
    run,
    small_options,
    train,
    train_ranks,
    values,
    write_data,
)
from tests.test_project_bad_input import Damage, garbage, refused, train_on

TASK = {"task": "diffusion"}
SHORT = [*small_options("diffusion"), "--batch-size", 8, "--epochs", 2, "--log-every", 1]

OWN_TESTS = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_diffusion.py")
FAULTS: dict[str, tuple[str, str]] = {
    "a schedule that stops early": ("/ TIMESTEPS + 0.008", "/ TIMESTEPS / 2 + 0.008"),
    "a variance for a deviation": ("(1 - alpha_bar_t).sqrt() * epsilon\n", "(1 - alpha_bar_t) * epsilon\n"),
    "noise that is not taken off again": (" - sigma**2)", ")"),
    "noise without eta": ("sigma = eta * ", "sigma = "),
}


def test_schedule_and_sampler(made: Make) -> None:
    """The project's own tests of them, each of which sees one of the faults below."""
    run(made(**TASK), OWN_TESTS)


@pytest.mark.heavy
@pytest.mark.parametrize("fault", FAULTS)
def test_control_schedule_and_sampler(tmp_path: Path, fault: str) -> None:
    project = render(tmp_path / "demo", **TASK)
    edit(project / "diffusion.py", *FAULTS[fault])
    assert run(project, OWN_TESTS, check=False).code == 1


# A batch of draws, in this order and in another, as two processes would share it, and in a second epoch.
DRAWS = """
import json
import numpy as np
from data import TIMESTEPS, build_datasets
train_set, val_set = build_datasets(seed=0)
n = len(train_set)
one, half = train_set[np.arange(8)], train_set[np.arange(0, 8, 2)]
later, other = train_set[np.arange(8) + n], build_datasets(seed=1)[0][np.arange(8)]
_, t, epsilon = train_set[np.arange(n)]
_, val_t, _ = val_set[np.arange(len(val_set))]
shares = np.bincount((val_t.numpy() - 1) * 10 // TIMESTEPS)
print(json.dumps({
    "by draw alone": all(bool((a[::2] == b).all()) for a, b in zip(one, half)),
    "same picture, other noise": [bool((a == b).all()) for a, b in zip(one, later)],
    "another seed": [bool((a == b).all()) for a, b in zip(one, other)],
    "steps": [t.min().item() >= 1, t.max().item() <= TIMESTEPS, abs(t.float().mean().item() - 500) < 30],
    "noise": [abs(epsilon.mean().item()) < 0.01, abs(epsilon.var().item() - 1) < 0.01],
    "evenly": [len(shares), int(shares.max() - shares.min()) <= 2],
}))
"""


def test_draws(made: Make) -> None:
    found = json.loads(drive(made(**TASK), DRAWS))
    assert found == {
        "by draw alone": True,
        "same picture, other noise": [True, False, False],
        "another seed": [True, False, False],
        "steps": [True] * 3,
        "noise": [True] * 2,
        "evenly": [10, True],
    }


def test_control_draws(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **TASK)
    edit(project / "data.py", "default_rng([self.seed, draw])", "default_rng()")
    edit(project / "data.py", "index * GOLDEN % 1", "rng.random()")
    found = json.loads(drive(project, DRAWS))
    assert not found["by draw alone"]
    assert found["evenly"] != [10, True]


# Evaluations by batches of two sizes, and whether they leave the global generator as it was.
EVALUATIONS = """
import sys
from pathlib import Path
import torch
from torch.utils.data import DataLoader
from data import build_datasets, ordered_batches
from model import UNet
from train import evaluate

torch.manual_seed(0)
model, (_, val_set) = UNet(1, 8, 2), build_datasets(seed=0)
torch.nn.init.normal_(model.head[-1].weight, std=0.1)
state, losses = torch.get_rng_state(), []
for size in (100, 33):
    loader = DataLoader(
        val_set, batch_size=None, sampler=ordered_batches(len(val_set), size), generator=torch.Generator()
    )
    losses.append(evaluate(model, loader, torch.device("cpu"), Path(sys.argv[1]) / f"{size}.png")["val/loss"])
print(abs(losses[0] - losses[1]) < 1e-6, torch.equal(state, torch.get_rng_state()), model.training)
"""


def test_evaluations_are_alike(made: Make, tmp_path: Path) -> None:
    assert drive(made(**TASK), EVALUATIONS, tmp_path / "drawn") == "True True True\n"
    one, other = files_under(tmp_path / "drawn").values()
    assert one == other


SAMPLES = """
import sys
from pathlib import Path
from sample import main, parse_args

for number, more in enumerate([[], [], ["--eta", "1"], ["--seed", "1"]]):
    to = Path(sys.argv[1]) / f"sample{number}.png"
    main(parse_args(["--run", sys.argv[1], "--to", str(to), "--number", "9", "--steps", "5", *more]))
"""


@pytest.mark.parametrize(
    ("distributed", "ranks"), [("none", 0), pytest.param("fsdp", 2, marks=pytest.mark.heavy)]
)
def test_pictures_and_samples(made: Make, tmp_path: Path, distributed: str, ranks: int) -> None:
    """Each evaluation draws one, the same after a stop; sample.py draws with the best of a run."""
    project = made(**TASK, distributed=distributed)
    for place, *steps in (("whole", 3), ("parts", 2, 3)):
        for last in steps:
            options = ["--max-steps", last, "--output-dir", tmp_path / place, "--resume"]
            options += ["--batch-size", 8 // (ranks or 1)]
            train_ranks(project, *SHORT, *options, ranks=ranks, first=few_examples(12))
    drawn = files_under(tmp_path / "parts" / "pictures")
    assert drawn == files_under(tmp_path / "whole" / "pictures")
    assert sorted(int(Path(name).stem) for name in drawn) == sorted(values(tmp_path / "parts", "val/loss"))
    pixels = np.asarray(Image.open(tmp_path / "parts" / "pictures" / "00000003.png"))
    assert pixels.shape == (4 * 70, 8 * 70, 3)  # frames of 10, seven times as large
    drive(project, SAMPLES, tmp_path / "parts")
    one, same, eta, seed = ((tmp_path / "parts" / f"sample{n}.png").read_bytes() for n in range(4))
    assert one == same and len({one, eta, seed}) == 3


def test_sample_without_a_run(made: Make, tmp_path: Path) -> None:
    result = run(made(**TASK), python("sample.py", "--run", tmp_path), check=False)
    assert result.code == 1
    assert "--run names a run" in result.message


@pytest.mark.heavy
def test_control_the_bar(made: Make, tmp_path: Path) -> None:
    """What has hardly been trained reaches neither the loss nor the confidence of the sample run."""
    project = made(**TASK)
    options = ["--max-steps", 1, "--batch-size", 8, "--output-dir", tmp_path]
    train_ranks(project, *options, ranks=0, first=few_examples(8))
    source = (catalog().task("diffusion").folder / "reach.py").read_text()
    loss, _, confidence = map(json.loads, drive(project, source, tmp_path).splitlines())
    assert next(iter(values(tmp_path, "val/loss").values())) > 2 * loss["best_at_most"]
    assert confidence["reached"] < 0.75 < confidence["at_least"]


def huge(path: Path) -> None:
    Image.fromarray(np.full((30, 40), 300, np.uint16)).save(path)


FILES: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "is not a folder"),
    "one picture": (
        lambda data: [path.unlink() for path in data.iterdir() if path.name != "3.png"],
        "holds 1 pictures",
    ),
    "garbage": (lambda data: garbage(data / "3.png"), "3.png is not a readable picture"),
    "16 bits": (lambda data: huge(data / "3.png"), "3.png has more than 8 bits a pixel"),
}
MNIST: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "is not there"),
    "garbage": (lambda data: garbage(data / "t10k-images-idx3-ubyte.gz"), "is not a gzipped IDX file"),
}
CIFAR: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "is not there"),
    "garbage": (lambda data: garbage(data / "test_batch.bin"), "is not a file of CIFAR-10's binary version"),
}
DAMAGES: dict[tuple[str, str], tuple[Callable[[Path], object], str]] = {
    (source, name): how
    for source, damages in (("files", FILES), ("mnist", MNIST), ("fashion-mnist", MNIST), ("cifar10", CIFAR))
    for name, how in damages.items()
}


@pytest.mark.parametrize(("source", "damage"), DAMAGES)
def test_bad_data(made: Make, tmp_path: Path, source: str, damage: str) -> None:
    data = Path(write_data(tmp_path, "diffusion", source)[1])
    spoil, words = DAMAGES[source, damage]
    spoil(data)
    refused(train_on(made(**TASK, data=source), data, *small_options("diffusion")), str(data), words)


def test_pictures_at_any_depth(made: Make, tmp_path: Path) -> None:
    """Those that are hidden, and what is no picture, are left out."""
    for name in ("1.png", "a/2.PNG", "a/b/3.jpg", ".thumbnails/4.png", "a/.5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 70)).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    script = """
import sys
from pathlib import Path
import numpy as np
from data import build_datasets
sets = build_datasets(Path(sys.argv[1]), seed=0)
print([path.name for part in sets for path in part.paths], tuple(sets[0][np.arange(2)][0].shape))
"""
    found = drive(made(**TASK, data="files"), script, tmp_path)
    assert found == "['2.PNG', '3.jpg', '1.png'] (2, 3, 64, 64)\n"


@pytest.mark.parametrize("options", [("--width", 0), ("--levels", 1), ("--levels", 5)])
def test_bad_sizes(made: Make, tmp_path: Path, options: tuple[object, ...]) -> None:
    refused(train(made(**TASK), *options, "--output-dir", tmp_path, check=False), str(options[0]))
