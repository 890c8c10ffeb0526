"""Every property has a test and a control, and is shown for every distribution that it applies to."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ALL = {"none", "ddp", "fsdp"}
FEWER = {
    6: {"ddp", "fsdp"},  # compares them with one process
    9: {"ddp", "fsdp"},  # one process waits for no other
    20: set(),  # about sharded checkpoints only
}


@pytest.fixture(scope="module")
def collected() -> dict[tuple[int, bool], set[str]]:
    """(number, is it a control?) -> the distributions named in what the default run collects."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", str(Path(__file__).parent)]
    listing = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = defaultdict(set)
    for control, name in ((bool(m[2]), m) for m in re.finditer(r"::test_(\d\d)_(control_)?(.*)", listing)):
        words = set(re.split(r"\W", name[3])) & ALL
        found[int(name[1]), control] |= words or {"none"}
    return found


@pytest.mark.parametrize("number", range(1, 26))
def test_every_number(collected: dict[tuple[int, bool], set[str]], number: int) -> None:
    assert (number, True) in collected, "no control"
    assert collected[number, False] >= FEWER.get(number, ALL)
