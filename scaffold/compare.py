"""What a choice changes: the difference between two trees."""

from __future__ import annotations

import difflib

from scaffold.render import Tree


def difference(before: Tree, after: Tree, context: int = 3) -> str:
    """A unified diff over all files, empty when they are equal."""
    lines: list[str] = []
    for path in dict.fromkeys([*before, *after]):
        old, new = before.get(path), after.get(path)
        lines += difflib.unified_diff(
            (old or "").splitlines(keepends=True),
            (new or "").splitlines(keepends=True),
            "/dev/null" if old is None else f"a/{path}",
            "/dev/null" if new is None else f"b/{path}",
            n=context,
        )
    return "".join(lines)


def changed_lines(diff: str) -> int:
    """Lines added and removed."""
    return sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in diff.splitlines())
