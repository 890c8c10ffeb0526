"""A task and a logger from a package of somebody else's, without touching a file of ours."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scaffold.catalog import Catalog, load_catalog
from scaffold.errors import RequestError
from scaffold.plan import make_plan
from scaffold.project import with_manifest, write
from scaffold.render import Renderer
from scaffold.rules import complete
from tests.conftest import Run
from tests.matrix import thinned, valid
from tests.projects import train_ranks, values
from tests.test_cli import complete as completed
from tests.test_matrix import check_black, check_ruff, examine, write_cover

EXAMPLE = Path(__file__).parent.parent / "docs" / "example" / "lab_templates"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real installed distribution: a package folder and its entry point."""
    shutil.copytree(EXAMPLE, tmp_path / "lab_templates")
    info = tmp_path / "lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[scaffold.plugins]\nlab = lab_templates\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def with_package(env: dict[str, str], package: Path) -> dict[str, str]:
    return env | {"PYTHONPATH": f"{env.get('PYTHONPATH', '')}:{package}".lstrip(":")}


def line_alone() -> Catalog:
    """The catalog with the package's task and every logger, the package's too."""
    catalog = load_catalog()
    return replace(catalog, tasks={"line": catalog.tasks["line"]})


def test_plugin_is_found_and_rendered(package: Path) -> None:
    catalog = load_catalog()
    assert "line" in catalog.tasks
    assert "csv-file" in catalog.loggers
    choice = {"name": "demo", "task": "line", "logger": ("csv-file", "tensorboard"), "with": ("ema",)}
    tree = Renderer(catalog).tree(make_plan(complete(choice, catalog), catalog))
    ast.parse(tree["train.py"])
    assert "import csv\n" in tree["loggers.py"]
    assert "def log_to_csv_file(rows: Rows, args: Namespace, config: dict[" in tree["loggers.py"]
    assert (
        "        log.writerows([step, name, value] for name, value in metrics.items())\n"
        in tree["loggers.py"]
    )


def test_a_logger_that_takes_no_pictures(package: Path) -> None:
    catalog = load_catalog()
    choice = {"name": "demo", "task": "segmentation", "logger": ("csv-file",)}
    tree = Renderer(catalog).tree(make_plan(complete(choice, catalog), catalog))
    ast.parse(tree["loggers.py"])
    assert "picture" in tree["train.py"] and "picture" not in tree["loggers.py"]


def test_without_the_plugin_it_is_unknown() -> None:
    catalog = load_catalog()
    assert "line" not in catalog.tasks
    assert "csv-file" not in catalog.loggers


@pytest.mark.parametrize(
    "value", ["gone", "gone.inside", "raising.inside", ".relative", "plain", "lab_templates:attribute"]
)
def test_a_plugin_that_is_not_there(
    package: Path, run: Run, env: dict[str, str], tmp_path: Path, value: str
) -> None:
    (package / "raising").mkdir()
    (package / "raising" / "__init__.py").write_text("1 / 0")
    (package / "plain.py").touch()
    (package / "lab-1.0.dist-info" / "entry_points.txt").write_text(f"[scaffold.plugins]\nlab = {value}\n")
    line = f"the plug-in lab = {value!r} of the package lab cannot be found: reinstall or remove it"
    with pytest.raises(RequestError) as error:
        load_catalog()
    assert str(error.value) == line
    if value == "raising.inside":
        done = run("doctor", env=with_package(env, package))
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"scaffold: {line}\n")


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("model", "", None, "it is missing"),
        ("model", "class Line", "#: if\nclass Line", "TemplateSyntaxError: Expected an expression"),
        ("train", "#: if robust", "#: if robst", "UndefinedError: 'robst' is undefined"),
        ("train", "epochs=20", "epoch=20", "TypeError: macro 'common' takes no keyword argument 'epoch'"),
        ("train", "y = (tensor", "y = tensor)", "SyntaxError: unmatched ')'"),
    ],
)
def test_a_template_that_cannot_be_rendered(
    package: Path, run: Run, env: dict[str, str], place: Path, file: str, old: str, new: str, reason: str
) -> None:
    folder = package / "lab_templates" / "tasks" / "line"
    template = folder / f"{file}.py.jinja"
    text = template.read_text()
    template.write_text(text.replace(old, new)) if new else template.unlink()
    done = run("new", "demo", "--task", "line", "--yes", env=with_package(env, package))
    line = f"scaffold: tasks/line/{file}.py.jinja cannot be rendered ({reason}"
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(line)
    assert done.stderr.endswith(f"): see `scaffold check {folder}`\n") and done.stderr.count("\n") == 1
    assert list(place.iterdir()) == []


def test_completion_beside_a_manifest_that_is_not_sound(package: Path, run: Run, env: dict[str, str]) -> None:
    settings = with_package(env, package)
    assert completed(run, settings, "bash", "new", "--task", "li") == ["line"]
    (package / "lab_templates" / "tasks" / "line" / "task.toml").write_text("help = ")
    assert completed(run, settings, "bash", "new", "--task", "li") == []


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.complete)])
def test_the_matrix_of_a_plugin(package: Path, tmp_path: Path, all_of_them: bool) -> None:
    """Its task, and its logger in every set of loggers, meet every other choice and hold what ours hold."""
    catalog = line_alone()
    findings = examine((valid if all_of_them else thinned)(catalog), catalog)
    assert findings.projects > (4000 if all_of_them else 700)
    assert findings.problems == []
    root = tmp_path / "cover"
    root.mkdir()
    write_cover(findings, root)
    assert check_ruff(root) == check_black(root) == ""


def test_the_matrix_of_a_plugin_can_fail(package: Path) -> None:
    template = package / "lab_templates" / "tasks" / "line" / "model.py.jinja"
    template.write_text(template.read_text().replace("one weight", "one weight for torchrun"))
    catalog = line_alone()
    few = [answers for answers in thinned(catalog) if not answers.features and len(answers.loggers) == 1]
    assert {answers.distributed for answers in few} == {"none", "ddp", "fsdp", "deepspeed", "spmd"}
    problems = examine(few, catalog).problems
    assert 0 < len(problems) == sum(answers.distributed == "none" for answers in few)


@pytest.mark.parametrize("distributed", ["none", "ddp"])
def test_plugin_project_trains(package: Path, tmp_path: Path, distributed: str) -> None:
    catalog = load_catalog()
    given = {"name": "demo", "task": "line", "hardware": "cpu", "distributed": distributed}
    answers = complete(given | {"logger": ("csv-file",)}, catalog)
    project = tmp_path / "demo"
    write(with_manifest(Renderer(catalog).tree(make_plan(answers, catalog)), answers), project)
    out = tmp_path / "run"
    train_ranks(project, "--output-dir", out, "--max-steps", 2, ranks=2 if distributed == "ddp" else 0)
    losses = values(out, "train/loss")
    assert list(losses) == [1, 2]
    rows = [line.split(",") for line in (out / "log.csv").read_text().splitlines()]
    assert {int(step): float(value) for step, name, value in rows if name == "train/loss"} == losses


def test_plugin_on_the_command_line(package: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "scaffold",
        "new",
        "demo",
        "--yes",
        "--task",
        "line",
        "--logger",
        "csv-file",
    ]
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{package}:{EXAMPLE.parent.parent}",
        "HOME": str(tmp_path),
    }
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=60)
    assert (tmp_path / "demo" / "loggers.py").exists()
