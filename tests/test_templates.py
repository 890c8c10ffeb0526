"""Templates are Python: an editor colours them, and this file parses them."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest

from scaffold.catalog import templates_folder

TEMPLATES = sorted(templates_folder().rglob("*.py.jinja"))
SLOT = re.compile(r"^([ \t]*)\{\{(?:(?!\}\}).)+\}\}[ \t]*$", re.MULTILINE)
ENDING = re.compile(r"(?<=[\w\])}\"])\{\{.*?\}\}")  # goes on behind a name or a bracket: can be left out
INLINE = re.compile(r"\{\{.*?\}\}")
LOGIC = re.compile(r"#: (?:el)?if (.+)")


def as_python(template: str) -> str:
    """Every expression replaced by a name, every slot by a statement; control lines are comments already."""
    return INLINE.sub("x", ENDING.sub("", SLOT.sub(r"\1pass", template)))


def parses(template: str) -> bool:
    """Whether the template is Python; macros for the inside of a function may return and continue."""
    body = textwrap.indent(as_python(template), "        ")
    try:
        ast.parse(f"def template():\n    while True:\n        pass\n{body}")
    except SyntaxError:
        return False
    return True


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.relative_to(templates_folder()).as_posix())
def test_template_is_python(path: Path) -> None:
    assert parses(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.relative_to(templates_folder()).as_posix())
def test_conditions_name_facts(path: Path) -> None:
    """No arithmetic and no nesting of and/or in a template: the plan names the fact."""
    for condition in LOGIC.findall(path.read_text(encoding="utf-8")):
        words = condition.split()
        assert "(" not in condition.replace('in ("', 'in "'), condition
        assert not ("and" in words and "or" in words), condition
        assert not set("+*/<>") & set(condition), condition


def test_the_lint_can_fail() -> None:
    assert parses("#: if ddp\nrun({{ net }}, first{{ ranks }})\n#: endif\n")
    assert not parses("#: if ddp\nrun({{ net }}\n#: endif\n")
