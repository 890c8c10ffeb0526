"""A run that was stopped, killed or robbed of its newest checkpoint goes on as if nothing had been."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests import projects
from tests.conftest import Make, Whole, files_under
from tests.guarantees.harness import (
    PARTIAL,
    RANKS,
    RICH,
    SHARDED_OPTIONS,
    SHORT,
    TASKS,
    everywhere,
    first_ended,
    killed,
    killed_and_resumed,
    mostly_alone,
    over_ranks,
    suicidal,
    until_the_first_ends,
    with_dropout,
)
from tests.projects import (
    Result,
    checkpoints,
    edit,
    load,
    metrics,
    render,
    same_bits,
    same_run,
    server,
    train,
    train_ranks,
    until,
    values,
)

# 1: kill -9 and resume


def test_01_resume_without_anything_starts_fresh(made: Make, whole: Whole, tmp_path: Path) -> None:
    project = made(task="tabular")
    train(project, *SHORT, "--output-dir", tmp_path / "out", "--resume")
    assert same_run(whole(project, *SHORT), tmp_path / "out")


MOMENTS = {
    "first step": "after 1",
    "mid-epoch": "before 18",
    "last step of an epoch": "after 29",
    "in an evaluation": "evaluating 29",
    "after an evaluation": "evaluated 29",
    "between log and save": "logged 35",
    "saving": "saved 21",
    "saving the best": "best saved 29",
    "between the best and the step": "best renamed 29",
    "after the rename": "renamed 28",
    "last step": "before 39",
    "last save": "saved 40",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_01_killed_at(made: Make, whole: Whole, tmp_path: Path, moment: str) -> None:
    project = made(with_dropout, suicidal, task="tabular")
    killed_and_resumed(project, tmp_path, MOMENTS[moment])
    assert same_run(whole(project, *SHORT), tmp_path)
    best = [load(place / "checkpoints" / "best.pt") for place in (whole(project, *SHORT), tmp_path)]
    assert same_bits(*best)


@pytest.mark.parametrize("moment", ["mid-epoch", "last step of an epoch", "saving"])
def test_01_killed_with_workers(made: Make, whole: Whole, tmp_path: Path, moment: str) -> None:
    """Pictures are augmented by the workers; the uninterrupted run has none."""
    project = made(with_dropout, suicidal)
    moment = MOMENTS[moment].replace("29", "30")
    killed_and_resumed(project, tmp_path, moment, workers=2)
    assert same_run(whole(project, *SHORT), tmp_path)


WITH_LOADERS = ["first step", "after an evaluation", "saving", "last step"]
WITHOUT = ["mid-epoch", "last step of an epoch", "in an evaluation", "last save"]


@pytest.mark.parametrize(
    ("moment", "workers"),
    [
        *((moment, 2) for moment in WITH_LOADERS),
        *((moment, 0) for moment in WITHOUT),
        *(pytest.param(moment, 0, marks=pytest.mark.heavy) for moment in WITH_LOADERS),
        *(pytest.param(moment, 2, marks=pytest.mark.heavy) for moment in WITHOUT),
    ],
)
@over_ranks
def test_01_ranks_killed(
    made: Make, whole: Whole, tmp_path: Path, moment: str, workers: int, distributed: str
) -> None:
    project = made(with_dropout, suicidal, task="tabular", distributed=distributed)
    killed_and_resumed(project, tmp_path, MOMENTS[moment].replace("29", "15"), workers, ranks=2)
    assert same_run(whole(project, *SHORT, ranks=2), tmp_path)


@pytest.mark.parametrize("task", TASKS)
def test_01_rich_project_killed(made: Make, whole: Whole, tmp_path: Path, task: str) -> None:
    project = made(task=task, **RICH)
    options = [*SHORT, "--device", "cpu", "--grad-accum", 2, "--max-steps", 20]
    reference = whole(project, *options)
    server().start(project, *options, "--output-dir", tmp_path, "--resume")
    until(lambda: checkpoints(tmp_path))
    server().kill()
    server().wait()
    train(project, *options, "--output-dir", tmp_path, "--resume")
    assert same_run(reference, tmp_path)


def storm(project: Path, output_dir: Path, kills: int, seed: int, ranks: int, *options: object) -> None:
    """The same command over and over, killed at random moments, then left alone."""
    rng = random.Random(seed)
    command = [*options, "--output-dir", output_dir, "--resume"]
    for _ in range(kills):
        server().start(project, *command, "--workers", rng.choice([0, 2]), ranks=ranks)
        time.sleep(rng.uniform(0.2, 2.5))
        server().kill()
        server().wait()
    train_ranks(project, *command, ranks=ranks)


@pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=pytest.mark.complete if n else pytest.mark.heavy) for n in range(3)],
)
@everywhere
@pytest.mark.parametrize("task", TASKS)
def test_01_killed_at_random(
    made: Make, whole: Whole, tmp_path: Path, task: str, distributed: str, seed: int
) -> None:
    project = made(with_dropout, task=task, distributed=distributed)
    ranks = RANKS[distributed]
    options = ["--epochs", 4, "--checkpoint-every", 9, "--batch-size", 16 if ranks else 32]
    storm(project, tmp_path, 8, seed, ranks, *options)
    assert same_run(whole(project, *options, ranks=ranks), tmp_path)


def test_01_finished_run_resumed(made: Make, whole: Whole) -> None:
    project = made(task="tabular")
    output_dir = whole(project, *SHORT)
    kept = [*(output_dir / "checkpoints").iterdir(), output_dir / "metrics.jsonl"]
    before = {path: path.read_bytes() for path in kept}
    assert train(project, *SHORT, "--output-dir", output_dir, "--resume").out == ""
    assert before == {path: path.read_bytes() for path in kept}


DECAY = "weight_decay=args.weight_decay)\n"  # of each step, not of the optimizer alone
ANOTHER_DECAY = ["--weight-decay", 0.9, "--resume"]


@everywhere
def test_01_options_are_what_is_given_now(made: Make, tmp_path: Path, distributed: str) -> None:
    """Decay from step 21 on is that of the command that goes on, as if one run had changed it there."""
    given = {"task": "tabular", "distributed": distributed}

    def changing(project: Path) -> Path:
        edit(project / "train.py", DECAY, "weight_decay=0.1 if step < 20 else 0.9)\n")
        return project

    run = partial(train_ranks, ranks=RANKS[distributed])
    run(made(changing, **given), *SHORT, "--output-dir", tmp_path / "whole")
    run(made(**given), *SHORT, "--output-dir", tmp_path / "parts", "--max-steps", 20)
    shutil.copytree(tmp_path / "parts", tmp_path / "same")
    run(made(**given), *SHORT, "--output-dir", tmp_path / "parts", *ANOTHER_DECAY)
    run(made(**given), *SHORT, "--output-dir", tmp_path / "same", "--resume")
    assert same_run(tmp_path / "whole", tmp_path / "parts")
    assert not same_run(tmp_path / "same", tmp_path / "parts")


def test_01_control_decay_from_the_checkpoint(tmp_path: Path) -> None:
    """What an optimizer's state holds of the options before is seen."""
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "train.py", f", {DECAY}", ")\n")
    train(project, *SHORT, "--output-dir", tmp_path / "parts", "--max-steps", 20)
    shutil.copytree(tmp_path / "parts", tmp_path / "same")
    train(project, *SHORT, "--output-dir", tmp_path / "parts", *ANOTHER_DECAY)
    train(project, *SHORT, "--output-dir", tmp_path / "same", "--resume")
    assert metrics(tmp_path / "same") == metrics(tmp_path / "parts")


