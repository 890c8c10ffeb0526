"""Valid combinations, rendered: what no project may hold, whatever was chosen.

By default those that tests.matrix thins out; the complete run has all.
"""

from __future__ import annotations

import ast
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scaffold.answers import Answers
from scaffold.catalog import Catalog, load_catalog
from scaffold.lint import (
    BUDGETS,
    IMPORTED_AS,
    MOST_OPTIONS,
    Vocabulary,
    imports,
    options,
    required_names,
    residue,
)
from scaffold.matrix import RememberingRenderer
from scaffold.plan import make_plan
from scaffold.render import Renderer
from tests.matrix import thinned, valid


def unlike_imports(tree: Mapping[str, str], requires: Iterable[str], catalog: Catalog) -> set[str]:
    """Packages that a project imports and does not require, or the other way round."""
    own = {Path(path).stem for path in tree}
    imported = frozenset().union(*(imports(text) for path, text in tree.items() if path.endswith(".py")))
    modules = IMPORTED_AS | {k: v for logger in catalog.loggers.values() for k, v in logger.modules.items()}
    required = {modules.get(name, name) for name in required_names(requires)}
    return required ^ (imported - own - {"pytest"})


def options_by_syntax(source: str) -> tuple[set[str], set[str]]:
    """As `options`, from the syntax tree."""
    nodes = list(ast.walk(ast.parse(source)))
    defined = {
        node.args[0].value.removeprefix("--").replace("-", "_")
        for node in nodes
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
    }
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args"
    }
    return defined, used


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


@dataclass
class Findings:
    projects: int = 0
    problems: list[str] = field(default_factory=list)
    cover: Cover = field(default_factory=Cover)
    train_lines: set[int] = field(default_factory=set)
    longest: dict[str, int] = field(default_factory=dict)


def examine(projects: Iterable[Answers], catalog: Catalog) -> Findings:
    vocabulary = Vocabulary(catalog)
    renderer = RememberingRenderer(catalog)
    found = Findings()
    checked: set[str] = set()
    for answers in projects:
        plan = make_plan(answers, catalog)
        tree = renderer.tree(plan)
        found.projects += 1
        if packages := unlike_imports(tree, plan.facts["requires"], catalog):
            found.problems.append(f"{answers}: requires or imports {packages}")
        if absent := vocabulary.absent(tree.values(), answers):
            found.problems.append(f"{answers}: speaks of {absent}")
        for path, text in tree.items():
            if text in checked:
                continue
            checked.add(text)
            if left := residue(text):
                found.problems.append(f"{answers}: {path} holds {left!r}")
            found.longest[path] = max(found.longest.get(path, 0), text.count("\n"))
            if path.endswith(".py"):
                found.cover.add(path, text)
            if path == "train.py":
                defined, used = options(text)
                if defined != used:
                    found.problems.append(f"{answers}: options {defined ^ used}")
                # sizes of a model are counted apart
                sizes = {name.replace("-", "_") for name in catalog.task(answers.task).small}
                if len(defined - sizes) > MOST_OPTIONS:
                    found.problems.append(f"{answers}: {len(defined)} options")
    return found


@pytest.fixture(scope="module")
def findings() -> Findings:
    return examine(thinned(catalog := load_catalog()), catalog)


def test_remembered_files_are_those_that_would_be_rendered() -> None:
    catalog = load_catalog()
    remembering, plain = RememberingRenderer(catalog), Renderer(catalog)
    for answers in random.Random(0).sample(list(thinned(catalog)), 200):
        plan = make_plan(answers, catalog)
        assert remembering.tree(plan) == plain.tree(plan)


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


def test_line_budgets(findings: Findings) -> None:
    for path, most in BUDGETS.items():
        assert findings.longest[path] <= most
    plain = Renderer(catalog := load_catalog()).tree(
        make_plan(Answers("demo", "image-classification", "sample", "cpu", "fp32", "none"), catalog)
    )
    assert plain["train.py"].count("\n") <= 200


def write_cover(findings: Findings, root: Path) -> None:
    """The covering files, each in a project's surroundings so that its own modules are known as such."""
    for number, (text, path) in enumerate(findings.cover.files.items()):
        folder = root / f"p{number}"
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(text)
    own = sorted({Path(path).stem for path in findings.cover.files.values()})
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
    assert shutil.which("git")
    assert check_black(covering_projects) == ""


def test_the_checks_can_fail(covering_projects: Path, tmp_path: Path) -> None:
    catalog = load_catalog()
    answers = Answers("demo", "tabular", "sample", "cpu", "fp32", "none")
    plan = make_plan(answers, catalog)
    tree = Renderer(catalog).tree(plan)
    requires = plan.facts["requires"]
    assert unlike_imports(tree, requires, catalog) == set()
    assert unlike_imports(tree | {"more.py": "import PIL\n"}, requires, catalog) == {"PIL"}
    assert unlike_imports(tree, [*requires, "wandb>=0.18"], catalog) == {"wandb"}
    train, vocabulary = tree["train.py"], Vocabulary(catalog)
    assert vocabulary.absent([train], answers) == set()
    assert vocabulary.absent([train + "# works with DDP\n"], answers)
    assert residue(train) == ""
    assert residue(train + "{{ slot }}")
    assert options(train) == options_by_syntax(train)
    defined, used = options(train.replace("args.weight_decay", "0.1"))
    assert defined - used == {"weight_decay"}
    (tmp_path / "train.py").write_text(train.replace("import math\n", "import math\nimport os\n") + "x=1\n")
    assert check_ruff(tmp_path) and check_black(tmp_path)
