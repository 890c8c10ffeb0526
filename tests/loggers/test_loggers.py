"""Every logger against its real client and its real server, if it has one: what is stored is the record."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from scaffold.trial import free_port
from tests.loggers.install import CLIENTS, names
from tests.projects import (
    Result,
    Server,
    catalog,
    checkpoints,
    edit,
    few_examples,
    kill_tree,
    metrics,
    render,
    same_run,
    small_options,
    until,
)

pytestmark = pytest.mark.loggers

SHORT = ["--batch-size", 8, "--epochs", 3, "--max-steps", 12, "--log-every", 2, "--checkpoint-every", 4]
ASK = Path(__file__).with_name("ask.py")

# Training comes to a halt before this batch for as long as the file `hold` is there.
HOLD = """
import data, os, time
for kind in list(vars(data).values()):
    if isinstance(kind, type) and hasattr(kind, "__getitem__") and hasattr(kind, "__len__"):
        def get(self, draws, seen=[0], of=kind.__getitem__):
            seen[0] += 1
            while seen[0] > {step} and os.path.exists({hold!r}):
                time.sleep(0.01)
            return of(self, draws)
        kind.__getitem__ = get
"""


@dataclass(frozen=True)
class Client:
    """A logger's folder, its client's interpreter, and what leads projects to its server, if there is one."""

    name: str
    python: str
    env: dict[str, str] = field(default_factory=dict)

    @property
    def script(self) -> Path:
        return catalog().loggers[self.name].folder / "read_back.py"

    @property
    def functions(self) -> set[str]:
        body = ast.parse(self.script.read_text()).body
        return {node.name for node in body if isinstance(node, ast.FunctionDef)}

    def ask(self, functions: list[str], *arguments: object) -> dict[str, Any]:
        """What functions of its read_back.py return, each under its name."""
        command = [self.python, str(ASK), str(self.script), ",".join(functions), *map(str, arguments)]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=os.environ | self.env
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    def train(self, project: Path, *options: object, first: str = "", timeout: float = 60) -> Result:
        self.start(project, *options, first=first)
        [result] = trainer(self.python).wait(timeout)
        assert result.code == 0, result.err
        return result

    def start(self, project: Path, *options: object, first: str = "") -> None:
        trainer(self.python).start(project, *options, env=self.env, first=first)


@cache
def trainer(python: str) -> Server:
    """One process that has torch, for each environment."""
    return Server(
        python, "import numpy, pandas, sklearn.datasets, PIL.Image, torch._dynamo, torch.utils.data, tqdm"
    )


def interpreter(name: str) -> str:
    if name not in names():
        return sys.executable
    python = CLIENTS / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"the client of {name} is not installed: python tests/loggers/install.py {name}")
    return str(python)


LOGGERS = [name for name, logger in catalog().loggers.items() if (logger.folder / "read_back.py").exists()]
SERVED = [name for name in LOGGERS if "serve" in Client(name, "").functions]
ALONE = [name for name in LOGGERS if "NEEDS_SERVER = True" not in Client(name, "").script.read_text()]
KINDS = [
    (name, served) for name in LOGGERS for served in (False, True) if name in (SERVED if served else ALONE)
]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Tracker:
    """A real server."""

    command: list[str]
    env: dict[str, str]
    port: int
    folder: Path
    process: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Unless it runs."""
        if self.process and self.process.poll() is None:
            return
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=os.environ | self.env, stdout=log, stderr=log, text=True
            )
        until(lambda: answers(self.port), timeout=180, every=0.1)

    def end(self) -> None:
        if self.process:
            kill_tree(self.process.pid)
            self.process.wait(20)


