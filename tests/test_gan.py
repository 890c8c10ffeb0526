"""GAN: steps are those of the paper, each network has its own, and what is drawn is what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import Make, files_under
from tests.projects import (
    checkpoints,
    drive,
    edit,
    few_examples,
    leaves,
    load,
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

TASK = {"task": "gan"}
SMALL = small_options("gan")
SHORT = [*SMALL, "--batch-size", 8, "--max-steps", 4, "--log-every", 1]

# Four steps written out: each network learns while the other's parameters rest.
BY_HAND = """
import sys
import torch
import torch.nn.functional as F
from data import CHANNELS, IMAGE_SIZE, build_datasets, shuffled_batches
from model import Discriminator, Generator
from train import learning_rate

torch.manual_seed(0)
train_set, _ = build_datasets(8, seed=0)
total = -(-int(sys.argv[2]) * len(train_set) // 8)
nets = Generator(8, CHANNELS, IMAGE_SIZE, 8), Discriminator(CHANNELS, IMAGE_SIZE, 8)
generator, discriminator = nets
optimizers = [torch.optim.Adam(net.parameters(), betas=(0.5, 0.999)) for net in nets]
order = shuffled_batches(len(train_set), 8, 0, 0)
for step in range(4):
    images, noise = train_set[next(order)]
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = learning_rate(step, 1e-3, 50, total)
    for player in (1, 0):
        nets[player].requires_grad_(True)
        nets[1 - player].requires_grad_(False)
        made = discriminator(generator(noise))
        ones, zeros = torch.ones_like(made), torch.zeros_like(made)
        if player == 1:
            loss = F.binary_cross_entropy_with_logits(discriminator(images), ones)
            loss = loss + F.binary_cross_entropy_with_logits(made, zeros)
        else:
            loss = F.binary_cross_entropy_with_logits(made, ones)
        optimizers[player].zero_grad()
        loss.backward()
        optimizers[player].step()
torch.save([net.state_dict() for net in nets], sys.argv[1])
"""


def far_from_by_hand(project: Path, tmp_path: Path, *options: object) -> float:
    """The largest gap between parameters after four steps."""
    train(project, *SHORT, *options, "--output-dir", tmp_path / "out")
    drive(project, BY_HAND, tmp_path / "by-hand.pt", 40)
    ours = load(checkpoints(tmp_path / "out")[-1])
    theirs = torch.load(tmp_path / "by-hand.pt", weights_only=True)
    pairs = zip((ours["generator"], ours["discriminator"]), theirs, strict=True)
    return max((one[key] - other[key]).abs().max().item() for one, other in pairs for key in one)


def test_steps_are_those_of_the_paper(made: Make, tmp_path: Path) -> None:
    assert far_from_by_hand(made(**TASK), tmp_path) < 1e-6


@pytest.mark.heavy
def test_windows_are_batches(made: Make, tmp_path: Path) -> None:
    """Accumulated over two halves, both networks learn as from the whole."""
    options = ["--batch-size", 4, "--grad-accum", 2]
    assert far_from_by_hand(made(**TASK, features=("grad-accum",)), tmp_path, *options) < 1e-6


def test_control_steps(tmp_path: Path) -> None:
    """What the generator's loss leaves in the discriminator, taken for its own."""
    project = render(tmp_path / "demo", **TASK)
    edit(project / "train.py", "        discriminator_optimizer.zero_grad()", "        pass")
    assert far_from_by_hand(project, tmp_path) > 1e-5


def counted(output_dir: Path) -> tuple[int, set[int]]:
    """The last checkpoint's step, and how often each parameter of both networks was updated."""
    state = load(checkpoints(output_dir)[-1])
    updates = leaves([state[f"{name}_optimizer"]["state"] for name in ("generator", "discriminator")])
    return int(state["counters"]["step"]), {int(n) for key, n in updates.items() if key.endswith("step")}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_both_networks_step(made: Make, tmp_path: Path, precision: str) -> None:
    train(made(**TASK, precision=precision), *SHORT, "--output-dir", tmp_path)
    assert counted(tmp_path) == (4, {4})


FRECHET = """
import numpy as np
import torch
from scipy.linalg import sqrtm
from frechet import features, frechet_distance, moments

draws = torch.Generator().manual_seed(0)
sets = [torch.randn(300, 3, 16, 16, generator=draws) * scale + shift for scale, shift in ((1, 0), (2, 0.5))]
found = [features(pictures).double().numpy() for pictures in sets]
(m1, c1), (m2, c2) = ((x.mean(0), np.cov(x.T, bias=True)) for x in found)
expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
parts = [sum(moments(part) for part in s.split(70)) for s in sets]
print(abs(frechet_distance(*parts) / expected - 1) < 1e-4, abs(frechet_distance(parts[0], parts[0])) < 1e-4)
"""


def test_distance_is_that_of_scipy(made: Make) -> None:
    assert drive(made(**TASK), FRECHET) == "True True\n"


R1 = """
import torch
from torch import nn
from losses import gradient_penalty

weight = torch.arange(4.0)
class Linear(nn.Module):
    def forward(self, images):
        return images.flatten(1) @ weight

found = gradient_penalty(Linear(), [torch.rand(5, 1, 2, 2)], torch.device("cpu"))
print(abs(found.item() - weight.square().sum().item()) < 1e-6)
"""


def test_penalty_is_the_squared_gradient(made: Make) -> None:
    assert drive(made(**TASK, features=("gradient-penalty",)), R1) == "True\n"


def test_control_penalty(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **TASK, features=("gradient-penalty",))
    edit(project / "losses.py", "gradient.square()", "gradient.abs()")
    assert drive(project, R1) == "False\n"


@pytest.mark.heavy
def test_pictures_and_samples(made: Make, tmp_path: Path) -> None:
    """Each evaluation draws the same noise; sample.py draws other noise with the best average."""
    project, out = made(**TASK, features=("ema",)), tmp_path / "out"
    options = [*SMALL, "--batch-size", 8, "--epochs", 2, "--output-dir", out]
    train_ranks(project, *options, ranks=0, first=few_examples(12))
    drawn = files_under(out / "pictures")
    assert len(drawn) == len(set(drawn.values())) == len(values(out, "val/frechet_distance")) == 2
    pictures = [np.asarray(Image.open(path)) for path in (out / "pictures").iterdir()]
    assert {picture.shape for picture in pictures} == {(8 * 66, 8 * 66, 3)}
    words = ("sample.py", "--run", out, "--rows", 2, "--seed", 1, "--output")
    for name in ("one", "two"):
        run(project, python(*words, tmp_path / f"{name}.png"))
    samples = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("one", "two")]
    assert samples[0].shape == (2 * 66, 8 * 66, 3)
    assert (samples[0] == samples[1]).all()
    assert not any((picture[: 2 * 66] == samples[0]).all() for picture in pictures)
    script = """
import sys
from pathlib import Path
import torch
from sample import load_generator
generator, _ = load_generator(Path(sys.argv[1]))
best = torch.load(Path(sys.argv[1], "checkpoints", "best.pt"), weights_only=True)["ema"]
print(all(torch.equal(value, best[name]) for name, value in generator.state_dict().items()))
"""
    assert drive(project, script, out) == "True\n"


