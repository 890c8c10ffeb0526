"""The command line beside cookiecutter's: from a cold start to a written project, both in turn."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES = {  # path -> body; @ stands for the project's name
    "README.md": "# @\n\nTrain with `python train.py`.\n" + "A line about @.\n" * 20,
    "pyproject.toml": '[project]\nname = "@"\nversion = "0.1.0"\n',
    "train.py": '"""Train @."""\n' + "step = '@'\n" * 60,
    "model.py": '"""The model of @."""\n' + "layer = '@'\n" * 60,
    "data.py": '"""The data of @."""\n' + "item = '@'\n" * 60,
    "evaluate.py": '"""Evaluate @."""\n' + "score = '@'\n" * 40,
    "config.py": '"""The settings of @."""\n' + "value = '@'\n" * 40,
    "tests/test_train.py": '"""Tests of @."""\n' + "check = '@'\n" * 30,
    ".gitignore": "runs/\n__pycache__/\n# @\n",
    "Makefile": "train:\n\tpython train.py --name @\n",
}
SCRIPTS = Path(sys.executable).parent


def make_template(folder: Path) -> Path:
    """A cookiecutter template of ten files."""
    for path, body in FILES.items():
        file = folder / "{{cookiecutter.slug}}" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(body.replace("@", "{{ cookiecutter.slug }}"))
    (folder / "cookiecutter.json").write_text('{"slug": "my-net"}')
    return folder


def timed(command: list[str], folder: Path, env: dict[str, str], files: int) -> dict[str, float]:
    """Milliseconds until the command has ended; it must have written so many files."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    written = [path for path in (folder / "my-net").rglob("*") if path.is_file()]
    assert process.returncode == 0 and len(written) == files, f"{command}: {process.returncode}, {written}"
    shutil.rmtree(folder / "my-net")
    return {"wall": wall * 1e3, "processor": (usage.ru_utime + usage.ru_stime) * 1e3}


def measure(rounds: int = 15) -> dict[str, float]:
    """Medians over pairs, and the median of their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        template = make_template(root / "template")
        (root / "home").mkdir()
        env = {"HOME": str(root / "home"), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        commands = {
            "scaffold": ([str(SCRIPTS / "scaffold"), "new", "my-net", "--yes"], 10),
            "cookiecutter": ([str(SCRIPTS / "cookiecutter"), "--no-input", str(template)], len(FILES)),
        }
        pairs = []
        for number in range(rounds + 1):
            names = sorted(commands, reverse=bool(number % 2))
            pair = {name: timed(commands[name][0], root, env, commands[name][1]) for name in names}
            if number:  # the first fills caches
                pairs.append(pair)
    found = {f"{name} ms": statistics.median(pair[name]["wall"] for pair in pairs) for name in commands}
    for clock in ("wall", "processor"):
        ratios = [pair["scaffold"][clock] / pair["cookiecutter"][clock] for pair in pairs]
        found[f"{clock} ratio"] = statistics.median(ratios)
    return found


def modules_of_help() -> set[str]:
    """The top-level modules that `scaffold --help` imports."""
    code = (
        "import sys; sys.argv = ['scaffold', '--help']\n"
        "try: import scaffold.cli; scaffold.cli.app()\n"
        "except SystemExit: pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "--help" in done.stdout
    return {name.partition(".")[0] for name in done.stderr.split()}
