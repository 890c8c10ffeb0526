"""A user's mistake in a generated project: one clear line, a non-zero exit, no traceback, nothing lost."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests import projects
from tests.guarantees.harness import over_ranks
from tests.projects import Result, edit, render, train, train_ranks

Damage = Callable[[Path], object]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A project for some answers, rendered once a module: no test may change it."""
    known: dict[str, Path] = {}

    def make(**given: object) -> Path:
        key = repr(sorted(given.items()))
        if key not in known:
            known[key] = render(tmp_path_factory.mktemp("made") / "demo", **given)
        return known[key]

    return make


def refused(result: Result, *words: str) -> None:
    """The program stopped and said why in one line (argparse shows the usage above it)."""
    assert result.code in (1, 2), result.err
    assert "Traceback" not in result.err, result.err
    lines = result.err.strip().splitlines()
    assert lines, "nothing was said"
    assert len(lines) == 1 or (result.code == 2 and lines[0].startswith("usage:")), result.err
    for word in words:
        assert word in lines[-1], lines[-1]


def train_on(project: Path, data: Path, *options: object) -> Result:
    """An epoch, with the output beside the data."""
    fixed = [
        "--data",
        data,
        "--output-dir",
        data.parent / "out",
        "--epochs",
        1,
        "--batch-size",
        8,
        "--workers",
        0,
    ]
    return train(project, *fixed, *options, check=False, timeout=60)


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 7])


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def scramble_middle(path: Path) -> None:
    """Keep gzip's header, break what follows."""
    content = bytearray(path.read_bytes())
    content[10:70] = b"\xff" * 60
    path.write_bytes(content)


# pictures in folders

PICTURES: dict[str, tuple[Damage, str]] = {
    "missing": (shutil.rmtree, "is not a folder"),
    "a file": (lambda data: (shutil.rmtree(data), data.write_text("")), "is not a folder"),
    "no classes": (lambda data: (shutil.rmtree(data), data.mkdir()), "at least two classes"),
    "one class": (lambda data: shutil.rmtree(data / "cats"), "at least two classes"),
    "empty class": (lambda data: [path.unlink() for path in (data / "cats").iterdir()], "cats"),
    "garbage": (lambda data: garbage(data / "cats" / "03.png"), "03.png"),
    "truncated": (lambda data: truncate(data / "cats" / "03.png"), "03.png"),
    "zero bytes": (lambda data: (data / "cats" / "03.png").write_bytes(b""), "03.png"),
    "held-out garbage": (lambda data: garbage(data / "cats" / "00.png"), "00.png"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", PICTURES)
def test_pictures(made: Make, tmp_path: Path, damage: str, workers: int) -> None:
    data = projects.write_pictures(tmp_path / "data")
    spoil, words = PICTURES[damage]
    spoil(data)
    refused(train_on(made(data="files"), data, "--workers", workers), str(data), words)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: shutil.rmtree(data / "val"), "val"),
        (lambda data: shutil.rmtree(data / "train" / "cats"), "train"),
        (lambda data: (data / "val" / "cats").rename(data / "val" / "birds"), "other classes"),
    ],
)
def test_imagenet(made: Make, tmp_path: Path, spoil: Damage, words: str) -> None:
    projects.write_data(tmp_path, "image-classification", "imagenet")
    spoil(tmp_path / "data")
    result = train(
        made(data="imagenet"), "--data", tmp_path / "data", "--output-dir", tmp_path / "out", check=False
    )
    refused(result, words)


# MNIST and CIFAR-10

LABELS = "train-labels-idx1-ubyte.gz"
IMAGES = "train-images-idx3-ubyte.gz"

