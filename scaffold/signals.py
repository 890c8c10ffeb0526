"""SIGTERM, taken as Ctrl-C is: by an exception, so that what was begun is cleaned up."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM ends the program with 143, by way of every `finally`; a second one does not end those."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def end(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)
