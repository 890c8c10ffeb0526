"""Which examples a step sees, and how they are augmented."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Make
from tests.guarantees.harness import TASKS, joined, with_spy
from tests.projects import edit, render, train_ranks

# 15: the order


def examples(
    project: Path, folder: Path, *options: object, ranks: int = 0, accum: int = 1
) -> list[list[str]]:
    """The examples of each optimizer step, sorted."""
    folder.mkdir()
    fixed = ["--output-dir", folder / "out", *options]
    train_ranks(project, *fixed, ranks=ranks, env={"SPY": f"{folder}/seen"})
    files = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("seen*"))
    ]
    assert len(files) == (ranks or 1)
    calls = [[row for file in files for row in file[number]] for number in range(len(files[0]))]
    return [sorted(joined(calls[i : i + accum])) for i in range(0, len(calls), accum)]


@pytest.mark.parametrize("task", TASKS)
def test_15_examples_of_a_step(made: Make, tmp_path: Path, task: str) -> None:
    """Ranks, workers and accumulation change nothing about which (augmented) examples make up a step."""
    plain = made(with_spy, task=task)
    accumulating = made(with_spy, task=task, features=("grad-accum",))
    distributed = made(with_spy, task=task, distributed="ddp")
    both = made(with_spy, task=task, distributed="ddp", features=("grad-accum",))
    steps = ["--max-steps", 33, "--epochs", 2, "--batch-size"]
    expected = examples(plain, tmp_path / "a", *steps, 20)
    assert len(expected) == 33 and {len(step) for step in expected} == {20}
    assert expected == examples(plain, tmp_path / "b", *steps, 20, "--workers", 2)
    assert expected == examples(accumulating, tmp_path / "c", *steps, 5, "--grad-accum", 4, accum=4)
    assert expected == examples(distributed, tmp_path / "d", *steps, 10, ranks=2)
    assert expected == examples(
        both, tmp_path / "e", *steps, 5, "--grad-accum", 2, "--workers", 2, ranks=2, accum=2
    )
    assert expected != examples(plain, tmp_path / "f", *steps, 20, "--seed", 1)


def test_15_each_epoch_covers_the_set_once(made: Make, tmp_path: Path) -> None:
    """455 rows, all different: 13 steps of 35, over again in another order; steps of 36 go over the edge."""
    project = made(with_spy, task="tabular")
    even = examples(project, tmp_path / "even", "--epochs", 2, "--batch-size", 35)
    assert [len(set(joined(steps))) for steps in (even[:13], even[13:])] == [455, 455]
    assert even[0] != even[13]
    uneven = joined(examples(project, tmp_path / "uneven", "--epochs", 2, "--batch-size", 36))
    assert len(set(uneven[: 12 * 36])) == 12 * 36
    assert len(uneven) == 26 * 36
    assert set(Counter(uneven).values()) == {2, 3}


@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_15_each_epoch_over_ranks_covers_the_set_once(made: Make, tmp_path: Path, distributed: str) -> None:
    project = made(with_spy, task="tabular", distributed=distributed)
    seen = joined(examples(project, tmp_path / "run", "--epochs", 2, "--batch-size", 35, ranks=2))
    assert len(seen) == 910
    assert Counter(seen) == dict.fromkeys(seen, 2)


def test_15_control_examples(tmp_path: Path) -> None:
    """Every rank reading the same is seen."""
    plain = with_spy(render(tmp_path / "plain", task="tabular"))
    project = with_spy(render(tmp_path / "ddp", task="tabular", distributed="ddp"))
    edit(project / "data.py", "draws[rank:width:world_size]", "draws[: width // world_size]")
    steps = ["--max-steps", 4, "--batch-size"]
    expected = examples(plain, tmp_path / "a", *steps, 20)
    assert expected != examples(project, tmp_path / "b", *steps, 10, ranks=2)


def test_15_control_epochs(tmp_path: Path) -> None:
    """Drawing with replacement is seen."""
    project = with_spy(render(tmp_path / "demo", task="tabular"))
    edit(project / "data.py", ".permutation(num_examples)", ".integers(0, num_examples, num_examples)")
    seen = joined(examples(project, tmp_path / "run", "--epochs", 1, "--batch-size", 35))
    assert len(set(seen)) < 455


# 16: augmentation


def test_16_augmentation_differs_between_epochs(made: Make, tmp_path: Path) -> None:
    steps = examples(made(with_spy), tmp_path / "a", "--epochs", 2, "--batch-size", 479)
    first, second = Counter(joined(steps[:3])), Counter(joined(steps[3:6]))
    assert first.total() == second.total() == 1437
    assert 0 < (first & second).total() < 1437 * 0.4  # 3 x 3 shifts: about a ninth comes out alike


def test_16_control_augmentation(tmp_path: Path) -> None:
    """Augmentation from the process' own generator depends on the workers."""
    project = with_spy(render(tmp_path / "demo"))
    edit(
        project / "data.py",
        "np.random.default_rng([self.seed, draw])",
        "np.random.default_rng(torch.initial_seed())",
    )
    steps = ["--max-steps", 4, "--batch-size", 20]
    assert examples(project, tmp_path / "a", *steps) != examples(
        project, tmp_path / "b", *steps, "--workers", 2
    )
