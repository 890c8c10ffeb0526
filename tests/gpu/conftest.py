"""These run where PyTorch finds an accelerator, and leave what they ran for the support table.

SCAFFOLD_RESULTS=FOLDER pytest -m "" tests/gpu
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.accelerator.is_available():
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="PyTorch finds no accelerator"))