def test_01_control_order_forgotten(tmp_path: Path) -> None:
    """Starting again at the first batch after a restart is seen."""
    project = suicidal(render(tmp_path / "demo", task="tabular"))
    train(project, *SHORT, "--output-dir", tmp_path / "whole")
    edit(project / "train.py", "args.batch_size, args.seed, step)", "args.batch_size, args.seed, 0)")
    killed_and_resumed(project, tmp_path / "parts", "before 18")
    assert not same_run(tmp_path / "whole", tmp_path / "parts")


def test_01_control_dropout_not_seeded_by_step(tmp_path: Path) -> None:
    project = suicidal(with_dropout(render(tmp_path / "demo", task="tabular")))
    train(project, *SHORT, "--output-dir", tmp_path / "whole")
    edit(
        project / "train.py", "manual_seed(hash((args.seed, step)))", "manual_seed(hash((args.seed, 'x')))", 1
    )
    killed_and_resumed(project, tmp_path / "parts", "before 18")
    assert not same_run(tmp_path / "whole", tmp_path / "parts")


# 2: killed while saving


# kill -9 before the file operation that STRIKE says, counted from where the first save begins
STRIKES = """
import os, sys, tempfile

tempfile.tempdir = None  # what TMPDIR says now
left = int(os.environ["STRIKE"]) if os.environ.get("RANK", "0") == "0" else 0
begun = False

def hook(event, arguments):
    global left, begun
    if event in ("open", "shutil.copyfile") or event.startswith("os.") and event != "os.scandir":
        places = [os.fspath(place) for place in arguments if isinstance(place, str | os.PathLike)]
        begun = begun or any("partial" in place for place in places)
        if begun and any("checkpoints" in place for place in places):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), 9)

sys.addaudithook(hook)
"""
SAVES = ["--epochs", 3, "--checkpoint-every", 4]  # saved at 4, at 7 (the end of an epoch, so the best), at 8


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[dict[str, str]]:
    """TMPDIR on another file system."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert os.stat(folder).st_dev != os.stat(tmp_path).st_dev
        yield {"TMPDIR": folder}


def strike(project: Path, folder: Path, distributed: str, env: dict[str, str], stride: int) -> Iterator[Path]:
    """Go on from step 4 to 8, killed at every file operation (or every few); what is left each time."""
    ranks = RANKS[distributed]
    options = [*SAVES, "--batch-size", 33 if ranks else 66, "--output-dir"]
    train_ranks(project, *options, folder / "four", "--max-steps", 4, ranks=ranks)
    train_ranks(project, *options, folder / "eight", "--max-steps", 8, ranks=ranks)
    for number in itertools.count(1, stride):
        place = folder / str(number)
        shutil.copytree(folder / "four", place)
        going_on = [*options, place, "--max-steps", 8, "--resume"]
        if not killed(project, *going_on, ranks=ranks, first=STRIKES, env=env | {"STRIKE": str(number)}):
            break
        yield place
    assert number > 10


def is_whole(place: Path) -> bool:
    """Is the newest checkpoint there what an uninterrupted run has at that step, and the best one too?"""
    known = {path.name: path for name in ("four", "eight") for path in checkpoints(place.parent / name)}
    known["best.pt"] = place.parent / "eight" / "checkpoints" / "best.pt"
    newest = [checkpoints(place)[-1], *(place / "checkpoints").glob("best.pt")]
    try:
        return all(same_bits(load(path), load(known[path.name])) for path in newest)
    except (OSError, RuntimeError, EOFError):  # not even a checkpoint
        return False


@pytest.mark.parametrize(
    ("distributed", "stride"),
    [
        ("none", 1),
        ("ddp", 4),
        ("fsdp", 8),
        pytest.param("ddp", 1, marks=pytest.mark.heavy),
        pytest.param("fsdp", 1, marks=pytest.mark.heavy),
    ],
)
def test_02_killed_at_any_file_operation(
    made: Make, tmp_path: Path, elsewhere: dict[str, str], distributed: str, stride: int
) -> None:
    project = made(task="tabular", distributed=distributed)
    for place in strike(project, tmp_path, distributed, elsewhere, stride):
        assert is_whole(place), place


@everywhere
def test_02_killed_while_writing(made: Make, whole: Whole, tmp_path: Path, distributed: str) -> None:
    """As soon as there is a first piece of a new file, three times over."""
    project, ranks = made(task="tabular", distributed=distributed), RANKS[distributed]
    options = [*SHORT, "--checkpoint-every", 3]
    command = [*options, "--output-dir", tmp_path, "--resume"]
    for _ in range(3):
        known = checkpoints(tmp_path)
        server().start(project, *command, ranks=ranks)
        until(lambda known=known: first_ended() or is_saving(tmp_path, known), every=0)
        server().kill()
        server().wait()
        load(checkpoints(tmp_path)[-1])
    train_ranks(project, *command, ranks=ranks)
    assert same_run(whole(project, *options, ranks=ranks), tmp_path)


def is_saving(output_dir: Path, known: list[Path]) -> bool:
    """Is there a newer checkpoint than those, and the beginning of another?"""
    return checkpoints(output_dir) > known and any(output_dir.glob("checkpoints/*.partial"))


# nothing larger than 8 KiB can be written: a limit of the system's, which needs no rights to set
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
"""


