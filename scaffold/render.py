"""Plan -> tree: the templates, rendered in memory.

Templates are Python files whose control lines are comments (`#: if ddp`), so an editor colours them and a
test parses them. A line that holds only `{{ ... }}` is a slot: its text is indented to its column, and the
line goes when the text is empty.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

from jinja2 import (
    Environment,
    FileSystemBytecodeCache,
    FileSystemLoader,
    StrictUndefined,
    TemplateNotFound,
    TemplateSyntaxError,
)
from jinja2.bccache import Bucket
from jinja2.ext import Extension

from scaffold.catalog import Catalog
from scaffold.errors import RequestError
from scaffold.names import names_of
from scaffold.plan import Plan

Tree = dict[str, str]

STATEMENT = re.compile(r"^[ \t]*#: (.+)$", re.MULTILINE)
COMMENT = re.compile(r"^[ \t]*#!(?: .*)?\n", re.MULTILINE)
SLOT_LINE = re.compile(r"^([ \t]*)\{\{((?:(?!\}\}).)+)\}\}[ \t]*\n", re.MULTILINE)
GONE = "\0"  # marks the line of an empty slot until finish() removes it
GONE_LINE = re.compile(r"^[ \t]*\0\n", re.MULTILINE)
IMPORT_BLOCK = re.compile(
    r'(?:""".*?"""\n)?\n*(?P<imports>(?:(?:from|import) [^\n(]*(?:\([^)]*\))?\n(?:\n*(?=from |import ))?)+)',
    re.DOTALL,
)
REASON = re.compile(r"^(import \S+)(  # .+)$", re.MULTILINE)
WIDTH = 110  # characters a line


class SlotLines(Extension):
    """Turns comment lines into Jinja statements and lone expressions into slots, line for line."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        source = STATEMENT.sub(r"{% \1 %}", COMMENT.sub("{#\n#}", source))
        return SLOT_LINE.sub(lambda m: f"{{{{ ({m[2].strip()}) | slot({len(m[1])}) }}}}\n", source)


def slot(value: object, column: int) -> str:
    """Text moved to `column`, whatever its own margin; a mark when there is none."""
    lines = [line for line in str(value).strip("\n").split("\n") if line.strip() != GONE]
    filled = [line for line in lines if line.strip()]
    if not filled:
        return GONE
    margin = min(len(line) - len(line.lstrip(" ")) for line in filled)
    pad = " " * column
    return "\n".join(pad + line[margin:] if line.strip() else "" for line in lines)


def guard(condition: str, body: object) -> str:
    """`body` under `if condition:`; bare when the condition is empty, nothing when the body is."""
    text = slot(body, 4 if condition else 0)
    return text if text == GONE or not condition else f"if {condition}:\n{text}"


def cache_folder() -> Path | None:
    """Where compiled templates wait for the next command, one folder per version of this file."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "scaffold" / f"templates-{crc32(Path(__file__).read_bytes()):08x}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    return folder if os.access(folder, os.W_OK) else None


class Cache(FileSystemBytecodeCache):
    """Compiled templates on disk; one that cannot be read or written is compiled again."""

    def load_bytecode(self, bucket: Bucket) -> None:
        try:
            super().load_bytecode(bucket)
        except Exception:  # pickle and marshal raise what they like on a damaged file
            bucket.reset()

    def dump_bytecode(self, bucket: Bucket) -> None:
        with suppress(OSError):
            super().dump_bytecode(bucket)


def environment(catalog: Catalog) -> Environment:
    cache = cache_folder()
    env = Environment(
        loader=FileSystemLoader(catalog.roots),
        bytecode_cache=Cache(str(cache)) if cache else None,
        extensions=[SlotLines],
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        cache_size=-1,
        auto_reload=False,
    )
    env.filters["slot"] = slot
    env.globals["guard"] = guard
    return env


@lru_cache(maxsize=4096)
def finish(source: str, own: frozenset[str]) -> str:
    """Settle a Python file: unused imports go, the rest is sorted, blank lines are black's.

    `own` are the names of the project's modules.
    """
    source = GONE_LINE.sub("", source)
    header = IMPORT_BLOCK.match(source)
    if header:
        imports = sorted_imports(header["imports"], names_of(source).read, own)
        source = source[: header.start("imports")] + imports + "\n" + source[header.end("imports") :]
    source = re.sub(r"[ \t]+\n", "\n", source)
    source = re.sub(r"\n{4,}", "\n\n\n", source)  # at most two blank lines
    source = re.sub(r"\n{3,}(?=[ \t])", "\n\n", source)  # at most one inside a block
    source = re.sub(r":\n\n+(?=[ \t]+\S)", ":\n", source)  # none after the line that opens a block
    return source.strip("\n") + "\n"


def sorted_imports(block: str, used: frozenset[str], own: frozenset[str]) -> str:
    """The imports of names that are used, in isort's sections and order."""
    plain: dict[str, str] = {}  # what is imported -> bound name
    named: dict[str, tuple[str, str]] = {}  # bound name -> where from, what
    for node in ast.parse(block).body:
        assert isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names:
            bound = alias.asname or alias.name.split(".")[0]
            spelled = alias.name + (f" as {alias.asname}" if alias.asname else "")
            if isinstance(node, ast.Import):
                plain[spelled] = bound
            else:
                named[bound] = (node.module or "", spelled)
    reasons = {line: line + reason for line, reason in REASON.findall(block)}
    groups: dict[str, list[str]] = {}
    for bound, (source, spelled) in named.items():
        if bound in used:
            groups.setdefault(source, []).append(spelled)
    sections: list[list[str]] = [[], [], []]
    for spelled in sorted(spelled for spelled, bound in plain.items() if bound in used):
        line = f"import {spelled}"
        sections[section(spelled, own)].append(reasons.get(line, line))
    for source in sorted(groups, key=str.lower):
        names = sorted(groups[source], key=import_order)
        sections[section(source, own)].append(import_from(source, names))
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def import_from(source: str, names: list[str]) -> str:
    line = f"from {source} import {', '.join(names)}"
    if len(line) <= WIDTH:
        return line
    return f"from {source} import (\n" + "".join(f"    {name},\n" for name in names) + ")"


def import_order(name: str) -> tuple[int, str]:
    """isort's order inside one line: CONSTANTS, Classes, functions."""
    word = name.split(" ")[0]
    kind = 0 if word.isupper() and len(word) > 1 else 1 if word[0].isupper() else 2
    return kind, name


def section(module: str, own: frozenset[str]) -> int:
    """0 standard library, 1 third party, 2 the project's own."""
    root = re.split("[. ]", module)[0]
    if root in sys.stdlib_module_names:
        return 0
    return 2 if root in own else 1


def settled(text: str) -> str:
    """A file that is no Python, without the lines of empty slots."""
    return GONE_LINE.sub("", text).strip("\n") + "\n"


class Renderer:
    """Renders any number of plans; templates are compiled once."""

    def __init__(self, catalog: Catalog) -> None:
        self.env = environment(catalog)
        self.roots = catalog.roots

    def tree(self, plan: Plan) -> Tree:
        """Every file of the project but .scaffold.toml: path -> text, in the order people read them."""
        own = frozenset(Path(path).stem for path in plan.files)
        return {path: self.file(name, plan.facts, own) for path, name in plan.files.items()}

    def file(self, template: str, facts: Mapping[str, Any], own: frozenset[str]) -> str:
        try:
            text = self.env.get_template(template).render(facts)
            if template.endswith(".py.jinja"):
                return finish(text, own)
        except Exception as error:  # templates are code, those of plug-ins too: they raise what they like
            raise self.refusal(error, template) from error
        return settled(text)

    def refusal(self, error: Exception, template: str) -> RequestError:
        """A template that cannot be rendered, and what says more of its folder."""
        named = error.name if isinstance(error, TemplateNotFound | TemplateSyntaxError) else None
        name, missing = named or template, isinstance(error, TemplateNotFound)
        reason = "it is missing" if missing else f"{type(error).__name__}: {error}".splitlines()[0]
        places = [root.joinpath(*Path(name).parts[:2]) for root in self.roots]
        folder = next((shlex.quote(str(place)) for place in places if place.is_dir()), "DIR")
        return RequestError(f"{name} cannot be rendered ({reason}): see `scaffold check {folder}`")
