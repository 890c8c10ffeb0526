"""What Neptune's client has put away of a run, for `neptune sync`; for tests."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from threading import RLock
from typing import Any

from neptune.core.components.queue.disk_queue import DiskQueue


def operations(output_dir: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The field and what was done to it, in the newest part, as each holds the whole run."""
    parts = output_dir.glob(".neptune/offline/run__*/metadata.json")
    newest = max(parts, key=lambda path: json.loads(path.read_text())["createdAt"]).parent
    queue = DiskQueue(newest, to_dict=dict, from_dict=dict, lock=RLock())
    for item in queue.get_batch(1_000_000):
        if item.obj["type"] == kind:
            yield "/".join(item.obj["path"]), item.obj


def scalars(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for name, operation in operations(output_dir, "LogFloats"):
        if name.startswith("metrics/"):
            points = [(int(point["step"]), point["value"]) for point in operation["values"]]
            found.setdefault(name.removeprefix("metrics/"), []).extend(points)
    return found


def config(output_dir: Path) -> dict[str, Any]:
    kinds = ("AssignInt", "AssignFloat", "AssignBool", "AssignString")
    assigned = [item for kind in kinds for item in operations(output_dir, kind)]
    found = {name: operation["value"] for name, operation in assigned if name.startswith("config/")}
    return {name.removeprefix("config/"): value for name, value in found.items()}


def pictures(output_dir: Path) -> list[int]:
    logged = [item for name, item in operations(output_dir, "LogImages") if name == "pictures"]
    return [int(image["step"]) for item in logged for image in item["values"]]


def artifacts(output_dir: Path) -> dict[str, str]:
    """It names files, and reads them when it is online again."""
    named = [(name, Path(item["file_path"])) for name, item in operations(output_dir, "UploadFile")]
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in named}
