"""DeepSpeed's engine takes the steps that the plain loop takes, and its checkpoints are found again.

Skipped where DeepSpeed is not installed; .ci/run installs it.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import projects
from tests.conftest import Make
from tests.projects import (
    Result,
    checkpoints,
    drive,
    edit,
    few_examples,
    metrics,
    render,
    same_run,
    small_options,
    torchrun,
    until,
    values,
)

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
pytestmark = pytest.mark.heavy

ENVIRONMENT = {"DS_ACCELERATOR": "cpu"}
FEATURES = ("grad-accum", "grad-clip")
STAGES = pytest.mark.parametrize("stage", [1, 2, 3])
TABLE = ["--batch-size", 8, "--warmup-steps", 2, "--log-every", 1]
SPLIT = ('"stage": args.zero_stage', '"stage": args.zero_stage, "stage3_param_persistence_threshold": 0')


@pytest.fixture(scope="module")
def server() -> Iterator[projects.Server]:
    """Like that of all tests, with DeepSpeed imported too."""
    imports = f"import os\nos.environ |= {ENVIRONMENT}\n{projects.IMPORTS}\nimport deepspeed, torchmetrics\n"
    server = projects.Server(imports=imports)
    yield server
    server.process.stdin.close()
    server.process.wait(20)


def run(
    server: projects.Server, project: Path, *options: object, code: int = 0, ranks: int = 2, first: str = ""
) -> list[Result]:
    server.start(project, *options, ranks=ranks, first=first)
    results = server.wait(120)
    assert [result.code for result in results] == [code] * ranks, results[0].err
    return results


def engine_of(**given: Any) -> dict[str, Any]:
    return {"task": "tabular", "distributed": "deepspeed"} | given


def losses(output_dir: Path) -> list[float]:
    return list(values(output_dir, "train/loss").values())


def small_parts(project: Path) -> Path:
    """Stage 3 splits every parameter, not the large ones alone, of which small models have none."""
    edit(project / "train.py", *SPLIT)
    return project


# the same steps


def scale_counts(project: Path) -> Path:
    """With a large epsilon AdamW neither forgets the scale of gradients nor makes steps of rounding."""
    edit(project / "train.py", "fused=True)", "fused=True, eps=1.0)")
    return project


def options_of(task: str, features: tuple[str, ...]) -> list[object]:
    largest = 4.0 if task == "language-modeling" else 0.5  # some gradients are larger, some are not
    clip = ["--clip-grad", largest] if "grad-clip" in features else []
    lr = 0.003 if task == "image-classification" else 0.03
    common = ["--max-steps", 20, "--log-every", 1, "--warmup-steps", 2, "--lr", lr]
    return [*common, *small_options(task), *clip]


@pytest.fixture(scope="module")
def plain(made: Make, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The losses of the plain project, once for each task."""
    known: dict[tuple[str, tuple[str, ...]], list[float]] = {}

    def losses_of(task: str, features: tuple[str, ...]) -> list[float]:
        if (task, features) not in known:
            project, out = made(scale_counts, task=task, features=features), tmp_path_factory.mktemp("plain")
            words = ["--batch-size", 8, "--output-dir", out, *options_of(task, features)]
            projects.train_ranks(project, *words, ranks=0, first=few_examples(100))
            known[task, features] = losses(out)
        return known[task, features]

    return losses_of


def engine_losses(
    server: projects.Server, project: Path, out: Path, task: str, features: tuple[str, ...], stage: int
) -> list[float]:
    words = ["--batch-size", 4, "--zero-stage", stage, "--output-dir", out, *options_of(task, features)]
    run(server, project, *words, first=few_examples(100))
    return losses(out)


@STAGES
@pytest.mark.parametrize("task", ["tabular", "image-classification", "language-modeling"])
def test_two_ranks_do_what_the_plain_loop_does(
    server: projects.Server, made: Make, plain: Any, tmp_path: Path, task: str, stage: int
) -> None:
    project = made(small_parts, scale_counts, **engine_of(task=task, features=FEATURES))
    found = engine_losses(server, project, tmp_path, task, FEATURES, stage)
    assert len(found) >= 19 and found == pytest.approx(plain(task, FEATURES), rel=1e-4)


