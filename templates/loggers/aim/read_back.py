"""What an Aim repository holds of a run; for tests."""

import hashlib
import json
import os
import sys
from pathlib import Path
from urllib.parse import urlparse

import aim


def run_of(output_dir: Path) -> aim.Run:
    [run] = aim.Repo(os.environ.get("AIM_REPO") or str(output_dir)).iter_runs()
    return run


def scalars(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for metric in run_of(output_dir).metrics():
        steps, values = metric.values.sparse_numpy()
        found[metric.name] = list(zip(map(int, steps), map(float, values), strict=True))
    return found


def config(output_dir: Path) -> dict[str, object]:
    return run_of(output_dir)["config"]


def pictures(output_dir: Path) -> list[int]:
    return [step for images in run_of(output_dir).images() for step in images.values.sparse_list()[0]]


def artifacts(output_dir: Path) -> dict[str, str]:
    run = run_of(output_dir)
    paths = {name: Path(urlparse(artifact.uri).path) for name, artifact in run.artifacts.items()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


if __name__ == "__main__":
    read = (scalars, config, pictures, artifacts)
    print(json.dumps({function.__name__: function(Path(sys.argv[1])) for function in read}))