def check_full(result: Result, output_dir: Path, before: dict[str, bytes]) -> None:
    """One line that names the place, and all that was saved before as it was."""
    assert result.code == 1
    assert "Traceback" not in result.err
    assert "cannot" in result.message and str(output_dir) in result.message
    after = files_under(output_dir / "checkpoints")
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after.keys() - before.keys() if "partial" not in name]


@everywhere
def test_02_full_disk(made: Make, whole: Whole, tmp_path: Path, distributed: str) -> None:
    project, ranks = made(task="tabular", distributed=distributed), RANKS[distributed]
    options = [*SHORT, "--output-dir", tmp_path, "--resume"]
    train_ranks(project, *options, "--max-steps", 21, ranks=ranks)
    before = files_under(tmp_path / "checkpoints")
    check_full(until_the_first_ends(project, *options, ranks=ranks, first=FULL), tmp_path, before)
    train_ranks(project, *options, ranks=ranks)
    assert same_run(whole(project, *SHORT, ranks=ranks), tmp_path)


# what is written with the state, or comes before it gets its name, meets the end of the disk
REFUSED = """
import errno, os
import checkpoint
sync = checkpoint.sync

def refuse(path):
    if {name!r} in path.name:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sync(path)

checkpoint.sync = refuse
"""


@pytest.mark.parametrize(
    ("distributed", "name"),
    [("none", "checkpoint.partial"), ("none", "metrics.jsonl"), ("fsdp", "counters.json")],
)
def test_02_the_reason_is_said(made: Make, tmp_path: Path, distributed: str, name: str) -> None:
    project, ranks = made(task="tabular", distributed=distributed), RANKS[distributed]
    options = [*SHORT, "--output-dir", tmp_path]
    result = until_the_first_ends(project, *options, ranks=ranks, first=REFUSED.format(name=name))
    check_full(result, tmp_path, {})
    assert "No space left on device; earlier ones are intact" in result.message


BROKEN = """
import torch

def broken(*args):
    raise RuntimeError("the device is lost\\nframe #0")

torch.save = broken
"""


def test_02_not_of_the_disk(made: Make, tmp_path: Path) -> None:
    """What PyTorch raises is not always the disk's."""
    [result] = train_ranks(
        made(task="tabular"), *SHORT, "--output-dir", tmp_path, ranks=0, first=BROKEN, check=False
    )
    check_full(result, tmp_path, {})
    assert "the device is lost; earlier" in result.message and "full" not in result.message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_02_no_space_left(made: Make, whole: Whole, small_disk: Path) -> None:
    project = made(task="tabular")
    options = [*SHORT, "--output-dir", small_disk / "out", "--resume"]
    train(project, *options, "--max-steps", 21)
    before = files_under(small_disk / "out" / "checkpoints")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 16384))
    check_full(train(project, *options, check=False), small_disk / "out", before)
    ballast.unlink()
    train(project, *options)
    assert same_run(whole(project, *SHORT), small_disk / "out")


