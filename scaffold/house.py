"""A lab's own house template: cookiecutter renders it, the training project is laid inside it."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from scaffold.errors import RequestError
from scaffold.render import Tree
from scaffold.signals import sigterm_raises


@sigterm_raises()
def furnish(tree: Tree, template: str, name: str, trust: bool, ask: bool) -> tuple[Tree, set[str]]:
    """The house's files and ours, and which are scripts; where both want one path, the user has to choose.

    `template` is whatever cookiecutter takes: a folder, a zip, a git address, `gh:lab/house`.
    """
    from cookiecutter.main import cookiecutter

    logging.getLogger("cookiecutter").setLevel(logging.CRITICAL)  # the error says it
    with tempfile.TemporaryDirectory() as folder:
        try:
            place = cookiecutter(
                template,
                no_input=not ask,
                extra_context={"project_name": name, "project_slug": name, "repo_name": name},
                output_dir=folder,
                accept_hooks=trust,
            )
        except Exception as error:  # what a template of theirs, git or a hook raises is not ours to know
            line = " ".join(str(error).split()) or type(error).__name__
            raise RequestError(f"the house template {template} cannot be rendered: {line}") from None
        house, scripts = {}, set()
        for path in sorted(Path(place).rglob("*")):
            if path.is_file():
                try:
                    house[path.relative_to(place).as_posix()] = path.read_bytes().decode()
                except UnicodeDecodeError:
                    raise RequestError(
                        f"the house template {template} holds {path.name}, which is not text: leave it out"
                    ) from None
                if os.access(path, os.X_OK):
                    scripts.add(path.relative_to(place).as_posix())
    both = sorted(wanted(house) & set(tree) | wanted(tree) & set(house))
    if both:
        raise RequestError(
            f"the house template {template} and the project both want {', '.join(both)}: "
            "take them out of the template"
        )
    return house | tree, scripts


def wanted(tree: Tree) -> set[str]:
    """The files of a tree and the folders that they are in."""
    return {place.as_posix() for path in tree for place in (Path(path), *Path(path).parents)}
