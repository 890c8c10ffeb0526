"""Forecasting: the future is not known before, metrics are the known ones, gradients are truncated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests import projects
from tests.conftest import Make
from tests.guarantees.harness import killed
from tests.guarantees.test_every_task import FEW, KILLED, given, one_and_two
from tests.projects import (
    catalog,
    drive,
    edit,
    few_examples,
    render,
    same_run,
    small_options,
    train,
    train_ranks,
    values,
    write_data,
)
from tests.test_project_bad_input import Damage, refused, train_on

TASK = {"task": "forecasting"}
LSTM = TASK | {"features": ("lstm",)}
SOURCES = list(catalog().task("forecasting").sources)

# Series whose values are their own times.
SPLIT = """
import json
import numpy as np
from data import split_into_sets
series = {"a": (np.arange(100.0), np.arange(100.0, 130)), "b": (np.arange(50.0), np.arange(50.0, 70))}
found = []
for part, of_a in zip(split_into_sets(series, 24, 6, 12), (71, 25)):
    context, target, mean, std, scale = (x.numpy() for x in part[np.arange(len(part))])
    times = np.hstack([context, target]) * std + mean
    assert (np.abs(np.diff(times, axis=1) - 1) < 1e-3).all() and (scale == 12).all()
    forecast = [times[rows, 24:].round() for rows in (slice(of_a), slice(of_a, None))]
    found.append([len(part), *(int(end) for times in forecast for end in (times.min(), times.max()))])
print(json.dumps(found))
"""


def test_what_is_held_out_comes_after_all_that_is_trained_on(made: Make) -> None:
    """Every value held out is forecast, and none of them is in training."""
    train_part, held_out = json.loads(drive(made(**TASK), SPLIT))
    assert train_part == [71 + 21, 24, 99, 24, 49]
    assert held_out == [25 + 15, 100, 129, 50, 69]


# The same set twice, the second with another future.
BLIND = """
import numpy as np
from data import split_into_sets
past, future = np.sin(np.arange(60.0)), np.cos(np.arange(6.0))
found = [split_into_sets({"a": (past, rest)}, 24, 6, 12)[1][np.array([0])] for rest in (future, 9 * future)]
print([bool((one == other).all()) for one, other in zip(*found)])
"""


def test_the_past_knows_nothing_of_the_future(made: Make) -> None:
    """Context, mean, std and the metric's scale; the target alone is another."""
    assert drive(made(**TASK), BLIND) == "[True, False, True, True, True]\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("std = np.maximum(context.std(", "std = np.maximum(stretch.std("),
        ("np.abs(train[season:] - train[:-season]).mean() for train, _ in", "rest.std() for _, rest in"),
    ],
)
def test_control_the_past_knows_nothing(tmp_path: Path, old: str, new: str) -> None:
    project = render(tmp_path / "demo", **TASK)
    edit(project / "data.py", old, new)
    assert drive(project, BLIND) != "[True, False, True, True, True]\n"


# The metrics of a network that repeats the last value, by their definitions and from the file.
METRICS = """
import csv, sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from data import build_datasets, ordered_batches
from train import evaluate

class Last(nn.Module):
    def forward(self, context):
        return context[:, -1:].expand(-1, 12)

table = {}
for name, _, *months in list(csv.reader(open("monthly.csv")))[1:]:
    table.setdefault(name, []).extend(map(float, months))
mase, smape = [], []
for series in table.values():
    end = len(series) - 36
    naive = sum(abs(series[t] - series[t - 12]) for t in range(12, end)) / (end - 12)
    for start in range(end, len(series) - 11):
        last, truth = series[start - 1], series[start : start + 12]
        mase.append(sum(abs(last - y) for y in truth) / 12 / naive)
        smape.append(sum(200 * abs(last - y) / (abs(last) + abs(y)) for y in truth) / 12)
_, val_set = build_datasets(36, 12, 12)
loader = DataLoader(val_set, batch_size=None, sampler=ordered_batches(len(val_set), 7))
found = evaluate(Last(), loader, torch.device("cpu"), Path(sys.argv[1]))
print(np.allclose([found["val/mase"], found["val/smape"]], [np.mean(mase), np.mean(smape)], rtol=1e-4))
"""


def test_metrics_are_the_known_ones(made: Make, tmp_path: Path) -> None:
    assert drive(made(**TASK), METRICS, tmp_path / "picture.png") == "True\n"
    assert Image.open(tmp_path / "picture.png").size == (640, 8 * 120)


def test_control_metrics(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **TASK)
    edit(
        project / "data.py",
        "return Stretches(whole, scales, context, horizon), Stretches(ends, scales,",
        "one = [1] * 4\n    return Stretches(whole, one, context, horizon), Stretches(ends, one,",
    )
    assert drive(project, METRICS, tmp_path / "picture.png") == "False\n"


# Whether the pieces say what the whole says, and how far back a forecast's gradient goes.
BPTT = """
import torch
from model import LSTM
torch.manual_seed(0)
model = LSTM(horizon=3, width=8, depth=2, bptt=5)
context = torch.randn(2, 12, requires_grad=True)
pieces = model(context)
pieces[:, 6].sum().backward()
model.bptt = 12
print(torch.allclose(pieces, model(context), atol=1e-6), context.grad[0].nonzero().flatten().tolist())
"""


def test_gradients_are_truncated_and_the_state_is_not(made: Make) -> None:
    assert drive(made(**LSTM), BPTT) == "True [5, 6]\n"


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("part.detach() for part", "part for part", "True [0, 1, 2, 3, 4, 5, 6]\n"),
        ("self.lstm(chunk, state)", "self.lstm(chunk)", "False [5, 6]\n"),
    ],
)
def test_control_truncated(tmp_path: Path, old: str, new: str, found: str) -> None:
    project = render(tmp_path / "demo", **LSTM)
    edit(project / "model.py", old, new)
    assert drive(project, BPTT) == found