Serve = Callable[[str], tuple[Client, Tracker]]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A client and its server, which may not have begun yet; the tests share it."""
    with ExitStack() as stack:

        @cache
        def make(name: str) -> tuple[Client, Tracker]:
            folder, port = tmp_path_factory.mktemp(name), free_port()
            python = interpreter(name)
            command, env = Client(name, python).ask(["serve"], folder, port)["serve"]
            tracker = Tracker(command, env, port, folder)
            stack.callback(tracker.end)
            return Client(name, python, env), tracker

        yield make


def client_of(name: str, served: bool, serve: Serve) -> Client:
    if not served:
        return Client(name, interpreter(name), dict(catalog().loggers[name].test_env))
    client, tracker = serve(name)
    tracker.begin()
    return client


def series(output_dir: Path) -> dict[str, list[Any]]:
    """Of the record: key -> (step, value), as floats of any width."""
    rows = metrics(output_dir)
    return {
        key: [[int(row["step"]), pytest.approx(row[key], rel=1e-6)] for row in rows if key in row]
        for key in sorted({key for row in rows for key in row} - {"step"})
    }


def texts(values: dict[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def check_scalars(client: Client, output_dir: Path) -> None:
    compare_scalars(client.ask(["scalars"], output_dir)["scalars"], output_dir)


def compare_scalars(found: dict[str, Any], output_dir: Path) -> None:
    """Each (step, key) once, and nothing else."""
    assert dict(sorted(found.items())) == series(output_dir)


def check_all(client: Client, output_dir: Path) -> None:
    known = ("scalars", "config", "pictures", "artifacts", "status")
    reads = [name for name in known if name in client.functions]
    found = client.ask(reads, output_dir)
    compare_scalars(found["scalars"], output_dir)
    compare_config(found["config"], output_dir)
    if "pictures" in found:
        drawn = sorted(int(path.stem) for path in (output_dir / "pictures").glob("*.png"))
        assert len(drawn) == 3 and found["pictures"] == drawn
    if "artifacts" in found:
        best = hashlib.sha256((output_dir / "checkpoints" / "best.pt").read_bytes()).hexdigest()
        assert best in found["artifacts"].values()
    assert found.get("status", "FINISHED") == "FINISHED"


def compare_config(found: dict[str, Any], output_dir: Path) -> None:
    run = json.loads((output_dir / "run.json").read_text())
    expected = {**run.pop("arguments"), **run.pop("versions"), **run}
    assert texts(found) == texts(expected)


def identity(name: str, output_dir: Path) -> list[str]:
    """What names the tracker's run, in a small file."""
    return [path.read_text() for path in output_dir.glob(f"{name}-*") if path.is_file()]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"__pycache__"}


@pytest.mark.parametrize(("name", "served"), KINDS)
def test_all_that_is_logged(name: str, served: bool, serve: Serve, tmp_path: Path) -> None:
    """Scalars, configuration, pictures and the best checkpoint are the run's, and nothing lies outside."""
    client = client_of(name, served, serve)
    features = ("throughput", "log-best") if catalog().loggers[name].artifacts else ("throughput",)
    project = render(tmp_path / "demo", task="segmentation", logger=(name,), features=features)
    before = names_in(project)
    options = [*SHORT, *small_options("segmentation"), "--output-dir", tmp_path / "out"]
    result = client.train(project, *options, first=few_examples(32))
    assert "Warning" not in result.err
    check_all(client, tmp_path / "out")
    if "status" in client.functions:
        assert client.ask(["status"], tmp_path / "out") == {"status": "FINISHED"}
    assert names_in(project) == before and names_in(tmp_path) == {"demo", "out"}


def has_last_row(client: Client, out: Path) -> bool:
    """Asked of a tracker that may not know the run yet."""
    try:
        found = client.ask(["scalars"], out)["scalars"]
    except AssertionError:
        return False
    return bool(found) and found["train/loss"][-1][0] == metrics(out)[-1]["step"]


def until_stored(client: Client, out: Path) -> None:
    """Until a run that has come to a halt has written its last row and, if its tracker tells, logged it."""
    until(lambda: (out / "metrics.jsonl").exists() and len(metrics(out)) > 4)
    if f"{client.name}-run-" in (client.script.parent / "logger.py.jinja").read_text():
        until(lambda: list(out.glob(f"{client.name}-run-*")))  # it has begun
    if "serve" in client.functions:
        until(lambda: has_last_row(client, out))


def hold_before(batch: int, folder: Path) -> str:
    (folder / "hold").touch()
    return HOLD.format(step=batch, hold=str(folder / "hold"))


