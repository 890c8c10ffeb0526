"""These run where .ci/run has made a Python for torch_xla, and leave what they ran for the support table.

SCAFFOLD_RESULTS=FOLDER pytest -m xla tests/xla
"""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
PYTHON = HERE.parent.parent / ".venv-xla" / "bin" / "python"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xla)
            if not PYTHON.exists():
                item.add_marker(pytest.mark.skip(reason="there is no .venv-xla; .ci/run makes it"))
