"""The tree on disk: written whole or not at all, and read back from .scaffold.toml."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import tomllib
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from scaffold import __version__
from scaffold.answers import Answers, from_dict, to_toml
from scaffold.axes import BY_KEY
from scaffold.catalog import Catalog
from scaffold.errors import RequestError, readable
from scaffold.render import Tree
from scaffold.rules import complete
from scaffold.signals import sigterm_raises

MANIFEST = ".scaffold.toml"


def with_manifest(tree: Tree, answers: Answers) -> Tree:
    """The tree and its .scaffold.toml: version, answers, a hash per file; nothing of this machine."""
    hashes = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in tree.items()}
    text = f'version = "{__version__}"\n\n[answers]\n{to_toml(answers.to_dict())}' "\n[files]\n" + "".join(
        f'"{path}" = "{digest}"\n' for path, digest in hashes.items()
    )
    return tree | {MANIFEST: text}


def read_answers(folder: Path, catalog: Catalog) -> Answers:
    """What the project in `folder` was written with."""
    path = folder / MANIFEST
    try:
        values = from_dict(tomllib.loads(path.read_text(encoding="utf-8")).get("answers", {}), "its answers")
        if missing := [key for key in ("name", *BY_KEY) if key not in values]:
            raise RequestError(f"its answers lack {missing[0]!r}")
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(f"{folder} is not a scaffold project: it has no {MANIFEST}") from None
    except (RequestError, OSError, ValueError, RecursionError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise RequestError(f"{path} cannot be read ({why}): restore it from version control") from None
    try:
        return complete(values, catalog)
    except RequestError as error:  # of a plug-in that is not installed, say
        raise RequestError(f"{path}: {error}") from None


def check_target(target: Path, tree: Tree, force: bool) -> None:
    """Refuse to write over what is there, unless told to."""
    with readable(target):
        if target.is_symlink():
            raise RequestError(f"{target} is a link: choose another name, or where it leads to")
        if target.exists() and not target.is_dir():
            raise RequestError(f"{target} exists and is not a folder: choose another name")
        if target.is_dir() and any(target.iterdir()) and not force:
            raise RequestError(
                f"{target} exists and is not empty: choose another name, or --force to write over its files"
            )
        for path in tree:
            if (target / path).is_dir():
                raise RequestError(f"{target / path} is a folder where a file should go: move it away")
            for folder in Path(path).parents:
                if (target / folder).exists() and not (target / folder).is_dir():
                    raise RequestError(f"{target / folder} is a file where a folder should go: move it away")


@sigterm_raises()
def write(tree: Tree, target: Path, force: bool = False, scripts: Collection[str] = ()) -> None:
    """Write to a folder beside the target, then move it into place."""
    check_target(target, tree, force)
    missing = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise RequestError(f"cannot write to {target.parent}: {error.strerror}") from None
    try:
        for path, text in tree.items():
            file = staged / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
            if path in scripts:
                file.chmod(0o777 & ~current_umask())
        staged.chmod(0o777 & ~current_umask())
        if target.is_dir() and any(target.iterdir()):
            lay_over(staged, target, tree)
        else:
            os.replace(staged, target)
    except OSError as error:
        raise RequestError(f"cannot write {target}: {error.strerror}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        for folder in missing:  # empty unless the project is there
            with suppress(OSError):
                folder.rmdir()


def lay_over(staged: Path, target: Path, tree: Tree) -> None:
    """Move files among others; when one fails, what was there before comes back."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        before = Path(folder)
        there = [path for path in tree if os.path.lexists(target / path)]
        for path in there:
            (before / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(target / path, before / path, follow_symlinks=False)
        new_folders = [
            place for path in tree for place in Path(path).parents if not (target / place).exists()
        ]
        try:
            for path in tree:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staged / path, target / path)
        except BaseException:
            for path in tree:
                if path in there:
                    os.replace(before / path, target / path)
                else:
                    (target / path).unlink(missing_ok=True)
            for place in new_folders:
                with suppress(OSError):
                    (target / place).rmdir()
            raise


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
