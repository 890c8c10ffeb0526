"""A task and a logger from a package of somebody else's, without touching a file of ours."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scaffold.catalog import load_catalog, templates_folder
from scaffold.plan import make_plan
from scaffold.render import Renderer
from scaffold.rules import complete

LOGGER = """#: macro init()
log_file = csv.writer((args.output_dir / "log.csv").open("a"))
#: endmacro
#: macro log()
log_file.writerow([step, *metrics.values()])
#: endmacro
#: macro finish()
log_file.writerow(["end"])
#: endmacro
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real installed distribution: a package folder and its entry point."""
    folder = tmp_path / "lab_templates"
    logger = folder / "loggers" / "csv-file"
    logger.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (logger / "logger.toml").write_text('help = "a CSV file"\nrequires = []\nimports = ["import csv"]\n')
    (logger / "logger.py.jinja").write_text(LOGGER)
    task = folder / "tasks" / "lab-table"
    shutil.copytree(templates_folder() / "tasks" / "tabular", task)
    for template in task.rglob("*.jinja"):
        template.write_text(template.read_text().replace("tasks/tabular/", "tasks/lab-table/"))
    info = tmp_path / "lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[scaffold.plugins]\nlab = lab_templates\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_plugin_is_found_and_rendered(package: Path) -> None:
    catalog = load_catalog()
    assert "lab-table" in catalog.tasks
    assert "csv-file" in catalog.loggers
    choice = {"name": "demo", "task": "lab-table", "logger": ("csv-file", "tensorboard"), "with": ("ema",)}
    tree = Renderer(catalog).tree(make_plan(complete(choice, catalog), catalog))
    ast.parse(tree["train.py"])
    assert "import csv\n" in tree["loggers.py"]
    assert "def log_to_csv_file(rows: Rows, args: Namespace) -> None:\n" in tree["loggers.py"]
    assert "        log_file.writerow([step, *metrics.values()])\n" in tree["loggers.py"]


def test_a_logger_that_takes_no_pictures(package: Path) -> None:
    catalog = load_catalog()
    choice = {"name": "demo", "task": "segmentation", "logger": ("csv-file",)}
    tree = Renderer(catalog).tree(make_plan(complete(choice, catalog), catalog))
    ast.parse(tree["loggers.py"])
    assert "picture" in tree["train.py"] and "picture" not in tree["loggers.py"]


def test_without_the_plugin_it_is_unknown() -> None:
    catalog = load_catalog()
    assert "lab-table" not in catalog.tasks
    assert "csv-file" not in catalog.loggers


def test_plugin_project_trains(package: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "scaffold",
        "new",
        "demo",
        "--yes",
        "--task",
        "lab-table",
        "--logger",
        "csv-file",
    ]
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(package),
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=60)
    train = [sys.executable, "train.py", "--max-steps", "3"]
    subprocess.run(train, check=True, cwd=tmp_path / "demo", env=environment, timeout=120)
    assert (tmp_path / "demo/runs/demo/log.csv").read_text().count("\n") == 4
