"""Valid combinations, rendered: what no project may hold, whatever was chosen.

By default those that tests.matrix thins out; the complete run has all.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from scaffold.answers import Answers
from scaffold.catalog import Catalog, load_catalog, read_catalog, templates_folder
from scaffold.examine import Examiner, Place
from scaffold.lint import WORDS, Vocabulary, said, said_in
from scaffold.plan import make_plan
from scaffold.render import Renderer
from tests.matrix import thinned, valid


@dataclass
class Cover:
    """Files that together hold every three lines in a row that any project holds.

    A formatter decides by a line and its neighbours, so these few stand for all.
    """

    seen: set[int] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, text: str) -> None:
        lines = ["", *text.split("\n"), ""]
        runs = set(map(hash, zip([path] * len(lines), lines, lines[1:], lines[2:], strict=False)))
        if not runs <= self.seen:
            self.seen |= runs
            self.files.setdefault(text, path)

    def needed(self) -> dict[str, str]:
        """Without those of which all is in files that came later."""
        again = Cover()
        for text, path in reversed(self.files.items()):
            again.add(path, text)
        return again.files


@dataclass
class Findings:
    projects: int = 0
    problems: list[str] = field(default_factory=list)
    cover: Cover = field(default_factory=Cover)
    lines: set[str] = field(default_factory=set)


def examiners(catalog: Catalog) -> dict[str, Examiner]:
    """What `scaffold check` looks at projects with, for each task."""
    return {
        name: Examiner(catalog, Place(task.folder, f"tasks/{name}")) for name, task in catalog.tasks.items()
    }


def examine(projects: Iterable[Answers], catalog: Catalog) -> Findings:
    by_task = examiners(catalog)
    found = Findings()
    seen: set[str] = set()
    for answers in projects:
        project = by_task[answers.task].project(answers)
        found.projects += 1
        found.problems += [f"{answers}: {problem.line}" for problem in project.problems]
        for path, text in project.tree.items():
            if text in seen:
                continue
            seen.add(text)
            found.lines.update(text.split("\n"))
            if path.endswith(".py"):
                found.cover.add(path, text)
    return found


@pytest.fixture(scope="module")
def findings() -> Findings:
    return examine(thinned(catalog := load_catalog()), catalog)


def test_remembered_files_are_those_that_would_be_rendered() -> None:
    catalog = load_catalog()
    remembering, plain = examiners(catalog), Renderer(catalog)
    for answers in random.Random(0).sample(list(thinned(catalog)), 200):
        assert remembering[answers.task].project(answers).tree == plain.tree(make_plan(answers, catalog))


def test_no_project_has_a_problem(findings: Findings) -> None:
    assert findings.projects > 1000 * len(load_catalog().tasks)
    assert findings.problems == []


@pytest.mark.complete
@pytest.mark.parametrize("task", load_catalog().tasks)
def test_no_project_of_a_task_has_a_problem(task: str, tmp_path: Path) -> None:
    catalog = load_catalog()
    findings = examine((answers for answers in valid(catalog) if answers.task == task), catalog)
    assert findings.projects > 1000
    assert findings.problems == []
    write_cover(findings, tmp_path)
    assert check_ruff(tmp_path) == check_black(tmp_path) == ""


def test_the_plain_loop_is_short() -> None:
    plain = Renderer(catalog := load_catalog()).tree(
        make_plan(Answers("demo", "image-classification", "sample", "cpu", "fp32", "none"), catalog)
    )
    assert plain["train.py"].count("\n") <= 200


def write_cover(findings: Findings, root: Path) -> None:
    """The covering files, each in a project's surroundings so that its own modules are known as such."""
    files = findings.cover.needed()
    for number, (text, path) in enumerate(files.items()):
        folder = root / f"p{number}"
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(text)
    own = sorted({Path(path).stem for path in files.values()})
    settings = "line-length = 110\nlint.select = ['E', 'F', 'I']\n"
    (root / "ruff.toml").write_text(settings + f"lint.isort.known-first-party = {own}\n")


