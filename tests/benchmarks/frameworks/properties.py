"""The measurements. Each runs one contestant, with some of its own options or none, and says what it saw."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.frameworks.common import PEAK, factor
from tests.benchmarks.frameworks.contestants import (
    NUM_TRAIN,
    Contestant,
    difference,
    evaluated,
    holds_finite,
    is_running,
    parameters,
    same_parameters,
    starts,
    steps,
)
from tests.projects import Result, descendants, until

DEADLINE = 60.0  # seconds without an end are a hang


@dataclass(frozen=True)
class Seen:
    """How many of a measurement's cases held, and what was seen in a few words."""

    held: int
    cases: int
    text: str


def killed(c: Contestant, out: Path, fix: str, ranks: int, moment: str, **options: object) -> None:
    for result in c.run(out, fix, ranks, env={"KILL": moment}, **options):
        assert result.code == -signal.SIGKILL, f"{c.name} at {moment}: {result.code} {result.err[-2000:]}"


# 1: kill -9


def resume(c: Contestant, fix: str) -> Seen:
    """Killed at five kinds of moment, with loaders, on two ranks, without dropout; parameters to the bit."""
    plain = {"batch_size": 32}
    cases: list[tuple[str, str, int, dict[str, Any], dict[str, Any]]] = [
        ("first step", "1", 0, plain, {}),
        ("mid-epoch", "10", 0, plain, {}),
        ("end of an epoch", str((c.total + 1) // 2), 0, plain, {}),
        ("evaluation", "evaluation", 0, plain, {}),
        ("last step", str(c.total), 0, plain, {}),
        ("two loaders", "10", 0, plain, {"workers": 2}),
        ("two ranks", "10", 2, {"batch_size": 16}, {}),
        ("no dropout", "10", 0, {"batch_size": 32, "dropout": 0}, {}),
    ]
    off, due = {}, ""
    for name, moment, ranks, options, resumed in cases:
        whole, out = c.whole(fix, ranks, **options), c.new()
        killed(c, out, fix, ranks, moment, **options, **resumed)
        c.complete(out, fix, ranks, resume=True, **options, **resumed)
        off[name] = difference(parameters(whole), parameters(out))
        if name == "mid-epoch":
            due = f"{same_tail(steps(whole), steps(out))} of {len(steps(out))} steps had the rows due"
    same = [name for name in off if off[name] == 0]
    text = (
        f"{len(same)} of {len(off)} kills end in the same bits ({', '.join(same) or 'none'}), "
        f"parameters off by {max(off.values()):.1g}; after the one in mid-epoch {due}"
    )
    return Seen(len(same), len(off), text)


def same_tail(whole: list[list[int]], part: list[list[int]]) -> int:
    """Of the steps after a resume, how many took the rows that the whole run took there."""
    return sum(one == other for one, other in zip(whole[len(whole) - len(part) :], part, strict=True))


# 2: kill -9 in a save

# no checkpoint at the last of fifteen steps: a finished run is another question
BIG = {"width": 60_000, "epochs": 1, "save_every": 2}


def saves(c: Contestant, fix: str) -> Seen:
    """What kill -9 would leave at many moments of saving; each is then resumed from.

    Once as it is, once with TMPDIR on another filesystem, where a rename becomes a copy.
    """
    held, cases, texts = 0, 0, []
    for temporary in (None, "/dev/shm"):
        out = c.new()
        env = {"TMPDIR": temporary} if temporary else {}
        # not forked: what Python took for its temporary folder at an import would stay
        with c.fresh(c.program, *c.words(out, fix, 0, **BIG), env=env) as process:
            moments = list(frozen(c, out, process.pid))
        right, failure = 0, ""
        for moment in moments:
            [result] = c.run(moment, fix, resume=True, **BIG)
            if result.code:
                failure = f" (else: “{shown(result.message)}”)"
            elif len(starts(moment)[-1]) < len(starts(out)[-1]):
                right += 1
            else:
                failure = " (else it starts again from nothing)"
            shutil.rmtree(moment)
        held, cases = held + right, cases + len(moments)
        where = "with TMPDIR on another filesystem " if temporary else ""
        texts.append(f"{where}{right} of {len(moments)}{failure}")
    return Seen(
        held, cases, "states of the folder during saves that can be resumed from: " + "; ".join(texts)
    )


def frozen(c: Contestant, out: Path, pid: int, most: int = 10) -> Iterator[Path]:
    """Copies of the run's folder, the process stopped meanwhile: two sizes of each set of files."""
    known: set[tuple[tuple[str, int], ...]] = set()
    files: Counter[tuple[str, ...]] = Counter()
    while is_running(pid) and len(known) < most:
        if len(c.checkpoints(out)) > 1 and listing(out) not in known:
            os.kill(pid, signal.SIGSTOP)
            state = listing(out)
            names = tuple(name for name, _ in state)
            if state not in known and files[names] < 2:
                known.add(state)
                files[names] += 1
                yield Path(shutil.copytree(out, c.new(), dirs_exist_ok=True))
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.001)
    until(lambda: not is_running(pid))


def listing(out: Path) -> tuple[tuple[str, int], ...]:
    """Names and sizes of what belongs to checkpoints."""
    found = []
    for path in sorted(out.rglob("*")):
        with suppress(FileNotFoundError):
            if path.is_file() and path.suffix not in (".jsonl", ".yaml", ".json", ".csv"):
                found.append((str(path), path.stat().st_size))
    return tuple(found)


def shown(message: str) -> str:
    return re.sub(r"/tmp/\S*", "…", message).replace("|", "/")[:90]


# 3: damaged files


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    """The lowest bit of sixteen bytes a third into the file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 3
    for place in range(middle, middle + 64, 4):
        content[place] ^= 1
    path.write_bytes(content)


def damaged(c: Contestant, fix: str) -> Seen:
    """The newest checkpoint damaged in three ways; the uninterrupted run's end is wanted."""
    whole, held, texts = c.whole(fix), 0, []
    for name, damage in {"truncated": truncate, "empty": empty, "bits flipped": flip}.items():
        out = c.new()
        killed(c, out, fix, 0, "14")
        newest = c.checkpoints(out)[-1]
        damage(newest if newest.is_file() else newest / "model.safetensors")
        [result] = c.run(out, fix, resume=True)
        if result.code:
            texts.append(f"{name}: stops with “{shown(result.message)}”")
        elif same_parameters(whole, out):
            held += 1
            texts.append(f"{name}: falls back, same end")
        else:
            warned = "damaged" in result.err or "corrupt" in result.err
            texts.append(f"{name}: goes on {'' if warned else 'silently '}to another end")
    return Seen(held, 3, "; ".join(texts))


# 4: accumulation


def accumulation(c: Contestant, fix: str) -> Seen:
    """Windows of 5 batches of 8 over 455 rows: the last window of an epoch is partial, its last batch too."""
    out = c.new()
    total = c.total if c.name == "scaffold" else 24
    c.complete(out, fix, batch_size=8, accum=5, dropout=0, check_gradients=True, total_steps=total)
    [made] = starts(out)
    errors = [row["gradient_error"] for row in made]
    uneven = [error for row, error in zip(made, errors, strict=True) if len(row["rows"]) != 40] or errors
    right = sum(error < 1e-5 for error in errors)
    text = f"{right} of {len(errors)} windows right, the worst gradient off by {max(errors):.2g}"
    taken = sum(len(row["rows"]) for row in made)
    if taken < NUM_TRAIN * 2:
        text += f"; {NUM_TRAIN * 2 - taken} of {NUM_TRAIN * 2} rows left out"
    return Seen(sum(error < 1e-5 for error in uneven), len(uneven), text)


# 5 and 13: evaluation


def counted(c: Contestant, fix: str) -> Seen:
    """Sets of 1, 7 and 113 rows evaluated on two ranks."""
    held, texts = 0, []
    for size in (1, 7, 113):
        out = c.new()
        results = c.run(out, fix, 2, batch_size=16, val_size=size, epochs=1)
        if any(result.code for result in results):
            texts.append(f"{size} rows: fails with “{shown(message_of(results))}”")
            continue
        rows, metrics = evaluated(out, 2), json.loads((out / "metrics.json").read_text())
        off = abs(metrics["reported"]["accuracy"] - metrics["exact"]["accuracy"])
        off = max(off, relative(metrics, "loss"))
        held += off < 1e-5
        texts.append(f"{size} row{'s' * (size > 1)}: {len(rows)} computed, metrics off by {off:.1g}")
    return Seen(held, 3, "; ".join(texts))


def message_of(results: list[Result]) -> str:
    return next(result.message for result in results if result.code)


def relative(metrics: dict[str, dict[str, float]], key: str) -> float:
    return abs(metrics["reported"][key] - metrics["exact"][key]) / abs(metrics["exact"][key])


def weighted(c: Contestant, fix: str) -> Seen:
    """The mean over batches of unequal size, and over two ranks with unequal shares.

    Those that give every rank as many rows get shares of the user's own making.
    """
    held, texts = 0, []
    own_shares = c.name in ("Lightning", "Ignite")
    for ranks in (0, 2):
        out = c.new()
        c.complete(out, fix, ranks, val_size=113, epochs=1, own_shares=own_shares and ranks > 0)
        off = relative(json.loads((out / "metrics.json").read_text()), "loss")
        held += off < 1e-5
        shares = "80 and 33" if own_shares else "57 and 56"
        where = f"two ranks with {shares} rows" if ranks else "one process"
        texts.append(f"{where}: loss off by {off:.1g}")
    return Seen(held, 2, "; ".join(texts))


# 6: ranks


def as_one(c: Contestant, fix: str) -> Seen:
    """Two ranks with batches of 16 beside one process with 32, dropout off."""
    one = c.whole(fix, 0, dropout=0)
    two = c.whole(fix, 2, dropout=0, batch_size=16)
    apart = c.whole(fix, 2, dropout=0, batch_size=16, seeds_apart=True)
    off = difference(parameters(one), parameters(two))
    alike = [difference(parameters(out), parameters(out, 1)) == 0 for out in (two, apart)]
    same = sum(a == b for a, b in zip(steps(one), steps(two, 2), strict=False))
    text = (
        f"two ranks are {off:.1g} from one process, {same} of {len(steps(one))} steps with the same rows; "
        f"ranks bitwise equal: {yes(alike[0])}, seeded apart: {yes(alike[1])}"
    )
    return Seen((off < 1e-6) + sum(alike), 3, text)


def yes(value: bool) -> str:
    return "yes" if value else "no"


# 8: SIGTERM


def sigterm(c: Contestant, fix: str) -> Seen:
    """To one process, to either of two ranks and to torchrun, at step 10; then resumed.

    Held are: nothing lost and nobody left waiting, the same end, 143; and no orphans.
    """
    held, texts = 0, []
    for ranks, victim in ((0, 0), (2, 0), (2, 1)):
        options = {"batch_size": 16 if ranks else 32}
        who = f"rank {victim}" if ranks else "one process"
        out, begin = c.new(), time.monotonic()
        try:
            results = c.run(
                out, fix, ranks, timeout=DEADLINE, grace=20, env={"TERM": f"{victim} 10"}, **options
            )
        except TimeoutError:
            texts.append(f"{who}: hangs")
            continue
        codes = ", ".join(str(result.code) for result in results)
        made = len(starts(out)[-1])
        lonely = " (one was left waiting)" if time.monotonic() - begin > 20 else ""
        try:
            c.complete(out, fix, ranks, resume=True, **options)
        except (AssertionError, TimeoutError):
            texts.append(f"{who}: exits {codes}{lonely}, cannot be resumed")
            continue
        lost = made + len(starts(out)[-1]) - len(starts(c.whole(fix, ranks, **options))[0])
        same = same_parameters(c.whole(fix, ranks, **options), out)
        held += (lost == 0 and not lonely) + same + all(result.code == 143 for result in results)
        texts.append(
            f"{who}: exits {codes}{lonely} after {made} steps, {lost} lost, resumes "
            + ("to the bit" if same else "to another end")
        )
    orphans = sigterm_to_torchrun(c, fix)
    held += orphans == 0
    texts.append(f"torchrun: {orphans} processes left behind")
    return Seen(held, 10, "; ".join(texts))


def sigterm_to_torchrun(c: Contestant, fix: str) -> int:
    """The processes that are still there after it has ended."""
    out = c.new()
    options = {"batch_size": 4, "epochs": 40, "total_steps": 5000}
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", c.program)
    with c.fresh(*launch, *c.words(out, fix, 2, **options)) as launcher:
        until(lambda: (out / "trace-1.jsonl").exists() and len(starts(out, 1)[-1]) > 5, timeout=120)
        children = descendants(launcher.pid)
        launcher.terminate()
        launcher.wait(90)
        time.sleep(2)
        return sum(is_running(child) for child in children)


# 10: skipped steps


def skipped(c: Contestant, fix: str) -> Seen:
    """Gradients overflow once at the sixth step: the step is skipped, and the schedule should wait."""
    held, texts = 0, []
    kinds = (True,) if c.name == "scaffold" else (False, True)  # what a project renders is always fused
    for fused in kinds:
        out = c.new()
        [result] = c.run(out, fix, fp16=True, fused=fused, dropout=0, env={"OVERFLOW": "5"})
        kind = "fused" if fused else "unfused"
        if result.code:
            texts.append(f"{kind}: {shown(result.message)}")
            continue
        used = [row["lr"] / PEAK for row in starts(out)[-1]]
        wanted = [factor(step, c.total) for step in range(len(used))]
        first = next((n for n, pair in enumerate(zip(used, wanted, strict=True)) if not close(*pair)), None)
        held += first is None
        texts.append(
            f"{kind}: after the skipped step the schedule is "
            + ("where it was" if first is None else "a step ahead")
            + f", {len(used)} real steps"
        )
    return Seen(held, len(kinds), "; ".join(texts))


def close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-15)


