"""What no project may hold, whatever was chosen: pure functions of rendered text."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

from scaffold.answers import Answers
from scaffold.catalog import Catalog
from scaffold.names import names_of

# Closing braces and percent signs alone are Python: `{"a": {}}`, `f"{x:.1%}"`.
RESIDUE = re.compile(r"\{\{|\{%| %\}|\{#| #\}|#: |#:\w|#!(?!/)|\0|jinja|scaffold", re.IGNORECASE)
BUDGETS = {"train.py": 300, "model.py": 150, "data.py": 150, "checkpoint.py": 190}  # lines
MOST_OPTIONS = 20  # sizes of a model are counted apart

# Choices, and the words that speak of them: a project may hold them only if one of the choices was made.
# They are those of our templates, narrow enough that what others write has them for no other reason.
WORDS = {
    "distributed=ddp|fsdp|deepspeed|spmd": (
        "torchrun",
        "two processes",
        '(?<!")world_size',
        r'\b(LOCAL_)?RANK"',
        "over_ranks",
        r"\brank [!=]= 0",
        r", rank\)\)|\{rank\}|rank: int,",
        r"\bdist\.(all_|barrier|broadcast|destroy_|get_|init_|new_group|Process)",
    ),
    "distributed=ddp": (r"\bddp\b", "ddp_", "DistributedDataParallel"),
    "hardware=gpu": (r"\bcuda\b", r"torch\.accelerator", r"\bGPUs?\b", "gpus-per", "pin_memory"),
    "hardware=tpu": (
        r"\bxla\b",
        "torch_xla",
        "xla_",
        r"\btpu",
        r"\bxm\.(save|send_)",
        r"\bxr\.(global|set_|use_)",
        r"\bxs\.(Sharding|set_|get_)",
    ),
    "distributed=spmd": (r"\bspmd\b", "use_spmd", "ShardingSpec", r"\bspread\((batch\b|\[)"),
    "distributed=fsdp": ("fsdp", "fully_shard", r"\bdcp\b", "cpu_offload"),
    "distributed=fsdp|deepspeed|spmd": (
        r"\bshard\(\w+(, mesh|: nn)",
        r"shards\.(partial|result)",
        "(its|their) shards",
        "in shards;",
    ),
    "distributed=deepspeed": (
        "deepspeed",
        "zero[-_]stage",
        r"\bengine's",
        r"(loss\(|checkpoints, |newest, |layout_of\()engine\b",
        r"\bengine\.(backward|device|module|step|was_|zero_|load_check|save_check)",
    ),
    "with=offload": ("offload_optimizer",),
    "precision=fp16": (
        "GradScaler",
        r"\bscaler\.(get_scale|scale\(|step\(|unscale_|update\()",
        '"scaler": scaler',
        r"torch\.float16",
        '"skipped"',
        r"\bskipped \+=",
        r"step \+ skipped",
    ),
    "precision=bf16": (r"\bbfloat16",),
    "precision=tf32": (r"\btf32\b", "matmul_precision"),
    "with=grad-accum": (
        "grad[-_]accum",
        "accumulation_steps",
        "micro_step",
        r"batch in window\b",
        "window_loss",
        "window's targets",
    ),
    "with=grad-clip": ("clip_grad", "clip-grad"),
    "with=ema": (
        "update_ema",
        r"\bema[-_]decay",
        r"\bema\.state_dict",
        '"ema"',
        r"\bema = copy",
        r"evaluate\(ema\b",
        r"\(ema, mesh",
    ),
    "with=early-stopping": (r"args\.patience", "--patience", '"stale"', r"\bstale \+="),
    "with=compile": (r"torch\.compile", r"\.compile\(\)", "compiled modules", "not compiled: gradients"),
    "with=activation-checkpointing": (r"utils\.checkpoint", "use_reentrant"),
    "with=hybrid-shard": ("LOCAL_WORLD_SIZE", "mesh_dim"),
    "with=throughput": (
        r"\bThroughput[,(:]",
        r"throughput\.since",
        "peak[-_]tflops",
        r"\bmfu\b",
        "speed/(device_|examples_|tokens_)",
    ),
    "with=log-best": (
        "(?-i:UPLOADS)",
        "upload_artifact",
        r"\]\.upload\(",
        r"wandb\.Artifact",
        "artifacts_uri",
    ),
    "with=deterministic": ("use_deterministic", "CUBLAS", "own sum is not deterministic"),
    "with=async-checkpoint": (
        "async_save",
        "save_group",
        r"background(\.submit| = Thread)",
        r"\bpending\.pop\(\)\.result",
        "while pending:",
        r"list\[Future\]",
    ),
}
IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn"}


def spoken_of(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """Choices and their words: ours, and what manifests say of features, data sources and loggers."""
    for choice, words in WORDS.items():
        yield choice, "|".join(words)
    for task in catalog.tasks.values():
        yield from ((f"with={name}", change.get("words", "")) for name, change in task.changes.items())
        yield from ((f"data={name}", source.words) for name, source in task.sources.items())
    yield from ((f"with={name}", item.words) for name, item in catalog.additive.items())
    yield from ((f"logger={name}", item.words) for name, item in catalog.loggers.items())


class Vocabulary:
    """The words of every choice, and where texts hold them."""

    def __init__(self, catalog: Catalog) -> None:
        self.words: dict[str, dict[str, None]] = {}  # and the choices, each once, that have them
        for choice, words in spoken_of(catalog):
            if words:
                self.words.setdefault(words, {})[choice] = None
        self.patterns = {word: re.compile(word, re.IGNORECASE) for word in self.words}
        self.in_text = cache(self.find_in_text)
        self.on_line = cache(self.find_on_line)

    def find_on_line(self, line: str) -> frozenset[str]:
        return frozenset(word for word, pattern in self.patterns.items() if pattern.search(line))

    def find_in_text(self, text: str) -> frozenset[str]:
        return frozenset[str]().union(*map(self.on_line, text.split("\n")))

    def was_chosen(self, word: str, answers: Answers) -> bool:
        choices = (choice.split("=") for choice in self.words[word])
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


def required_names(requires: Iterable[str]) -> set[str]:
    return {re.split(r"[^\w.-]", item)[0] for item in requires}


@dataclass(frozen=True)
class Said:
    """What a source's syntax tree says of options and packages."""

    defined: frozenset[str] = frozenset()  # the options of its argument parser
    used: frozenset[str] = frozenset()  # what it reads from args
    imported: frozenset[str] = frozenset()  # the modules outside of Python's own


