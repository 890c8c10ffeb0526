"""Several processes train as one would, act alike, and always end."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import projects
from tests.conftest import Make, Whole
from tests.guarantees.harness import (
    RANKS,
    SHARDED_OPTIONS,
    SHORT,
    TASKS,
    bad_ends,
    everywhere,
    joined,
    mostly_alone,
    over_ranks,
    seen,
    suicidal,
    with_dropout,
    with_evaluation_spy,
    with_few_pictures,
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
    train,
    train_ranks,
    values,
)

# 5: evaluation


@over_ranks
def test_05_evaluation_counts_every_example_once(made: Make, whole: Whole, distributed: str) -> None:
    """Also when there are fewer examples than ranks, or a number that does not divide."""
    found = {}
    for size in (1, 7):
        for ranks in (0, 2):
            project = made(with_few_pictures(size), distributed=distributed if ranks else "none")
            options = ["--lr", 0, "--epochs", 1, "--batch-size", 10 if ranks else 20]
            place = whole(project, *options, ranks=ranks)
            found[size, ranks] = [values(place, key)[6] for key in ("val/loss", "val/accuracy")]
        assert found[size, 0] == pytest.approx(found[size, 2], rel=1e-6)
    assert found[1, 0] != found[7, 0]


def with_few(train: int | None, val: int | None) -> Callable[[Path], Path]:
    """Only so many rows to train on and to evaluate."""

    def with_rows(project: Path) -> Path:
        old = "Table(frame[~held_out], columns), Table(frame[held_out], columns)"
        edit(project / "data.py", old, old.replace("held_out]", "held_out][:{}]").format(train, val))
        return project

    with_rows.__name__ += f"_{train}_{val}"
    return with_rows


def evaluated(project: Path, folder: Path, distributed: str) -> Counter[str]:
    """How often each example was looked at in one evaluation."""
    ranks = RANKS[distributed]
    options = ["--epochs", 1, "--batch-size", 16 // (ranks or 1)]
    return Counter(joined(joined(seen(project, folder, *options, ranks=ranks))))


@pytest.mark.parametrize("size", [1, 7, 114])
@everywhere
def test_05_each_example_once(made: Make, tmp_path: Path, distributed: str, size: int) -> None:
    few = with_few(64, size)
    whole = evaluated(made(few, with_evaluation_spy, task="tabular"), tmp_path / "whole", "none")
    assert list(whole.values()) == [1] * size
    if distributed != "none":
        project = made(few, with_evaluation_spy, task="tabular", distributed=distributed)
        assert evaluated(project, tmp_path / "ranks", distributed) == whole


@over_ranks
def test_05_control_padded(tmp_path: Path, distributed: str) -> None:
    """As many examples for each process, some of them twice."""
    project = render(tmp_path / "demo", task="tabular", distributed=distributed)
    with_evaluation_spy(with_few(64, 7)(project))
    old = "np.arange(rank, num_examples, world_size)"
    edit(project / "data.py", old, "np.arange(rank, num_examples + rank, world_size) % num_examples")
    assert sorted(evaluated(project, tmp_path, distributed).values()) == [1] * 6 + [2]


# 6: one process and two


@pytest.mark.parametrize("task", TASKS)
@over_ranks
def test_06_parameters(made: Make, whole: Whole, tmp_path: Path, task: str, distributed: str) -> None:
    options = ["--lr", "1e-3", "--max-steps", 6, "--batch-size"]
    one = whole(made(task=task), *options, 32)
    two = whole(made(task=task, distributed=distributed), *options, 16, ranks=2)
    models = [load(checkpoints(place)[-1])["model"] for place in (one, two)]
    vectors = [torch.cat([model[name].flatten() for name in models[0]]) for model in models]
    if task == "tabular":
        torch.testing.assert_close(*vectors, rtol=0, atol=1e-6)
    # Adam makes much of the last digit where a gradient is next to nothing, as some of a ReLU network's are
    assert (vectors[0] - vectors[1]).norm() < 1e-6 * vectors[0].norm()


@over_ranks
def test_06_two_ranks_train_as_one(made: Make, tmp_path: Path, distributed: str) -> None:
    train(made(task="tabular"), "--batch-size", 32, "--max-steps", 30, "--output-dir", tmp_path / "one")
    project = made(task="tabular", distributed=distributed)
    train_ranks(project, "--batch-size", 16, "--max-steps", 30, "--output-dir", tmp_path / "two")
    one, two = (load(checkpoints(tmp_path / name)[-1])["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5)
    losses = [values(tmp_path / name, "train/loss") for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# each process writes a hash of its parameters after each step
NOTE_PARAMETERS = """
import hashlib, os
from torch.optim.optimizer import register_optimizer_step_post_hook

