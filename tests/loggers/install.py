"""Install the loggers' clients: `python tests/loggers/install.py [NAME …]`, by default all that are pinned.

Each has an environment of its own in .clients/, as they do not agree with one another, and sees there what
this Python has: torch and the like are not installed again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

from scaffold.catalog import load_catalog

ROOT = Path(__file__).parent.parent.parent
CLIENTS = ROOT / ".clients"
CONSTRAINTS = Path(__file__).with_name("constraints.txt")


def pinned() -> set[str]:
    return set(re.findall(r"^([\w-]+)==", CONSTRAINTS.read_text(), re.MULTILINE))


def names() -> list[str]:
    """The loggers whose packages are not among what the tests have anyway."""
    needed = {name: {re.split(r"\W*[<>=]", item)[0] for item in logger.requires} for name, logger in known()}
    return [name for name, packages in needed.items() if packages & pinned()]


def known() -> list[tuple[str, object]]:
    return list(load_catalog().loggers.items())


def install(name: str) -> None:
    folder, start = CLIENTS / name, time.monotonic()
    venv.create(folder, clear=True, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(folder / "bin" / "python")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--use-pep517",  # built apart from what the tests have
        "--quiet",
        "--constraint",
        CONSTRAINTS,
    ]
    requires = load_catalog().loggers[name].requires
    environment = os.environ | {"PIP_CONSTRAINT": str(CONSTRAINTS)}  # for what is built, too
    subprocess.run([*command, *requires], check=True, env=environment, timeout=600)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"{name}: {time.monotonic() - start:.0f} s, {size / 2**20:.0f} MB", flush=True)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or names():
        install(chosen)
