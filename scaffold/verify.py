"""Does a project that people have edited still keep what it promised? A property is a row: what, how, when.

The numbers are those of the project's guarantees; each check returns what is wrong, or nothing.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scaffold.answers import Answers
from scaffold.trial import Outcome, Strike, Trial

STEPS = 16  # of each run
EVERY = 5  # steps between checkpoints
REFERENCE = "whole"

Check = Callable[[Trial], str]


@dataclass(frozen=True)
class Property:
    """`needs` are the answers it is about: (key, values), or None for every project."""

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


def train(trial: Trial, name: str, *options: object, steps: int = STEPS, **how: object) -> Outcome:
    fixed = ["--max-steps", steps, "--checkpoint-every", EVERY, "--log-every", 1, "--seed", 1]
    return trial.run(name, *fixed, *options, **how)  # type: ignore[arg-type]


def finished(trial: Trial, name: str, *options: object, **how: object) -> str:
    """Run to the end; what went wrong, if anything."""
    outcome = train(trial, name, *options, **how)  # type: ignore[arg-type]
    return "" if not any(outcome.codes) else f"it ended with {outcome.codes[0]}: {outcome.last_line}"


def difference(trial: Trial, name: str, other: str = REFERENCE) -> str:
    """Where two runs first differ, in their records or in their last checkpoints."""
    lines = itertools.zip_longest(trial.record(other), trial.record(name), fillvalue={})
    for expected, found in lines:
        if expected != found:
            step = expected.get("step", found.get("step"))
            keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
            return f"metrics.jsonl differs at step {step}: {keys[0]} {found.get(keys[0])}, not {expected.get(keys[0])}"
    ends = [trial.checkpoints(run)[-1:] for run in (other, name)]
    if [path.name for path in ends[0]] != [path.name for path in ends[1]]:
        return f"its last checkpoint is {ends[1][0].name if ends[1] else 'missing'}"
    left, right = trial.look(*ends[0], *ends[1])
    if "error" in left or "error" in right:
        return str(left.get("error", right.get("error")))
    names = {**left["leaves"], **right["leaves"]}
    changed = [leaf for leaf in names if left["leaves"].get(leaf) != right["leaves"].get(leaf)]
    return f"{ends[1][0].name} differs in {changed[0].lstrip('.')}" if changed else ""


def same_after(trial: Trial, name: str, *strikes: Strike) -> str:
    """Struck, resumed, struck again …, then left alone: the same run as one that nothing interrupted."""
    for strike in strikes:
        outcome = train(trial, name, strike=strike)
        if not any(outcome.codes):
            return f"the run was over before {strike.at} {strike.number}"
    where = " and ".join(f"{strike.at} {strike.number}" for strike in strikes)
    wrong = finished(trial, name) or difference(trial, name)
    return wrong and f"killed at {where}, resumed: {wrong}"


def killed(trial: Trial) -> str:
    return same_after(trial, "killed", Strike("step", 1), Strike("step", 8), Strike("step", 4))


def killed_in_a_save(trial: Trial) -> str:
    return same_after(trial, "saving", Strike("rename", 1), Strike("rename", 2))


def halfway(trial: Trial) -> str:
    """A run that stopped on its way, to be copied."""
    if not (trial.scratch / "half").exists():
        return finished(trial, "half", steps=12)
    return ""


def damaged(trial: Trial) -> str:
    if wrong := halfway(trial):
        return wrong
    for kind, harm in {"cut off": cut_off, "empty": empty, "with a flipped bit": flip}.items():
        name = f"damaged-{kind.split()[0]}"
        trial.copy("half", name)
        newest = trial.checkpoints(name)[-1]
        harm(max(newest.glob("*.distcp")) if newest.is_dir() else newest)
        outcome = train(trial, name)
        if any(outcome.codes):
            return f"the newest checkpoint {kind}: it ended with {outcome.last_line}"
        if newest.stem not in outcome.err:
            return f"the newest checkpoint {kind}: no warning"
        if wrong := difference(trial, name):
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


def ranks_agree(trial: Trial) -> str:
    """One process with the same examples a step."""
    if wrong := finished(trial, "alone", ranks=1, batch_size=8 * trial.ranks):
        return f"with one process: {wrong}"
    for one, many in zip(trial.record("alone"), trial.record(REFERENCE), strict=False):
        if not close(one["train/loss"], many["train/loss"], 2e-2):
            return f"train/loss at step {one['step']} is {many['train/loss']:.6g}, and {one['train/loss']:.6g} alone"
    return ""


def close(one: float, other: float, tolerance: float) -> bool:
    return abs(one - other) <= tolerance * max(abs(one), abs(other), 1e-6)


def stopped(trial: Trial) -> str:
    last = max(0, trial.ranks - 1)
    outcome = train(trial, "stopped", strike=Strike("step", 7, signal.SIGTERM, rank=last))
    if set(outcome.codes) != {143}:
        return f"after SIGTERM the exit codes are {', '.join(map(str, outcome.codes))}, not 143: {outcome.last_line}"
    newest = trial.checkpoints("stopped")[-1:]
    if not newest or trial.record("stopped")[-1]["step"] > int(newest[0].stem[5:]):
        return "SIGTERM at step 7 was not followed by a checkpoint"
    wrong = finished(trial, "stopped") or difference(trial, "stopped")
    return wrong and f"stopped at step 7, resumed: {wrong}"


def not_finite(trial: Trial) -> str:
    outcome = train(trial, "ruined", "--lr", "1e30")
    if not all(outcome.codes):
        return "with --lr 1e30 it ended as if all were well"
    if "Traceback" in outcome.err:
        return f"with --lr 1e30 it ended with a traceback: {outcome.last_line}"
    found = trial.look(*trial.checkpoints("ruined"))
    return "a checkpoint holds values that are not finite" if not all(f.get("finite") for f in found) else ""


def workers(trial: Trial) -> str:
    wrong = finished(trial, "workers", "--workers", 2) or difference(trial, "workers")
    return wrong and f"with --workers 2: {wrong}"


def schedule(trial: Trial) -> str:
    if wrong := halfway(trial):
        return wrong
    for whole, half in zip(trial.record(REFERENCE), trial.record("half"), strict=False):
        if whole["train/lr"] != half["train/lr"]:
            return f"--max-steps changes train/lr: at step {half['step']} {half['train/lr']}, not {whole['train/lr']}"
    return ""


def reshards(trial: Trial) -> str:
    if wrong := halfway(trial):
        return wrong
    trial.copy("half", "fewer")
    if wrong := finished(trial, "fewer", ranks=1, batch_size=8 * trial.ranks):
        return f"resumed by one process: {wrong}"
    for one, many in zip(trial.record("fewer"), trial.record(REFERENCE), strict=False):
        if not close(one["train/loss"], many["train/loss"], 2e-2):
            return f"resumed by one process: train/loss at step {one['step']} is {one['train/loss']:.6g}"
    return ""


def plain_values(trial: Trial) -> str:
    files = [*trial.checkpoints(REFERENCE), *(trial.scratch / REFERENCE / "checkpoints").glob("*.pt")]
    for path, found in zip(files, trial.look(*files), strict=True):
        if "error" in found:
            return f"{path.name} does not load with weights_only=True: {found['error']}"
    return ""


def each_line_once(trial: Trial) -> str:
    if not trial.record("killed"):
        killed(trial)
    steps = [row["step"] for row in trial.record("killed")]
    if twice := sorted({step for step in steps if steps.count(step) > 1}):
        return f"after kills and resumes, metrics.jsonl holds step {twice[0]} {steps.count(twice[0])} times"
    missing = sorted({row["step"] for row in trial.record(REFERENCE)} - set(steps))
    return f"after kills and resumes, metrics.jsonl misses step {missing[0]}" if missing else ""


SEVERAL = ("distributed", ("ddp", "fsdp"))
PROPERTIES = (
    Property(1, "killed and resumed, a run ends in the same bits", killed),
    Property(2, "killed in a save, there is always a checkpoint to go on from", killed_in_a_save),
    Property(3, "a damaged checkpoint is noticed and passed over", damaged),
    Property(6, "two processes do what one does", ranks_agree, SEVERAL),
    Property(8, "SIGTERM saves, exits 143 and resumes in the same bits", stopped),
    Property(14, "values that are not finite end the run with one line and spoil no checkpoint", not_finite),
    Property(15, "order and augmentation do not depend on loader processes", workers),
    Property(17, "the learning rate does not depend on where a run stops", schedule),
    Property(20, "sharded checkpoints go on with fewer processes", reshards, ("distributed", ("fsdp",))),
    Property(22, "every checkpoint loads with weights_only=True", plain_values),
    Property(24, "the record holds each step once, none missing", each_line_once),
)


def verify(trial: Trial, answers: Answers) -> Iterator[Finding]:
    """Check one property after another; each is reported as soon as it is known."""
    trial.check()
    begun = finished(trial, REFERENCE)
    if not begun and not trial.record(REFERENCE):
        begun = "it wrote no metrics.jsonl"
    for prop in PROPERTIES:
        if prop.needs and not set(answers.chosen(prop.needs[0])) & set(prop.needs[1]):
            needs = f"needs {prop.needs[0]}={' or '.join(prop.needs[1])}"
            yield Finding(prop.number, prop.title, "not applicable", needs)
            continue
        wrong = f"a plain run fails: {begun}" if begun else prop.check(trial)
        yield Finding(prop.number, prop.title, "broken" if wrong else "kept", wrong)