@pytest.mark.parametrize(("name", "served"), KINDS)
def test_a_run_that_is_killed_goes_on(name: str, served: bool, serve: Serve, tmp_path: Path) -> None:
    """Twice: behind a checkpoint, what was logged since comes again, and each (step, key) is there once."""
    client, out = client_of(name, served, serve), tmp_path / "out"
    project = render(tmp_path / "demo", task="tabular", logger=(name,))
    options = [*SHORT, "--epochs", 9, "--max-steps", 30, "--output-dir", out, "--resume"]
    for batch in (7, 9):  # of this process
        client.start(project, *options, first=hold_before(batch, tmp_path))
        until_stored(client, out)
        trainer(client.python).kill()
        trainer(client.python).wait()
    assert checkpoints(out)
    assert "Warning" not in client.train(project, *options).err
    check_scalars(client, out)
    if "runs" in client.functions:
        assert len(client.ask(["runs"], out)["runs"]) == 1


@pytest.mark.parametrize(("name", "served"), [kind for kind in KINDS if kind[0] != "tensorboard"])
def test_another_run_in_the_folder_of_one_that_died(
    name: str, served: bool, serve: Serve, tmp_path: Path
) -> None:
    """Before its first checkpoint, so that nothing stands in the way: the tracker has another run, too."""
    client, out = client_of(name, served, serve), tmp_path / "out"
    project = render(tmp_path / "demo", task="tabular", logger=(name,))
    options = [*SHORT, "--checkpoint-every", 100, "--output-dir", out]
    client.start(project, *options, first=hold_before(7, tmp_path))
    until_stored(client, out)
    [first] = until(lambda: identity(name, out))
    trainer(client.python).kill()
    trainer(client.python).wait()
    assert not checkpoints(out)
    assert "Warning" not in client.train(project, *options, "--lr", 1e-4).err
    assert identity(name, out) != [first]
    if "runs" in client.functions:
        assert len(client.ask(["runs"], out)["runs"]) == 2
        found = client.ask(["scalars", "config"], out)
        compare_scalars(found["scalars"], out)
        compare_config(found["config"], out)