def option_name(call: ast.Call) -> str:
    """The attribute of args that a call of add_argument sets, empty where the source does not tell."""
    named = [word.value for word in call.keywords if word.arg == "dest"] or call.args
    words = [node.value for node in named if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    word = next((word for word in words if word.startswith("--")), next(iter(words), ""))
    return word.lstrip("-").replace("-", "_")


def modules_of(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if node.module and not node.level else []


@lru_cache(maxsize=65536)
def said_in(source: str) -> Said:
    defined, used, imported = set[str](), set[str](), set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            defined.add(option_name(node))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args":
            used.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported.update(name.split(".")[0] for name in modules_of(node))
    return Said(frozenset(defined - {""}), frozenset(used), frozenset(imported - sys.stdlib_module_names))


SPEAKS = re.compile(r"\bargs\b|add_argument|import")
HEAD = re.compile(r":(\s*#.*)*$")
IMPORT = re.compile(r"\n(?=import |from )")


@cache
def statement_at(column: int) -> re.Pattern[str]:
    return re.compile(rf"\n(?= {{{column}}}(?!elif\b|else\b|except\b|finally\b)[^\s#)\]}}])")


def said_in_block(source: str, column: int) -> list[Said]:
    """A statement at a time, as they stand inside one another: projects share most of them."""
    head, *body = statement_at(column).split(source)
    margin = "if True:\n" if source.startswith(" ") else ""
    if body and HEAD.search(head):
        try:
            found = [said_in(f"{margin}{head}\n{' ' * column}...")]
            return found + [part for statement in body for part in said_in_block(statement, column + 4)]
        except SyntaxError:  # it has an else, or its head several lines
            pass
    return [said_in(margin + source)]


def said_in_piece(piece: str) -> list[Said]:
    try:
        return [part for block in IMPORT.split(piece) for part in said_in_block(block, 4)]
    except SyntaxError:  # it was a text's line that began like that
        return [said_in(piece)]


@lru_cache(maxsize=16384)
def said(source: str) -> Said:
    """What a module says, whose pieces stand between two empty lines; an error if it is no Python."""
    try:
        found = [
            part for piece in source.split("\n\n\n") if SPEAKS.search(piece) for part in said_in_piece(piece)
        ]
    except SyntaxError:  # there are two empty lines inside of a string
        found = [said_in(source)]
    empty = frozenset[str]()
    return Said(
        empty.union(*(part.defined for part in found)),
        empty.union(*(part.used for part in found)),
        empty.union(*(part.imported for part in found)),
    )


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
