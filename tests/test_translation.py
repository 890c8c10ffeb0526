"""Translation: dates are what they say, decoding and metrics are right, what users give is checked."""

from __future__ import annotations

import datetime
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests import projects
from tests.conftest import Make
from tests.projects import (
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

TASK = {"task": "translation"}
SMALL = small_options("translation")

PAIRS = """
import json, sys
from pathlib import Path
from data import build_datasets, decode
sets = build_datasets(*map(Path, sys.argv[1:]))
print(json.dumps([
    [[decode(row.tolist()) for row in rows] for rows in (part.sources, part.targets)] for part in sets
]))
"""


def pairs(project: Path, *data: Path) -> list[list[tuple[str, str]]]:
    """The texts of the two sets."""
    return [list(zip(*columns, strict=True)) for columns in json.loads(drive(project, PAIRS, *data))]


def day_of(text: str) -> datetime.date | None:
    """What date a text says, to Python's own reader."""
    words = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
    words += ["eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth"]
    words += ["eighteenth", "nineteenth"]
    words += ["twentieth", *(f"twenty-{word}" for word in words[:9]), "thirtieth", "thirty-first"]
    text = text.lower()
    if named := re.match(r"the ([a-z-]+) of (.*)", text):
        text = f"{words.index(named[1]) + 1} {named[2]}"
    text = re.sub(r"(\d)(st|nd|rd|th)\b", r"\1", text)
    if two := re.search(r"'(\d\d)$", text):
        century = 19 if int(two[1]) >= 50 else 20
        text = f"{text[:-3]}{century}{two[1]}"
    for form in ("%d %B, %Y", "%A, %B %d, %Y", "%d %B %Y", "%b %d %Y", "%a %d %b %Y", "%d.%m.%Y", "%m/%d/%Y"):
        try:
            return datetime.datetime.strptime(text, form).date()
        except ValueError:
            continue
    return None


def wrong_dates(project: Path) -> list[tuple[str, str]]:
    return [pair for part in pairs(project) for pair in part if str(day_of(pair[0])) != pair[1]]


def test_dates_are_what_they_say(made: Make) -> None:
    project = made(**TASK)
    assert wrong_dates(project) == []
    train_set, val_set = pairs(project)
    assert len(train_set) == 10_000 and len(val_set) == 500
    assert not {day for _, day in train_set} & {day for _, day in val_set}


def test_control_dates(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **TASK)
    edit(project / "data.py", "{number}.{day.month}", "{day.month}.{number}")
    assert wrong_dates(project)


# What is broken in the decoding, and the project's own test that notices.
BREAKS = {
    "padding": ("model.py", "*cache.source, mask)", "*cache.source, mask | True)"),
    "caches": ("model.py", "mask is None and x.shape[1] > 1", "False"),
    "wide_beam": ("search.py", "parents[alive]", "alive % 1"),
}
MORE_BREAKS = {
    "caches": ("model.py", "self.embed(tokens, start)", "self.embed(tokens)"),
    "wide_beam": ("search.py", "((5 + length) / 6) ** length_penalty", "1"),
    "beam_of_one": ("search.py", "following[:beam] == END", "following == END"),
}
heavy = [pytest.param(*item, marks=pytest.mark.heavy) for item in MORE_BREAKS.items()]


@pytest.mark.parametrize(("test", "broken"), [*BREAKS.items(), *heavy])
def test_control_own_tests_notice(tmp_path: Path, test: str, broken: tuple[str, str, str]) -> None:
    file, old, new = broken
    project = render(tmp_path / "demo", **TASK)
    edit(project / file, old, new)
    command = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_search.py")
    result = run(project, command, check=False)
    assert re.search(rf"FAILED .*{test}", result.out), result.out


EVALUATION = """
import json, sys
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
import train
from torch.utils.data import DataLoader
from torchmetrics.text import CHRFScore
from data import PAD, build_datasets, decode, encode, ordered_batches
from model import Transformer

torch.manual_seed(0)
_, val_set = build_datasets(Path(sys.argv[1]))
model = Transformer(val_set.vocab_size, heads=1, depth=1, dropout=0.5).eval()
wanted = [decode(row.tolist()) for row in val_set.targets]
said = [text if number % 3 else text[1:] for number, text in enumerate(wanted)]  # two of three are right
answers = iter(said)

def answer(model, source, max_length):
    rows = [encode(next(answers)) for _ in source]
    return torch.tensor([row + [PAD] * (max_length - len(row)) for row in rows])

train.greedy = answer
losses = []
for number in range(len(val_set)):  # one after the other, so that nothing is padded for another
    source, tokens, targets = val_set[np.array([number])]
    every = F.cross_entropy(model(source, tokens)[0], targets[0], reduction="none")
    losses += every[targets[0] != PAD].tolist()
chrf = CHRFScore()
chrf.update(said, [[text] for text in wanted])
loader = DataLoader(val_set, batch_size=None, sampler=ordered_batches(len(val_set), 4))
found = train.evaluate(model, loader, torch.device("cpu"), Path(sys.argv[2]))
expected = {
    "val/loss": np.mean(losses),
    "val/exact_match": np.mean([one == other for one, other in zip(said, wanted)]),
    "val/chrf": chrf.compute().item(),
}
print(json.dumps([found, expected]))
"""


def test_metrics_are_those_of_single_examples(made: Make, tmp_path: Path) -> None:
    data = write_data(tmp_path, "translation", "files")[1]
    found, expected = json.loads(
        drive(made(**TASK, data="files"), EVALUATION, data, tmp_path / "picture.png")
    )
    assert 0.5 < expected["val/exact_match"] < 0.8
    assert found == pytest.approx(expected, rel=1e-5)


def test_control_metrics(tmp_path: Path) -> None:
    """Smoothed targets give another loss, a mean of batches too."""
    data = write_data(tmp_path, "translation", "files")[1]
    project = render(tmp_path / "demo", **TASK, data="files")
    edit(project / "train.py", "smoothing=0.0", "smoothing=SMOOTHING")
    found, expected = json.loads(drive(project, EVALUATION, data, tmp_path / "picture.png"))
    assert found["val/loss"] != pytest.approx(expected["val/loss"], rel=1e-3)


@pytest.mark.parametrize("distributed", ["ddp", pytest.param("fsdp", marks=pytest.mark.heavy)])
def test_two_processes_have_the_same_metrics(made: Make, tmp_path: Path, distributed: str) -> None:
    """Also where one has nothing to translate in its last batch."""
    options = [
        *write_data(tmp_path, "translation", "files"),
        *SMALL,
        "--epochs",
        8,
        "--lr",
        0.01,
        "--warmup-steps",
        0,
    ]
    rows = []
    for ranks in (0, 2):
        project = made(**TASK, data="files", distributed=distributed if ranks else "none")
        place = tmp_path / str(ranks)
        batch = ["--batch-size", 8 // (ranks or 1), "--output-dir", place]
        train_ranks(project, *options, *batch, ranks=ranks, first=few_examples(33))
        rows.append([values(place, name) for name in ("val/loss", "val/exact_match", "val/chrf")])
    assert rows[0] == [pytest.approx(row, rel=1e-3) for row in rows[1]]
    assert rows[0][2].popitem()[1] > 0.01
    assert Image.open(next((tmp_path / "2" / "pictures").iterdir())).size > (28, 28)


GREEDY = """
import sys
import torch
from data import Pairs, decode, encode
from model import Transformer
from search import greedy

model = Transformer(Pairs.vocab_size, heads=1, depth=1, dropout=0.0).eval()
model.load_state_dict(torch.load(sys.argv[1], weights_only=True)["model"])
for text in sys.argv[2:]:
    print(decode(greedy(model, torch.tensor([encode(text)]), 300)[0].tolist()))
"""


@pytest.mark.heavy
def test_translates_with_the_best_model(made: Make, tmp_path: Path) -> None:
    """Lines of the command line and of standard input; a beam of one is what evaluation does."""
    project = made(**TASK, data="files")
    options = [*write_data(tmp_path, "translation", "files"), *SMALL, "--batch-size", 8]
    train(
        project, *options, "--epochs", 8, "--lr", 0.01, "--warmup-steps", 0, "--output-dir", tmp_path / "out"
    )
    lines = ["two three", "one"]
    expected = drive(project, GREEDY, tmp_path / "out" / "checkpoints" / "best.pt", *lines)
    command = python("translate.py", "--run", tmp_path / "out", "--beam", 1)
    assert run(project, [*command, *lines]).out == expected
    (tmp_path / "lines").write_text("\n".join(lines))
    with (tmp_path / "lines").open() as file, projects.started(project, command, stdin=file) as process:
        assert process.communicate(timeout=60)[0] == expected
    missing = run(project, python("translate.py", "--run", tmp_path / "none"), check=False)
    refused(missing, "none/run.json", "--run names a run")


def test_what_is_read_of_a_file(made: Make, tmp_path: Path) -> None:
    """A third column, a byte order mark, carriage returns, long sentences, sources with two translations."""
    lines = [f"source {number}\ttarget {number}\tby someone" for number in range(40)]
    lines += ["source 0\tanother", "source 1\tanother", "", "x" * 513 + "\ttoo long", "ä \t ö "]
    (tmp_path / "pairs.tsv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    train_set, val_set = pairs(made(**TASK, data="files"), tmp_path / "pairs.tsv")
    every = [(f"source {number}", f"target {number}") for number in range(40)]
    assert val_set == [*every[::10], ("source 0", "another"), ("ä", "ö")]
    held_out = {source for source, _ in val_set}
    assert train_set == [*(pair for pair in every if pair[0] not in held_out), ("source 1", "another")]


def test_at_most_a_thousand_sources_are_held_out(made: Make, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("".join(f"{number}\t{number}\n" for number in range(25_000)))
    train_set, val_set = pairs(made(**TASK, data="files"), tmp_path / "pairs.tsv")
    assert len(val_set) == 1000 and len(train_set) == 24_000


FILES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda data: data.unlink(), "cannot be read: No such file"),
    "a folder": (lambda data: (data.unlink(), data.mkdir()), "cannot be read: Is a directory"),
    "garbage": (garbage, "is not UTF-8 text"),
    "empty": (lambda data: data.write_text(""), "has 0 sources"),
    "one source": (lambda data: data.write_text("one\teins\none\teine\n"), "has 1 sources"),
    "no tab": (lambda data: data.write_text("one\teins\ntwo zwei\n"), "line 2: it should be"),
    "no translation": (lambda data: data.write_text("one\teins\n\ntwo\t \n"), "line 3: it should be"),
}
MULTI30K: dict[str, tuple[Damage, str]] = {
    "missing": (shutil.rmtree, "train.en cannot be read"),
    "a file fewer": (lambda data: (data / "val.de").unlink(), "val.de cannot be read"),
    "a line fewer": (lambda data: (data / "val.de").write_text("eins\n"), "have 10 and 1 lines"),
    "no lines": (
        lambda data: [(data / f"val.{end}").write_text("") for end in ("en", "de")],
        "hold no sentences",
    ),
    "garbage": (lambda data: garbage(data / "train.de"), "train.de is not UTF-8"),
}
DAMAGES = {("files", name): how for name, how in FILES.items()} | {
    ("multi30k", name): how for name, how in MULTI30K.items()
}


@pytest.mark.parametrize(("source", "damage"), DAMAGES)
def test_bad_data(made: Make, tmp_path: Path, source: str, damage: str) -> None:
    data = Path(write_data(tmp_path, "translation", source)[1])
    spoil, words = DAMAGES[source, damage]
    spoil(data)
    refused(train_on(made(**TASK, data=source), data, *SMALL), str(data), words)


@pytest.mark.parametrize("options", [("--heads", 0), ("--depth", 0), ("--dropout", 1.5)])
def test_bad_sizes(made: Make, tmp_path: Path, options: tuple[object, ...]) -> None:
    result = train(made(**TASK), *options, "--output-dir", tmp_path, check=False)
    refused(result, str(options[0]))