def test_without_accumulation_and_clipping(
    server: projects.Server, made: Make, plain: Any, tmp_path: Path
) -> None:
    found = engine_losses(server, made(scale_counts, **engine_of()), tmp_path, "tabular", (), 2)
    assert found == pytest.approx(plain("tabular", ()), rel=1e-4)


@pytest.mark.parametrize(
    ("task", "old", "new"),
    [
        ("language-modeling", ", scale_wrt_gas=False", ""),
        ("language-modeling", "num_targets = mean_over", "num_targets = world_size * mean_over"),
        ("tabular", '        "gradient_clipping": args.clip_grad,\n', '        "gradient_clipping": 0.0,\n'),
        ("tabular", '        "gradient_accumulation_steps": args.grad_accum,\n', ""),
    ],
    ids=["twice", "all-counts", "unclipped", "too-soon"],
)
def test_control_steps(
    server: projects.Server, plain: Any, tmp_path: Path, task: str, old: str, new: str
) -> None:
    project = scale_counts(render(tmp_path / "demo", **engine_of(task=task, features=FEATURES)))
    edit(project / "train.py", old, new)
    found = engine_losses(server, project, tmp_path / "out", task, FEATURES, 2)
    assert found != pytest.approx(plain(task, FEATURES), rel=1e-4)


