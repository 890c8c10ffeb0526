"""What no project may hold, whatever was chosen: pure functions of rendered text."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache

from scaffold.answers import Answers
from scaffold.catalog import Catalog
from scaffold.names import names_of

RESIDUE = re.compile(r"\{\{|\}\}|\{%|%\}|\{#|#\}|#: |#:\w|#!(?!/)|\0|jinja|scaffold", re.IGNORECASE)
BUDGETS = {"train.py": 300, "model.py": 150, "data.py": 150, "checkpoint.py": 190}  # lines
MOST_OPTIONS = 20  # sizes of a model are counted apart

# Words that speak of a choice, and the choices. A project may hold a word only if one of them was made.
WORDS = {
    r"torchrun|\brank\b|ranks|\bdist\.|processes do": "distributed=ddp|fsdp|deepspeed|spmd",
    r"\bddp\b|ddp_|DistributedDataParallel": "distributed=ddp",
    r"cuda|(?<!DS_)accelerator\b|\bGPU|pin_memory|nproc-per-node gpu": "hardware=gpu",
    r"xla\b|xla_|\btpu|\bx[mrs]\.": "hardware=tpu",
    r"spmd|ShardingSpec|\bspread\(": "distributed=spmd",
    r"fsdp|fully_shard|\bdcp\b": "distributed=fsdp",
    r"shard": "distributed=fsdp|deepspeed|spmd data=shards",
    r"deepspeed|zero[-_]stage|\bengine\b": "distributed=deepspeed",
    r"offload": "with=offload distributed=fsdp",
    r"scaler|(?<!b)float16|skipped": "precision=fp16",
    r"bfloat16": "precision=bf16",
    r"tf32|matmul_precision": "precision=tf32",
    r"accum|micro_(?!batch_size_per_gpu)|window": "with=grad-accum",
    r"clip_grad|clip-grad": "with=grad-clip",
    r"\bema\b|_ema\b|ema_": "with=ema",
    r"patience|stale": "with=early-stopping",
    r"\bcompile": "with=compile hardware=tpu",
    r"utils\.checkpoint|use_reentrant": "with=activation-checkpointing",
    r"LOCAL_WORLD_SIZE|mesh_dim|replicate\b": "with=hybrid-shard",
    r"speed/|\bmfu\b|throughput": "with=throughput",
    r"\bupload|\bartifact": "with=log-best",
    r"deterministic|CUBLAS": "with=deterministic",
    r"async_(save|checkpoint)|Executor|\bpending\b": "with=async-checkpoint",
    r"\bIDX\b|gzip": "data=mnist|fashion-mnist",
}
IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn", "pyarrow": "pandas"}  # the last is what needs it


class Vocabulary:
    """The words of every choice, those of the tasks' own features too, and where texts hold them."""

    def __init__(self, catalog: Catalog) -> None:
        changes = [item for task in catalog.tasks.values() for item in task.changes.items()]
        own = [(f"with={name}", change["words"]) for name, change in changes if "words" in change]
        own += [(f"with={name}", item.words) for name, item in catalog.additive.items() if item.words]
        own += [(f"logger={name}", item.words) for name, item in catalog.loggers.items() if item.words]
        self.words = WORDS | {words: choice for choice, words in own}
        self.patterns = {word: re.compile(word, re.IGNORECASE) for word in self.words}
        self.in_text = cache(self.find_in_text)
        self.on_line = cache(self.find_on_line)

    def find_on_line(self, line: str) -> frozenset[str]:
        return frozenset(word for word, pattern in self.patterns.items() if pattern.search(line))

    def find_in_text(self, text: str) -> frozenset[str]:
        return frozenset[str]().union(*map(self.on_line, text.split("\n")))

    def was_chosen(self, word: str, answers: Answers) -> bool:
        choices = (choice.split("=") for choice in self.words[word].split())
        return any(not set(values.split("|")).isdisjoint(answers.chosen(key)) for key, values in choices)

    def absent(self, texts: Iterable[str], answers: Answers) -> set[str]:
        """The words that a project of these answers may not hold, and does."""
        found = frozenset[str]().union(*map(self.in_text, texts))
        return {word for word in found if not self.was_chosen(word, answers)}


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


def required_names(requires: Iterable[str]) -> set[str]:
    return {re.split(r"[^\w.-]", item)[0] for item in requires}


@cache
def option_words(line: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    defined = re.findall(r'add_argument\(\s*"--([\w-]+)"', line)
    return tuple(d.replace("-", "_") for d in defined), tuple(re.findall(r"\bargs\.(\w+)", line))


@lru_cache(maxsize=4096)
def options(source: str) -> tuple[set[str], set[str]]:
    """What a program's argument parser defines, and what the program reads from args.

    A line at a time, which is fast enough for every project.
    """
    defined: set[str] = set()
    used: set[str] = set()
    for line in source.split("\n"):
        if "add_argument" in line or "args." in line:
            more_defined, more_used = option_words(line)
            defined.update(more_defined)
            used.update(more_used)
    return defined, used


KNOWN = {*dir(builtins), "__file__", "__class__", "__module__", "__qualname__"}


def undefined_names(source: str) -> list[tuple[str, int]]:
    """Names that nothing defines, and the first line of each."""
    names = names_of(source)
    return sorted((name, first_line(source, name)) for name in names.read - names.bound - KNOWN)


def first_line(source: str, name: str) -> int:
    lines = [n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and n.id == name]
    return min(lines, default=1)


def unused_imports(source: str) -> list[tuple[str, int]]:
    """Names that are imported, by a module or inside it, and not used; and the line of each."""
    names = names_of(source)
    unused = (names.imported - names.read) | names.unused_inside
    if not unused:
        return []
    lines = {
        alias.asname or alias.name.split(".")[0]: node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    return sorted((name, lines.get(name, 1)) for name in unused)


IMPORT_FROM = re.compile(r"^\s*from (\w+) import (?:\(([^)]*)\)|([^(\n]*))", re.MULTILINE)


@lru_cache(maxsize=4096)
def imported_names(source: str) -> frozenset[tuple[str, str]]:
    """Module and name of each `from module import name`."""
    return frozenset(
        (match[1], name.split(" as ")[0].strip())
        for match in IMPORT_FROM.finditer(source)
        for name in re.sub("#.*", "", match[2] or match[3]).split(",")
        if name.strip()
    )


def absent_from_modules(tree: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """What a project's files import from one another, and is not there: path, module, name."""
    own = {path.removesuffix(".py"): path for path in tree if path.endswith(".py") and "/" not in path}
    for path, text in tree.items():
        if path.endswith(".py"):
            for module, name in imported_names(text):
                if module in own and name not in names_of(tree[own[module]]).bound:
                    yield path, module, name