IDX: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "is not there"),
    "missing": (lambda data: (data / LABELS).unlink(), LABELS),
    "truncated": (lambda data: truncate(data / IMAGES), IMAGES),
    "garbage": (lambda data: garbage(data / IMAGES), IMAGES),
    "broken stream": (lambda data: scramble_middle(data / IMAGES), IMAGES),
    "zero bytes": (lambda data: (data / IMAGES).write_bytes(b""), IMAGES),
    "a folder": (lambda data: folder_instead(data / IMAGES), IMAGES),
    "not IDX": (lambda data: (data / IMAGES).write_bytes(gzip.compress(b"no pictures here" * 9)), IMAGES),
    "cut IDX": (
        lambda data: (data / IMAGES).write_bytes(
            gzip.compress(gzip.decompress((data / IMAGES).read_bytes())[:-9])
        ),
        IMAGES,
    ),
    "labels for images": (lambda data: shutil.copy(data / LABELS, data / IMAGES), IMAGES),
    "fewer labels": (
        lambda data: (data / LABELS).write_bytes(projects.idx(np.zeros(30))),
        LABELS,
    ),
    "label 200": (lambda data: (data / LABELS).write_bytes(projects.idx(np.full(100, 200))), LABELS),
}


@pytest.mark.parametrize("damage", IDX)
def test_idx(made: Make, tmp_path: Path, damage: str) -> None:
    data = Path(projects.write_data(tmp_path, "image-classification", "mnist")[1])
    spoil, words = IDX[damage]
    spoil(data)
    refused(train_on(made(data="mnist"), data), str(data), words)


CIFAR: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "is not there"),
    "missing": (lambda data: (data / "data_batch_3.bin").unlink(), "data_batch_3.bin"),
    "truncated": (lambda data: truncate(data / "data_batch_3.bin"), "data_batch_3.bin"),
    "garbage": (lambda data: garbage(data / "test_batch.bin"), "test_batch.bin"),
    "zero bytes": (lambda data: (data / "test_batch.bin").write_bytes(b""), "test_batch.bin"),
    "a folder": (lambda data: folder_instead(data / "test_batch.bin"), "test_batch.bin"),
    "label 200": (
        lambda data: (data / "data_batch_3.bin").write_bytes((b"\xc8" + bytes(3072)) * 20),
        "data_batch_3.bin",
    ),
}


@pytest.mark.parametrize("damage", CIFAR)
def test_cifar(made: Make, tmp_path: Path, damage: str) -> None:
    data = Path(projects.write_data(tmp_path, "image-classification", "cifar10")[1])
    spoil, words = CIFAR[damage]
    spoil(data)
    refused(train_on(made(data="cifar10"), data), str(data), words)


# texts

TEXTS: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "is not a folder"),
    "a file": (lambda data: (shutil.rmtree(data), data.touch()), "is not a folder"),
    "no texts": (lambda data: [path.write_bytes(b"") for path in data.iterdir()], "holds no text files"),
    "hidden texts": (
        lambda data: [path.rename(path.with_name(f".{path.name}")) for path in data.iterdir()],
        "holds no text files",
    ),
    "a picture among them": (lambda data: (data / "a.png").write_bytes(b"\x89PNG\0\0"), "a.png is not text"),
    "little to hold out": (
        lambda data: [path.write_bytes(b"abc") for path in sorted(data.iterdir())[::10]],
        "6 bytes held out",
    ),
    "little to train on": (
        lambda data: [path.write_bytes(b"a") for n, path in enumerate(sorted(data.iterdir())) if n % 10],
        "18 bytes to train on",
    ),
}


