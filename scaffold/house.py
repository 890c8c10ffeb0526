"""A lab's own house template: cookiecutter renders it, the training project is laid inside it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from scaffold.errors import RequestError
from scaffold.render import Tree


def furnish(tree: Tree, template: str, name: str, trust: bool, ask: bool) -> Tree:
    """The house's files and ours; where both want the same one, the user has to say which.

    `template` is whatever cookiecutter takes: a folder, a zip, a git address, `gh:lab/house`.
    """
    from cookiecutter.exceptions import CookiecutterException
    from cookiecutter.main import cookiecutter

    with tempfile.TemporaryDirectory() as folder:
        try:
            place = cookiecutter(
                template,
                no_input=not ask,
                extra_context={"project_name": name, "project_slug": name, "repo_name": name},
                output_dir=folder,
                accept_hooks=trust,
            )
        except (CookiecutterException, OSError, ValueError) as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RequestError(f"the house template {template} cannot be rendered: {line}") from None
        house = {}
        for path in sorted(Path(place).rglob("*")):
            if path.is_file():
                try:
                    house[path.relative_to(place).as_posix()] = path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    raise RequestError(
                        f"the house template {template} holds {path.name}, which is not text: leave it out"
                    ) from None
    both = sorted(set(house) & set(tree))
    if both:
        raise RequestError(
            f"the house template {template} and the project both want {', '.join(both)}: "
            "take them out of the template"
        )
    return house | tree
