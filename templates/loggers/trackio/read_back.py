"""What Trackio's database holds of a run; for tests."""

import hashlib
import os
from pathlib import Path
from typing import Any


def stored(output_dir: Path) -> tuple[Any, dict[str, Any]]:
    """Trackio's storage and the keys of the one run in it."""
    os.environ.setdefault("TRACKIO_DIR", str(output_dir / "trackio"))
    from trackio.sqlite_storage import SQLiteStorage

    [record] = SQLiteStorage.get_run_records("demo")
    return SQLiteStorage, {"project": "demo", "run": record["name"], "run_id": record["id"]}


def rows(output_dir: Path) -> list[dict[str, Any]]:
    storage, keys = stored(output_dir)
    return storage.get_logs(**keys)


def scalars(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows(output_dir):
        for key in row.keys() - {"step", "timestamp", "pictures"}:
            found.setdefault(key, []).append((row["step"], row[key]))
    return found


def config(output_dir: Path) -> dict[str, object]:
    storage, keys = stored(output_dir)
    return {key: value for key, value in storage.get_run_config(**keys).items() if key[0] != "_"}


def pictures(output_dir: Path) -> list[int]:
    return [row["step"] for row in rows(output_dir) if "pictures" in row]


def artifacts(output_dir: Path) -> dict[str, str]:
    storage, _ = stored(output_dir)
    assert [item["name"] for item in storage.get_artifacts("demo")] == ["best"]
    blobs = [path for path in (output_dir / "trackio" / "artifacts").rglob("sha256/*/*") if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in blobs}