def test_samples_need_a_run(made: Make, tmp_path: Path) -> None:
    project = made(**TASK, features=("ema",))
    result = run(project, python("sample.py", "--run", tmp_path), check=False)
    refused(result, "run.json", "--run names a run")


NOISE = """
import json
import numpy as np
from data import build_datasets
train_set, val_set = build_datasets(8, seed=3)
draws = np.array([5, 1 + len(train_set)])
images, noise = train_set[draws]
again, other = train_set[draws[::-1].copy()], build_datasets(8, seed=4)[0][draws][1]
print(json.dumps({
    "same": bool((noise == again[1].flip(0)).all() and (images == again[0].flip(0)).all()),
    "of the epoch": bool((noise[1] != train_set[np.array([1])][1][0]).all()),
    "of the seed": bool((noise != other).all()),
    "held out": bool((val_set[np.array([5])][1] != train_set[np.array([5])][1]).all()),
    "for every seed": bool((val_set[draws][1] == build_datasets(8, seed=4)[1][draws][1]).all()),
}))
"""


def test_noise_is_a_function_of_the_draw(made: Make) -> None:
    assert all(json.loads(drive(made(**TASK), NOISE)).values())


BAD: dict[tuple[str, str], tuple[Damage, str]] = {
    ("files", "no folder"): (shutil.rmtree, "is not a folder"),
    ("files", "one picture"): (
        lambda data: [path.unlink() for path in data.iterdir() if path.name != "3.png"],
        "holds 1 pictures",
    ),
    ("files", "garbage"): (lambda data: garbage(data / "0.png"), "0.png is not a readable picture"),
    ("mnist", "garbage"): (lambda data: garbage(data / "t10k-images-idx3-ubyte.gz"), "not a gzipped IDX"),
    ("cifar10", "a file is missing"): (lambda data: (data / "test_batch.bin").unlink(), "is not there"),
}


@pytest.mark.parametrize(("source", "damage"), BAD)
def test_bad_data(made: Make, tmp_path: Path, source: str, damage: str) -> None:
    data = Path(write_data(tmp_path, "gan", source)[1])
    spoil, words = BAD[source, damage]
    spoil(data)
    refused(train_on(made(**TASK, data=source), data, *SMALL), str(data), words)
