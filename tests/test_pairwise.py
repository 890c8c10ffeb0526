"""Every two choices together in some project that is really trained, stopped and resumed.

What was run is left for the support table (tests/support.py). tests/xla has the rows of TPUs.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests import projects
from tests.covering import Row, Space, answers_of, completed, label, on_processors, on_tpus, pairs_in
from tests.projects import (
    checkpoints,
    edit,
    few_examples,
    load,
    metrics,
    render,
    same_run,
    train_ranks,
    values,
)
from tests.support import leave

FEW = 32  # examples in a set


@pytest.mark.parametrize("space", [on_processors(), on_tpus()], ids=["processors", "tpus"])
def test_array_covers_all_pairs(space: Space) -> None:
    assert all(completed(row) for row in space.array)
    covered = set().union(*map(pairs_in, space.array))
    assert covered >= space.pairs
    assert {row["source"] for row in space.array} == set(space.axes["source"])


def test_what_is_a_pair() -> None:
    found = on_processors().pairs
    assert (("hardware", "gpu"), ("precision", "tf32")) in found
    assert (("hardware", "cpu"), ("precision", "tf32")) not in found
    assert (("distributed", "deepspeed"), ("offload", "on")) in found
    assert (("distributed", "deepspeed"), ("ema", "on")) not in found
    assert (("log-best", "on"), ("wandb", "on")) in found
    assert (("distributed", "spmd"), ("ema", "on")) in on_tpus().pairs
    # the tasks and the precisions all meet
    assert len(on_processors().array) <= 2 * len(projects.catalog().tasks) * 4


def check_record(project: Path, output_dir: Path, last: int) -> None:
    steps = [int(row["step"]) for row in metrics(output_dir)]
    assert steps == list(range(1, last + 1))
    for key in ("train/loss", "train/lr"):
        assert sorted(values(output_dir, key)) == steps
    assert sorted(values(output_dir, projects.metric(project))) == [4]
    assert all(math.isfinite(value) for row in metrics(output_dir) for value in row.values())


def options_of(row: Row, folder: Path, examples: int, ranks: int = 1) -> list[object]:
    """Small data and a small model, where they are options; an epoch is four steps of these examples."""
    chosen = answers_of(row)
    accum = 2 if "grad-accum" in chosen.features else 1
    return [
        *projects.write_data(folder, chosen.task, chosen.data, "regression" in chosen.features),
        *projects.small_options(chosen.task),
        *("--device", "cpu", "--epochs", 3, "--batch-size", examples // (4 * ranks * accum)),
        *("--workers", 0, "--warmup-steps", 2),
        *(("--grad-accum", accum) if accum > 1 else ()),
    ]


def train_row(row: Row, project: Path, out: Path, env: dict[str, str]) -> Path:
    """Stopped after three steps, gone on with to six; and, beside it, six at once."""
    ranks = 0 if row["distributed"] == "none" else 2
    options = options_of(row, out, FEW, ranks or 1)

    def run(name: str, *more: object) -> Path:
        words = [*options, "--output-dir", out / name, *more]
        train_ranks(project, *words, ranks=ranks, env=env, timeout=300, first=few_examples(FEW))
        return out / name

    run("parts", "--max-steps", 3)
    parts = run("parts", "--max-steps", 6, "--resume")
    if row["compile"] == "off":
        assert same_run(run("whole", "--max-steps", 6), parts)
    return parts


@pytest.mark.heavy
@pytest.mark.parametrize("row", on_processors().array, ids=label)
def test_row(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, row: Row) -> None:
    if row["distributed"] == "deepspeed":
        pytest.importorskip("deepspeed")
    chosen, cache = answers_of(row), tmp_path_factory.getbasetemp() / "inductor"
    project = render(tmp_path / "demo", **chosen.to_dict())
    env = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "DS_ACCELERATOR": "cpu"}
    parts = train_row(row, project, tmp_path, env=env)
    check_record(project, parts, 6)
    state = load(checkpoints(parts)[-1])
    assert ("ema" in state, "scaler" in state) == (row["ema"] == "on", row["precision"] == "fp16")
    ran, processes = json.loads((parts / "run.json").read_text()), 1 if chosen.distributed == "none" else 2
    assert (ran["device"], ran["world_size"]) == ("cpu", processes)
    assert bool(list(parts.glob("events.out.tfevents.*"))) == (row["tensorboard"] == "on")
    assert len(list(parts.glob("wandb/offline-run-*"))) == (2 if row["wandb"] == "on" else 0)
    leave(label(row), answers=chosen.to_dict(), ran="trained-cpu", processes=processes, steps=6, resumed_at=3)


def test_control_row(tmp_path: Path) -> None:
    """A run that goes on without what the optimizer knew is seen."""
    row = {axis: values[0] for axis, values in on_processors().axes.items()} | {"source": "tabular sample"}
    project = render(tmp_path / "demo", **answers_of(row).to_dict())
    edit(project / "train.py", "load_checkpoint(newest, parts)", 'load_checkpoint(newest, {"model": model})')
    with pytest.raises(AssertionError):
        train_row(row, project, tmp_path, env={})