@pytest.mark.parametrize("distributed", ["none", "ddp"])
def test_02_control_copied_into_place(tmp_path: Path, elsewhere: dict[str, str], distributed: str) -> None:
    """A file that is copied to its name, as from another file system, is not there at once."""
    project = render(tmp_path / "demo", task="tabular", distributed=distributed)
    copy = "    path.touch()\n    shutil.copyfile(partial, path)\n"
    edit(project / "checkpoint.py", "    partial.replace(path)\n", copy)
    assert not all(map(is_whole, strike(project, tmp_path, distributed, elsewhere, 1)))


def test_02_control_save_in_place(tmp_path: Path) -> None:
    """Without the rename, a crash while saving leaves half a file under the real name."""
    project = suicidal(render(tmp_path / "demo", task="tabular"))
    in_place = "    partial = directory / f\"step-{counters['step']:08d}.pt\"\n"
    edit(project / "checkpoint.py", PARTIAL, in_place)
    edit(
        project / "checkpoint.py", "    sync(partial)\n", "    os.truncate(partial, 999)\n    sync(partial)\n"
    )
    options = [*SHORT, "--output-dir", tmp_path / "out"]
    train(project, *options, env={"KILL": "saved 21"}, check=False)
    assert "is damaged" in train(project, *options, "--resume", check=False).err


# 3: damaged checkpoints


def flip_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for number in range(1, 6):
        content[len(content) * number // 6] ^= 1
    path.write_bytes(content)


def shard(path: Path) -> Path:
    """The file to spoil: the checkpoint, or the last of its shards."""
    return max(path.glob("*.distcp")) if path.is_dir() else path


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "zero bytes": lambda path: os.truncate(path, 0),
    "zeros at the end": lambda path: path.write_bytes(path.read_bytes()[:-999] + bytes(999)),
    "flipped bits": flip_bits,
    "not a checkpoint": lambda path: path.write_text("hello"),
}