@pytest.fixture(scope="module")
def covering_projects(findings: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cover")
    write_cover(findings, root)
    return root


def tool(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", name, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def check_ruff(folder: Path) -> str:
    result = tool("ruff", "check", "--no-cache", "--output-format", "concise", ".", cwd=folder)
    return result.stdout[:3000] if result.returncode else ""


def check_black(folder: Path) -> str:
    result = tool("black", "--check", "-l", "110", "--no-cache", ".", cwd=folder)
    return result.stderr[:3000] if result.returncode else ""


def test_ruff_finds_nothing(covering_projects: Path) -> None:
    assert check_ruff(covering_projects) == ""


def test_black_changes_nothing(covering_projects: Path) -> None:
    assert check_black(covering_projects) == ""


# What is put into the templates of a task, or into its manifest, and what is then said of projects.
DAMAGES = {
    "residue": ("model.py.jinja", "A linear model", "A {% linear model", "no template: "),
    "slot": ("model.py.jinja", "A linear model", "A linear {{ '{' }}{ model", "model.py holds '{{'"),
    "word": (
        "train.py.jinja",
        "    return parser",
        "    # works with DDP\n    return parser",
        "train.py says 'DDP'",
    ),
    "option": (
        "train.py.jinja",
        "weight_decay=",
        "weight_decays=",
        "takes no keyword argument 'weight_decays'",
    ),
    "unread": (
        "train.py.jinja",
        "    return parser",
        '    parser.add_argument(\n        "--more",\n    )\n    return parser',
        "the option --more is not read",
    ),
    "import": (
        "model.py.jinja",
        "import torch\n",
        "import PIL.Image\nimport torch\n\nPIL.Image\n",
        "PIL is imported",
    ),
    "requirement": (
        "task.toml",
        '["pandas',
        '["wandb>=0.18", "pandas',
        "wandb is required, and nothing imports it",
    ),
    "modules": (
        "task.toml",
        'modules = { pyarrow = "pandas" }\n',
        "",
        "pyarrow is required, and nothing imports",
    ),
    "budget": (
        "model.py.jinja",
        "class TableNet",
        "X = 1\n" * 150 + "\n\nclass TableNet",
        "longer than 150 lines",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_matrix_can_fail(tmp_path: Path, name: str) -> None:
    file, old, new, line = DAMAGES[name]
    folder = Path(shutil.copytree(templates_folder() / "tasks" / "tabular", tmp_path / "tasks" / "tabular"))
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    catalog = read_catalog((templates_folder(), tmp_path))
    catalog = replace(catalog, tasks={"tabular": catalog.tasks["tabular"]})
    plain = Answers("demo", "tabular", "files", "cpu", "fp32", "none")
    assert examine([plain], load_catalog()).problems == []
    assert any(line in problem for problem in examine([plain], catalog).problems)


@pytest.mark.parametrize("task", load_catalog().tasks)
def test_a_statement_at_a_time_says_what_the_whole_says(task: str) -> None:
    catalog = load_catalog()
    answers = Answers("demo", task, "sample", "cpu", "fp32", "ddp", ("tensorboard",), ("ema",))
    tree = Renderer(catalog).tree(make_plan(answers, catalog))
    for source in (text for path, text in tree.items() if path.endswith(".py")):
        assert said(source) == said_in(source)
    assert said(tree["train.py"]).defined == said(tree["train.py"]).used


def test_the_formatters_can_fail(tmp_path: Path) -> None:
    catalog = load_catalog()
    answers = Answers("demo", "tabular", "sample", "cpu", "fp32", "none")
    train = Renderer(catalog).tree(make_plan(answers, catalog))["train.py"]
    (tmp_path / "train.py").write_text(train.replace("import math\n", "import math\nimport os\n") + "x=1\n")
    assert check_ruff(tmp_path) and check_black(tmp_path)


@pytest.mark.parametrize("choice", WORDS)
def test_each_word_finds_what_it_is_for(findings: Findings, choice: str) -> None:
    """Some project has it, and one without the choice must not."""
    plain, vocabulary = Answers("demo", "tabular", "sample", "cpu", "fp32", "none"), Vocabulary(
        load_catalog()
    )
    for word in WORDS[choice]:
        line = next((line for line in findings.lines if re.search(word, line, re.IGNORECASE)), None)
        assert line, f"no project says {word}"
        assert "|".join(WORDS[choice]) in vocabulary.absent([line], plain)


def test_each_word_of_a_manifest_is_said(findings: Findings) -> None:
    said_somewhere = Vocabulary(load_catalog()).in_text("\n".join(findings.lines))
    assert said_somewhere == Vocabulary(load_catalog()).patterns.keys()
