"""The tree on disk: written whole or not at all, and read back from .scaffold.toml."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import tomllib
from pathlib import Path

from scaffold import __version__
from scaffold.answers import Answers, from_dict, to_toml
from scaffold.catalog import Catalog
from scaffold.errors import RequestError
from scaffold.render import Tree
from scaffold.rules import complete

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
        manifest = tomllib.loads(path.read_text(encoding="utf-8"))
        values = manifest["answers"]
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(f"{folder} is not a scaffold project: it has no {MANIFEST}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError) as error:
        raise RequestError(f"{path} cannot be read ({error}): restore it from version control") from None
    return complete(from_dict(values, str(path)), catalog)


def check_target(target: Path, tree: Tree, force: bool) -> None:
    """Refuse to write over what is there, unless told to."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise RequestError(f"{target} exists and is not a folder: choose another name")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise RequestError(
            f"{target} exists and is not empty: choose another name, or --force to write over its files"
        )
    for path in tree:
        if (target / path).is_dir():
            raise RequestError(f"{target / path} is a folder where a file should go: move it away")


def write(tree: Tree, target: Path, force: bool = False) -> None:
    """Write to a folder beside the target, then move it into place."""
    check_target(target, tree, force)
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
        staged.chmod(0o777 & ~current_umask())
        if target.is_dir() and any(target.iterdir()):
            for path in tree:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staged / path, target / path)
        else:
            os.replace(staged, target)
    except OSError as error:
        raise RequestError(f"cannot write {target}: {error.strerror}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