def damaged(project: Path, output_dir: Path, damage: str, ranks: int = 0) -> Result:
    """Stop at step 30, spoil the newest checkpoint, go on to step 40."""
    options = [*SHORT, "--output-dir", output_dir, "--resume"]
    train_ranks(project, *options, "--max-steps", 30, ranks=ranks)
    *older, newest = checkpoints(output_dir)
    assert older and newest.stem == "step-00000030"
    DAMAGES[damage](shard(newest))
    return train_ranks(project, *options, ranks=ranks)[0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_03_damaged_checkpoint(made: Make, whole: Whole, tmp_path: Path, damage: str) -> None:
    project = made(task="tabular")
    result = damaged(project, tmp_path, damage)
    assert "step-00000030.pt is damaged" in result.err
    assert same_run(whole(project, *SHORT), tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped bits"])
@over_ranks
def test_03_damaged_checkpoint_of_ranks(
    made: Make, whole: Whole, tmp_path: Path, damage: str, distributed: str
) -> None:
    project = made(distributed=distributed)
    assert "step-00000030" in damaged(project, tmp_path, damage, ranks=2).err
    assert same_run(whole(project, *SHORT, ranks=2), tmp_path)


def test_03_all_damaged(made: Make, tmp_path: Path) -> None:
    """A run is not started over silently: one line, and everything is left as it is."""
    project = made(task="tabular")
    train(project, *SHORT, "--max-steps", 30, "--output-dir", tmp_path)
    for path in checkpoints(tmp_path):
        os.truncate(path, 1000)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = train(project, *SHORT, "--output-dir", tmp_path, "--resume", check=False)
    assert result.code == 1
    assert "Traceback" not in result.err
    assert str(tmp_path) in result.message and "--output-dir" in result.message
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


ANY_BIT = """
import random, shutil, sys
from pathlib import Path
import torch
from checkpoint import newest_checkpoint
sys.path.insert(0, sys.argv[2])
from tests.projects import same_bits
older, newer = sorted(Path(sys.argv[1]).glob("step-*.pt"))
content, rng = newer.read_bytes(), random.Random(0)
state = torch.load(newer, weights_only=True)
# most of the file is tensors, which checksums guard: try the rest, where the archive describes itself
edges = [k for k in range(len(content)) if k < 2000 or k > len(content) - 5000]
for _ in range(1500):
    changed = bytearray(content)
    changed[rng.choice(edges)] ^= 1 << rng.randrange(8)
    newer.write_bytes(changed)
    if newest_checkpoint(newer.parent) == newer:
        assert same_bits(torch.load(newer, weights_only=True), state), "other values, unnoticed"
"""


def test_03_any_flipped_bit(made: Make, tmp_path: Path) -> None:
    """Whichever bit flips: the file is passed over, or what it holds is what was saved."""
    project = made(task="tabular")
    train(project, *SHORT, "--output-dir", tmp_path)
    result = projects.run(
        project,
        projects.python(
            "-W", "ignore", "-c", ANY_BIT, tmp_path / "checkpoints", Path(__file__).parent.parent
        ),
        check=False,
    )
    assert result.code == 0, result.err


@pytest.mark.parametrize("text", ["null", "{}", '{"counters.json": "0"}', '{"a'])
@pytest.mark.parametrize("name", ["digests.json", "counters.json"])
def test_03_damaged_papers(sharded: Path, trained: Path, tmp_path: Path, name: str, text: str) -> None:
    """What lies beside the shards is guarded as they are."""
    shutil.copytree(trained, tmp_path / "out")
    (checkpoints(tmp_path / "out")[-1] / name).write_text(text)
    (tmp_path / "out" / "checkpoints" / "checkpoint.partial").touch()  # what another kind of run may leave
    options = [*SHARDED_OPTIONS, "--max-steps", 20, "--resume", "--output-dir", tmp_path / "out"]
    assert "is damaged" in train_ranks(sharded, *options)[0].err
    assert same_bits(*(load(checkpoints(place)[-1]) for place in (trained, tmp_path / "out")))


def test_03_control_damage_unnoticed(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    text = (project / "checkpoint.py").read_text()
    (project / "checkpoint.py").write_text(text + "\n\ndef is_intact(path: Path) -> bool:\n    return True\n")
    train(project, *SHORT, "--output-dir", tmp_path / "whole")
    with pytest.raises(AssertionError):
        damaged(project, tmp_path / "out", "truncated")
    with suppress(AssertionError):  # it may not even load
        damaged(project, tmp_path / "flipped", "flipped bits")
    assert not same_run(tmp_path / "whole", tmp_path / "flipped")


# 8: SIGTERM


def stopped(project: Path, output_dir: Path, *options: object, group: bool = False) -> Result:
    """SIGTERM some way into the run, to the process alone or to its whole group as Slurm and timeout do."""
    [pid] = server().start(project, *options, "--output-dir", output_dir, "--resume")
    until(lambda: (output_dir / "metrics.jsonl").exists() and len(metrics(output_dir)) > 5)
    if group:
        os.killpg(pid, signal.SIGTERM)
    else:
        os.kill(pid, signal.SIGTERM)
    return server().wait(60)[0]


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", TASKS)
def test_08_sigterm(made: Make, whole: Whole, tmp_path: Path, task: str, workers: int, group: bool) -> None:
    project = made(with_dropout, task=task)
    options = ["--epochs", 4, "--batch-size", 8, "--max-steps", 180]
    result = stopped(project, tmp_path, *options, "--workers", workers, group=group)
    assert (result.code, result.err) == (143, "")
    step = load(checkpoints(tmp_path)[-1])["counters"]["step"]
    assert 4 < step < 180, "the run was not stopped on its way"
    train(project, *options, "--output-dir", tmp_path, "--resume")
    assert same_run(whole(project, *options), tmp_path)


FORKSERVER = "    import multiprocessing\n\n    multiprocessing.set_start_method('forkserver')\n"


def stopped_with_forkserver(project: Path, out: Path) -> int:
    """SIGTERM to the group of a run whose loaders start by default as from Python 3.14 on."""
    main = 'if __name__ == "__main__":\n'
    edit(project / "train.py", main, main + FORKSERVER)
    options = ["--epochs", 400, "--batch-size", 8, "--workers", 2, "--output-dir", out]
    with projects.started(project, projects.python("train.py", *options)) as process:
        until(lambda: (out / "metrics.jsonl").exists() and len(metrics(out)) > 5)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
    return process.returncode


def test_08_loaders_are_forked(tmp_path: Path) -> None:
    assert stopped_with_forkserver(render(tmp_path / "demo", task="tabular"), tmp_path / "out") == 143


@pytest.mark.heavy
def test_08_control_loaders_are_forked(tmp_path: Path) -> None:
    codes = []
    for strike in range(8):
        project = render(tmp_path / str(strike), task="tabular")
        edit(project / "train.py", '"fork" if args.workers and', "None if args.workers and")
        codes.append(stopped_with_forkserver(project, tmp_path / f"out{strike}"))
        if codes[-1] != 143:
            return
    raise AssertionError(codes)


@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.01])
def test_08_sigterm_while_loaders_start(made: Make, tmp_path: Path, delay: float) -> None:
    """The first evaluation starts loaders; a signal to the group finds them at any moment of their birth."""
    project = made(task="tabular")
    options = ["--epochs", 3000, "--batch-size", 240, "--workers", 2, "--output-dir", tmp_path]
    [pid] = server().start(project, *options)
    children = Path(f"/proc/{pid}/task/{pid}/children")
    until(lambda: len(children.read_text().split()) > 2, every=0)  # two of them load for training
    time.sleep(delay)
    os.killpg(pid, signal.SIGTERM)
    [result] = server().wait(60)
    assert (result.code, result.err) == (143, "")
    last = metrics(tmp_path)[-1]["step"]
    assert load(checkpoints(tmp_path)[-1])["counters"]["step"] in (last, last + 1)


@pytest.mark.parametrize("victim", [0, 1])
@over_ranks
def test_08_sigterm_to_one_rank(
    made: Make, whole: Whole, tmp_path: Path, victim: int, distributed: str
) -> None:
    project = made(with_dropout, task="tabular", distributed=distributed)
    options = ["--epochs", 20, "--batch-size", 8, "--max-steps", 500]
    pids = server().start(project, *options, "--output-dir", tmp_path, ranks=2)
    until(lambda: (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) > 5)
    os.kill(pids[victim], signal.SIGTERM)
    assert [(result.code, result.err) for result in server().wait(60)] == [(143, ""), (143, "")]
    assert load(checkpoints(tmp_path)[-1])["counters"]["step"] < 500
    train_ranks(project, *options, "--output-dir", tmp_path, "--resume")
    assert same_run(whole(project, *options, ranks=2), tmp_path)


@pytest.mark.parametrize(
    ("task", "workers", "distributed"),
    [
        pytest.param("tabular", 0, "ddp", marks=pytest.mark.heavy),
        ("tabular", 2, "ddp"),
        pytest.param("image-classification", 0, "ddp", marks=pytest.mark.heavy),
        pytest.param("image-classification", 2, "ddp", marks=pytest.mark.heavy),
        pytest.param("tabular", 0, "fsdp", marks=pytest.mark.heavy),
    ],
)
def test_08_sigterm_to_torchrun(
    made: Make, whole: Whole, tmp_path: Path, task: str, workers: int, distributed: str
) -> None:
    """torchrun passes it on to its workers' groups, and exits 1 whatever they return."""
    project = made(with_dropout, task=task, distributed=distributed)
    options = ["--epochs", 20, "--batch-size", 4, "--max-steps", 400]
    arguments = [*options, "--output-dir", tmp_path, "--workers", workers, "--resume"]
    with projects.started(project, projects.torchrun("train.py", *arguments)) as launcher:
        until(lambda: (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) > 5)
        children = projects.descendants(launcher.pid)
        launcher.terminate()
        _, err = launcher.communicate(timeout=60)
        assert launcher.returncode != 0
        assert 'train.py", line' not in err, err
        until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), timeout=20)
    assert load(checkpoints(tmp_path)[-1])["counters"]["step"] < 400
    projects.run(project, projects.torchrun("train.py", *arguments))
    assert same_run(whole(project, *options, ranks=2), tmp_path)


