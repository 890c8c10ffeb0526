"""The sums of `scaffold plan` and docs/scaling.md, against bytes that are really there and really sent."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scaffold.axes import BY_KEY
from scaffold.catalog import load_catalog
from scaffold.errors import RequestError
from scaffold.rules import RULES, complete
from scaffold.scaling import (
    BACKENDS,
    BY_NAME,
    GIB,
    Run,
    advice,
    lines,
    memory,
    offered,
    read_run,
    report,
    rows,
    traffic,
)
from tests.conftest import Make
from tests.conftest import Run as Command
from tests.guarantees.harness import NOTES
from tests.projects import edit, render, small_options, torchrun, train_ranks

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
GIVEN = {
    "precision": "bf16",
    "optimizer": "adamw",
    "devices": "8",
    "per-node": "8",
    "blocks": "32",
    "grad-accum": "1",
}
SIZES = {"125M": 125_000_000, "1.3B": 1_300_000_000, "7B": 7_000_000_000, "70B": 70_000_000_000}


def tables() -> dict[str, str]:
    """What stands between the marks of the page: name -> table."""
    found = {}
    for precision in ("bf16", "fp32"):
        runs = {
            size: Run(number, precision, devices=64, per_node=8, blocks=32) for size, number in SIZES.items()
        }
        for name in ("memory", "traffic"):
            cells = [
                [
                    backend.name,
                    *(cell(name, run, backend) for run in runs.values()),
                ]
                for backend in BACKENDS
            ]
            head = [["", *SIZES], ["---", *("---:" for _ in SIZES)]]
            found[f"{name} {precision}"] = "\n".join("| " + " | ".join(row) + " |" for row in head + cells)
    return found


def cell(name: str, run: Run, backend: Any) -> str:
    if name == "memory":
        found = memory(run, backend)
        return f"{found.states / GIB:.2f} + {found.passing / GIB:.2f}"
    sent = traffic(run, backend)
    return f"{sent.total / GIB:.2f}, {sent.between / GIB:.2f}"


def test_tables_of_the_page(accept: bool) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables().items():
        pattern = re.compile(rf"(?<=<!-- {name} -->\n\n)(\|.*\n)+")
        if accept:
            page = pattern.sub(lambda _, table=table: table + "\n", page)
        assert (found := pattern.search(page)) and found[0] == table + "\n", name
    if accept:
        PAGE.write_text(page, encoding="utf-8")


def test_the_papers_own_numbers() -> None:
    """Table 1 of ZeRO: 7.5 billion parameters on 64 devices; 1e9 bytes."""
    run = Run(7_500_000_000, "fp16", devices=64, per_node=16)
    found = [memory(run, BY_NAME[f"deepspeed {stage}"], 2).states / 1e9 for stage in (1, 2, 3)]
    assert found == pytest.approx([31.4, 16.6, 1.88], abs=0.05)
    sent = [traffic(run, BY_NAME[f"deepspeed {stage}"], 2).total / run.parameters / 2 for stage in (1, 2, 3)]
    assert sent == pytest.approx([2, 2, 3], rel=0.02)  # numbers for each parameter


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        ("adamw", lambda p: torch.optim.AdamW(p)),
        ("momentum", lambda p: torch.optim.SGD(p, momentum=0.9)),
        ("sgd", lambda p: torch.optim.SGD(p)),
    ],
    ids=["adamw", "momentum", "sgd"],
)
def test_bytes_of_one_process(optimizer: str, make: Any) -> None:
    model = nn.Sequential(nn.Linear(100, 200), nn.Tanh(), nn.Linear(200, 10))
    chosen = make(model.parameters())
    model(torch.zeros(3, 100)).sum().backward()
    chosen.step()
    parameters = list(model.parameters())
    found = memory(Run(sum(value.numel() for value in parameters), "fp32", optimizer), BY_NAME["none"])
    assert found.parameters == sum(value.nbytes for value in parameters)
    assert found.gradients == sum(value.grad.nbytes for value in parameters)
    kept = [
        value
        for state in chosen.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    assert found.optimizer == sum(
        value.nbytes for value in kept if value.dim()
    )  # but for the number of steps
    others = {"adamw", "momentum", "sgd"} - {optimizer}
    assert all(
        memory(Run(10, "fp32", other), BY_NAME["none"]).optimizer != found.optimizer for other in others
    )


def test_one_device_of_each_backend_is_the_whole() -> None:
    run = Run(1000, "fp32", devices=1)
    assert {memory(run, backend).states for backend in BACKENDS if not backend.has("deepspeed")} == {16_000.0}
    assert {traffic(run, backend).total for backend in BACKENDS} == {0.0}


@pytest.mark.parametrize(
    ("size", "devices", "expected"),
    [
        (1e8, 1, "none"),
        (1e8, 8, "ddp"),
        (7e9, 8, "fsdp"),
        (7e9, 16, "fsdp hybrid"),
        (7e10, 64, "fsdp"),
        (15e9, 1, "deepspeed 3 offload"),
        (7e10, 8, None),  # DeepSpeed puts all of it on a device before it splits it
        (1e13, 8, None),
    ],
)
def test_advice(size: float, devices: int, expected: str | None) -> None:
    run = Run(int(size), devices=devices, per_node=min(devices, 8), blocks=32)
    row, why = advice(run, 80 * GIB)
    assert (row and row.backend.name) == expected
    assert why.startswith(expected or "nothing fits")
    assert row is None or row.fits


def test_advice_agrees_with_its_table() -> None:
    """What fits is not said to fit nowhere, and what grad-accum costs FSDP is in it."""
    _, why = advice(Run(4_000_000_000, "fp16"), 80 * GIB)
    assert why.startswith("nothing leaves a fifth of a device for activations; none is tight: ")
    _, why = advice(Run(1_000_000_000, devices=8, per_node=8, blocks=32), 24 * GIB)
    assert why.startswith("fsdp: with all of it no device keeps a fifth free, with a part 21.8 GiB are left")
    passes = [Run(7_000_000_000, devices=16, per_node=8, blocks=32, accumulation=n) for n in (1, 2)]
    once, twice = (memory(run, BY_NAME["fsdp"]) for run in passes)
    assert twice.most - once.most == 7_000_000_000 * 4
    found = report(passes[1], 80 * GIB)["choice"]
    assert found["new"].endswith("--with grad-accum") and found["train"] == "--grad-accum 2"
    assert report(Run(15_000_000_000, blocks=32), 80 * GIB)["choice"]["train"] == "--zero-stage 3"


@pytest.mark.parametrize("precision", BY_KEY["precision"].values)
def test_what_is_offered_is_what_can_be_written(precision: str) -> None:
    for backend in BACKENDS:
        given = {key: (value,) if BY_KEY[key].many else value for key, value in backend.answers.items()}
        try:
            complete({"hardware": "gpu", "precision": precision, **given}, load_catalog())
            possible = not backend.has("none")  # of several devices
        except RequestError:
            possible = False
        assert (backend in offered(Run(1000, precision, devices=16, per_node=8))) == possible, backend.name


def test_the_rules_say_what_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(1000, "fp16", devices=16, per_node=8)
    assert not any(backend.has("deepspeed") for backend in offered(run))
    rules = tuple(rule for rule in RULES if rule.id != "fp16-deepspeed")
    monkeypatch.setattr("scaffold.scaling.RULES", rules)
    assert [backend for backend in BACKENDS if not backend.has("none")] == [*offered(run)]


def test_more_memory_never_makes_it_worse() -> None:
    order = [backend.name for backend in BACKENDS]
    run = Run(7_000_000_000, devices=16, per_node=8, blocks=32)
    chosen = [advice(run, size * GIB)[0] for size in (10, 12, 20, 40, 80, 160, 320)]
    places = [order.index(row.backend.name) for row in chosen if row]
    assert places == sorted(places, reverse=True) and len(set(places)) > 2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"parameters": "-1"}, "--parameters '-1' is not a whole number above 0, such as 8 or 7e9 or 1.3B"),
        ({"parameters": "many"}, "--parameters 'many' is not a whole number"),
        ({"parameters": "1e99"}, "--parameters '1e99' is not a whole number"),
        ({"parameters": "0.4"}, "--parameters '0.4' is not a whole number above 0, such as 8 or 7e9 or 1.3B"),
        ({"parameters": "1.0005K"}, "--parameters '1.0005K' is not a whole number"),
        ({"device-memory": "0"}, "--device-memory '0' is not a number"),
        ({"devices": "2.5"}, "--devices '2.5' is not a whole number"),
        ({"devices": "9"}, "--devices 9 are not machines of 8: choose a multiple of --per-node"),
        ({"precision": "int8"}, "--precision 'int8' is not known: choose from fp32, tf32, bf16, fp16"),
        ({"optimizer": "adam"}, "--optimizer 'adam' is not known: choose from adamw, momentum, sgd"),
    ],
)
def test_wrong_words(change: dict[str, str], line: str) -> None:
    with pytest.raises(RequestError, match=re.escape(line)):
        read_run(GIVEN | {"parameters": "7B", "device-memory": "80"} | change)


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("16.4B", 16_400_000_000), ("1e15", 10**15)])
def test_whole_numbers(text: str, number: int) -> None:
    assert read_run(GIVEN | {"parameters": text, "device-memory": "0.5"})[0].parameters == number


def test_command(run: Command) -> None:
    words = ["--parameters", "7B", "--device-memory", 80]
    plain, found = run("plan", *words), json.loads(run("plan", *words, "--json").stdout)
    expected = read_run(GIVEN | {"parameters": "7e9", "device-memory": "80"})
    assert plain.stdout == "\n".join(lines(*expected)) + "\n"
    assert found == json.loads(json.dumps(report(*expected)))
    assert [row["backend"] for row in found["backends"] if row["fits"]] == [
        row.backend.name for row in rows(*expected) if row.fits
    ]
    wrong = run("plan", "--parameters", "7B", "--device-memory", "none")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


# What is really sent: the collectives of training, as they are asked for, and bytes on the wire.

# for each step, what a device sends of each kind of collective, in a ring; small sums are left out
NOTE_SENT = NOTES + """
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
import torch.distributed as dist

