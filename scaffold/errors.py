"""The one exception a user's mistake raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RequestError(Exception):
    """The request is wrong: one line that says why and what would work. The command line exits 2."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What the system refuses, below a path that the user named, is the user's to change."""
    try:
        yield
    except OSError as error:
        raise RequestError(f"cannot read {error.filename or path}: {error.strerror}") from None