def hook(optimizer, args, options):
    digest = hashlib.sha256()
    for group in optimizer.param_groups:
        for value in group["params"]:
            value = value.detach()
            digest.update(value.full_tensor().numpy() if hasattr(value, "full_tensor") else value.numpy())
    with open(os.environ["NOTES"] + os.environ["RANK"], "a") as file:
        print(digest.hexdigest(), file=file)

register_optimizer_step_post_hook(hook)
"""
APART = ("torch.manual_seed(args.seed)\n", "torch.manual_seed(args.seed + rank)\n")
INITIAL = {  # what gives every process the first one's parameters, and what does not
    "ddp": ("DDP(model)", "DDP(model, init_sync=False)"),
    "fsdp": ("        dist.broadcast(value, src=0)", "        pass"),
}


TWENTY_STEPS = [*SHARDED_OPTIONS, "--max-steps", 20]


def seeded_apart(project: Path) -> Path:
    edit(project / "train.py", *APART)
    return project


def noted_parameters(project: Path, folder: Path) -> list[list[str]]:
    """What each process wrote of each."""
    options = [*TWENTY_STEPS, "--output-dir", folder / "out"]
    train_ranks(project, *options, env={"NOTES": f"{folder}/notes"}, first=NOTE_PARAMETERS)
    return [path.read_text().splitlines() for path in sorted(folder.glob("notes?"))]


@over_ranks
def test_06_seeded_apart(made: Make, whole: Whole, tmp_path: Path, distributed: str) -> None:
    """All processes start from the first one's parameters, whatever else they drew, and stay together."""
    one, two = noted_parameters(made(seeded_apart, task="tabular", distributed=distributed), tmp_path)
    assert one == two and len(set(one)) == 20
    reference = whole(made(task="tabular", distributed=distributed), *TWENTY_STEPS, ranks=2)
    assert same_bits(*(load(checkpoints(place)[-1]) for place in (reference, tmp_path / "out")))


@over_ranks
def test_06_control_seeded_apart(made: Make, whole: Whole, tmp_path: Path, distributed: str) -> None:
    other = seeded_apart(render(tmp_path / "demo", task="tabular", distributed=distributed))
    edit(other / "train.py", *INITIAL[distributed])
    one, two = noted_parameters(other, tmp_path)
    reference = whole(made(task="tabular", distributed=distributed), *TWENTY_STEPS, ranks=2)
    same = same_bits(*(load(checkpoints(place)[-1]) for place in (reference, tmp_path / "out")))
    assert one != two or not same


# 9: no hang


@pytest.mark.parametrize("workers", [0, 2])
def test_09_a_failing_run_ends_its_loaders(tmp_path: Path, workers: int) -> None:
    """A traceback keeps the loaders alive until the interpreter ends: they must not keep it waiting."""
    project = render(tmp_path / "demo", task="tabular")
    edit(
        project / "train.py",
        "        loss.backward()\n",
        "        loss.backward()\n        assert step < 3\n",
    )
    begin = time.monotonic()
    result = train(project, "--workers", workers, timeout=60, check=False)
    assert result.code == 1 and "AssertionError" in result.err
    assert time.monotonic() - begin < 30


@pytest.mark.heavy
@over_ranks
def test_09_ranks_always_end(made: Make, tmp_path: Path, distributed: str) -> None:
    """Gloo's threads can lock up with the interpreter's end, or abort in it: none of many short runs may."""
    project = made(task="tabular", distributed=distributed)
    assert list(bad_ends(project, tmp_path, runs=25)) == []


