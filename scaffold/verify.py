"""Does a project that people have edited still keep what it promised? A property is a row: what, how, when.

The numbers are those of the project's guarantees; each check returns what is wrong, or nothing.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from scaffold.answers import Answers
from scaffold.catalog import Source
from scaffold.errors import RequestError
from scaffold.trial import Outcome, Strike, Trial, step_of

STEPS = 16  # of a whole run
EVERY = 6  # steps between checkpoints
BATCH_SIZES = (96, 8)  # examples a step, the first that is quick; 96 may reach an epoch's end
QUICK = 10  # seconds for a whole run
TOLERANCE = 5e-3  # relative, between runs of one process and of two
BF16_TOLERANCE = 2e-2
SETS = {"--device", "--batch-size", "--output-dir", "--resume", "--max-steps", "--checkpoint-every"}

Check = Callable[[Trial], str]


class Unseen(Exception):
    """The runs were too short to show whether a property holds."""


@dataclass(frozen=True)
class Property:
    """`needs` are the answers it is about, as (key, values); without, it is about every project."""

    number: int
    title: str
    check: Check
    needs: tuple[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Finding:
    number: int
    title: str
    state: str  # kept, broken or not applicable
    detail: str = ""


def train(trial: Trial, name: str, *options: object, steps: int = STEPS, **how: Any) -> Outcome:
    return trial.run(name, "--max-steps", steps, "--checkpoint-every", EVERY, *options, **how)


def finished(trial: Trial, name: str, *options: object, **how: Any) -> str:
    """Run to the end; what went wrong, if anything. A run that ended well before is not made again."""
    if has_ended(trial, name):
        return ""
    if not (wrong := train(trial, name, *options, **how).failure):
        (trial.scratch / f"{name}.ended").touch()
    return wrong


def has_ended(trial: Trial, name: str) -> bool:
    return (trial.scratch / f"{name}.ended").exists()


def difference(trial: Trial, name: str) -> str:
    """Where a run first differs from the uninterrupted one, in its record or its last checkpoint."""
    wrong = record_difference(trial, name) or state_difference(trial, name)
    return (
        f"two runs with the same seed differ already: {trial.unsteady}" if wrong and trial.unsteady else wrong
    )


def record_difference(trial: Trial, name: str) -> str:
    old: dict[str, float]
    new: dict[str, float]
    for old, new in zip_longest(trial.record("whole"), trial.record(name), fillvalue={}):
        if changed := changes(old, new):
            step = old.get("step", new.get("step"))
            was, now = old.get(changed[0]), new.get(changed[0])
            return f"metrics.jsonl differs at step {step}: {changed[0]} is {now}, not {was}"
    return ""


def state_difference(trial: Trial, name: str) -> str:
    whole, other = (trial.checkpoints(run)[-1:] for run in ("whole", name))
    if [path.name for path in whole] != [path.name for path in other]:
        return f"its last checkpoint is {other[0].name if other else 'missing'}"
    old, new = (state["leaves"] for state in trial.look(*whole, *other))
    if not old or not new:
        return f"{other[0].name} does not load"
    changed = [leaf for leaf in changes(old, new) if leaf not in trial.timed]
    return f"{other[0].name} differs in {changed[0]}" if changed else ""


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def same_after(trial: Trial, name: str, *strikes: Strike) -> str:
    """Killed, resumed, killed again …, then left alone: the same as a run that nothing interrupted."""
    hits: list[str] = []
    for strike in strikes:
        outcome = train(trial, name, strike=strike)
        if outcome.late or (outcome.failure and -signal.SIGKILL not in outcome.codes):
            return after(hits) + outcome.failure
        hits += [f"{strike.at} {strike.number}"] if outcome.failure else []
    if not any(hit.startswith(strikes[-1].at) for hit in hits):
        raise Unseen(f"{STEPS} steps hold no {strikes[-1].at} to be killed at")
    wrong = finished(trial, name) or difference(trial, name)
    return wrong and after(hits) + wrong


def after(hits: list[str]) -> str:
    return f"killed at {', then at '.join(hits)}, resumed: " if hits else ""


def killed(trial: Trial) -> str:
    return same_after(trial, "killed", Strike("step", 1), Strike("step", 8), Strike("step", 10))


def killed_in_a_save(trial: Trial) -> str:
    return same_after(trial, "saving", Strike("save", 1), Strike("save", 2), Strike("rename", 1))


def damaged(trial: Trial) -> str:
    for kind, harm in {"cut off": cut_off, "empty": empty, "with a flipped bit": flip}.items():
        name = f"damaged {kind}"
        trial.copy("whole", name)
        newest = trial.checkpoints(name)[-1]
        harm(max(newest.rglob("*"), key=lambda file: file.stat().st_size) if newest.is_dir() else newest)
        outcome = train(trial, name)
        unsaid = "" if newest.stem in "".join(outcome.errs) else "no warning names it"
        if wrong := outcome.failure or unsaid or difference(trial, name):
            return f"the newest checkpoint {kind}: {wrong}"
    return ""


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def still(trial: Trial, name: str, **how: Any) -> str:
    """Without dropout, and with a rate of zero, which keeps differences as small as they began."""
    return finished(trial, name, "--lr", 0, still=True, **how)


def evaluation_agrees(trial: Trial) -> str:
    if wrong := still(trial, "still") or still(trial, "alone", ranks=1):
        return f"with --lr 0: {wrong}"
    rows = [[row for row in map(judged, trial.record(name)) if len(row) > 1] for name in ("still", "alone")]
    if not all(rows):
        raise Unseen(f"no evaluation within {STEPS} steps of {trial.batch_size} examples")
    return apart(trial, rows[0][0], rows[1][0])


def judged(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key == "step" or key.startswith("val/")}


def apart(trial: Trial, many: dict[str, float], alone: dict[str, float]) -> str:
    """Where values are further apart than rounding explains."""
    tolerance = BF16_TOLERANCE if trial.precision == "bf16" else TOLERANCE
    for key, value in alone.items():
        other = many.get(key, math.nan)
        if not abs(value - other) <= tolerance * max(abs(value), abs(other), 1e-3):
            return f"{key} is {other:.7g}, and {value:.7g} with one process"
    return ""


def ranks_agree(trial: Trial) -> str:
    return still(trial, "still") or alike(trial, "still")


def reshards(trial: Trial) -> str:
    """One process goes on from the last checkpoint but one."""
    if wrong := still(trial, "still"):
        return wrong
    trial.copy("still", "fewer")
    shutil.rmtree(trial.checkpoints("fewer")[-1])
    wrong = still(trial, "fewer", ranks=1) or alike(trial, "fewer")
    return wrong and f"resumed by one process: {wrong}"


def alike(trial: Trial, name: str) -> str:
    """Is a run, but for rounding, what one process does with the same examples a step?"""
    if wrong := still(trial, "alone", ranks=1):
        return f"one process: {wrong}"
    for many, alone in zip(trial.record(name), trial.record("alone"), strict=False):
        if wrong := apart(trial, many, {key: alone[key] for key in alone if key not in judged(alone)}):
            return f"step {alone['step']}: {wrong}"
    ends = [trial.checkpoints(run)[-1] for run in (name, "alone")]
    wrong = apart(trial, *map(sizes, trial.look(*ends)))
    return wrong and f"{ends[0].name}: the norm of {wrong}"


def sizes(found: dict[str, Any]) -> dict[str, float]:
    """The norms in a checkpoint, added up by the last part of their names: weight, exp_avg …"""
    totals: dict[str, float] = {}
    for name, norm in found["norms"].items():
        kind = name.rpartition(".")[2]
        totals[kind] = totals.get(kind, 0) + norm
    return totals


def stopped(trial: Trial) -> str:
    strike = Strike("step", 7, signal.SIGTERM, rank=max(0, trial.ranks - 1))
    outcome = train(trial, "stopped", strike=strike)
    if set(outcome.codes) != {143}:
        codes = ", ".join(map(str, outcome.codes))
        return f"SIGTERM at step 7: exit {codes}, not 143{outcome.failure and f' ({outcome.failure})'}"
    saved = max(map(step_of, trial.checkpoints("stopped")), default=0)
    if saved != (last := trial.record("stopped")[-1]["step"]):
        return f"SIGTERM at step 7: the record goes to step {last}, the newest checkpoint is of step {saved}"
    wrong = finished(trial, "stopped") or difference(trial, "stopped")
    return wrong and f"SIGTERM at step 7, resumed: {wrong}"


def not_finite(trial: Trial) -> str:
    outcome = train(trial, "ruined", "--lr", "1e30")
    if set(outcome.codes) == {2}:  # argparse
        raise Unseen(f"with --lr 1e30 {outcome.failure}")
    if not all(outcome.codes):
        return "with --lr 1e30 it ended as if all were well"
    if outcome.late or any("Traceback" in err for err in outcome.errs):
        return f"with --lr 1e30 it did not end with one line: {outcome.failure}"
    for row in trial.record("ruined"):
        if bad := [key for key, value in row.items() if not math.isfinite(value)]:
            return f"with --lr 1e30, metrics.jsonl holds {row[bad[0]]} as {bad[0]} of step {row['step']}"
    paths = trial.checkpoints("ruined")
    for path, found in zip(paths, trial.look(*paths), strict=True):
        if not all(map(math.isfinite, found["norms"].values())):
            return f"with --lr 1e30, {path.name} holds values that are not finite"
    return ""


def workers(trial: Trial) -> str:
    wrong = finished(trial, "workers", "--workers", 2) or difference(trial, "workers")
    return wrong and f"with --workers 2: {wrong}"


def schedule(trial: Trial) -> str:
    if wrong := finished(trial, "short", steps=EVERY):
        return wrong
    for whole, short in zip(trial.record("whole"), trial.record("short"), strict=False):
        one, other = whole.get("train/lr"), short.get("train/lr")
        if one != other:
            return f"--max-steps changes train/lr: at step {short['step']} it is {other}, not {one}"
    return ""


def plain_values(trial: Trial) -> str:
    saved = [*trial.checkpoints("whole"), *(trial.scratch / "whole" / "checkpoints").glob("best*")]
    paths = [path for path in saved if path.is_file()]
    for path, found in zip(paths, trial.look(*paths), strict=True):
        if found["error"]:
            return f"{path.name} does not load with weights_only=True: {found['error']}"
    return ""


def each_line_once(trial: Trial) -> str:
    if not has_ended(trial, "killed"):
        raise Unseen("the run that was killed did not go on to its end")
    steps = [row["step"] for row in trial.record("killed")]
    if twice := sorted({step for step in steps if steps.count(step) > 1}):
        return f"after kills and resumes, metrics.jsonl holds step {twice[0]} {steps.count(twice[0])} times"
    missing = sorted({row["step"] for row in trial.record("whole")} - set(steps))
    return f"after kills and resumes, metrics.jsonl misses step {missing[0]}" if missing else ""


SEVERAL = ("distributed", ("ddp", "fsdp", "deepspeed"))
PROPERTIES = (
    Property(1, "killed and resumed, a run ends in the same bits", killed),
    Property(2, "killed in a save, a run goes on from the checkpoint before", killed_in_a_save),
    Property(3, "a damaged checkpoint is noticed and passed over", damaged),
    Property(5, "evaluation says the same on one process and on two", evaluation_agrees, SEVERAL),
    Property(6, "two processes do what one does", ranks_agree, SEVERAL),
    Property(8, "SIGTERM saves, exits 143, and the run goes on to the same bits", stopped),
    Property(14, "values that are not finite end a run with one line and are never saved", not_finite),
    Property(15, "order and augmentation do not depend on loader processes", workers),
    Property(17, "the learning rate does not depend on where a run stops", schedule),
    Property(20, "sharded checkpoints go on with fewer processes", reshards, ("distributed", ("fsdp",))),
    Property(22, "every checkpoint loads with weights_only=True", plain_values),
    Property(24, "the record holds each step once, none missing", each_line_once),
)


def check_options(options: Sequence[str]) -> None:
    """Refuse what is no option, and what verify sets."""
    if options and not options[0].startswith("-"):
        raise RequestError(f"{options[0]!r} is one word too many: options for train.py come after --")
    for word in options:
        if (name := word.partition("=")[0]) in SETS:
            raise RequestError(f"verify sets {name} itself: leave it out")


def begin(trial: Trial) -> tuple[Trial, str]:
    """Make the run that others are compared with, in batches as large as time allows; what went wrong."""
    wrong = ""
    for batch_size in BATCH_SIZES:
        shutil.rmtree(trial.scratch / "whole", ignore_errors=True)
        start = time.monotonic()
        limit = QUICK if batch_size != BATCH_SIZES[-1] else trial.limit
        trial = replace(trial, batch_size=batch_size)
        outcome = train(replace(trial, limit=limit), "whole")
        wrong = outcome.failure or shortcoming(trial)
        if not wrong:
            break
        if outcome.codes[0] == 2 and trial.options:  # argparse
            raise RequestError(f"train.py does not take these options: {outcome.failure}")
    trial = replace(trial, limit=60 + 5 * (time.monotonic() - start))
    if wrong or (wrong := finished(trial, "again")):
        return trial, wrong
    return compared(trial), ""


def compared(trial: Trial) -> Trial:
    """What two equal runs say: what may differ between them, and what should not but does."""
    ends = [trial.checkpoints(name)[-1] for name in ("whole", "again")]
    lines = zip(trial.record("whole"), trial.record("again"), strict=False)
    pairs = [tuple(state["leaves"] for state in trial.look(*ends)), *lines]
    differ = {key: str(old.get(key)) for old, new in pairs for key in changes(old, new)}
    timed = frozenset(key for key, value in differ.items() if not value.startswith("sha256 "))
    if unsteady := state_difference(replace(trial, timed=timed), "again"):
        return replace(trial, unsteady=record_difference(trial, "again") or unsteady)
    return replace(trial, timed=timed)


def shortcoming(trial: Trial) -> str:
    """What a run that ended well lacks all the same."""
    if not trial.record("whole"):
        return "it wrote no metrics.jsonl"
    saved = [step_of(path) for path in trial.checkpoints("whole")]
    if len(saved) < 2:
        return f"{STEPS} steps with --checkpoint-every {EVERY} left {len(saved)} checkpoints, and not two"
    return "" if saved[-1] == STEPS else f"it ended after step {saved[-1]}, and not after --max-steps {STEPS}"


def verify(trial: Trial, answers: Answers, source: Source) -> Iterator[Finding]:
    """Check one property after another; each is reported as soon as it is known."""
    trial, begun = begin(replace(trial, precision=answers.precision))
    named = any(word.partition("=")[0] == "--data" for word in trial.options)
    if begun and source.option and not named and not (trial.project / source.default).exists():
        target = " --target COLUMN" if source.target else ""
        raise RequestError(f"a plain run fails ({begun}): end the command with -- --data PATH{target}")
    for prop in PROPERTIES:
        key, values = prop.needs or ("", ())
        if key and not set(answers.chosen(key)) & set(values):
            yield Finding(prop.number, prop.title, "not applicable", f"needs {key}={' or '.join(values)}")
            continue
        try:
            wrong = f"a plain run fails: {begun}" if begun else prop.check(trial)
            yield Finding(prop.number, prop.title, "broken" if wrong else "kept", wrong)
        except Unseen as reason:
            yield Finding(prop.number, prop.title, "not applicable", str(reason))
