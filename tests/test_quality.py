"""The sample runs, at their defaults, learn what they should."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.projects import drive, python, render, run, values

pytestmark = pytest.mark.heavy
SEEDS = [0, 1, 2]

BASELINE = """
import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from data import build_datasets

def inputs(table):
    one_hot = [np.eye(size)[codes] for size, codes in zip(table.cardinalities, table.categorical.numpy().T)]
    return np.hstack([table.numeric.numpy(), *one_hot])

train, val = build_datasets()
if REGRESSION:
    predicted = Ridge().fit(inputs(train), train.target.numpy()).predict(inputs(val))
    print(train.target_std * np.sqrt(np.mean((predicted - val.target.numpy()) ** 2)))
else:
    model = LogisticRegression(max_iter=10_000).fit(inputs(train), train.target.numpy())
    print(model.score(inputs(val), val.target.numpy()))
"""


def trained(project: Path, seed: int, key: str) -> tuple[list[float], float]:
    """A metric over the run at its defaults, and the seconds it took."""
    start = time.monotonic()
    output_dir = project / "runs" / str(seed)
    run(project, python("train.py", "--seed", seed, "--output-dir", output_dir), timeout=400)
    return list(values(output_dir, key).values()), time.monotonic() - start


@pytest.mark.parametrize("seed", SEEDS)
def test_digits(tmp_path: Path, seed: int) -> None:
    accuracy, seconds = trained(render(tmp_path / "demo"), seed, "val/accuracy")
    assert max(accuracy) >= 0.98
    assert accuracy[-1] >= 0.97
    assert seconds < 120


@pytest.mark.parametrize("seed", SEEDS)
def test_tabular_reaches_logistic_regression(tmp_path: Path, seed: int) -> None:
    project = render(tmp_path / "demo", task="tabular")
    accuracy, _ = trained(project, seed, "val/accuracy")
    baseline = float(drive(project, BASELINE.replace("REGRESSION", "False")))
    assert max(accuracy) >= baseline
    assert accuracy[-1] >= baseline - 3 / 114


@pytest.mark.parametrize("seed", SEEDS)
def test_regression_reaches_ridge(tmp_path: Path, seed: int) -> None:
    project = render(tmp_path / "demo", task="tabular", features=("regression",))
    rmse, _ = trained(project, seed, "val/rmse")
    baseline = float(drive(project, BASELINE.replace("REGRESSION", "True")))
    assert min(rmse) <= baseline
    assert rmse[-1] <= baseline