@pytest.mark.parametrize(("name", "served"), KINDS)
def test_a_run_that_fails(name: str, served: bool, serve: Serve, tmp_path: Path) -> None:
    """The tracker has all rows up to the one that was not finite."""
    client, out = client_of(name, served, serve), tmp_path / "out"
    project = render(tmp_path / "demo", task="tabular", logger=(name,))
    broken = 'check_finite(metrics | ({"train/loss": math.nan} if step == 9 else {}), step)'
    edit(project / "train.py", "check_finite(metrics, step)", broken)
    client.start(project, *SHORT, "--output-dir", out)
    [result] = trainer(client.python).wait(60)
    assert result.code == 1 and "Warning" not in result.err and "step 9: train/loss is nan" in result.err
    assert metrics(out)[-1]["step"] == 8
    check_scalars(client, out)
    if "status" in client.functions:
        assert client.ask(["status"], out) == {"status": "FAILED"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run without a logger."""
    folder = tmp_path_factory.mktemp("plain")
    Client("", sys.executable).train(
        render(folder / "demo", task="tabular"), *SHORT, "--output-dir", folder / "out"
    )
    return folder / "out"


def impatient(project: Path) -> Path:
    """A run waits three seconds for its loggers, not 25."""
    edit(project / "loggers.py", "GRACE = 25 ", "GRACE = 3 ")
    return project


def check_unharmed(result: Result, plain: Path, out: Path, name: str) -> None:
    """The same bits as without it, and one warning."""
    assert same_run(plain, out)
    warnings = [line for line in result.err.splitlines() if "Warning: " in line]
    assert len([line for line in warnings if f"log_to_{name} " in line]) == 1, result.err
    assert len(result.err.splitlines()) < 60, result.err


@pytest.mark.parametrize("name", SERVED)
def test_a_server_that_goes_down(name: str, serve: Serve, plain: Path, tmp_path: Path) -> None:
    """While training waits before a batch, when the first rows are stored."""
    client, tracker = serve(name)
    tracker.begin()
    project = impatient(render(tmp_path / "demo", task="tabular", logger=(name,)))
    client.start(project, *SHORT, "--output-dir", tmp_path / "out", first=hold_before(6, tmp_path))
    until_stored(client, tmp_path / "out")
    tracker.end()
    (tmp_path / "hold").unlink()
    [result] = trainer(client.python).wait(30)
    assert result.code == 0, result.err
    check_unharmed(result, plain, tmp_path / "out", name)


@pytest.mark.parametrize("name", SERVED)
def test_a_server_that_goes_down_before_a_picture(name: str, serve: Serve, tmp_path: Path) -> None:
    """What uploads files does so in threads of its own, which must not keep the run from its end."""
    client, tracker = serve(name)
    tracker.begin()
    project, out = impatient(render(tmp_path / "demo", task="segmentation", logger=(name,))), tmp_path / "out"
    options = [*SHORT, *small_options("segmentation"), "--log-every", 1000, "--output-dir", out]
    # four batches are followed by four of an evaluation and one of its picture; the 21st is that of step 11
    client.start(project, *options, first=few_examples(32) + hold_before(20, tmp_path))
    until_stored(client, out)
    until(lambda: metrics(out)[-1]["step"] == 9)
    until_stored(client, out)
    tracker.end()
    (tmp_path / "hold").unlink()
    [result] = trainer(client.python).wait(30)
    assert result.code == 0, result.err
    assert metrics(out)[-1]["step"] == 12 and (out / "pictures" / "00000012.png").exists()
    assert result.err.count("Warning: log_to_") == 1, result.err


@pytest.mark.parametrize("name", SERVED)
def test_no_server(name: str, serve: Serve, plain: Path, tmp_path: Path) -> None:
    client, tracker = serve(name)
    tracker.end()
    project = impatient(render(tmp_path / "demo", task="tabular", logger=(name,)))
    result = client.train(project, *SHORT, "--output-dir", tmp_path / "out", timeout=30)
    check_unharmed(result, plain, tmp_path / "out", name)


@pytest.mark.parametrize(
    "how", ["raise ConnectionError('no server')", "__import__('threading').Event().wait()"]
)
@pytest.mark.parametrize("name", [name for name in LOGGERS if name not in SERVED])
def test_a_client_that_fails(name: str, how: str, plain: Path, tmp_path: Path) -> None:
    """Of those without a server, in its first log."""
    client = client_of(name, False, lambda _: pytest.fail("no server"))
    project = impatient(render(tmp_path / "demo", task="tabular", logger=(name,)))
    edit(
        project / "loggers.py",
        "    for step, metrics in rows:\n",
        f"    for step, metrics in rows:\n        {how}\n",
    )
    result = client.train(project, *SHORT, "--output-dir", tmp_path / "out", timeout=30)
    check_unharmed(result, plain, tmp_path / "out", name)


def test_three_at_once(tmp_path: Path) -> None:
    """Each holds the whole record; the third is one with an environment of its own, if one is installed."""
    own = [name for name in LOGGERS if name in names() and (CLIENTS / name).exists()]
    third = own[:1]
    chosen = ("tensorboard", "wandb", *third)
    env = {key: text for name in chosen for key, text in catalog().loggers[name].test_env.items()}
    client = Client(chosen[-1], interpreter(chosen[-1]), env)
    project = render(tmp_path / "demo", task="tabular", logger=chosen)
    result = client.train(project, *SHORT, "--output-dir", tmp_path / "out")
    assert "Warning" not in result.err
    for name in chosen:
        check_scalars(Client(name, client.python, env), tmp_path / "out")


def test_control_the_record_is_read_back(tmp_path: Path) -> None:
    """A row that a logger leaves out, or has twice, is noticed."""
    client = Client("tensorboard", sys.executable)
    for text in ("            for _ in range(step != 3):", "            for _ in range(1 + (step == 3)):"):
        project = render(tmp_path / f"demo{len(text)}", task="tabular", logger=("tensorboard",))
        line = "            writer.add_scalar(name, value, step)"
        edit(project / "loggers.py", line, f"{text}\n    {line}")
        out = tmp_path / f"out{len(text)}"
        client.train(project, *SHORT, "--output-dir", out)
        with pytest.raises(AssertionError):
            check_scalars(client, out)