def test_08_control_loaders_in_the_group(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "train.py", "os.register_at_fork(after_in_child=os.setpgrp)", "pass")
    options = ["--epochs", 4, "--batch-size", 8, "--max-steps", 180, "--workers", 2]
    results = (stopped(project, tmp_path / str(strike), *options, group=True) for strike in range(5))
    assert any((result.code, result.err) != (143, "") for result in results)


def test_08_control_sigterm(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "train.py", "        stopping = stop.is_set()\n", "        stopping = False\n")
    options = ["--epochs", 4, "--batch-size", 8, "--max-steps", 180]
    assert stopped(project, tmp_path / "out", *options).code == 0


def test_08_control_sigterm_not_agreed(tmp_path: Path) -> None:
    """If each rank decided for itself, the one that is left would wait in vain (and is killed here)."""
    project = render(tmp_path / "demo", task="tabular", distributed="ddp")
    old = "mean_over_ranks(torch.tensor(float(stop.is_set()))) > 0"
    edit(project / "train.py", old, "stop.is_set()")
    pids = server().start(project, "--epochs", 200, "--output-dir", tmp_path / "out", ranks=2)
    until(lambda: (tmp_path / "out" / "metrics.jsonl").exists() and len(metrics(tmp_path / "out")) > 5)
    os.kill(pids[1], signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pids[1]}/fd/1").exists() or time.sleep(3) or True)
    server().kill()
    assert [result.code for result in server().wait()] != [143, 143]


# 19: what was best, and for how long


def check_kept(output_dir: Path, steps: list[int]) -> None:
    names = sorted(path.name for path in (output_dir / "checkpoints").iterdir())
    assert names == ["best.pt", *(f"step-{step:08d}.pt" for step in steps)]


def test_19_kept_checkpoints(made: Make, tmp_path: Path) -> None:
    """The best one is early (a huge learning rate ruins the rest) and stays."""
    options = ["--batch-size", 35, "--epochs", 8, "--checkpoint-every", 5, "--warmup-steps", 0]
    project = made(task="tabular")
    train(project, *options, "--max-steps", 26, "--output-dir", tmp_path)
    ruin = [*options, "--output-dir", tmp_path, "--resume", "--max-steps", 104]
    train(project, *ruin, "--lr", 5)
    check_kept(tmp_path, [100, 104])
    best = load(tmp_path / "checkpoints" / "best.pt")["counters"]
    scores = values(tmp_path, "val/accuracy")
    assert best["best"] == max(scores.values()) == scores[best["step"]]
    assert best["step"] < 100


def test_19_control_best_rotated(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    old = 'glob("step-*.pt") if other.name < path.name'
    edit(project / "checkpoint.py", old, 'glob("*.pt") if other.name != path.name')
    train(project, *SHORT, "--output-dir", tmp_path / "out")
    with pytest.raises(AssertionError):
        check_kept(tmp_path / "out", [35, 40])


@pytest.mark.parametrize("keep", [1, 3])
def test_19_as_many_are_kept_as_asked(tmp_path: Path, keep: int) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "checkpoint.py", "KEEP = 2", f"KEEP = {keep}")
    train(project, *SHORT, "--output-dir", tmp_path / "out")
    check_kept(tmp_path / "out", [29, 35, 40][-keep:])


