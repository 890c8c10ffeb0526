"""What is special in language modeling: prepared shards, bits per byte, and how its speed is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Make
from tests.projects import drive, edit, metrics, python, render, run, small_options, train

PREPARED = {"task": "language-modeling", "data": "shards"}
SIZES = ["--context", 32, "--heads", 1, "--depth", 2, "--batch-size", 8]
TEXT = "# ünïcödé\n\n" + "".join(f"def function_{i % 7}(x):\n    return x + {i}\n" for i in range(400))


def texts(folder: Path) -> list[str]:
    """Two folders of texts, as prepare.py is given them."""
    for split, count in (("train", 3), ("val", 1)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            (folder / split / f"{number}.txt").write_text(TEXT, encoding="utf-8")
    return [str(folder / "train"), str(folder / "val")]


def prepare(project: Path, folder: Path, *options: object, check: bool = True) -> str:
    words = ["prepare.py", *texts(folder), "--output-dir", folder / "data", *options]
    return run(project, python(*words), check=check).message


def test_prepared_trained_and_continued(made: Make, tmp_path: Path) -> None:
    project = made(**PREPARED)
    prepare(project, tmp_path, "--vocab-size", 400)
    meta = json.loads((tmp_path / "data" / "meta.json").read_text())
    assert meta["val"]["num_bytes"] == len(TEXT.encode())
    out = tmp_path / "out"
    options = [*SIZES, "--epochs", 2, "--lr", 1e-2, "--eval-every", 20, "--data", tmp_path / "data"]
    train(project, *options, "--output-dir", out)
    found = [row for row in metrics(out) if "val/loss" in row]
    assert found[-1]["val/bits_per_byte"] < found[0]["val/bits_per_byte"] < 8
    words = ["generate.py", "--run", out, "--prompt", "def ", "--max-tokens", 20, "--temperature", 0]
    assert run(project, python(*words)).out.startswith("def ")


def bits_and_loss(project: Path, place: Path, vocab_size: int) -> tuple[float, float]:
    prepare(project, place, "--vocab-size", vocab_size)
    options = [*SIZES, "--lr", 0, "--epochs", 1, "--data", place / "data", "--output-dir", place / "out"]
    train(project, *options)
    last = metrics(place / "out")[-1]
    return last["val/bits_per_byte"], last["val/loss"]


def test_bits_are_those_of_bytes(made: Make, tmp_path: Path) -> None:
    """An untrained model spends log2(vocabulary) bits on each token; there are fewer tokens than bytes."""
    for vocab_size in (257, 400):
        bits, loss = bits_and_loss(made(**PREPARED), tmp_path / str(vocab_size), vocab_size)
        shard = tmp_path / str(vocab_size) / "data" / "val-00000.bin"
        targets = shard.stat().st_size / 2 - 1  # the first token is no target
        assert bits == pytest.approx(loss / 0.6931472 * targets / len(TEXT.encode()), rel=1e-5)
        assert (targets == len(TEXT.encode())) == (vocab_size == 257)


PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
from data import build_datasets
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
train, val = build_datasets(Path(sys.argv[1]), 128)
train[np.arange(64) * (len(train) // 64)]
print(peak() - before)
"""


def large_shards(folder: Path) -> None:
    """Two shards of a GiB each to train on, one to validate on."""
    for name in ("train-00000.bin", "train-00001.bin", "val-00000.bin"):
        with (folder / name).open("wb") as file:
            file.truncate(2**30)  # of zeros, which take no place on the disk
    splits = {
        split: {"shards": number, "num_tokens": number * 2**29, "num_bytes": 9}
        for split, number in (("train", 2), ("val", 1))
    }
    (folder / "meta.json").write_text(json.dumps({"vocab_size": 50} | splits))
    (folder / "tokenizer.json").write_text("{}")


def grown(project: Path, folder: Path) -> int:
    """By how many MiB a process grows that reads from them."""
    large_shards(folder)
    return int(drive(project, PEAK, folder))


def test_shards_are_not_read_whole(made: Make, tmp_path: Path) -> None:
    assert grown(made(**PREPARED), tmp_path) < 200


@pytest.mark.heavy
def test_control_shards_are_not_read_whole(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **PREPARED)
    edit(project / "data.py", 'np.memmap(path, np.uint16, "r")', "np.fromfile(path, np.uint16)")
    assert grown(project, tmp_path) > 1000


def no_meta(folder: Path) -> None:
    (folder / "meta.json").unlink()


def bad_meta(folder: Path) -> None:
    (folder / "meta.json").write_text('{"vocab_size"')


def old_meta(folder: Path) -> None:
    (folder / "meta.json").write_text('{"vocab_size": 5}')


def no_shard(folder: Path) -> None:
    (folder / "train-00001.bin").unlink()


