"""What the documentation says is what the program does."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scaffold.axes import AXES
from scaffold.catalog import Catalog, load_catalog
from scaffold.cli import app
from scaffold.matrix import THIN
from scaffold.report import choices, conflict_text
from tests import backends
from tests.test_check import DAMAGES, EXAMPLE, change

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
OPTIONS = DOCS / "options.md"


def blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def options_page(catalog: Catalog) -> str:
    return "\n".join(option_lines(catalog)) + "\n"


def option_lines(catalog: Catalog) -> Iterator[str]:
    yield "# Options"
    yield ""
    yield "Every question is a flag of `scaffold new`, a key of an answers file and a word of `diff`."
    yield "This page is made from the tables that the program reads; `scaffold list` prints them too."
    for axis in AXES:
        yield ""
        yield f"## {axis.key}"
        yield ""
        yield f"{axis.question} `--{axis.key}{' …` any number of times.' if axis.many else '`, one of:'}"
        yield ""
        yield "| value | what | excludes |"
        yield "| --- | --- | --- |"
        for value, choice in choices(catalog, [axis.key])[axis.plural].items():
            only = f" (only {', '.join(choice.tasks)})" if choice.tasks else ""
            notes = "<br>".join(
                conflict_text(e).removeprefix("excludes ").replace("|", " or ") for e in choice.excludes
            )
            yield f"| `{value}` | {choice.help}{only} | {notes} |"


def test_options_page(accept: bool) -> None:
    page = options_page(load_catalog())
    if accept:
        OPTIONS.write_text(page, encoding="utf-8")
    assert OPTIONS.read_text(encoding="utf-8") == page


def logger_lines(catalog: Catalog) -> Iterator[str]:
    """The rows of docs/loggers.md, from the folders' macros and readers and the pinned versions."""
    files = [ROOT / "constraints.txt", ROOT / "tests" / "loggers" / "constraints.txt"]
    pins = "".join(path.read_text(encoding="utf-8") for path in files)
    for name, logger in catalog.loggers.items():
        macros = (logger.folder / "logger.py.jinja").read_text(encoding="utf-8")
        reader = logger.folder / "read_back.py"
        read = reader.read_text(encoding="utf-8") if reader.exists() else ""
        places = ["its own files"] if read and "NEEDS_SERVER" not in read else []
        places += ["its server"] if "def serve(" in read else []
        packages = sorted({re.split(r"[<>=]", item)[0] for item in logger.requires})
        versions = [f"{package} {found[1]}" for package in packages if (found := pin_of(package, pins))]
        takes = [
            "yes" if word in macros else "" for word in ("config", "macro picture()", "macro artifact()")
        ]
        cells = [f"`{name}`", *takes, " and ".join(places) or "not run", ", ".join(versions)]
        yield f"| {' | '.join(cells)} |"


def pin_of(package: str, pins: str) -> re.Match[str] | None:
    return re.search(rf"^{package}==(\S+)", pins, re.MULTILINE)


def test_table_of_loggers(accept: bool) -> None:
    file = ROOT / "docs" / "loggers.md"
    before, rows, after = re.split(
        r"(?<=\| --- \|\n)((?:\| `.*\n)*)", file.read_text(encoding="utf-8"), maxsplit=1
    )
    made = "".join(f"{line}\n" for line in logger_lines(load_catalog()))
    if accept:
        file.write_text(before + made + after, encoding="utf-8")
        rows = made
    assert rows == made


def test_quick_start_is_two_one_line_commands() -> None:
    section = README.split("## Quick start")[1].split("\n## ")[0]
    commands = blocks(section)
    assert len(commands) == 2
    assert all(len(command.splitlines()) == 1 for command in commands)


def said(command: str) -> str:
    """What stands in a page of a command and its output."""
    return f"$ {command}\n" + CliRunner().invoke(app, shlex.split(command)[1:]).stdout


def with_output(text: str) -> str:
    """A page whose consoles hold what their commands say now."""
    console = re.compile(r"(?<=^```console\n)\$ (scaffold .*)\n(?:.*\n)*?(?=```$)", re.MULTILINE)
    return console.sub(lambda found: said(found[1]), text)


@pytest.mark.parametrize(("page", "consoles"), [("README.md", 2), ("docs/extending.md", 1)])
def test_output_of_commands(
    page: str, consoles: int, accept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaffold.machine.quick_hardware", lambda: "cpu")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXAMPLE, "lab_templates")
    for name in ("only-with", "undefined-name"):
        change(Path("lab_templates"), *DAMAGES[name][:3])
    text = (ROOT / page).read_text(encoding="utf-8")
    made = with_output(text)
    if accept:
        (ROOT / page).write_text(made, encoding="utf-8")
        text = made
    assert text.count("```console\n$ scaffold ") == consoles
    assert text == made


def test_length_of_the_loop_in_the_readme(accept: bool) -> None:
    number = (ROOT / "golden/image-classification/base/train.py").read_text(encoding="utf-8").count("\n")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if accept:
        text = re.sub(r"(?<=`train\.py` is )\d+(?= lines long)", str(number), text)
        (ROOT / "README.md").write_text(text, encoding="utf-8")
    assert f"`train.py` is {number} lines long" in text


def test_how_many_combinations_are_looked_at() -> None:
    assert "one in seven" in (DOCS / "extending.md").read_text(encoding="utf-8")
    assert (THIN.sample, THIN.other, THIN.turns) == (2, 1, 7)


def test_loop_in_the_readme_is_the_generated_one() -> None:
    train = (ROOT / "golden/image-classification/base/train.py").read_text(encoding="utf-8")
    loops = [block for block in blocks(README) if "while step < last_step" in block]
    assert len(loops) == 1
    assert loops[0] in train


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_page_of_backends_is_made_from_its_figures() -> None:
    found = json.loads((DOCS / "backends.json").read_text(encoding="utf-8"))
    assert (DOCS / "backends.md").read_text(encoding="utf-8") == backends.page(found)
    assert (DOCS / "backends.svg").read_text(encoding="utf-8") == backends.chart(found)
    assert all(backends.furthest(curves, 20) < 1e-4 for curves in found.values())
    found["language-modeling"]["DDP"][19] *= 1.001
    assert backends.furthest(found["language-modeling"], 20) > 1e-4
    assert backends.page(found) != (DOCS / "backends.md").read_text(encoding="utf-8")


def missing_from_table(text: str, catalog: Catalog) -> list[str]:
    """Values that a question's row of the README's table does not name, a task's own features apart."""
    table = text.split("## What you can choose")[1]
    own = {name for task in catalog.tasks.values() for name in task.features}
    found = []
    for axis in AXES:
        row = next((line for line in table.splitlines() if line.startswith(f"| `--{axis.key}` |")), "")
        offered = [value for value in catalog.values(axis.key) if axis.key != "with" or value not in own]
        found += [f"{axis.key}={value}" for value in offered if f"`{value}`" not in row]
    return found


def test_the_readme_names_every_value() -> None:
    catalog = load_catalog()
    assert missing_from_table(README, catalog) == []
    for axis in AXES:
        value = next(iter(catalog.values(axis.key)))
        row = next(line for line in README.splitlines() if line.startswith(f"| `--{axis.key}` |"))
        shorter = README.replace(row, row.replace(f"`{value}`", ""))
        assert missing_from_table(shorter, catalog) == [f"{axis.key}={value}"]
