"""What Polyaxon's client has written of a run without a server; for tests."""

import hashlib
import json
from pathlib import Path
from typing import Any

from traceml.events import V1Events


def folder(output_dir: Path) -> Path:
    [run] = (output_dir / "polyaxon" / "runs").iterdir()  # one, whatever was killed
    assert run.name == (output_dir / "polyaxon-run-uuid").read_text()
    return run


def events(output_dir: Path, kind: str) -> dict[str, list[Any]]:
    """Its names have __ for slashes."""
    files = {path.stem.replace("__", "/"): path for path in folder(output_dir).glob(f"events/{kind}/*.plx")}
    return {
        name: list(V1Events.read(kind=kind, name=name, data=str(path)).df.itertuples())
        for name, path in files.items()
    }


def scalars(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    return {
        name: [(int(event.step), event.metric) for event in found]
        for name, found in events(output_dir, "metric").items()
    }


def config(output_dir: Path) -> dict[str, Any]:
    return json.loads((folder(output_dir) / "run.plx.json").read_text())["inputs"]


def pictures(output_dir: Path) -> list[int]:
    return [int(event.step) for found in events(output_dir, "image").values() for event in found]


def artifacts(output_dir: Path) -> dict[str, str]:
    listed = json.loads((folder(output_dir) / "lineages.plx.json").read_text())
    paths = {item["name"]: folder(output_dir) / item["path"] for item in listed if item["kind"] == "model"}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
