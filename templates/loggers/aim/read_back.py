"""What an Aim repository holds of a run; for tests."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import aim
from aim.storage.context import Context


def run_of(output_dir: Path) -> aim.Run:
    """The one run that is there, once the index is made, as `aim up` makes it."""
    repo = os.environ.get("AIM_REPO") or str(output_dir)
    command = [Path(sys.executable).with_name("aim"), "storage", "--repo", repo, "reindex", "--yes"]
    subprocess.run(command, check=True, capture_output=True)
    [run] = aim.Repo(repo).iter_runs()
    return run


def scalars(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for metric in run_of(output_dir).metrics():
        steps, (values, *_) = metric.data.items_list()
        found[metric.name] = list(zip(steps, values, strict=True))
    return found


def config(output_dir: Path) -> dict[str, object]:
    return run_of(output_dir)["config"]


def pictures(output_dir: Path) -> list[int]:
    return run_of(output_dir).get_image_sequence("pictures", Context({})).data.items_list()[0]


def artifacts(output_dir: Path) -> dict[str, str]:
    run = run_of(output_dir)
    paths = {name: Path(urlparse(artifact.uri).path) for name, artifact in run.artifacts.items()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
