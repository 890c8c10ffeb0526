"""Valid combinations, rendered: what no project may hold, whatever was chosen.

By default those that tests.matrix thins out; the complete run has all.
"""

from __future__ import annotations

import ast
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from jinja2.runtime import Context

from scaffold.answers import Answers
from scaffold.catalog import Catalog, load_catalog
from scaffold.plan import make_plan
from scaffold.render import Renderer
from tests.matrix import thinned, valid

RESIDUE = re.compile(r"\{\{|\}\}|\{%|%\}|\{#|#\}|#: |#!|\0|jinja|scaffold", re.IGNORECASE)

# Words that speak of one choice, and the choice. A project may hold a word only if it was made.
WORDS = {
    r"torchrun|\brank\b|ranks|\bdist\.|processes do": ("distributed", "ddp fsdp"),
    r"\bddp\b|ddp_|DistributedDataParallel": ("distributed", "ddp"),
    r"cuda|accelerator\b|\bGPU|pin_memory|nproc-per-node gpu": ("hardware", "gpu"),
    r"\bxla|\btpu": ("hardware", "tpu"),
    r"fsdp|fully_shard|shard|\bdcp\b": ("distributed", "fsdp"),
    r"deepspeed": ("distributed", "deepspeed"),
    r"scaler|(?<!b)float16|skipped": ("precision", "fp16"),
    r"bfloat16": ("precision", "bf16"),
    r"tf32|matmul_precision": ("precision", "tf32"),
    r"accum|micro_|window": ("with", "grad-accum"),
    r"clip_grad|clip-grad": ("with", "grad-clip"),
    r"\bema\b|_ema\b|ema_": ("with", "ema"),
    r"patience|stale": ("with", "early-stopping"),
    r"\bcompile": ("with", "compile"),
    r"deterministic|CUBLAS": ("with", "deterministic"),
    r"async_(save|checkpoint)|Executor|\bpending\b": ("with", "async-checkpoint"),
    r"tensorboard|SummaryWriter": ("logger", "tensorboard"),
    r"wandb": ("logger", "wandb"),
    r"\bIDX\b|gzip": ("data", "mnist fashion-mnist"),
} | {  # those of the tasks' own features
    change["words"]: ("with", name)
    for task in load_catalog().tasks.values()
    for name, change in task.changes.items()
    if "words" in change
}
IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn"}
BY_OTHERS = {"pyarrow", "tensorboard"}  # pandas and torch import these
PATTERNS = {word: re.compile(word, re.IGNORECASE) for word in WORDS}


@cache
def words_on(line: str) -> frozenset[str]:
    return frozenset(word for word, pattern in PATTERNS.items() if pattern.search(line))


@cache
def words_in(text: str) -> frozenset[str]:
    return frozenset().union(*map(words_on, text.split("\n")))


def was_chosen(word: str, answers: Answers) -> bool:
    key, values = WORDS[word]
    return not set(values.split()).isdisjoint(answers.chosen(key))


def absent_words(texts: Iterable[str], answers: Answers) -> set[str]:
    found = frozenset().union(*(words_in(text) for text in texts))
    return {word for word in found if not was_chosen(word, answers)}


@cache
def residue_on(line: str) -> str:
    match = RESIDUE.search(line)
    return match[0] if match else ""


def residue(text: str) -> str:
    """What a template left behind, or a word of the tool itself."""
    return next(filter(None, map(residue_on, text.split("\n"))), "")


@cache
def imports(source: str) -> frozenset[str]:
    """The packages that a module imports, without Python's own."""
    found = re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE)
    return frozenset(found) - sys.stdlib_module_names


def unlike_imports(tree: Mapping[str, str], requires: Iterable[str]) -> set[str]:
    """Packages that a project imports and does not require, or the other way round."""
    own = {Path(path).stem for path in tree}
    imported = frozenset().union(*(imports(text) for path, text in tree.items() if path.endswith(".py")))
    required = {re.split(r"[<>=\[ ]", item)[0] for item in requires} - BY_OTHERS
    return {IMPORTED_AS.get(name, name) for name in required} ^ (imported - own - {"pytest"})


def options(source: str) -> tuple[set[str], set[str]]:
    """What a program's argument parser defines, and what the program reads from args."""
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