def half_a_shard(folder: Path) -> None:
    with (folder / "train-00001.bin").open("r+b") as file:
        file.truncate(2**29)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (half_a_shard, "is damaged: prepare.py writes another"),
        (no_meta, "meta.json: No such file or directory; prepare.py writes what is needed"),
        (bad_meta, "is damaged: prepare.py writes another"),
        (old_meta, "is damaged: prepare.py writes another"),
        (no_shard, "train-00001.bin: No such file or directory; prepare.py writes what is needed"),
    ],
)
def test_damaged_shards(made: Make, tmp_path: Path, damage: object, words: str) -> None:
    project = made(**PREPARED)
    large_shards(tmp_path)
    assert callable(damage)
    damage(tmp_path)
    result = train(project, "--data", tmp_path, "--output-dir", tmp_path / "out", check=False)
    assert result.code == 1 and result.message.endswith(words)


def test_what_cannot_be_prepared(made: Make, tmp_path: Path) -> None:
    project = made(**PREPARED)
    prepare(project, tmp_path / "twice")
    words = ["prepare.py", tmp_path / "twice" / "train", tmp_path / "twice" / "val"]

    def message(*options: object) -> str:
        result = run(project, python(*words, *options), check=False)
        assert result.code == 1
        return result.message

    assert "is there already" in message("--output-dir", tmp_path / "twice" / "data")
    (tmp_path / "twice" / "val" / "0.txt").write_bytes(b"\xff\xfe")
    assert message("--output-dir", tmp_path / "new").endswith("is not text in UTF-8: invalid start byte")
    assert list(tmp_path.glob("new.partial/train-*.bin")) and not (tmp_path / "new").exists()
    (tmp_path / "twice" / "val" / "0.txt").write_text(TEXT, encoding="utf-8")
    assert run(project, python(*words, "--output-dir", tmp_path / "new")).code == 0
    assert (tmp_path / "new" / "meta.json").exists() and not (tmp_path / "new.partial").exists()
    (tmp_path / "twice" / "val" / "0.txt").unlink()
    assert message("--output-dir", tmp_path / "other").endswith("val holds no text files")
    assert not (tmp_path / "other").exists()


def test_other_tokens_are_refused(made: Make, tmp_path: Path) -> None:
    """A run goes on with its own tokens, and is continued with them, whatever else was prepared since."""
    project = made(**PREPARED)
    out = tmp_path / "out"
    prepare(project, tmp_path, "--vocab-size", 300)
    options = [*SIZES, "--eval-every", 2, "--output-dir", out, "--data", tmp_path / "data"]
    train(project, *options, "--max-steps", 2)
    train(project, *options, "--max-steps", 4, "--resume")
    tokenizer, kept = tmp_path / "data" / "tokenizer.json", out / "tokenizer.json"
    assert kept.read_bytes() == tokenizer.read_bytes() and not list(out.glob("*.partial"))
    kept.chmod(0o444)
    before = kept.stat()
    train(project, *options, "--max-steps", 4, "--resume")
    assert kept.stat().st_mtime_ns == before.st_mtime_ns, "what is written anew can be lost"
    tokenizer.write_text(tokenizer.read_text().replace("<|start|>", "<|begin|>"))
    result = train(project, *options, "--max-steps", 6, "--resume", check=False)
    assert result.code == 1 and "is not what this run began with" in result.message
    (tmp_path / "data").rename(tmp_path / "gone")
    assert run(project, python("generate.py", "--run", out, "--max-tokens", 3)).code == 0


# What PyTorch counts itself, in two passes over the model (forward, and backward for weights and inputs).
FLOPS = """
import sys
import torch
from torch.utils.flop_counter import FlopCounterMode
from model import Transformer
from train import compute_loss
model = Transformer(257, heads=2, depth=3)
tokens = torch.randint(0, 256, (1, 96))
with FlopCounterMode(display=False) as counted:
    compute_loss(model, (tokens, tokens), torch.device("cpu")).backward()
print(counted.get_total_flops() / 96 / model.flops_per_token(96))
"""


def test_flops_are_those_that_pytorch_counts(made: Make) -> None:
    project = made(task="language-modeling", features=("throughput",))
    assert float(drive(project, FLOPS)) == pytest.approx(1, abs=0.1)


def test_speed(made: Make, tmp_path: Path) -> None:
    project = made(task="language-modeling", features=("throughput",))
    options = [*small_options("language-modeling"), "--max-steps", 30, "--output-dir", tmp_path]
    train(project, *options, "--peak-tflops", 0.5)
    rows = metrics(tmp_path)
    assert all(row["speed/tokens_per_second"] > 0 for row in rows)
    assert {row["speed/tokens_per_second"] / row["speed/examples_per_second"] for row in rows} == {32}
    shares = {round(row["speed/mfu"] / row["speed/tokens_per_second"], 12) for row in rows}
    assert len(shares) == 1 and shares.pop() > 0