@pytest.mark.parametrize("damage", TEXTS)
def test_texts(made: Make, tmp_path: Path, damage: str) -> None:
    data = Path(projects.write_data(tmp_path, "language-modeling", "files")[1])
    spoil, words = TEXTS[damage]
    spoil(data)
    refused(train_on(made(task="language-modeling", data="files"), data), str(data), words)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, "No such file"),
        (folder_instead, "Is a directory"),
        (lambda path: path.write_bytes(b"a" * 999), "has 999 bytes"),
    ],
)
def test_enwik8(made: Make, tmp_path: Path, spoil: Damage, words: str) -> None:
    path = Path(projects.write_data(tmp_path, "language-modeling", "enwik8")[1])
    spoil(path)
    refused(train_on(made(task="language-modeling", data="enwik8"), path), str(path), words)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 1, "run.json: No such file"),
        (("--run", "README.md"), 1, "Not a directory"),
        (("--temperature", "-1"), 2, "--temperature"),
        (("--temperature", "nan"), 2, "--temperature"),
        (("--top-p", "1.1"), 2, "--top-p"),
        (("--max-bytes", "0"), 2, "--max-bytes"),
    ],
)
def test_generate_with_bad_options(made: Make, options: tuple[str, ...], code: int, words: str) -> None:
    project = made(task="language-modeling")
    result = projects.run(project, projects.python("generate.py", *options), check=False)
    assert result.code == code and words in result.message
    assert "Traceback" not in result.err


# tables


def rare_classes(path: Path) -> None:
    """Classes of one row each: some are only in the rows held out."""
    frame = projects.table()
    frame["target"] = [f"class {number}" for number in range(len(frame))]
    frame.to_csv(path, index=False)


def changed_table(
    path: Path, column: str, value: object, rows: slice = slice(None), regression: bool = False
) -> None:
    frame = projects.table(regression).astype({column: object})
    frame.loc[frame.index[rows], column] = value
    frame.to_csv(path, index=False)


TABLES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "missing": (Path.unlink, ("is not there",)),
    "a folder": (folder_instead, ("not a CSV",)),
    "zero bytes": (lambda path: path.write_bytes(b""), ("not a CSV",)),
    "garbage": (garbage, ("not a CSV",)),
    "ragged": (lambda path: path.write_text("a,target\n1,2\n1,2,3,4\n" * 9), ("not a CSV",)),
    "no target": (
        lambda path: projects.table().rename(columns={"target": "y"}).to_csv(path),
        ("target", "y"),
    ),
    "gaps in the target": (lambda path: changed_table(path, "target", None, slice(3)), ("3 rows", "target")),
    "one class": (lambda path: changed_table(path, "target", "yes"), ("class",)),
    "too few rows": (lambda path: projects.table(rows=9).to_csv(path), ("9 rows", "at least 10")),
    "header only": (lambda path: projects.table(rows=0).to_csv(path), ("0 rows", "at least 10")),
    "nothing but the target": (
        lambda path: projects.table()[["target"]].to_csv(path, index=False),
        ("column",),
    ),
}

REGRESSION: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "missing": (Path.unlink, ("is not there",)),
    "words as target": (lambda path: projects.table().to_csv(path), ("target", "not numeric")),
    "gaps in the target": (
        lambda path: changed_table(path, "target", None, slice(3), regression=True),
        ("3 rows", "target"),
    ),
    "infinite target": (
        lambda path: changed_table(path, "target", np.inf, slice(3), regression=True),
        ("target",),
    ),
}