@pytest.mark.heavy
def test_19_control_as_many_are_kept_as_asked(tmp_path: Path) -> None:
    """Counted from the end, one less than one is all."""
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "checkpoint.py", "KEEP = 2", "KEEP = 1")
    edit(project / "checkpoint.py", "sorted(older, reverse=True)[KEEP - 1 :]", "sorted(older)[: 1 - KEEP]")
    train(project, *SHORT, "--output-dir", tmp_path / "out")
    with pytest.raises(AssertionError):
        check_kept(tmp_path / "out", [40])


EARLY = ["--lr", 0, "--patience", 2, "--batch-size", 65, "--checkpoint-every", 3]


def stop_early(project: Path, output_dir: Path, *options: object, ranks: int = 0) -> None:
    """Nothing is learnt, so the first evaluation stays the best."""
    train_ranks(project, *EARLY, "--output-dir", output_dir, *options, ranks=ranks)


@everywhere
def test_19_early_stopping(made: Make, tmp_path: Path, distributed: str) -> None:
    project, ranks = (
        made(task="tabular", features=("early-stopping",), distributed=distributed),
        RANKS[distributed],
    )
    stop_early(project, tmp_path, ranks=ranks)
    ends = [4, 7, 11] if ranks else [7, 14, 21]
    assert sorted(values(tmp_path, "val/loss")) == ends
    assert load(checkpoints(tmp_path)[-1])["counters"]["stale"] == 2
    before = files_under(tmp_path / "checkpoints") | {"": (tmp_path / "metrics.jsonl").read_bytes()}
    stop_early(project, tmp_path, "--resume", ranks=ranks)
    assert before == files_under(tmp_path / "checkpoints") | {"": (tmp_path / "metrics.jsonl").read_bytes()}


def test_19_early_stopping_survives_a_stop(made: Make, tmp_path: Path) -> None:
    project = made(task="tabular", features=("early-stopping",))
    stop_early(project, tmp_path / "whole")
    stop_early(project, tmp_path / "parts", "--max-steps", 15)
    stop_early(project, tmp_path / "parts", "--resume")
    assert same_run(tmp_path / "whole", tmp_path / "parts")


@everywhere
def test_19_best_and_stale_survive_a_kill(made: Make, whole: Whole, tmp_path: Path, distributed: str) -> None:
    """Killed between the second evaluation and the third, and after a checkpoint that knows of the second."""
    given = {"task": "tabular", "features": ("early-stopping",), "distributed": distributed}
    project, ranks = made(suicidal, **given), RANKS[distributed]
    killed_and_resumed(project, tmp_path, "after 10" if ranks else "after 16", ranks=ranks, given=EARLY)
    reference = whole(project, *EARLY, ranks=ranks)
    assert same_run(reference, tmp_path)
    assert same_bits(*(load(place / "checkpoints" / "best.pt") for place in (reference, tmp_path)))


def evaluating_to_nan(project: Path) -> Path:
    """All evaluations but the first."""
    old = '"val/accuracy": correct / count}'
    edit(project / "train.py", old, '"val/accuracy": correct / count if evaluate.calls == 1 else math.nan}')
    loop = "    for batch in loader:\n"
    edit(project / "train.py", loop, '    evaluate.calls = getattr(evaluate, "calls", 0) + 1\n' + loop)
    return project


def best_of_nan(project: Path, output_dir: Path, distributed: str) -> tuple[list[Result], dict[str, float]]:
    options = ["--batch-size", 33, "--epochs", 3, "--output-dir", output_dir]
    results = train_ranks(project, *options, ranks=RANKS[distributed], check=False)
    return results, load(output_dir / "checkpoints" / "best.pt")["counters"]


@everywhere
def test_19_nan_is_never_best(made: Make, tmp_path: Path, distributed: str) -> None:
    project = made(evaluating_to_nan, task="tabular", distributed=distributed)
    results, best = best_of_nan(project, tmp_path, distributed)
    for result in results:
        assert result.code == 1 and "nan" in result.message and result.err.count("\n") == 1
    [first] = [row for row in metrics(tmp_path) if "val/accuracy" in row]
    assert (best["step"], best["best"]) == (first["step"], first["val/accuracy"])


@mostly_alone
def test_19_control_nan_is_best(tmp_path: Path, distributed: str) -> None:
    project = evaluating_to_nan(render(tmp_path / "demo", task="tabular", distributed=distributed))
    edit(project / "train.py", "        check_finite(metrics, step)\n", "")
    better = 'metrics.get("val/accuracy", best) > best'
    not_worse = '"val/accuracy" in metrics and not metrics["val/accuracy"] <= best'
    edit(project / "train.py", better, not_worse)
    results, best = best_of_nan(project, tmp_path / "out", distributed)
    assert all(result.code == 0 for result in results)
    assert math.isnan(best["best"])