@cache
def option_words(line: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    defined = re.findall(r'add_argument\(\s*"--([\w-]+)"', line)
    return tuple(d.replace("-", "_") for d in defined), tuple(re.findall(r"\bargs\.(\w+)", line))


def options_by_line(source: str) -> tuple[set[str], set[str]]:
    """As `options`, a line at a time: the same answer, fast enough for every project."""
    defined: set[str] = set()
    used: set[str] = set()
    for line in source.split("\n"):
        if "add_argument" in line or "args." in line:
            more_defined, more_used = option_words(line)
            defined.update(more_defined)
            used.update(more_used)
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


class NotingContext(Context):
    """Notes the facts that a template reads, also those that it imports."""

    read: ClassVar[set[str]] = set()

    def resolve_or_missing(self, key: str) -> Any:
        self.read.add(key)
        return super().resolve_or_missing(key)


class RememberingRenderer(Renderer):
    """Renders a file once for all projects that agree in the facts it reads."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog)
        self.env.context_class = NotingContext
        self.reads: dict[str, set[tuple[str, ...]]] = {}  # template -> the sets of facts it was seen to read
        self.texts: dict[tuple[Any, ...], str] = {}

    def file(self, template: str, facts: Mapping[str, Any], own: frozenset[str]) -> str:
        for names in self.reads.setdefault(template, set()):
            if (text := self.texts.get(self.key(template, names, facts))) is not None:
                return text
        NotingContext.read.clear()
        text = super().file(template, facts, own)
        names = tuple(sorted(NotingContext.read))
        self.reads[template].add(names)
        self.texts[self.key(template, names, facts)] = text
        return text

    def key(self, template: str, names: tuple[str, ...], facts: Mapping[str, Any]) -> tuple[Any, ...]:
        return (template, names, *(str(facts.get(name)) for name in names))


def examine(projects: Iterable[Answers]) -> Findings:
    catalog = load_catalog()
    renderer = RememberingRenderer(catalog)
    found = Findings()
    checked: set[str] = set()
    for answers in projects:
        plan = make_plan(answers, catalog)
        tree = renderer.tree(plan)
        found.projects += 1
        if packages := unlike_imports(tree, plan.facts["requires"]):
            found.problems.append(f"{answers}: requires or imports {packages}")
        if absent := absent_words(tree.values(), answers):
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
                defined, used = options_by_line(text)
                if defined != used:
                    found.problems.append(f"{answers}: options {defined ^ used}")
                # sizes of a model are counted apart
                sizes = {name.replace("-", "_") for name in catalog.task(answers.task).small}
                if len(defined - sizes) > 20:
                    found.problems.append(f"{answers}: {len(defined)} options")
    return found


@pytest.fixture(scope="module")
def findings() -> Findings:
    return examine(thinned(load_catalog()))


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
    findings = examine(answers for answers in valid(load_catalog()) if answers.task == task)
    assert findings.projects > 1000
    assert findings.problems == []
    write_cover(findings, tmp_path)
    assert check_ruff(tmp_path) == check_black(tmp_path) == ""


def test_line_budgets(findings: Findings) -> None:
    assert findings.longest["train.py"] <= 300
    assert findings.longest["model.py"] <= 150
    assert findings.longest["data.py"] <= 150
    assert findings.longest["checkpoint.py"] <= 190
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
    assert unlike_imports(tree, plan.facts["requires"]) == set()
    assert unlike_imports(tree | {"more.py": "import PIL\n"}, plan.facts["requires"]) == {"PIL"}
    assert unlike_imports(tree, [*plan.facts["requires"], "wandb>=0.18"]) == {"wandb"}
    train = tree["train.py"]
    assert absent_words([train], answers) == set()
    assert absent_words([train + "# works with DDP\n"], answers)
    assert residue(train) == ""
    assert residue(train + "{{ slot }}")
    assert options(train) == options_by_line(train)
    defined, used = options_by_line(train.replace("args.weight_decay", "0.1"))
    assert defined - used == {"weight_decay"}
    (tmp_path / "train.py").write_text(train.replace("import math\n", "import math\nimport os\n") + "x=1\n")
    assert check_ruff(tmp_path) and check_black(tmp_path)