@pytest.mark.heavy
def test_09_control_the_interpreter_ends(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", distributed="fsdp")
    edit(project / "train.py", "    os._exit(code)", "    sys.exit(code)")
    assert "terminate called without an active exception" in next(bad_ends(project, tmp_path, runs=60))


# The program as torchrun starts it, with nothing imported before it: what comes before the group matters.
GROUP_THREADS = """
import os
import runpy
import sys
import time
from pathlib import Path
import torch.distributed as dist

destroy = dist.destroy_process_group

def destroy_and_count():
    destroy()
    time.sleep(0.5)
    names = [thread.joinpath("comm").read_text() for thread in Path("/proc/self/task").iterdir()]
    print("threads of the group:", sum("gloo" in name for name in names))

dist.destroy_process_group = destroy_and_count
sys.path[0] = os.getcwd()
runpy.run_path("train.py", run_name="__main__")
"""


def group_threads(project: Path, place: Path) -> int:
    """The threads that gloo has left when the process group is destroyed."""
    program = place / "counting.py"
    program.write_text(GROUP_THREADS)
    words = [program, "--max-steps", 2, "--output-dir", place / "out"]
    out = projects.run(project, projects.torchrun(*words, processes=1)).out
    return int(out.rpartition("threads of the group: ")[2])


COMPILED = pytest.param("compile", marks=pytest.mark.heavy)


@pytest.mark.parametrize("feature", ["ema", COMPILED])
def test_09_the_group_ends_with_the_run(made: Make, tmp_path: Path, feature: str) -> None:
    """Under DDP no thread of the group is left that the interpreter's end could meet."""
    assert group_threads(made(task="tabular", distributed="ddp", features=(feature,)), tmp_path) == 0


HELD = {  # what lets go of the group, and the feature with which it is needed
    "import torch.distributed.nn": "ema",
    "    del ddp_model": "ema",
    "    gc.collect()": "compile",
}


@pytest.mark.heavy
@pytest.mark.parametrize("line", HELD, ids=["import", "del", "collect"])
def test_09_control_the_group_outlives_the_run(tmp_path: Path, line: str) -> None:
    project = render(tmp_path / "demo", task="tabular", distributed="ddp", features=(HELD[line],))
    edit(project / "train.py", line, f"{' ' * (len(line) - len(line.lstrip()))}pass")
    assert group_threads(project, tmp_path) == 3


NO_HANG = 60  # seconds; each of these runs takes a few
RED = 8  # enough to call it a hang where one is expected


def end_well(project: Path, *options: object, **settings: Any) -> bool:
    """Do all processes come to a good end in time?"""
    try:
        results = train_ranks(project, *options, check=False, **settings)
    except TimeoutError:
        return False
    return all(result.code == 0 for result in results)


def skewed(project: Path) -> Path:
    """To the second process each evaluation looks better than the one before, to the first all look alike."""
    old = "    loss = correct = count = 0\n"
    new = (
        "    evaluate.calls = getattr(evaluate, 'calls', 0) + 1\n"
        "    loss, correct, count = 0, evaluate.calls * int(os.environ['RANK']), 0\n"
    )
    edit(project / "train.py", old, new)
    return project


SKEWED = ["--lr", 0, "--patience", 2, "--batch-size", 65, "--max-steps", 20]


@over_ranks
def test_09_skewed_metrics(made: Make, tmp_path: Path, distributed: str) -> None:
    """What is decided by them (which is best, when to stop) is decided alike."""
    project = made(skewed, task="tabular", distributed=distributed, features=("early-stopping",))
    assert end_well(project, *SKEWED, "--output-dir", tmp_path, timeout=NO_HANG)
    scores = list(values(tmp_path, "val/accuracy").values())
    assert scores == sorted(set(scores)) and len(scores) == 5


@pytest.mark.parametrize("distributed", [pytest.param("ddp", marks=pytest.mark.heavy), "fsdp"])
def test_09_control_skewed_metrics(tmp_path: Path, distributed: str) -> None:
    given = {"task": "tabular", "distributed": distributed, "features": ("early-stopping",)}
    project = skewed(render(tmp_path / "demo", **given))
    edit(project / "train.py", "    dist.all_reduce(totals)\n", "")
    assert not end_well(project, *SKEWED, timeout=RED)


# the second process is slow, and its clock goes wrong
CLOCKS = """
import os, time
from torch.optim.optimizer import register_optimizer_step_pre_hook

if os.environ["RANK"] == "1":
    now = time.time
    time.time = lambda: now() + 86400
    register_optimizer_step_pre_hook(lambda *_: time.sleep(0.03))
"""


@over_ranks
def test_09_clocks(made: Make, whole: Whole, tmp_path: Path, distributed: str) -> None:
    project = made(with_dropout, suicidal, task="tabular", distributed=distributed)
    assert end_well(project, *SHORT, "--output-dir", tmp_path, first=CLOCKS, timeout=NO_HANG)
    assert same_run(whole(project, *SHORT, ranks=2), tmp_path)


@pytest.mark.parametrize("distributed", ["ddp", pytest.param("fsdp", marks=pytest.mark.heavy)])
def test_09_control_clocks(tmp_path: Path, distributed: str) -> None:
    """Each process decides by its own clock when its time is up."""
    project = render(tmp_path / "demo", task="tabular", distributed=distributed)
    old = "        stopping = mean_over_ranks(torch.tensor(float(stop.is_set()))) > 0"
    edit(project / "train.py", old, f"        import time; stopping = time.time() > {time.time() + 3600}")
    assert not end_well(project, *SHORT, first=CLOCKS, timeout=RED)


@over_ranks
def test_09_hardly_any_data(made: Make, tmp_path: Path, distributed: str) -> None:
    """Fewer examples than a step takes, and one to evaluate."""
    project = made(with_few(5, 1), task="tabular", distributed=distributed)
    options = ["--batch-size", 4, "--epochs", 12, "--output-dir", tmp_path]
    assert end_well(project, *options, timeout=NO_HANG)
    assert max(values(tmp_path, "val/loss")) == 8


def test_09_control_uneven_batches(tmp_path: Path) -> None:
    """A process with fewer batches to evaluate than the other leaves that one waiting for its shards."""
    other = render(tmp_path / "demo", distributed="fsdp")
    old = "np.array_split(np.arange(rank, num_examples, world_size), num_batches)"
    edit(other / "data.py", old, old.replace("num_batches", "num_batches - rank"))
    assert not end_well(other, "--epochs", 1, "--batch-size", 100, timeout=2 * RED)


# the second process is in a folder of its own, so relative paths mean other files to it
VIEW = """
import os, sys

if os.environ["RANK"] == "1":
    sys.argv[0] = os.path.abspath(sys.argv[0])
    os.chdir(os.environ["VIEW"])
"""
VIEWED = ["--checkpoint-every", 7, "--output-dir", "out"]


@over_ranks
def test_09_views_of_a_new_run(tmp_path: Path, distributed: str) -> None:
    """Each process sees another disk: what the run saves can be used, or it says that it cannot."""
    project, view = render(tmp_path / "demo", task="tabular", distributed=distributed), tmp_path / "view"
    view.mkdir()
    options = [*VIEWED, "--max-steps", 20]
    settings = {"env": {"VIEW": str(view)}, "first": VIEW, "timeout": NO_HANG, "check": False}
    results = train_ranks(project, *options, **settings)
    if any(result.code for result in results):
        assert all(result.code and "Traceback" not in result.err for result in results)
    else:
        train_ranks(project, *options, "--resume", timeout=NO_HANG)


@over_ranks
def test_09_views_of_a_saved_run(tmp_path: Path, distributed: str) -> None:
    """The second process does not see what is to be resumed: all end, none trains on from nothing."""
    project, view = render(tmp_path / "demo", task="tabular", distributed=distributed), tmp_path / "view"
    view.mkdir()
    train_ranks(project, *VIEWED, "--max-steps", 20)
    before = metrics(project / "out")
    settings = {"env": {"VIEW": str(view)}, "first": VIEW, "timeout": NO_HANG, "check": False}
    results = train_ranks(project, *VIEWED, "--max-steps", 30, "--resume", **settings)
    if any(result.code for result in results):
        assert all(result.code for result in results)
    assert metrics(project / "out")[: len(before)] == before


@pytest.mark.heavy
@over_ranks
def test_09_views_of_an_old_run(tmp_path: Path, distributed: str) -> None:
    """The second process alone sees one that it must not overwrite: torchrun ends them all, with its line."""
    project, view = render(tmp_path / "demo", task="tabular", distributed=distributed), tmp_path / "view"
    (view / "out" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (project / "view.py").write_text(
        VIEW + "import runpy\nsys.argv[0] = sys.argv[0].replace('view.py', 'train.py')\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = projects.torchrun("view.py", *VIEWED, "--max-steps", 20)
    result = projects.run(project, command, timeout=2 * NO_HANG, env={"VIEW": str(view)}, check=False)
    assert result.code != 0 and "out holds a run" in result.err


# 13: metrics are weighted by count


# instead of training: loss and accuracy of all examples at once, with the parameters of a file
EXACT = """
import json, sys
import torch
import torch.nn.functional as F
from data import build_datasets
from model import TableNet

train_set, val_set = build_datasets()
model = TableNet(train_set.numeric.shape[1], train_set.cardinalities, train_set.num_outputs)
model.load_state_dict(torch.load(sys.argv[1], weights_only=True)["model"])
output = model(val_set.numeric, val_set.categorical).double()
correct = (output.argmax(dim=1) == val_set.target).double()
print(json.dumps([F.cross_entropy(output, val_set.target).item(), correct.mean().item()]))
raise SystemExit
"""


def evaluations(project: Path, folder: Path, distributed: str) -> list[list[float]]:
    """Seven rows' loss and accuracy, as the run has it in batches of two (or one) and all at once."""
    ranks = RANKS[distributed]
    options = ["--epochs", 1, "--batch-size", 2, "--output-dir", folder / "out"]
    train_ranks(project, *options, ranks=ranks)
    [found] = [row for row in metrics(folder / "out") if "val/loss" in row]
    plain = with_few(64, 7)(render(folder / "plain", task="tabular"))
    [exact] = train_ranks(plain, folder / "out" / "checkpoints" / "best.pt", ranks=0, first=EXACT)
    return [[found["val/loss"], found["val/accuracy"]], json.loads(exact.out)]


@everywhere
def test_13_weighted_by_count(made: Make, tmp_path: Path, distributed: str) -> None:
    project = made(with_few(64, 7), task="tabular", distributed=distributed)
    found, exact = evaluations(project, tmp_path, distributed)
    assert found == pytest.approx(exact, rel=1e-6)


@mostly_alone
def test_13_control_weighted_by_batch(tmp_path: Path, distributed: str) -> None:
    project = with_few(64, 7)(render(tmp_path / "demo", task="tabular", distributed=distributed))
    edit(project / "train.py", 'target, reduction="sum").item()', "target).item()")
    edit(project / "train.py", "== target).sum().item()", "== target).float().mean().item()")
    edit(project / "train.py", "count += len(target)", "count += 1")
    found, exact = evaluations(project, tmp_path, distributed)
    assert found != pytest.approx(exact, rel=1e-6)


# 14: NaN on one rank


def nan_on_one_rank(project: Path, output_dir: Path, distributed: str) -> list[Result]:
    """The last rank's loss is not finite at its twelfth batch."""
    ranks = RANKS[distributed]
    old = "    return F.cross_entropy(model(numeric, categorical), target)\n"
    new = (
        "    compute_loss.calls = getattr(compute_loss, 'calls', 0) + 1\n"
        f"    bad = os.environ.get('RANK', '0') == '{max(0, ranks - 1)}' and compute_loss.calls == 12\n"
        "    return F.cross_entropy(model(numeric, categorical), target) * (math.nan if bad else 1)\n"
    )
    edit(project / "train.py", old, new)
    options = ["--output-dir", output_dir, "--max-steps", 40, "--checkpoint-every", 5]
    return train_ranks(project, *options, check=False, timeout=60, ranks=ranks)


@everywhere
def test_14_nan_on_one_rank(made: Make, whole: Whole, tmp_path: Path, distributed: str) -> None:
    given = {"task": "tabular", "distributed": distributed}
    results = nan_on_one_rank(render(tmp_path / "demo", **given), tmp_path / "out", distributed)
    for result in results:
        assert result.code == 1
        assert result.err.count("\n") == 1
        assert "finite" in result.message or "nan" in result.message
    kept = checkpoints(tmp_path / "out")
    assert len(kept) == 2 and kept[-1].stem == "step-00000010"
    assert all(projects.all_finite(path) for path in kept)
    good = whole(made(**given), "--max-steps", 10, "--checkpoint-every", 5, ranks=RANKS[distributed])
    assert same_bits(load(kept[-1]), load(checkpoints(good)[-1]))


@everywhere
def test_14_control_nan_saved(tmp_path: Path, distributed: str) -> None:
    project = render(tmp_path / "demo", task="tabular", distributed=distributed)
    edit(project / "train.py", "            check_parameters(model, step)\n", "")
    edit(project / "train.py", "        check_finite(metrics, step)\n", "")
    results = nan_on_one_rank(project, tmp_path / "out", distributed)
    assert [result.code for result in results] == [0] * len(results)
    assert not any(projects.all_finite(path) for path in checkpoints(tmp_path / "out"))


WHAT_IS_CHECKED = "    assert {value.dtype for value in model.parameters()} == {torch.float32}\n"


@pytest.mark.parametrize(
    "resharded",
    [pytest.param(True, id="project"), pytest.param(False, id="control", marks=pytest.mark.heavy)],
)
def test_14_what_is_checked_is_what_is_saved(tmp_path: Path, resharded: bool) -> None:
    """After an evaluation too, which gathers parameters at the precision of its passes."""
    given = {"task": "tabular", "hardware": "gpu", "precision": "bf16", "distributed": "fsdp"}
    project = render(tmp_path / "demo", **given)
    [reshard] = [
        line for line in (project / "checkpoint.py").read_text().splitlines(True) if "reshard()" in line
    ]
    edit(project / "checkpoint.py", reshard, (reshard if resharded else "") + WHAT_IS_CHECKED)
    options = ["--device", "cpu", "--epochs", 1, "--output-dir", tmp_path / "out"]
    results = train_ranks(project, *options, check=False)
    assert [result.code for result in results] == ([0, 0] if resharded else [1, 1]), results[0].err


# 20: sharded checkpoints


# instead of training: a checkpoint of other processes, loaded and saved by these
RESHARD = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from data import build_datasets
from model import TableNet
from train import shard

dist.init_process_group()
train_set, _ = build_datasets()
model = TableNet(train_set.numeric.shape[1], train_set.cardinalities, train_set.num_outputs)
shard(model, init_device_mesh("cpu", (dist.get_world_size(),)))
parts = {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), fused=True)}
source, target = map(Path, sys.argv[1:])
counters = load_checkpoint(newest_checkpoint(source), parts)
target.mkdir(exist_ok=True)
save_checkpoint(target, parts, counters, best=True)
last = dist.barrier(async_op=True)
last.wait()
dist.destroy_process_group()
raise SystemExit
"""


# instead of training: a file of parameters, loaded into the plain module
PLAIN = """
import sys
import torch
from data import build_datasets
from model import TableNet

train_set, _ = build_datasets()
model = TableNet(train_set.numeric.shape[1], train_set.cardinalities, train_set.num_outputs)
model.load_state_dict(torch.load(sys.argv[1], weights_only=True)["model"])
raise SystemExit
"""


def resharded(project: Path, source: Path, target: Path, processes: int) -> Path:
    (target.parent / "metrics.jsonl").touch()
    train_ranks(project, source, target, ranks=processes, first=RESHARD)
    return target


def test_20_two_to_one_to_two(sharded: Path, trained: Path, tmp_path: Path) -> None:
    """To the last bit, parameters and the optimizer's state."""
    one = resharded(sharded, trained / "checkpoints", tmp_path / "one", 1)
    two = resharded(sharded, one, tmp_path / "two", 2)
    states = [load(checkpoints(trained)[-1]), *(load(max(place.glob("step-*"))) for place in (one, two))]
    assert any("exp_avg" in name for name in projects.leaves(states[0]["optimizer"]))
    assert same_bits(states[0], states[1])
    assert same_bits(states[0], states[2])


def test_20_goes_on_with_another_number_of_processes(sharded: Path, trained: Path, tmp_path: Path) -> None:
    """The same examples a step: the same run, but for the order of sums."""
    shutil.copytree(trained, tmp_path / "one")
    more = ["--epochs", 3, "--log-every", 4, "--max-steps", 40, "--resume", "--output-dir"]
    [result] = train_ranks(sharded, *more, tmp_path / "one", "--batch-size", 32, ranks=1)
    assert result.err == ""
    shutil.copytree(trained, tmp_path / "two")
    train_ranks(sharded, *more, tmp_path / "two", "--batch-size", 16)
    losses = [values(tmp_path / name, "train/loss") for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_20_best_is_whole(sharded: Path, trained: Path) -> None:
    """It loads into a plain module, strictly."""
    best = trained / "checkpoints" / "best.pt"
    train_ranks(sharded, best, ranks=0, first=PLAIN)


def test_20_control_optimizer_forgotten(trained: Path, tmp_path: Path) -> None:
    """Processes that take over without the optimizer's state."""
    project = render(tmp_path / "demo", task="tabular", distributed="fsdp")
    old = '    set_optimizer_state_dict(parts["model"], parts["optimizer"], state["optimizer"])\n'
    edit(project / "checkpoint.py", old, "")
    one = resharded(project, trained / "checkpoints", tmp_path / "one", 1)
    states = [load(checkpoints(trained)[-1]), load(max(one.glob("step-*")))]
    assert same_bits(states[0]["model"], states[1]["model"])
    assert not same_bits(states[0], states[1])


def test_20_control_lost_shard(sharded: Path, trained: Path, tmp_path: Path) -> None:
    """The bits are compared: one that differs is seen."""
    state = load(checkpoints(trained)[-1])
    other = {"model": {name: value.clone() for name, value in state["model"].items()}}
    assert same_bits({"model": state["model"]}, other)
    torch.flatten(next(iter(other["model"].values())))[0] += 1
    assert not same_bits({"model": state["model"]}, other)