def test_19_control_early_stopping(tmp_path: Path) -> None:
    """A restart that forgets how long it has waited goes on for too long."""
    project = render(tmp_path / "demo", task="tabular", features=("early-stopping",))
    edit(project / "train.py", 'stale = saved.get("stale", 0)', "stale = 0")
    stop_early(project, tmp_path / "out", "--max-steps", 15)
    stop_early(project, tmp_path / "out", "--resume")
    assert sorted(values(tmp_path / "out", "val/loss")) != [7, 14, 21]


# 24: the record


def check_once(output_dir: Path) -> None:
    seen = Counter((row["step"], key) for row in metrics(output_dir) for key in row if key != "step")
    assert seen and set(seen.values()) == {1}
    steps = [row["step"] for row in metrics(output_dir)]
    assert steps == sorted(steps)


def torn(project: Path, output_dir: Path) -> None:
    """Stop at step 32, lose the newest checkpoint and half of the record's last line, go on."""
    options = [*SHORT, "--output-dir", output_dir]
    train(project, *options, "--max-steps", 32)
    checkpoints(output_dir)[-1].unlink()
    record = output_dir / "metrics.jsonl"
    os.truncate(record, record.stat().st_size - 9)
    train(project, *options, "--resume")


def test_24_record_holds_everything_once(made: Make, whole: Whole, tmp_path: Path) -> None:
    project = made(task="tabular")
    torn(project, tmp_path)
    check_once(tmp_path)
    assert same_run(whole(project, *SHORT), tmp_path)


@everywhere
def test_24_each_once_after_a_kill(made: Make, whole: Whole, tmp_path: Path, distributed: str) -> None:
    """Killed between the record of a step and its checkpoint."""
    project, ranks = made(with_dropout, suicidal, task="tabular", distributed=distributed), RANKS[distributed]
    killed_and_resumed(project, tmp_path, "logged 35", ranks=ranks)
    check_once(tmp_path)
    assert metrics(tmp_path) == metrics(whole(project, *SHORT, ranks=ranks))


@pytest.mark.parametrize("tail", ['{"step": 29, "train/lo', "\0\0\0\0", "\0\0\n", '{"step": 29}\n{"st'])
def test_24_torn_last_line(made: Make, whole: Whole, tmp_path: Path, tail: str) -> None:
    project = made(task="tabular")
    train(project, *SHORT, "--max-steps", 28, "--output-dir", tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as record:
        record.write(tail)
    train(project, *SHORT, "--output-dir", tmp_path, "--resume")
    assert same_run(whole(project, *SHORT), tmp_path)


def test_24_blank_lines_in_the_record(made: Make, tmp_path: Path) -> None:
    """A line that an editor left is no reason to lose what stands after it."""
    project = made(task="tabular")
    train(project, *SHORT, "--max-steps", 20, "--output-dir", tmp_path)
    record = tmp_path / "metrics.jsonl"
    first, rest = record.read_text().split("\n", 1)
    record.write_text(f"{first}\n\n{rest}")
    train(project, *SHORT, "--output-dir", tmp_path, "--resume")
    assert record.read_text().startswith(f"{first}\n\n{rest}")


# the files that are made durable, in order
NOTE_SYNCS = """
import os
fsync = os.fsync

def note(descriptor):
    with open(os.environ["NOTES"], "a") as notes:
        print(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")), file=notes)
    fsync(descriptor)

os.fsync = note
"""


def synced(project: Path, folder: Path, distributed: str) -> list[str]:
    """The record, and what is about to get the name of a step, in the order in which they are durable."""
    notes, ranks = folder / "notes", RANKS[distributed]
    options = [*SHORT, "--max-steps", 15, "--output-dir", folder / "out"]
    train_ranks(project, *options, ranks=ranks, env={"NOTES": str(notes)}, first=NOTE_SYNCS)
    named = ("metrics.jsonl", "checkpoint.partial", "shards.partial")
    return [name for name in notes.read_text().splitlines() if name in named]


@pytest.mark.parametrize("distributed", ["none", "fsdp"])
def test_24_the_record_is_durable_first(made: Make, tmp_path: Path, distributed: str) -> None:
    saved = "checkpoint.partial" if distributed == "none" else "shards.partial"
    found = synced(made(task="tabular", distributed=distributed), tmp_path, distributed)
    assert found == ["metrics.jsonl", saved] * 3


def test_24_control_the_record_is_durable_first(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    line = '        sync(directory.parent / "metrics.jsonl")  # first: what was recorded up to this step\n'
    edit(project / "checkpoint.py", line, "")
    assert synced(project, tmp_path, "none") == ["checkpoint.partial"] * 3


def test_24_control_metrics_not_cut(tmp_path: Path) -> None:
    project = suicidal(render(tmp_path / "demo", task="tabular"))
    train(project, *SHORT, "--output-dir", tmp_path / "whole")
    edit(project / "record.py", "    file.truncate(end)\n", "")
    killed_and_resumed(project, tmp_path / "parts", "before 18")
    assert not same_run(tmp_path / "whole", tmp_path / "parts")


def test_24_control_torn(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / "record.py", "    file.truncate(end)\n", "")
    with suppress(AssertionError):
        torn(project, tmp_path / "out")
    with pytest.raises((AssertionError, json.JSONDecodeError)):
        check_once(tmp_path / "out")