# 12: loggers


def loggers(c: Contestant, fix: str) -> Seen:
    """A logger that raises when it is made, when it logs and at the end, and one that hangs."""
    held, texts, whole = 0, [], c.whole(fix)
    for fault in ("raise:init", "raise:log", "raise:finish", "hang:log"):
        out = c.new()
        try:
            [result] = c.run(out, fix, timeout=60, logger=fault)
        except TimeoutError:
            texts.append(f"{fault}: hangs")
            continue
        fine = result.code == 0 and same_parameters(whole, out)
        held += fine
        made = len(starts(out)[-1])
        texts.append(f"{fault}: {'goes on' if fine else f'exit {result.code} after {made} steps'}")
    return Seen(held, 4, "; ".join(texts))


# 14: NaN


def nan_on_one_rank(c: Contestant, fix: str) -> Seen:
    """The second rank's loss is NaN at step 7; checkpoints are saved every 4."""
    out = c.new()
    begin = time.monotonic()
    try:
        results = c.run(
            out, fix, 2, timeout=DEADLINE, grace=20, batch_size=16, save_every=4, env={"NAN": "1 6"}
        )
    except TimeoutError:
        return Seen(0, 3, "hangs")
    codes = [result.code for result in results]
    waited = -signal.SIGKILL in codes and time.monotonic() - begin > 20
    finite = holds_finite(c.checkpoints(out)[-1])
    made = len(starts(out)[-1])
    whole = " of a whole run" if made >= c.total else ""
    text = (
        f"ranks exit {', '.join(map(str, codes))}{' (one was left waiting)' if waited else ''} after {made} "
        f"steps{whole}; newest checkpoint {'finite' if finite else 'holds NaN'}"
    )
    return Seen((0 not in codes) + (not waited) + finite, 3, text)


