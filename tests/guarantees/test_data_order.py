"""Which examples a step sees, and how they are augmented."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.conftest import Make
from tests.guarantees.harness import RANKS, everywhere, joined, mostly_alone, over_ranks, seen, with_spy
from tests.projects import edit, render

# 15: the order


def examples(
    project: Path, folder: Path, *options: object, ranks: int = 0, accum: int = 1
) -> list[list[str]]:
    """The examples of each optimizer step, sorted."""
    files = seen(project, folder, *options, ranks=ranks)
    assert len(files) == (ranks or 1)
    calls = [[row for file in files for row in file[number]] for number in range(len(files[0]))]
    return [sorted(joined(calls[i : i + accum])) for i in range(0, len(calls), accum)]


STEPS = ["--max-steps", 33, "--epochs", 2, "--batch-size"]


def check_examples(made: Make, folder: Path, task: str, distributed: str) -> None:
    """Ranks, workers, accumulation and a restart change nothing about which examples make up a step."""
    plain = made(with_spy, task=task)
    expected = examples(plain, folder / "plain", *STEPS, 20)
    assert len(expected) == 33 and {len(step) for step in expected} == {20}
    if ranks := RANKS[distributed]:
        project = made(with_spy, task=task, distributed=distributed)
        assert expected == examples(project, folder / "ranks", *STEPS, 10, ranks=ranks)
    else:
        assert expected == examples(plain, folder / "workers", *STEPS, 20, "--workers", 2)
        assert expected != examples(plain, folder / "seed", *STEPS, 20, "--seed", 1)
    accum = 4 // (ranks or 1)
    project = made(with_spy, task=task, distributed=distributed, features=("grad-accum",))
    options = [*STEPS, 5, "--grad-accum", accum]
    seen(project, folder / "parts", *options, "--max-steps", 17, ranks=ranks)
    going_on = [*options, "--workers", 2, "--resume"]
    assert expected == examples(project, folder / "parts", *going_on, ranks=ranks, accum=accum)


@everywhere
def test_15_examples_of_a_step(made: Make, tmp_path: Path, distributed: str) -> None:
    check_examples(made, tmp_path, "tabular", distributed)


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


@over_ranks
def test_15_each_epoch_over_ranks_covers_the_set_once(made: Make, tmp_path: Path, distributed: str) -> None:
    project = made(with_spy, task="tabular", distributed=distributed)
    rows = joined(examples(project, tmp_path / "run", "--epochs", 2, "--batch-size", 35, ranks=2))
    assert len(rows) == 910
    assert Counter(rows) == dict.fromkeys(rows, 2)


@over_ranks
def test_15_control_examples(tmp_path: Path, distributed: str) -> None:
    """Every rank reading the same is seen."""
    plain = with_spy(render(tmp_path / "plain", task="tabular"))
    project = with_spy(render(tmp_path / "ranks", task="tabular", distributed=distributed))
    edit(project / "data.py", "draws[rank:width:world_size]", "draws[: width // world_size]")
    steps = ["--max-steps", 4, "--batch-size"]
    expected = examples(plain, tmp_path / "a", *steps, 20)
    assert expected != examples(project, tmp_path / "b", *steps, 10, ranks=2)


def test_15_control_epochs(tmp_path: Path) -> None:
    """Drawing with replacement is seen."""
    project = with_spy(render(tmp_path / "demo", task="tabular"))
    edit(project / "data.py", ".permutation(num_examples)", ".integers(0, num_examples, num_examples)")
    rows = joined(examples(project, tmp_path / "run", "--epochs", 1, "--batch-size", 35))
    assert len(set(rows)) < 455


# 16: augmentation


@everywhere
def test_16_examples_of_a_step(made: Make, tmp_path: Path, distributed: str) -> None:
    """The same of augmented pictures: pixel by pixel."""
    check_examples(made, tmp_path, "image-classification", distributed)


def test_16_augmentation_differs_between_epochs(made: Make, tmp_path: Path) -> None:
    steps = examples(made(with_spy), tmp_path / "a", "--epochs", 2, "--batch-size", 479)
    first, second = Counter(joined(steps[:3])), Counter(joined(steps[3:6]))
    assert first.total() == second.total() == 1437
    assert 0 < (first & second).total() < 1437 * 0.4  # 3 x 3 shifts: about a ninth comes out alike


@mostly_alone
def test_16_control_augmentation(tmp_path: Path, distributed: str) -> None:
    """Augmentation from the process' own generator depends on workers and ranks."""
    plain = with_spy(render(tmp_path / "plain"))
    project = with_spy(render(tmp_path / "demo", distributed=distributed))
    for place in (plain, project):
        old = "np.random.default_rng([self.seed, draw])"
        edit(place / "data.py", old, "np.random.default_rng(torch.initial_seed())")
    ranks = RANKS[distributed]
    steps = ["--max-steps", 4, "--batch-size"]
    expected = examples(plain, tmp_path / "a", *steps, 20)
    options = [*steps, 20 // (ranks or 1), "--workers", 2]
    assert expected != examples(project, tmp_path / "b", *options, ranks=ranks)
