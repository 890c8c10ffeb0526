"""`scaffold verify` on whole projects, and on copies damaged on purpose: it names the property that broke."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scaffold.verify import PROPERTIES
from tests.conftest import COMMAND, Run, files_under
from tests.projects import edit, render, small_options, until, write_data

ALL = {prop.number for prop in PROPERTIES}
SEVERAL = {prop.number for prop in PROPERTIES if prop.needs}
RESUMING = {1, 2, 3, 8}  # what can only be kept by a run that goes on exactly

Verify = Any


@pytest.fixture
def verify(run: Run) -> Verify:
    """Verify a project: number -> finding."""

    def findings(project: Path, *words: object, code: int) -> dict[int, dict[str, Any]]:
        before = files_under(project)
        done = run("verify", project, "--json", *words, timeout=600)
        assert done.returncode == code, done.stdout + done.stderr
        assert files_under(project) == before
        return {finding["number"]: finding for finding in json.loads(done.stdout)}

    return findings


def numbers(found: dict[int, dict[str, Any]], state: str) -> set[int]:
    return {number for number, finding in found.items() if finding["state"] == state}


def test_a_project_as_it_was_written(verify: Verify, tmp_path: Path) -> None:
    found = verify(render(tmp_path / "demo", task="tabular"), code=0)
    assert numbers(found, "kept") == ALL - SEVERAL
    assert {found[number]["detail"] for number in SEVERAL} == {
        "needs distributed=ddp or fsdp or deepspeed",
        "needs distributed=fsdp",
    }


heavy, rarely = pytest.mark.heavy, pytest.mark.complete


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"distributed": "ddp"}, marks=rarely),
        pytest.param({"distributed": "fsdp", "features": ("async-checkpoint", "hybrid-shard")}, marks=heavy),
        pytest.param({"task": "tabular", "distributed": "ddp"}, marks=rarely),
        pytest.param(
            {
                "task": "tabular",
                "distributed": "fsdp",
                "precision": "bf16",
                "features": ("ema", "grad-accum"),
            },
            marks=heavy,
        ),
        pytest.param(
            {"task": "tabular", "hardware": "gpu", "precision": "fp16", "features": ("compile", "grad-clip")},
            marks=heavy,
        ),
        pytest.param(
            {"logger": ("tensorboard", "wandb"), "features": ("early-stopping", "deterministic")}, marks=heavy
        ),
        pytest.param({"task": "segmentation", "distributed": "ddp", "logger": ("tensorboard",)}, marks=heavy),
        pytest.param({"task": "language-modeling"}, marks=rarely),
        pytest.param(
            {"task": "language-modeling", "distributed": "ddp", "features": ("grad-accum", "ema")},
            marks=heavy,
        ),
        pytest.param(
            {
                "task": "language-modeling",
                "distributed": "fsdp",
                "precision": "bf16",
                "features": ("grad-clip",),
            },
            marks=rarely,
        ),
    ],
    ids=lambda given: "-".join(map(str, given.values())),
)
def test_projects_of_every_kind(verify: Verify, tmp_path: Path, given: dict[str, Any]) -> None:
    short = small_options(given.get("task", "image-classification"))
    found = verify(render(tmp_path / "demo", **given), *(["--", *short] if short else []), code=0)
    apart = {"ddp": {20}, "fsdp": set()}.get(given.get("distributed", ""), SEVERAL)
    assert numbers(found, "not applicable") - {5} == apart - {5}
    assert numbers(found, "broken") == set()


@pytest.mark.heavy
@pytest.mark.parametrize("regression", [False, True])
def test_small_data_of_the_user(verify: Verify, tmp_path: Path, regression: bool) -> None:
    features = ("regression", "early-stopping") if regression else ("early-stopping",)
    project = render(tmp_path / "demo", task="tabular", data="files", features=features)
    found = verify(project, "--", *write_data(tmp_path, "tabular", "files", regression), code=0)
    assert numbers(found, "kept") == ALL - SEVERAL


# seconds and words in the record, the run's own path in its checkpoints, another network and optimizer
EDITS = [
    ("train.py", "import threading\n", "import threading\nimport time\n"),
    ("train.py", '"train/lr": lr}', '"train/lr": lr, "train/seconds": time.perf_counter(), "note": str(lr)}'),
    ("train.py", 'counters = {"step": step, ', 'counters = {"args": repr(args), "step": step, '),
    (
        "train.py",
        "AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)",
        "SGD(model.parameters(), momentum=0.9)",
    ),
    ("record.py", "if not math.isfinite(value)", "if isinstance(value, float) and not math.isfinite(value)"),
    ("record.py", "{name} {value:.4g}", "{name} {value}"),
    ("model.py", "nn.Linear(width, num_outputs),", "nn.Dropout(0.3), nn.Linear(width, num_outputs),"),
]


@pytest.mark.heavy
def test_edits_that_break_nothing(verify: Verify, tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", distributed="ddp")
    for file, old, new in EDITS:
        edit(project / file, old, new)
    assert numbers(verify(project, code=0), "broken") == set()


TABLE = {"task": "tabular"}
DDP = {"task": "tabular", "distributed": "ddp"}
FSDP = {"task": "tabular", "distributed": "fsdp"}
EMA = {"task": "tabular", "features": ("ema",)}

# what was done -> answers, what breaks, and in which file what stands there and what comes instead
DAMAGES: dict[str, tuple[dict[str, Any], set[int], list[tuple[str, str, str]]]] = {
    "resumed runs start the data anew": (
        TABLE,
        RESUMING,
        [("train.py", "args.batch_size, args.seed, step)", "args.batch_size, args.seed, 0)")],
    ),
    "the optimizer is not saved": (
        TABLE,
        RESUMING,
        [("train.py", '{"model": model, "optimizer": optimizer}', '{"model": model}')],
    ),
    "the average is not saved": (
        EMA,
        {1, 2, 8},
        [("train.py", '"optimizer": optimizer, "ema": ema}', '"optimizer": optimizer}')],
    ),
    "the best so far is forgotten": (
        TABLE,
        {1, 3},
        [("train.py", 'saved.get("best", -math.inf)', "-math.inf")],
    ),
    "saved in place": (
        TABLE,
        {2},
        [("checkpoint.py", '"checkpoint.partial"', "f\"step-{counters['step']:08d}.pt\"")],
    ),
    "flipped bits go unseen": (
        TABLE,
        {3},
        [("checkpoint.py", "return archive.testzip() is None and not marked", "return True")],
    ),
    "no fallback": (
        TABLE,
        {3},
        [("checkpoint.py", "        if is_intact(path):\n", "        if True:\n")],
    ),
    "digests are not compared": (
        FSDP,
        {3},
        [("checkpoint.py", "all(digest(path / name) == digests[name] for name in digests)", "True")],
    ),
    "evaluations are not added up": (
        DDP,
        {5},
        [("train.py", "    dist.all_reduce(totals)\n", "")],
    ),
    "both processes draw the same": (
        DDP,
        {6},
        [("data.py", "draws[rank:width:world_size]", "draws[0:width:world_size]")],
    ),
    "gradients are not averaged": (
        DDP,
        {1, 2, 6, 8},  # only one of two different models is saved
        [("train.py", "compute_loss(ddp_model, ", "compute_loss(model, ")],
    ),
    "both processes draw the same, in bf16": (
        DDP | {"precision": "bf16"},
        {6},
        [("data.py", "draws[rank:width:world_size]", "draws[0:width:world_size]")],
    ),
    "SIGTERM is not looked at": (
        TABLE,
        {8},
        [("train.py", "stopping = stop.is_set()", "stopping = False")],
    ),
    "SIGTERM ends with 0": (
        TABLE,
        {8},
        [("train.py", "    return 128 + signal.SIGTERM if stopping else 0\n", "    return 0\n")],
    ),
    "processes do not agree to stop": (
        DDP,
        {8},
        [("train.py", "mean_over_ranks(torch.tensor(float(stop.is_set()))) > 0", "stop.is_set()")],
    ),
    "what is not finite is recorded": (
        TABLE,
        {14},
        [("record.py", "if not math.isfinite(value):", "if False:")],
    ),
    "what is not finite is saved": (
        TABLE,
        {14},
        [
            ("record.py", "if not math.isfinite(value):", "if False:"),
            ("checkpoint.py", "total_norm(model.parameters()).isfinite()", "total_norm([]).isfinite()"),
        ],
    ),
    "augmentation draws from the process": (
        {},
        {15},
        [
            (
                "data.py",
                "np.random.default_rng([self.seed, draw])",
                "np.random.default_rng(torch.initial_seed())",
            )
        ],
    ),
    "the schedule ends with the run": (
        TABLE,
        {17},
        [("train.py", "args.warmup_steps, total_steps)", "min(2, args.warmup_steps), last_step)")],
    ),
    "as many processes as before": (
        FSDP,
        {20},
        [
            (
                "checkpoint.py",
                "    contents = dcp",
                "    assert dist.get_world_size() == 2\n    contents = dcp",
            )
        ],
    ),
    "a path in the checkpoint": (
        TABLE,
        RESUMING | {22},
        [("train.py", 'counters = {"step": step, ', 'counters = {"where": args.output_dir, "step": step, ')],
    ),
    "the record is not cut back": (
        TABLE,
        {1, 2, 24},
        [("record.py", "    file.truncate(end)\n", "")],
    ),
    "another order each time": (
        TABLE,
        RESUMING | {15},
        [("data.py", "np.random.default_rng([seed, epoch])", "np.random.default_rng()")],
    ),
}


# each breaks nothing that none of the others breaks
ALIKE = {
    "the average is not saved",
    "the best so far is forgotten",
    "no fallback",
    "digests are not compared",
    "both processes draw the same, in bf16",
    "SIGTERM ends with 0",
    "what is not finite is recorded",
    "another order each time",
}


def test_every_property_is_broken_by_what_is_always_tried() -> None:
    broken = {what: breaks for what, (_, breaks, _) in DAMAGES.items()}
    assert set().union(*broken.values()) == set().union(*(broken[what] for what in broken.keys() - ALIKE))


@pytest.mark.parametrize(
    "what",
    [pytest.param(what, marks=rarely if what in ALIKE else pytest.mark.heavy) for what in DAMAGES],
)
def test_a_damaged_project(verify: Verify, tmp_path: Path, what: str) -> None:
    given, breaks, edits = DAMAGES[what]
    project = render(tmp_path / "demo", **given)
    for file, old, new in edits:
        edit(project / file, old, new)
    found = verify(project, code=1)
    assert numbers(found, "broken") == breaks, {n: f["detail"] for n, f in found.items()}


@pytest.mark.parametrize(
    ("file", "old", "new", "detail"),
    [
        (
            "train.py",
            "import torch\n",
            "import torch\nimport missing_library\n",
            "No module named 'missing_library'",
        ),
        ("train.py", '"--max-steps"', '"--steps"', "unrecognized arguments: --max-steps 16"),
    ],
    ids=["import", "option"],
)
def test_a_project_that_does_not_run(
    verify: Verify, tmp_path: Path, file: str, old: str, new: str, detail: str
) -> None:
    project = render(tmp_path / "demo", task="tabular")
    edit(project / file, old, new)
    found = verify(project, code=1)
    assert numbers(found, "broken") == ALL - SEVERAL
    details = {found[number]["detail"] for number in ALL - SEVERAL}
    assert len(details) == 1 and all("a plain run fails: it ended with " in text for text in details)
    assert detail in details.pop()


@pytest.mark.heavy
def test_a_save_without_a_rename(verify: Verify, tmp_path: Path) -> None:
    """No moment of such a save can be struck, so nothing is claimed of it."""
    project = render(tmp_path / "demo", task="tabular")
    copy = "    shutil.copyfile(partial, path)\n"
    edit(project / "checkpoint.py", "    partial.replace(path)\n", copy)
    found = verify(project, code=0)
    assert (found[2]["state"], found[2]["detail"]) == (
        "not applicable",
        "16 steps hold no rename to be killed at",
    )


def test_options_that_train_py_does_not_take(run: Run, place: Path) -> None:
    render(place / "demo", task="tabular")
    done = run("verify", "demo", "--", "--bogus")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"scaffold: train.py does not take these options: .* unrecognized arguments: --bogus\n", done.stderr
    )


def test_data_that_are_not_there(run: Run, tmp_path: Path) -> None:
    project = render(tmp_path / "demo", task="tabular", data="files")
    done = run("verify", project)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"scaffold: a plain run fails \(it ended with 1: data.csv is not there: .*\): "
        r"end the command with -- --data PATH --target COLUMN\n",
        done.stderr,
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "nowhere is not a scaffold project: it has no .scaffold.toml"),
        (["."], ". is not a scaffold project: it has no .scaffold.toml"),
        ([], ". is not a scaffold project: it has no .scaffold.toml"),
        (["demo", "more"], "'more' is one word too many: options for train.py come after --"),
        (["demo", "--", "--max-steps=3"], "verify sets --max-steps itself: leave it out"),
        (
            ["demo", "--python", "nix"],
            "nix is not a program: name the project's Python with --python",
        ),
        (["demo", "--python", "./no-program"], "./no-program cannot be run: Exec format error"),
        (
            ["demo", "--python", "/bin/false"],
            "/bin/false cannot import torch: name the project's with --python",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_requests_that_are_none(run: Run, place: Path, words: list[str], line: str) -> None:
    render(place / "demo", task="tabular")
    (place / "no-program").write_text("no program")
    (place / "no-program").chmod(0o755)
    done = run("verify", *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"scaffold: {line}\n")


def test_imports_that_print_or_exit(run: Run, place: Path) -> None:
    """A library may greet whoever imports it; it is not torch that fails."""
    project = render(place / "demo", task="tabular")
    folder = place / "libraries"
    folder.mkdir()
    (folder / "greeting.py").write_text("print('welcome')\n")
    (folder / "leaving.py").write_text("raise SystemExit('no licence')\n")
    edit(project / "train.py", "import argparse\n", "import argparse\nimport greeting\nimport leaving\n")
    done = run("verify", "demo", env=dict(os.environ) | {"PYTHONPATH": str(folder)})
    assert (done.returncode, done.stderr) == (1, "")
    assert "a plain run fails: it ended with 1: no licence" in done.stdout


def test_a_python_without_torch(run: Run, place: Path) -> None:
    """It is said which, and why."""
    project = render(place / "demo", task="tabular")
    (project / ".venv" / "bin").mkdir(parents=True)
    python = project / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\necho 'ImportError: libcuda is gone' >&2; exit 1\n")
    python.chmod(0o755)
    done = run("verify", "demo")
    reason = "cannot import torch (ImportError: libcuda is gone): name the project's with --python"
    assert (done.returncode, done.stderr) == (2, f"scaffold: {python} {reason}\n")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.heavy),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.heavy),
    ],
)
def test_nothing_outlives_it(env: dict[str, str], tmp_path: Path, sent: int, code: int) -> None:
    project = render(tmp_path / "demo", task="tabular", distributed="ddp")
    before = files_under(project)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "verify", project, "--", "--workers", "1"],
        env=env | {"TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # what a shell starts in the background ignores it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until(lambda: len(processes(project)) >= 5)  # the warm one, two ranks, a loader of each
    process.send_signal(sent)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said.strip()) == (code, "")
    until(lambda: not processes(project), timeout=10)
    assert sent == signal.SIGKILL or not any(scratch.glob("scaffold-verify-*"))
    assert files_under(project) == before


def processes(project: Path) -> list[int]:
    """Those that were started with the project's name, but for verify itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        found += [int(path.parent.name)] if str(project).encode() in words and b"verify" not in words else []
    return found


def test_the_page_lists_the_properties() -> None:
    page = (Path(__file__).parent.parent / "docs" / "verify.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", page, flags=re.MULTILINE)
    assert rows == [(str(prop.number), prop.title) for prop in PROPERTIES]