# 15: samples


def samples(c: Contestant, fix: str) -> Seen:
    """Which rows each optimizer step takes."""
    base = steps(c.whole(fix, 0, dropout=0))
    with_workers = steps(c.whole(fix, 0, dropout=0, workers=2))
    ranks = steps(c.whole(fix, 2, dropout=0, batch_size=16), 2)
    out = c.new()
    killed(c, out, fix, 0, "10", dropout=0)
    c.complete(out, fix, resume=True, dropout=0)
    resumed = steps(out)
    drawn = [row for step in starts(c.whole(fix, 0, dropout=0))[-1] for row in step["rows"]]
    epochs = drawn[:NUM_TRAIN], drawn[NUM_TRAIN : 2 * NUM_TRAIN]
    agreed = sum(one == two for one, two in zip(base, ranks, strict=False))
    checks: dict[str, bool] = {
        "0 or 2 workers alike": base == with_workers,
        f"1 or 2 ranks alike ({agreed} of {len(base)} steps)": base == ranks,
        "same after resume": same_tail(base, resumed) == len(resumed),
        "each epoch every row once": all(sorted(epoch) == list(range(NUM_TRAIN)) for epoch in epochs),
        "on two ranks no more": sum(map(len, ranks)) == len(drawn),
        "epochs differ": epochs[0] != epochs[1],
    }
    text = "; ".join(f"{name}: {yes(held)}" for name, held in checks.items())
    return Seen(sum(checks.values()), len(checks), text)


