"""A sharded run that several files look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guarantees.harness import SHARDED_OPTIONS
from tests.projects import render, train_ranks


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("made") / "demo", task="tabular", distributed="fsdp")


@pytest.fixture(scope="session")
def trained(sharded: Path) -> Path:
    """What two processes wrote in twenty steps."""
    train_ranks(sharded, *SHARDED_OPTIONS, "--max-steps", 20, "--output-dir", sharded / "two")
    return sharded / "two"