@pytest.mark.parametrize("damage", TABLES)
def test_table(made: Make, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "table.csv"
    projects.table().to_csv(path, index=False)
    spoil, words = TABLES[damage]
    spoil(path)
    refused(train_on(made(task="tabular", data="files"), path), str(path), *words)


@pytest.mark.parametrize("damage", REGRESSION)
def test_regression_table(made: Make, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "table.csv"
    projects.table(regression=True).to_csv(path, index=False)
    spoil, words = REGRESSION[damage]
    spoil(path)
    project = made(task="tabular", data="files", features=("regression",))
    refused(train_on(project, path), str(path), *words)


@pytest.mark.parametrize("spoil", [garbage, truncate, folder_instead, Path.unlink])
def test_parquet(made: Make, tmp_path: Path, spoil: Damage) -> None:
    path = tmp_path / "table.parquet"
    projects.table().to_parquet(path)
    spoil(path)
    refused(train_on(made(task="tabular", data="files"), path), str(path))


def test_infinite_numbers(made: Make, tmp_path: Path) -> None:
    path = tmp_path / "inf.csv"
    changed_table(path, "height", np.inf, slice(3), regression=True)
    project = made(task="tabular", data="files", features=("regression",))
    refused(train_on(project, path), "column height has infinite values")


def test_classes_of_one_row(made: Make, tmp_path: Path) -> None:
    """Some are only in the rows held out: refused in one line or trained, but never a traceback."""
    path = tmp_path / "table.csv"
    rare_classes(path)
    result = train_on(made(task="tabular", data="files"), path)
    if result.code:
        refused(result, "target")
    else:
        assert projects.values(tmp_path / "out", "val/accuracy")


def test_unknown_target_column(made: Make, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    projects.table().to_csv(path, index=False)
    result = train_on(made(task="tabular", data="files"), path, "--target", "weight")
    refused(result, "weight", "height", "colour", "target")


WELL_KNOWN: dict[str, Damage] = {
    "missing": Path.unlink,
    "a folder": folder_instead,
    "zero bytes": lambda path: path.write_bytes(b""),
    "garbage": garbage,
    "another table": lambda path: projects.table().to_csv(path),
}


@pytest.mark.parametrize("data", ["adult", "wine-quality"])
@pytest.mark.parametrize("damage", WELL_KNOWN)
def test_well_known_tables(made: Make, tmp_path: Path, data: str, damage: str) -> None:
    features = ("regression",) if data == "wine-quality" else ()
    _, path = projects.write_data(tmp_path, "tabular", data, regression=bool(features))
    WELL_KNOWN[damage](Path(path))
    refused(train_on(made(task="tabular", data=data, features=features), Path(path)), path)


@pytest.mark.parametrize("quality", [None, "good"])
def test_wine_without_grades(made: Make, tmp_path: Path, quality: str | None) -> None:
    _, path = projects.write_data(tmp_path, "tabular", "wine-quality", regression=True)
    frame = pd.read_csv(path, sep=";").astype({"quality": object})
    frame.loc[:3, "quality"] = quality
    frame.to_csv(path, sep=";", index=False)
    project = made(task="tabular", data="wine-quality", features=("regression",))
    refused(train_on(project, Path(path)), path, "quality")


# options

RICH = {
    "hardware": "gpu",
    "precision": "fp16",
    "features": ("grad-accum", "grad-clip", "ema", "early-stopping"),
}
OPTIONS = [
    "--batch-size=0",
    "--batch-size=-3",
    "--batch-size=1.5",
    "--lr=abc",
    "--lr=-1",
    "--lr=nan",
    "--epochs=0",
    "--max-steps=0",
    "--max-steps=-1",
    "--warmup-steps=-1",
    "--weight-decay=-0.1",
    "--seed=-1",
    "--seed=99999999999999999999",
    "--epochs=1.5",
    "--workers=-1",
    "--log-every=0",
    "--checkpoint-every=0",
]
RICH_OPTIONS = ["--grad-accum=0", "--clip-grad=-1", "--ema-decay=-0.5", "--ema-decay=1.5", "--patience=0"]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("task", ["image-classification", "tabular"])
def test_option(made: Make, tmp_path: Path, task: str, option: str) -> None:
    options = ["--max-steps", 1, "--output-dir", tmp_path / "out", option]
    result = train(made(task=task), *options, check=False)
    refused(result, option.partition("=")[0])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", RICH_OPTIONS)
def test_option_of_a_feature(made: Make, tmp_path: Path, option: str) -> None:
    options = [option, "--output-dir", tmp_path / "out", "--max-steps", 1]
    refused(train(made(**RICH), *options, check=False), option.partition("=")[0])


def test_unknown_option(made: Make) -> None:
    refused(train(made(), "--learning-rate", "1", check=False), "--learning-rate")


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
@pytest.mark.parametrize("device", ["cuda:63", "warp", "hpu", "meta", ""])
def test_device(made: Make, tmp_path: Path, hardware: str, device: str) -> None:
    project = made(hardware=hardware, precision="fp32")
    refused(train(project, "--device", device, "--output-dir", tmp_path / "out", check=False), "--device")


@over_ranks
def test_one_device_for_all_processes(made: Make, tmp_path: Path, distributed: str) -> None:
    """The launcher says which process takes which."""
    project = made(hardware="gpu", precision="fp32", distributed=distributed)
    options = ["--device", "cpu:0", "--output-dir", tmp_path / "out"]
    for result in train_ranks(project, *options, check=False):
        refused(result, "--device")


# output directories


@pytest.mark.parametrize("place", ["out", "out/checkpoints", "out/run"])
def test_a_file_in_the_way(made: Make, tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("")
    output_dir = tmp_path / "out" / "run" if place == "out/run" else tmp_path / "out"
    refused(train(made(), "--output-dir", output_dir, "--max-steps", 1, check=False), str(output_dir))


def test_a_file_above_in_the_way(made: Make, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    output_dir = tmp_path / "out" / "run"
    refused(train(made(), "--output-dir", output_dir, "--max-steps", 1, check=False), str(output_dir))


@pytest.mark.parametrize("left", ["step-00000002.pt", "best.pt"])
def test_second_start_without_resume(made: Make, tmp_path: Path, left: str) -> None:
    options = ["--output-dir", tmp_path, "--max-steps", 2]
    train(made(), *options)
    (tmp_path / "checkpoints" / "step-00000002.pt").rename(tmp_path / "checkpoints" / left)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused(train(made(), *options, check=False), str(tmp_path), "--resume", "--output-dir")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_resume_with_another_architecture(tmp_path: Path) -> None:
    project = render(tmp_path / "demo")
    train(project, "--max-steps", 2)
    edit(project / "model.py", "(32, 64, 128)", "(32, 64, 64)")
    before = projects.checkpoints(project / "runs" / "demo")[0].read_bytes()
    refused(train(project, "--max-steps", 4, "--resume", check=False), "does not fit", "model")
    assert projects.checkpoints(project / "runs" / "demo")[0].read_bytes() == before


def test_resume_with_fewer_parts(tmp_path: Path) -> None:
    """A run of a project without EMA cannot go on in one with it."""
    train(render(tmp_path / "plain"), "--max-steps", 2, "--output-dir", tmp_path / "out")
    project = render(tmp_path / "ema", features=("ema",))
    options = ["--max-steps", 4, "--output-dir", tmp_path / "out", "--resume"]
    refused(train(project, *options, check=False), "does not fit", "ema")


# processes


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_distributed_without_torchrun(made: Make, tmp_path: Path, hardware: str) -> None:
    project = made(hardware=hardware, distributed="ddp", precision="fp32")
    options = ["--device", "cpu", "--output-dir", tmp_path / "out"]
    refused(train(project, *options, check=False), "torchrun --standalone --nproc-per-node")
    assert not (tmp_path / "out").exists()


def test_distributed_bad_data(made: Make, tmp_path: Path) -> None:
    """torchrun adds a report of its own; the program's part of it is the one line."""
    project = made(data="files", distributed="ddp")
    command = projects.torchrun("train.py", "--data", tmp_path / "none", "--output-dir", tmp_path / "out")
    result = projects.run(project, command, check=False)
    assert result.code != 0
    assert f"{tmp_path / 'none'} is not a folder" in result.err
    assert 'train.py", line' not in result.err, result.err


# loss that is not finite

STEP_10 = ["--max-steps", 10, "--checkpoint-every", 5]
PRECISIONS = [
    ("fp32", ()),
    ("fp32", ("grad-accum",)),
    ("fp32", ("grad-clip", "ema")),
    ("bf16", ("grad-accum",)),
    ("fp16", ()),
    ("fp16", ("grad-accum",)),
    ("fp16", ("grad-accum", "grad-clip", "ema")),
]


def diverge(project: Path, output_dir: Path, log_every: int) -> None:
    """Ten good steps, then a learning rate at which nothing stays finite; the checkpoints must survive it."""
    fixed = ["--output-dir", output_dir, "--device", "cpu", "--batch-size", 8, "--log-every", log_every]
    train(project, *fixed, *STEP_10)
    before = {path: path.read_bytes() for path in projects.checkpoints(output_dir)}
    assert len(before) == 2
    ruin = ["--resume", "--lr", "1e30", "--max-steps", 40, "--checkpoint-every", 15]
    refused(train(project, *fixed, *ruin, check=False), "finite" if log_every > 1 else "", "--lr")
    assert before == {path: path.read_bytes() for path in projects.checkpoints(output_dir)}
    assert all(projects.all_finite(path) for path in (output_dir / "checkpoints").iterdir())
    for row in projects.metrics(output_dir):
        assert np.isfinite(list(row.values())).all()


@pytest.mark.parametrize(("precision", "features"), PRECISIONS)
@pytest.mark.parametrize("task", ["image-classification", "tabular"])
def test_loss_not_finite(
    made: Make, tmp_path: Path, task: str, precision: str, features: tuple[str, ...]
) -> None:
    hardware = "gpu" if precision == "fp16" else "cpu"
    project = made(task=task, hardware=hardware, precision=precision, features=features)
    diverge(project, tmp_path, log_every=1)


@pytest.mark.parametrize("task", ["image-classification", "tabular"])
def test_parameters_not_finite_between_log_lines(made: Make, tmp_path: Path, task: str) -> None:
    diverge(made(task=task), tmp_path, log_every=10)


def test_first_step_not_finite(made: Make, tmp_path: Path) -> None:
    options = ["--output-dir", tmp_path, "--lr", "1e38", "--max-steps", 20, "--checkpoint-every", 1]
    refused(train(made(task="tabular"), *options, check=False), "step", "--lr")
    assert all(projects.all_finite(path) for path in projects.checkpoints(tmp_path))


@pytest.mark.parametrize("task", ["image-classification", "tabular"])
def test_loss_not_finite_with_workers(made: Make, tmp_path: Path, task: str) -> None:
    options = ["--output-dir", tmp_path, "--lr", "1e38", "--max-steps", 20, "--workers", 2]
    refused(train(made(task=task), *options, check=False, timeout=60), "step", "--lr")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_ones_own_ends_the_run(tmp_path: Path, workers: int) -> None:
    """What people break in the loop is a traceback, not a process that waits for its workers."""
    project = render(tmp_path / "demo")
    edit(project / "train.py", "        optimizer.step()\n", "        optimizer.step()\n        1 / step\n")
    result = train(project, "--workers", workers, "--max-steps", 9, check=False, timeout=60)
    assert result.code == 1
    assert result.message == "ZeroDivisionError: division by zero"


# do these tests see it when the rule is broken?


def test_control_traceback(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", data="files")
    edit(project / "train.py", "except DataError", "except ZeroDivisionError")
    result = train(project, "--data", tmp_path / "none", check=False)
    with pytest.raises(AssertionError, match="Traceback"):
        refused(result)


def test_control_finite(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "train.py", "        check_finite(metrics, step)\n", "")
    edit(project / "train.py", "            check_parameters(model, step)\n", "")
    with pytest.raises(AssertionError):
        diverge(project, tmp_path / "out", log_every=1)


def test_control_parameters(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "train.py", "            check_parameters(model, step)\n", "")
    with pytest.raises(AssertionError):
        diverge(project, tmp_path / "out", log_every=10)


def test_control_second_start(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "train.py", " and not args.resume:", " and args.resume:")
    train(project, "--max-steps", 2)
    with pytest.raises(AssertionError):
        refused(train(project, "--max-steps", 2, check=False))