# 17: learning rate


def rates(c: Contestant, fix: str) -> Seen:
    """The rate that each step used, over ranks, accumulation and a resume, beside its closed form."""
    held, texts = 0, []
    cases: list[tuple[str, int, dict[str, int], str]] = [
        ("one process", 0, {}, ""),
        ("two ranks", 2, {"batch_size": 16}, ""),
        ("accumulation", 0, {"batch_size": 16, "accum": 2}, ""),
        ("resumed", 0, {}, "10"),
    ]
    for name, ranks, options, moment in cases:
        out = c.new()
        if moment:
            killed(c, out, fix, ranks, moment, **options)
        c.complete(out, fix, ranks, resume=bool(moment), **options)
        used = [row["lr"] / PEAK for row in starts(out)[-1]]
        first = len(starts(c.whole(fix))[0]) - len(used) if moment else 0
        wanted = [factor(first + step, c.total) for step in range(len(used))]
        off = max(abs(a - b) for a, b in zip(used, wanted, strict=True))
        held += off < 1e-12
        texts.append(f"{name}: off by {off:.1g} of the peak")
    return Seen(held, len(cases), "; ".join(texts))


Measure = Callable[[Contestant, str], Seen]
MEASURES: dict[int, Measure] = {
    1: resume,
    2: saves,
    3: damaged,
    4: accumulation,
    5: counted,
    6: as_one,
    8: sigterm,
    10: skipped,
    12: loggers,
    13: weighted,
    14: nan_on_one_rank,
    15: samples,
    17: rates,
}
