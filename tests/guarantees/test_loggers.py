"""Loggers (12, 24): one that fails or hangs costs the run nothing, and each holds the whole record."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.projects import checkpoints, edit, metrics, render, same_run, server, train, train_ranks, until

DISTRIBUTED = ["none", "ddp", "fsdp"]
SHORT = ["--batch-size", 16, "--epochs", 2, "--max-steps", 20, "--log-every", 2, "--checkpoint-every", 4]

# Where a client may fail: what stands there, and how it is reached before it fails.
PLACES = {
    "init": ("    writer = SummaryWriter(args.output_dir, purge_step=0)", "    {failure}\n{line}"),
    "log": ("            writer.add_scalar(name, value, step)", "            {failure}\n{line}"),
    "finish": ("    writer.close()", "    {failure}\n{line}"),
}
FAILURES = {"raises": "raise ConnectionError('no server')", "hangs": "__import__('threading').Event().wait()"}


def failing(project: Path, place: str, how: str) -> Path:
    """The client fails in its thread; a run waits two seconds for it, not 25."""
    line, text = PLACES[place]
    edit(project / "loggers.py", line, text.format(line=line, failure=FAILURES[how]))
    edit(project / "loggers.py", "GRACE = 25 ", "GRACE = 2 ")
    return project


@pytest.fixture(scope="module", params=DISTRIBUTED)
def distributed(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ranks(distributed: str) -> int:
    return 0 if distributed == "none" else 2


@pytest.fixture(scope="module")
def whole(distributed: str, ranks: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run without a logger."""
    project = render(tmp_path_factory.mktemp("plain") / "demo", task="tabular", distributed=distributed)
    train_ranks(project, *SHORT, ranks=ranks)
    return project / "runs" / "demo"


def with_tensorboard(folder: Path, distributed: str) -> Path:
    return render(folder, task="tabular", distributed=distributed, logger=("tensorboard",))


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize(
    "place", ["log", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("init", "finish"))]
)
def test_12_a_failing_logger(
    whole: Path, tmp_path: Path, distributed: str, ranks: int, place: str, how: str
) -> None:
    """Exit 0, the same bits as without it, and one warning."""
    project = failing(with_tensorboard(tmp_path / "demo", distributed), place, how)
    results = train_ranks(project, *SHORT, ranks=ranks, timeout=60)
    assert same_run(whole, project / "runs" / "demo")
    [warning] = [line for result in results for line in result.err.splitlines() if "Warning" in line]
    said = "did not finish" if how == "hangs" else "is turned off: ConnectionError('no server')"
    assert f"log_to_tensorboard {said}" in warning


def test_12_the_others_go_on(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", logger=("tensorboard", "wandb"))
    edit(
        project / "loggers.py",
        "    run = wandb.init(",
        "    raise OSError('no network')\n    run = wandb.init(",
    )
    result = train(project, *SHORT)
    assert "log_to_wandb is turned off: OSError('no network')" in result.err
    check_events(project / "runs" / "demo")


def exiting(folder: Path) -> Path:
    project = with_tensorboard(folder, "none")
    edit(project / "loggers.py", "    writer.close()", "    raise SystemExit('over quota')")
    return project


def test_12_a_client_that_exits(tmp_path: Path) -> None:
    """It is told as anything else that a client raises."""
    result = train(exiting(tmp_path / "demo"), *SHORT)
    assert "log_to_tensorboard is turned off: SystemExit('over quota')" in result.err


def test_12_control_exits(tmp_path: Path) -> None:
    """A thread ends without a word on SystemExit."""
    project = exiting(tmp_path / "demo")
    edit(project / "loggers.py", "except BaseException", "except Exception")
    assert train(project, *SHORT).err == ""


def test_12_control_raises(tmp_path: Path) -> None:
    """In the loop itself, what a client raises ends the run."""
    project = failing(with_tensorboard(tmp_path / "demo", "none"), "init", "raises")
    inside = "            logger(iter([]), args, config)\n"
    edit(project / "loggers.py", "            thread.start()\n", inside)
    assert train(project, *SHORT, check=False).code == 1


def test_12_control_hangs(tmp_path: Path) -> None:
    """A thread that the interpreter waits for keeps the run from ending."""
    project = failing(with_tensorboard(tmp_path / "demo", "none"), "log", "hangs")
    edit(project / "loggers.py", "daemon=True", "daemon=False")
    with pytest.raises(TimeoutError):
        train(project, *SHORT, timeout=15)


def events(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """key -> (step, value) as TensorBoard reads them."""
    reader = EventAccumulator(str(output_dir), size_guidance={"scalars": 0})
    reader.Reload()
    return {
        key: [(event.step, event.value) for event in reader.Scalars(key)] for key in reader.Tags()["scalars"]
    }


def check_events(output_dir: Path) -> None:
    """They hold what metrics.jsonl holds, each (step, key) once."""
    rows = metrics(output_dir)
    expected = {
        key: [(int(row["step"]), pytest.approx(row[key], rel=1e-6)) for row in rows if key in row]
        for key in sorted({key for row in rows for key in row} - {"step"})
    }
    assert dict(sorted(events(output_dir).items())) == expected
    assert set(Counter((key, step) for key in expected for step, _ in events(output_dir)[key]).values()) == {
        1
    }


def another_second() -> None:
    """TensorBoard reads files in the order of their names, which hold the second they were begun in."""
    begin = int(time.time())
    until(lambda: int(time.time()) > begin)


def killed(project: Path, output_dir: Path, ranks: int) -> None:
    """Kill -9 some steps after the first checkpoint, then go on."""
    options = [*SHORT, "--output-dir", output_dir, "--resume"]
    another_second()
    server().start(project, *options, "--max-steps", 2000, "--epochs", 200, ranks=ranks)
    until(lambda: checkpoints(output_dir) and metrics(output_dir)[-1]["step"] > 9)
    server().kill()
    server().wait()
    another_second()
    train_ranks(
        project, *options, "--max-steps", metrics(output_dir)[-1]["step"] + 6, "--epochs", 200, ranks=ranks
    )


def test_24_tensorboard_after_a_kill(tmp_path: Path, distributed: str, ranks: int) -> None:
    project = with_tensorboard(tmp_path / "demo", distributed)
    for _ in range(2):
        killed(project, tmp_path / "out", ranks)
    check_events(tmp_path / "out")


def test_24_control_tensorboard(tmp_path: Path) -> None:
    """Rows that were written, and lost with the process, are missing where none is handed on again."""
    project = with_tensorboard(tmp_path / "demo", "none")
    edit(project / "loggers.py", "            self.log(row.pop(", "            (row.pop(")
    killed(project, tmp_path / "out", 0)
    with pytest.raises(AssertionError):
        check_events(tmp_path / "out")