sent = {}

def nbytes(value):
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(nbytes, value)) if isinstance(value, list | tuple) else 0

class Counting(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        if function.namespace == "c10d":
            whole = {
                "allreduce_": lambda: 2 * nbytes(args[0]),
                "_allgather_base_": lambda: nbytes(args[0]),
                "_reduce_scatter_base_": lambda: nbytes(args[1]),
            }
            if name in whole and (size := whole[name]()) > 64:
                n = next(dist.ProcessGroup.unbox(g).size() for g in args if isinstance(g, torch.ScriptObject))
                sent[name] = sent.get(name, 0) + size * (n - 1) / n
        return function(*args, **(kwargs or {}))

mode = Counting()
mode.__enter__()

def hook(optimizer, args, options):
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    kept = [value for state in optimizer.state.values() for value in state.values()]
    local = lambda value: (value.to_local() if hasattr(value, "to_local") else value)
    bytes_of = lambda values: sum(local(value).nbytes for value in values if value.dim())
    note({
        "sent": dict(sent),
        "number": sum(value.numel() for value in parameters),
        "parameters": bytes_of(parameters),
        "gradients": bytes_of([value.grad for value in parameters]),
        "optimizer": bytes_of(kept),
    })
    sent.clear()

register_optimizer_step_pre_hook(hook)
"""
MODEL = [*small_options("language-modeling"), "--context", 16, "--heads", 2, "--depth", 2, "--batch-size", 2]
VOCABULARY, WIDTH = 257, 128
MEASURED = [
    ("ddp", (), "fp32", 2, 1),
    ("ddp", (), "bf16", 4, 1),
    ("fsdp", (), "fp32", 2, 1),
    ("fsdp", (), "bf16", 4, 1),
    ("fsdp", ("grad-accum",), "bf16", 2, 2),
    ("fsdp hybrid", ("hybrid-shard",), "fp32", 4, 1),
    ("fsdp hybrid", ("hybrid-shard",), "bf16", 4, 1),
]


def third_step(project: Path, place: Path, ranks: int) -> dict[str, Any]:
    """What the first process notes of it, in machines of two."""
    env = {"NOTES": f"{place}/notes.pt", "LOCAL_WORLD_SIZE": "2"}
    options = [*MODEL, "--max-steps", 3, "--output-dir", place / "out"]
    train_ranks(project, *options, ranks=ranks, first=NOTE_SENT, env=env)
    found: dict[str, Any] = torch.load(place / "notes.pt")[-1]
    return found


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "features", "precision", "ranks", "accumulation"), MEASURED)
def test_bytes_of_several_processes(
    made: Make,
    tmp_path: Path,
    name: str,
    features: tuple[str, ...],
    precision: str,
    ranks: int,
    accumulation: int,
) -> None:
    """To the byte: what each keeps, and what each hands to the network."""
    distributed = name.split()[0]
    project = made(task="language-modeling", distributed=distributed, precision=precision, features=features)
    last = third_step(project, tmp_path, ranks)
    number = root = 0
    if (
        distributed == "fsdp"
    ):  # whose shares are whole rows, the last ones padded: here those of the embedding
        padding = -VOCABULARY % (2 if "hybrid" in name else ranks)
        number, root = padding * WIDTH, (VOCABULARY + padding) * WIDTH + WIDTH
    run = Run(last["number"] + number, precision, "adamw", ranks, 2, 2, root, accumulation)
    kept, sent = memory(run, BY_NAME[name]), traffic(run, BY_NAME[name])
    assert {key: last[key] for key in ("parameters", "gradients", "optimizer")} == {
        "parameters": kept.parameters,
        "gradients": kept.gradients,
        "optimizer": kept.optimizer,
    }
    assert last["sent"].pop("_allgather_base_", 0) == sent.gather
    assert sum(last["sent"].values()) == sent.reduce


@pytest.mark.heavy
def test_control_gathered_once(tmp_path: Path) -> None:
    """Blocks that stay gathered are not gathered again for the backward pass."""
    project = render(tmp_path / "demo", task="language-modeling", distributed="fsdp")
    edit(project / "train.py", "(block, mesh=mesh)", "(block, mesh=mesh, reshard_after_forward=False)")
    last = third_step(project, tmp_path, 2)
    number = last["number"] + -VOCABULARY % 2 * WIDTH
    assert last["sent"]["_allgather_base_"] == number * 4 / 2
    run = Run(number, "fp32", devices=2, per_node=2, root=(VOCABULARY + 1) * WIDTH + WIDTH)
    assert traffic(run, BY_NAME["fsdp"]).gather > 1.5 * last["sent"]["_allgather_base_"]


def on_the_wire(project: Path, place: Path, steps: int) -> int:
    """The bytes over the loopback device of a network of its own, in a run of so many steps."""
    words = [
        *MODEL,
        "--heads",
        8,
        "--max-steps",
        steps,
        "--log-every",
        1000,
        "--output-dir",
        place / str(steps),
    ]
    train = " ".join(map(str, torchrun("train.py", *words)))
    script = f"ip link set lo up && {train} && grep lo: /proc/net/dev"
    command = ["unshare", "-rn", "sh", "-c", script]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("lo:")[2].split()[0])


@pytest.mark.heavy
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_bytes_on_the_wire(made: Make, tmp_path: Path, distributed: str) -> None:
    """Ten steps more, of both processes. To reduce and scatter, gloo sends as much as to all-reduce."""
    if subprocess.run(["unshare", "-rn", "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("no network of its own is to be had")
    project = made(task="language-modeling", distributed=distributed)
    one, other = (on_the_wire(project, tmp_path, steps) for steps in (2, 12))
    width = 4 * WIDTH
    block = 4 * width * width + 3 * width * (-(-8 * width // 3 // 64) * 64) + 2 * width
    root = VOCABULARY * width + width
    run = Run(2 * block + root, "fp32", devices=2, per_node=2, blocks=2, root=root)
    expected = traffic(run, BY_NAME[distributed])
    twice = 2 if distributed == "fsdp" else 1
    measured = (other - one) / 10 / 2  # of each of two processes
    assert measured == pytest.approx(expected.gather + twice * expected.reduce, rel=0.01)
