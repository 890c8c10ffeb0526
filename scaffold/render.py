"""Plan -> tree: the templates, rendered in memory.

Templates are Python files whose control lines are comments (`#: if ddp`), so an editor colours them and a
test parses them. A line that holds only `{{ ... }}` is a slot: its text is indented to its column, and the
line goes when the text is empty.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined
from jinja2.ext import Extension

from scaffold.catalog import Catalog, cache_folder
from scaffold.plan import Plan

Tree = dict[str, str]

STATEMENT = re.compile(r"^[ \t]*#: (.+)$", re.MULTILINE)
COMMENT = re.compile(r"^[ \t]*#!(?: .*)?\n", re.MULTILINE)
SLOT_LINE = re.compile(r"^([ \t]*)\{\{((?:(?!\}\}).)+)\}\}[ \t]*\n", re.MULTILINE)
GONE = "\0"  # marks the line of an empty slot until finish() removes it
GONE_LINE = re.compile(r"^[ \t]*\0\n", re.MULTILINE)
OWN_MODULES = {"checkpoint", "data", "model", "record", "train"}


class SlotLines(Extension):
    """Turns comment lines into Jinja statements and lone expressions into slots, line for line."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        source = STATEMENT.sub(r"{% \1 %}", COMMENT.sub("{#\n#}", source))
        return SLOT_LINE.sub(
            lambda m: f"{{{{ ({m[2].strip()}) | slot({len(m[1])}) }}}}\n", source
        )


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


def environment(catalog: Catalog) -> Environment:
    cache = cache_folder()
    env = Environment(
        loader=FileSystemLoader(catalog.roots),
        bytecode_cache=FileSystemBytecodeCache(str(cache)) if cache else None,
        extensions=[SlotLines],
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        cache_size=-1,
    )
    env.filters["slot"] = slot
    env.globals["guard"] = guard
    return env


@lru_cache(maxsize=4096)
def finish(source: str) -> str:
    """Settle a Python file: unused imports go, the rest is sorted, blank lines are black's."""
    source = GONE_LINE.sub("", source)
    module = ast.parse(source)
    imports = [node for node in module.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    if imports:
        rows = source.split("\n")
        first, last = imports[0].lineno - 1, imports[-1].end_lineno
        source = "\n".join([*rows[:first], sorted_imports(module, imports), *rows[last:]])
    source = re.sub(r"[ \t]+\n", "\n", source)
    source = re.sub(r"\n{4,}", "\n\n\n", source)  # at most two blank lines
    source = re.sub(r"\n{3,}(?=[ \t])", "\n\n", source)  # at most one inside a block
    source = re.sub(r":\n\n+(?=[ \t]+\S)", ":\n", source)  # none after the line that opens a block
    source = re.sub(r"(?<=\n)\n*(?=\n\n\n(?:def|class|if|@|[A-Z_]+ = ))", "", source)
    return source.strip("\n") + "\n"


def sorted_imports(module: ast.Module, imports: list[ast.Import | ast.ImportFrom]) -> str:
    used = {node.id for node in ast.walk(module) if isinstance(node, ast.Name)}
    plain: set[tuple[int, str]] = set()
    named: dict[tuple[int, str], set[str]] = {}
    for node in imports:
        for alias in node.names:
            if (alias.asname or alias.name.split(".")[0]) not in used:
                continue
            spelled = alias.name + (f" as {alias.asname}" if alias.asname else "")
            if isinstance(node, ast.Import):
                plain.add((section(alias.name), spelled))
            else:
                assert node.module
                named.setdefault((section(node.module), node.module), set()).add(spelled)
    blocks = []
    for number in range(3):
        lines = [f"import {text}" for place, text in sorted(plain) if place == number]
        lines += [
            f"from {source} import {', '.join(sorted(names, key=import_order))}"
            for (place, source), names in sorted(named.items())
            if place == number
        ]
        if lines:
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def import_order(name: str) -> tuple[int, str]:
    """isort's order inside one line: CONSTANTS, Classes, functions."""
    word = name.split(" ")[0]
    kind = 0 if word.isupper() and len(word) > 1 else 1 if word[0].isupper() else 2
    return kind, name


def section(module: str) -> int:
    """0 standard library, 1 third party, 2 the project's own."""
    root = module.split(".")[0]
    if root in sys.stdlib_module_names:
        return 0
    return 2 if root in OWN_MODULES else 1


class Renderer:
    """Renders any number of plans; templates are compiled once."""

    def __init__(self, catalog: Catalog) -> None:
        self.env = environment(catalog)

    def tree(self, plan: Plan) -> Tree:
        """Every file of the project but .scaffold.toml: path -> text, in the order people read them."""
        facts: Mapping[str, Any] = plan.facts
        return {path: self.file(name, facts) for path, name in plan.files.items()}

    def file(self, template: str, facts: Mapping[str, Any]) -> str:
        text = self.env.get_template(template).render(facts)
        if template.endswith(".py.jinja"):
            return finish(text)
        return GONE_LINE.sub("", text).strip("\n") + "\n"
