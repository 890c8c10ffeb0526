"""Every data source of every task trains on a small set in its real format."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from scaffold.catalog import load_catalog
from scaffold.rules import why_not
from tests import projects
from tests.projects import (
    few_examples,
    metric,
    metrics,
    render,
    small_options,
    table,
    train,
    train_ranks,
    values,
    write_data,
)


def offered() -> list[tuple[str, str, bool]]:
    """(task, source, regression?) for all that the rules allow."""
    catalog = load_catalog()
    found = []
    for task in catalog.tasks.values():
        for source in task.sources:
            for features in [(), ("regression",)] if "regression" in task.features else [()]:
                chosen = {"task": task.name, "data": source, "with": features}
                if not why_not("hardware", "cpu", chosen, catalog):
                    found.append((task.name, source, bool(features)))
    return found


def check_trained(project: Path, output_dir: Path) -> None:
    assert sorted(values(output_dir, "train/loss"))[:2] == [1, 2]
    assert values(output_dir, metric(project))
    assert all(value == value for row in metrics(output_dir) for value in row.values())


def test_all_sources_are_tried() -> None:
    assert len(offered()) >= 6 + 6 + 3


def mark(heavy: bool) -> pytest.MarkDecorator:
    return pytest.mark.heavy if heavy else pytest.mark.complete


@pytest.mark.parametrize(
    ("task", "data", "regression", "ranks"),
    [
        *((*row, 0) for row in offered()),
        *(pytest.param(*row, 2, marks=mark(row[1] == "files")) for row in offered()),
    ],
)
def test_trains(tmp_path: Path, task: str, data: str, regression: bool, ranks: int) -> None:
    project = render(
        tmp_path / "demo",
        task=task,
        data=data,
        features=("regression",) if regression else (),
        distributed="ddp" if ranks else "none",
    )
    options = write_data(tmp_path, task, data, regression)
    short = [*small_options(task), "--batch-size", 4, "--epochs", 1, "--workers", 0]
    train_ranks(project, *options, *short, ranks=ranks, first=few_examples(32))
    check_trained(project, project / "runs" / "demo")


@pytest.mark.parametrize("regression", [False, True])
def test_parquet(tmp_path: Path, regression: bool) -> None:
    """The same table gives the same run, whichever format it is in."""
    features = ("regression",) if regression else ()
    project = render(tmp_path / "demo", task="tabular", data="files", features=features)
    table(regression).to_parquet(tmp_path / "table.parquet")
    table(regression).to_csv(tmp_path / "table.csv", index=False)
    for name in ("parquet", "csv"):
        train(project, "--data", tmp_path / f"table.{name}", "--epochs", 2, "--output-dir", tmp_path / name)
        check_trained(project, tmp_path / name)
    assert metrics(tmp_path / "parquet") == metrics(tmp_path / "csv")


def test_another_target(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", data="files")
    table().dropna().to_csv(tmp_path / "table.csv", index=False)
    train(project, "--data", tmp_path / "table.csv", "--target", "colour", "--epochs", 3)
    check_trained(project, project / "runs" / "demo")


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    """Palettes, transparency, greys, odd shapes, and files that are no pictures."""
    data = projects.write_pictures(tmp_path / "data", number=6)
    for mode, suffix in (
        ("P", "gif"),
        ("RGBA", "png"),
        ("L", "jpg"),
        ("LA", "webp"),
        ("CMYK", "jpeg"),
        ("1", "bmp"),
    ):
        Image.new(mode, (70, 9)).save(data / "cats" / f"x{mode}.{suffix.upper()}", format=None)
    Image.new("RGB", (1, 1)).save(data / "dogs" / "dot.png")
    (data / "dogs" / "notes.txt").write_text("no picture")
    (data / "dogs" / "deeper").mkdir()
    Image.new("RGB", (500, 3)).save(data / "dogs" / "deeper" / "long.png")
    project = render(tmp_path / "demo", data="files")
    train(project, "--data", data, "--epochs", 6, "--batch-size", 8, "--workers", 0)
    check_trained(project, project / "runs" / "demo")


OWN = [
    (task, data, regression, (), "none")
    for task, data, regression in offered()
    if data in ("sample", "wine-quality") or projects.catalog().task(task).sources[data].files
]
QUICK = {("tabular", "sample"), ("tabular", "wine-quality")}
SAMPLES = [row for row in offered() if row[1] == "sample"]


def in_turn(number: int, task: str) -> str:
    """Another distribution for each, of those that the task is offered with."""
    able = [name for name in ("none", "ddp", "fsdp") if projects.is_offered(task=task, distributed=name)]
    return able[number % len(able)]


BOTH = ("tensorboard", "wandb")
HEAVY = [(*kind, (BOTH[number % 2],), in_turn(number, kind[0])) for number, kind in enumerate(SAMPLES)]
RANKED = ("language-modeling", "text-classification")  # over ranks in the heavy run, with DDP and with FSDP
ALONE = [row[:3] for row in HEAVY if row[-1] == "none"]  # one process, with loggers: not again without


@pytest.mark.parametrize(
    ("task", "data", "regression", "loggers", "distributed"),
    [
        *(row for row in OWN if row[:2] in QUICK),
        *(
            pytest.param(*row, marks=pytest.mark.heavy)
            for row in OWN
            if row[:2] not in QUICK and row[:3] not in ALONE
        ),
        *(pytest.param(*row, marks=mark(row[-1] == "none" or row[0] in RANKED)) for row in HEAVY),
    ],
)
def test_own_tests_pass(
    tmp_path: Path, task: str, data: str, regression: bool, loggers: tuple[str, ...], distributed: str
) -> None:
    """The tests that a project comes with."""
    features = ("regression",) if regression else ()
    project = render(
        tmp_path / "demo", task=task, data=data, features=features, logger=loggers, distributed=distributed
    )
    command = projects.python("-m", "pytest", "-q", "-p", "no:cacheprovider")
    result = projects.run(project, command, timeout=400, check=False)
    assert result.code == 0, result.out + result.err


def test_control_own_tests(tmp_path: Path) -> None:
    """A project whose model cannot learn fails its own tests."""
    project = render(tmp_path / "demo", task="tabular")
    old = "F.cross_entropy(model(numeric, categorical), target)"
    projects.edit(project / "train.py", old, f"{old} * 0 + model.wide.bias.sum() * 0 + 1")
    command = projects.python("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert projects.run(project, command, check=False).code == 1