@pytest.mark.parametrize("distributed", ["ddp", pytest.param("fsdp", marks=pytest.mark.heavy)])
def test_lstm_over_ranks(made: Make, tmp_path: Path, distributed: str) -> None:
    gaps = one_and_two(made(**LSTM), made(**LSTM, distributed=distributed), "forecasting", tmp_path)
    assert max(gap for row in gaps for gap in row.values()) < 1e-3


@pytest.mark.parametrize(
    ("distributed", "ranks"),
    [("none", 0), *(pytest.param(name, 2, marks=pytest.mark.heavy) for name in ("ddp", "fsdp"))],
)
def test_lstm_resumes(made: Make, tmp_path: Path, distributed: str, ranks: int) -> None:
    project = made(**LSTM, distributed=distributed)
    whole, parts = (given("forecasting", tmp_path / name, 8 // (ranks or 1)) for name in ("whole", "parts"))
    train_ranks(project, *whole, ranks=ranks, first=FEW)
    assert killed(project, *parts, ranks=ranks, first=FEW + KILLED)
    train_ranks(project, *parts, "--resume", ranks=ranks, first=FEW)
    assert same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.heavy
@pytest.mark.parametrize("distributed", ["none", "ddp", "fsdp"])
@pytest.mark.parametrize(("features", "precision"), [((), "bf16"), ((), "fp16"), (("lstm",), "bf16")])
def test_16_bits(tmp_path: Path, features: tuple[str, ...], precision: str, distributed: str) -> None:
    """The last batches of an evaluation are empty for one of two processes."""
    project = render(
        tmp_path / "demo", **TASK, features=features, precision=precision, distributed=distributed
    )
    options = [*small_options("forecasting"), "--batch-size", 4, "--epochs", 2]
    train_ranks(project, *options, ranks=0 if distributed == "none" else 2, first=few_examples(9))
    assert len(values(project / "runs" / "demo", "val/mase")) == 2


@pytest.mark.heavy
@pytest.mark.parametrize("data", SOURCES)
def test_own_tests_pass_with_lstm(tmp_path: Path, data: str) -> None:
    project = render(tmp_path / "demo", **LSTM, data=data)
    result = projects.run(project, projects.python("-m", "pytest", "-q"), timeout=400, check=False)
    assert result.code == 0, result.out + result.err


def test_the_table_comes_with_the_sample_alone(made: Make) -> None:
    assert [(made(**TASK, data=data) / "monthly.csv").exists() for data in SOURCES] == [
        data == "sample" for data in SOURCES
    ]


def test_times_of_every_kind(made: Make, tmp_path: Path) -> None:
    """In any order of rows, and without a column of names."""
    kinds = ["MS", "ME", "QS", "YE", "W-SUN", "h", "15min"]
    for freq in kinds:
        times = pd.date_range("2019-12-30", periods=60, freq=freq)
        frame = pd.DataFrame({"value": np.arange(60) % 7, "time": times.astype(str)})
        frame.sample(frac=1, random_state=0).to_csv(tmp_path / f"{freq}.csv", index=False)
    script = """
import sys
from pathlib import Path
from data import read_series
for path in sys.argv[1:]:
    [(name, values)] = read_series(Path(path)).items()
    assert name == "value"
    assert [int(value) for value in values] == [number % 7 for number in range(60)], path
"""
    drive(made(**TASK, data="files"), script, *(tmp_path / f"{freq}.csv" for freq in kinds))


def changed(how: object) -> Damage:
    """The table after a change to its frame."""

    def damage(path: Path) -> None:
        how(pd.read_csv(path, dtype=object)).to_csv(path, index=False)

    return damage


def put(column: str, value: object) -> Damage:
    return changed(lambda frame: frame.assign(**{column: frame[column].where(frame.index != 3, value)}))


FILES: dict[str, tuple[Damage, str]] = {
    "nothing": (lambda path: path.unlink(), "is not there"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\xff\0"), "is not a CSV file"),
    "an empty file": (lambda path: path.write_text(""), "is not a CSV file"),
    "no rows": (lambda path: path.write_text("time,value\n"), "has no rows"),
    "no times": (changed(lambda frame: frame.drop(columns="time")), "has no column time"),
    "no values": (changed(lambda frame: frame.drop(columns="value")), "has no column value"),
    "no time": (put("time", "soon"), "line 5: 'soon' is not a time"),
    "times of another kind": (
        changed(lambda frame: frame.assign(time="01/02/2024")),
        "line 2: '01/02/2024' is not a time like",
    ),
    "an empty time": (put("time", ""), "line 5: '' is not a time"),
    "no number": (put("value", "much"), "line 5: 'much' is not a number"),
    "an empty value": (put("value", ""), "line 5: '' is not a number"),
    "an infinite value": (put("value", "inf"), "line 5: 'inf' is not a number"),
    "a gap": (changed(lambda frame: frame.drop(index=20)), "series one is not evenly spaced, see 2021-10-01"),
    "a time twice": (put("time", "2020-03-01"), "series one has two values at 2020-03-01"),
    "too short": (changed(lambda frame: frame[:30]), "series one has 24 values to train on and 6 held out"),
    "always the same": (changed(lambda frame: frame.assign(value=1)), "series one never differs"),
}
ETT: dict[str, tuple[Damage, str]] = {
    "nothing": (lambda path: path.unlink(), "is not there"),
    "another table": (lambda path: path.write_text("a,b\n1,2\n"), "is not ETTh1.csv"),
    "too short": (changed(lambda frame: frame[:11000]), "11520 hours or more"),
    "a gap": (put("OT", ""), "without gaps"),
    "a word": (put("OT", "much"), "is not ETTh1.csv"),
}
M4: dict[str, tuple[Damage, str]] = {
    "nothing": (lambda data: (data / "Monthly-test.csv").unlink(), "Monthly-test.csv cannot be read"),
    "words": (lambda data: (data / "Monthly-train.csv").write_text("V1,V2\nM1,much\n"), "a name and numbers"),
    "an empty line": (lambda data: (data / "Monthly-train.csv").write_text("V1\n\n"), "a name and numbers"),
    "no series": (lambda data: (data / "Monthly-train.csv").write_text("V1,V2\n"), "holds no series"),
    "other series": (
        lambda data: (data / "Monthly-test.csv").write_text("V1,V2\nH1,3\n"),
        "do not name the same series",
    ),
}
DAMAGES = {
    (source, name): how
    for source, damages in (("files", FILES), ("ett", ETT), ("m4", M4))
    for name, how in damages.items()
}


@pytest.mark.parametrize(("source", "damage"), DAMAGES)
def test_bad_data(made: Make, tmp_path: Path, source: str, damage: str) -> None:
    data = Path(write_data(tmp_path, "forecasting", source)[1])
    spoil, words = DAMAGES[source, damage]
    spoil(data)
    project = made(**TASK, data=source)
    refused(train_on(project, data, *small_options("forecasting")), str(data), words)


@pytest.mark.parametrize(
    "options", [("--context", 73), ("--horizon", 37), ("--season", 49), ("--depth", 0), ("--width", 0)]
)
def test_bad_sizes(made: Make, tmp_path: Path, options: tuple[object, ...]) -> None:
    refused(train(made(**TASK), *options, "--output-dir", tmp_path, check=False), str(options[0]))


def test_the_largest_sizes(made: Make, tmp_path: Path) -> None:
    sizes = ["--context", 72, "--horizon", 36, "--season", 48]
    train(made(**TASK), *sizes, "--max-steps", 1, "--output-dir", tmp_path)
