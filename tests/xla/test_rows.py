"""Every two choices together, in some project for TPUs that is really trained, stopped and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.covering import Row, answers_of, label, on_tpus
from tests.projects import render, same_run
from tests.support import leave
from tests.test_pairwise import FEW, check_record, options_of
from tests.xla.test_xla import devices_of, narrow, train_xla, xla_version


@pytest.mark.parametrize("row", on_tpus().array, ids=label)
def test_row(tmp_path: Path, row: Row) -> None:
    chosen = answers_of(row)
    project, devices = render(tmp_path / "demo", **chosen.to_dict()), devices_of(chosen)
    if chosen.task == "image-classification" and chosen.data != "imagenet":
        narrow(project)
    options = [*options_of(row, tmp_path, FEW), "--log-every", 1]

    def run(name: str, *more: object) -> Path:
        train_xla(project, tmp_path / name, *options, *more, devices=devices, examples=FEW)
        return tmp_path / name

    run("parts", "--max-steps", 3)
    parts = run("parts", "--max-steps", 6, "--resume")
    check_record(project, parts, 6)
    assert same_run(run("whole", "--max-steps", 6), parts)
    result = {"answers": chosen.to_dict(), "ran": "trained-xla-cpu", "processes": 1, "devices": devices}
    leave(label(row), **result, steps=6, resumed_at=3, torch=xla_version())