def test_control_default_clipping(server: projects.Server, plain: Any, tmp_path: Path) -> None:
    project = scale_counts(render(tmp_path / "demo", **engine_of()))
    edit(project / "train.py", '        "gradient_clipping": 0.0,  # none; left out, it would be 1\n', "")
    found = engine_losses(server, project, tmp_path / "out", "tabular", (), 2)
    assert found != pytest.approx(plain("tabular", ()), rel=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_offload(server: projects.Server, made: Make, tmp_path: Path, stage: int) -> None:
    kept, moved = (made(small_parts, **engine_of(features=(*FEATURES, *more))) for more in ((), ("offload",)))
    words = [*TABLE, "--zero-stage", stage, "--max-steps", 6]
    run(server, kept, *words, "--output-dir", tmp_path / "one")
    run(server, moved, *words, "--output-dir", tmp_path / "other")
    one, other = losses(tmp_path / "one"), losses(tmp_path / "other")
    assert len(one) == 6 and other == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("stage", [2, 3])
def test_bf16(server: projects.Server, made: Make, tmp_path: Path, stage: int) -> None:
    project = made(small_parts, **engine_of(precision="bf16"))
    plain32, few = made(small_parts, **engine_of()), few_examples(100)
    words = [*TABLE, "--zero-stage", stage, "--max-steps", 20, "--output-dir"]
    run(server, project, *words, tmp_path / "bf16", first=few)
    run(server, plain32, *words, tmp_path / "fp32", first=few)
    one, other = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    assert one != other and other == pytest.approx(one, rel=3e-2)
    state = torch.load(tmp_path / "bf16" / "checkpoints" / "best.pt", weights_only=True)["model"]
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("stage", [2, 3])
def test_a_gradient_that_is_not_finite_ends_every_process(
    server: projects.Server, tmp_path: Path, stage: int
) -> None:
    project = small_parts(render(tmp_path / "demo", **engine_of()))
    ruin = "engine.backward(loss * (math.inf if step == 3 and rank == 1 else 1))"
    edit(project / "train.py", "engine.backward(loss)", ruin)
    words = [*TABLE, "--zero-stage", stage, "--max-steps", 6, "--output-dir", tmp_path / "out"]
    for result in run(server, project, *words, code=1):
        assert result.message == "step 4: the gradients are not finite; a lower --lr may help"


MOVES = """
import os, torch
to = torch.nn.Module.to

def noting(module, *given, **named):
    with open(f"moved{os.environ['RANK']}", "a") as file:
        print(sum(parameter.numel() for parameter in module.parameters()), file=file)
    return to(module, *given, **named)

torch.nn.Module.to = noting
"""


def test_the_whole_model_is_moved_before_it_is_split(server: projects.Server, tmp_path: Path) -> None:
    """As docs/scaling.md says of the start: also where every process keeps a part alone."""
    project = small_parts(render(tmp_path / "demo", **engine_of()))
    words = [*TABLE, "--zero-stage", 3, "--max-steps", 1, "--output-dir", tmp_path / "out"]
    run(server, project, *words, first=few_examples(16) + MOVES)
    state = torch.load(tmp_path / "out" / "checkpoints" / "best.pt", weights_only=True)["model"]
    whole = sum(value.numel() for value in state.values())
    assert [(project / f"moved{rank}").read_text().split()[0] for rank in (0, 1)] == [str(whole)] * 2


# checkpoints


@pytest.fixture(scope="module")
def trained(server: projects.Server, made: Make, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that nothing interrupted, for each stage; the project, what it was run with, and its output."""
    known: dict[int, tuple[Path, list[object], Path]] = {}

    def run_at(stage: int) -> tuple[Path, list[object], Path]:
        if stage not in known:
            project, out = made(small_parts, **engine_of(features=FEATURES)), tmp_path_factory.mktemp("whole")
            options = [*TABLE, "--zero-stage", stage, "--epochs", 1, "--checkpoint-every", 5]
            run(server, project, *options, "--output-dir", out)
            known[stage] = project, options, out
        return known[stage]

    return run_at


@STAGES
def test_killed_and_resumed(server: projects.Server, trained: Any, tmp_path: Path, stage: int) -> None:
    project, options, out = trained(stage)
    # once among steps, once half-way through a save
    for kill in ("step == 8", "'save' in str(where)"):
        at = f"""
import os, sys
def look(frame, event, argument):
    where, step = frame.f_code.co_name, frame.f_locals.get("step", 0)
    if frame.f_code.co_name == "digest" and {"save" in kill} or where == "learning_rate" and {kill}:
        os.kill(os.getpid(), 9)
sys.setprofile(look)
"""
        server.start(project, *options, "--resume", "--output-dir", tmp_path, ranks=2, first=at)
        assert {result.code for result in server.wait(60)} & {-signal.SIGKILL}
    run(server, project, *options, "--resume", "--output-dir", tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == [path.name for path in checkpoints(out)]
    assert same_run(out, tmp_path)


def test_control_resume(server: projects.Server, trained: Any, tmp_path: Path) -> None:
    """An optimizer that is not restored shows in the losses."""
    _, options, out = trained(2)
    project = small_parts(render(tmp_path / "demo", **engine_of(features=FEATURES)))
    edit(project / "checkpoint.py", "load_checkpoint(path)", "load_checkpoint(path, None, True, False)")
    run(server, project, *options, "--max-steps", 10, "--output-dir", tmp_path / "out")
    run(server, project, *options, "--resume", "--output-dir", tmp_path / "out")
    assert losses(tmp_path / "out") != losses(out)


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over(
    server: projects.Server, trained: Any, tmp_path: Path, harm: str
) -> None:
    project, options, out = trained(2)
    run(server, project, *options, "--max-steps", 12, "--output-dir", tmp_path)
    before, newest = checkpoints(tmp_path)
    file = next(newest.rglob("zero_pp_rank_1_*"))
    if harm == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif harm == "cut":
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.unlink()
    results = run(server, project, *options, "--resume", "--output-dir", tmp_path)
    assert f"{newest} is damaged, trying the one before it" in results[0].err
    assert (tmp_path / "metrics.jsonl").read_bytes() == (out / "metrics.jsonl").read_bytes()
    assert before.name == "step-00000010"


@pytest.mark.parametrize("stage", [2, 3])
def test_the_best_is_one_file_for_the_plain_project(trained: Any, made: Make, stage: int) -> None:
    _, _, out = trained(stage)
    source = """
import json, sys, torch
from pathlib import Path
from data import build_datasets, ordered_batches
from model import TableNet
from train import DataLoader, evaluate
train_set, val_set = build_datasets()
model = TableNet(train_set.numeric.shape[1], train_set.cardinalities, train_set.num_outputs)
state = torch.load(sys.argv[1], weights_only=True)
model.load_state_dict(state["model"])
loader = DataLoader(val_set, batch_size=None, sampler=ordered_batches(len(val_set), 8))
print(json.dumps([state["counters"], evaluate(model, loader, torch.device("cpu"))]))
"""
    found = drive(made(task="tabular"), source, out / "checkpoints" / "best.pt")
    counters, judged = json.loads(found)
    row = next(row for row in metrics(out) if row["step"] == counters["step"])
    assert judged["val/accuracy"] == row["val/accuracy"] == counters["best"]
    assert judged["val/loss"] == pytest.approx(row["val/loss"], rel=1e-5)


def test_the_best_holds_what_is_frozen(server: projects.Server, tmp_path: Path) -> None:
    """Stage 3 splits it too."""
    project = small_parts(render(tmp_path / "demo", **engine_of()))
    layer = "nn.Linear(num_inputs, num_outputs)"
    edit(project / "model.py", f"self.wide = {layer}", f"self.wide = {layer}.requires_grad_(False)")
    words = [*TABLE, "--zero-stage", 3, "--epochs", 1, "--max-steps", 60, "--output-dir", tmp_path / "out"]
    run(server, project, *words)
    state = torch.load(tmp_path / "out" / "checkpoints" / "best.pt", weights_only=True)["model"]
    assert state["wide.weight"].shape[0] == state["deep.4.weight"].shape[0]
    assert all(value.numel() and value.isfinite().all() for value in state.values())


def test_only_what_wrote_a_checkpoint_goes_on_from_it(
    server: projects.Server, trained: Any, tmp_path: Path
) -> None:
    project, options, _ = trained(2)
    words = [*options, "--max-steps", 10, "--output-dir", tmp_path]
    run(server, project, *words, "--max-steps", 5)
    for other in ({"ranks": 1}, {"stage": 3}):
        stage = ["--zero-stage", other["stage"]] if "stage" in other else []
        for result in run(server, project, *words, *stage, "--resume", code=1, ranks=other.get("ranks", 2)):
            assert "go on as it began" in result.message
    run(server, project, *words, "--resume")


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_any_process(server: projects.Server, trained: Any, tmp_path: Path, rank: int) -> None:
    project, options, out = trained(2)
    pids = server.start(project, *options, "--output-dir", tmp_path, ranks=2)
    until(lambda: (tmp_path / "metrics.jsonl").exists() and (tmp_path / "metrics.jsonl").read_bytes())
    os.kill(pids[rank], signal.SIGTERM)
    assert [result.code for result in server.wait(60)] == [143, 143]
    steps = [row["step"] for row in metrics(tmp_path)]
    assert checkpoints(tmp_path)[-1].name == f"step-{int(steps[-1]):08d}" != checkpoints(out)[-1].name
    run(server, project, *options, "--resume", "--output-dir", tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (out / "metrics.jsonl").read_bytes()


# the project by itself


def test_under_torchrun(trained: Any, tmp_path: Path) -> None:
    project, options, out = trained(2)
    words = ["train.py", *options, "--max-steps", 5, "--output-dir", tmp_path]
    result = projects.run(project, torchrun(*words), env=ENVIRONMENT)
    record = (out / "metrics.jsonl").read_text().splitlines()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == record[:5]
    assert "built" not in result.out  # nothing is compiled at the first run


def test_the_projects_own_tests(tmp_path: Path) -> None:
    project = render(tmp_path / "demo", **engine_of())
    words = projects.python("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "passed" in projects.run(project, words, timeout=300).out
