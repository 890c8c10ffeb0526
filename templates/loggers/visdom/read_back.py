"""What a Visdom server holds of a run; for tests."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import visdom

NEEDS_SERVER = True


def windows(output_dir: Path) -> dict[str, Any]:
    port, env = int(os.environ["VISDOM_PORT"]), (output_dir / "visdom-env").read_text()
    vis = visdom.Visdom(port=port, env=env, raise_exceptions=True, use_incoming_socket=False)
    return json.loads(vis.get_window_data())


def scalars(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    found = {name: window["content"]["data"] for name, window in windows(output_dir).items() if "/" in name}
    return {name: list(zip(map(int, line["x"]), line["y"], strict=True)) for name, [line] in found.items()}


def config(output_dir: Path) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in windows(output_dir)["config"]["content"].split("<br>"))


def pictures(output_dir: Path) -> list[int]:
    held = windows(output_dir)["pictures"]["content"]
    return [int(picture["caption"].removeprefix("step ")) for picture in held]


def serve(folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The command of a server, and the variables that lead a project to it."""
    start = "from visdom.server.run_server import main; main()"  # its command first loads what its page shows
    words = ["-port", str(port), "-env_path", f"{folder}/", "-bind_local"]
    return [sys.executable, "-c", start, *words], {"VISDOM_PORT": str(port)}
