"""What ClearML's client has put away of a task, for `clearml-task --import-offline-session`; for tests."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def session(output_dir: Path) -> Path:
    """Of all parts of the task; what a later one reports again takes the place of what was there."""
    [folder] = [path for path in (output_dir / "clearml" / "offline").iterdir() if path.is_dir()]
    assert folder.name == (output_dir / "clearml-task-id").read_text()
    return folder


def events(output_dir: Path, kind: str) -> Iterator[dict[str, Any]]:
    """One for each (iteration, metric, variant), as the server keeps them."""
    lines = (session(output_dir) / "metrics.jsonl").read_text().splitlines()
    found = [event for line in lines for event in json.loads(line) if event["type"] == kind]
    yield from {(event["iter"], event["metric"], event["variant"]): event for event in found}.values()


def scalars(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(output_dir, "training_stats_scalar"):
        if not event["metric"].startswith(":"):  # those it takes of the machine
            found.setdefault(event["metric"], []).append((event["iter"], event["value"]))
    return found


def task(output_dir: Path) -> dict[str, Any]:
    return json.loads((session(output_dir) / "task.json").read_text())


def config(output_dir: Path) -> dict[str, str | None]:
    return {name: item["value"] or None for name, item in task(output_dir)["hyperparams"]["General"].items()}


def pictures(output_dir: Path) -> list[int]:
    return [event["iter"] for event in events(output_dir, "training_debug_image")]


def artifacts(output_dir: Path) -> dict[str, str]:
    listed = {
        item["key"]: session(output_dir) / "data" for item in task(output_dir)["execution"]["artifacts"]
    }
    paths = {name: next(folder.rglob(f"{name}/*")) for name, folder in listed.items()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
