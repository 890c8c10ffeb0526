"""What Comet's client has put away of a run, for `comet upload`; for tests."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile


def archive(output_dir: Path) -> ZipFile:
    """The newest part, as each holds the whole experiment; all have one key."""
    key = (output_dir / "comet-experiment-key").read_text()
    parts = sorted(output_dir.glob("*.zip"), key=lambda path: path.stat().st_mtime)
    assert all(path.name.startswith(key) for path in parts)
    zipped = ZipFile(parts[-1])
    assert json.loads(zipped.read("experiment.json"))["offline_id"] == key
    return zipped


def messages(output_dir: Path, kind: str) -> Iterator[dict[str, Any]]:
    for line in archive(output_dir).read("messages.json").splitlines():
        message = json.loads(line)
        if message["type"] == kind:
            yield message["payload"]


def scalars(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for message in messages(output_dir, "metric_msg"):
        metric = message["metric"]
        if "/" in metric["metricName"]:  # what it measures of the machine has other names
            found.setdefault(metric["metricName"], []).append((metric["step"], metric["metricValue"]))
    return found


def config(output_dir: Path) -> dict[str, Any]:
    logged = [message["param"] for message in messages(output_dir, "parameter_msg")]
    return {param["paramName"]: param["paramValue"] for param in logged if param["source"] == "manual"}


def files(output_dir: Path, kind: str) -> Iterator[tuple[dict[str, Any], str]]:
    """What is said of a file, and its name in the archive."""
    for message in messages(output_dir, "file_upload"):
        if message["upload_type"] == kind:
            yield message["additional_params"], message["file_path"]


def pictures(output_dir: Path) -> list[int]:
    return [said["step"] for said, _ in files(output_dir, "visualization")]


def artifacts(output_dir: Path) -> dict[str, str]:
    zipped = archive(output_dir)
    return {
        said["fileName"]: hashlib.sha256(zipped.read(name)).hexdigest()
        for said, name in files(output_dir, "model-element")
    }
