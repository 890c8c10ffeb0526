"""Measures properties of generated projects, Lightning, Ignite and Accelerate; writes docs/guarantees.json.

python -m tests.benchmarks.frameworks.run                  # makes their environment, measures everything
python -m tests.benchmarks.frameworks.run --python VENV/bin/python --only 4 5 --of Ignite
python -m tests.benchmarks.frameworks.report               # docs/guarantees.md from the results
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from tests.benchmarks.frameworks.contestants import HERE, Contestant, contestants
from tests.benchmarks.frameworks.properties import MEASURES, Seen

ROOT = HERE.parents[2]
RESULTS = ROOT / "docs" / "guarantees.json"
PACKAGES = ("torch", "lightning", "pytorch-ignite", "accelerate", "torchdata", "torchmetrics")

# Options of theirs (or of PyTorch, as their documentation points to them) that should help; each is tried.
FIXES: dict[tuple[int, str], list[str]] = {
    (1, "Lightning"): ["StatefulDataLoader"],
    (1, "Ignite"): ["DeterministicEngine", "DeterministicEngine,DistributedSampler"],
    (1, "Accelerate"): ["use_seedable_sampler", "use_stateful_dataloader,use_seedable_sampler"],
    (4, "Lightning"): ["drop_last", "drop_last,whole windows"],
    (4, "Ignite"): ["drop_last"],
    (4, "Accelerate"): ["num_items_in_batch", "drop_last,sync_with_dataloader=False"],
    (5, "Lightning"): ["torchmetrics", "own evaluation"],
    (5, "Ignite"): ["DataLoader"],
    (6, "Lightning"): ["DistributedSampler", "DistributedSampler,drop_last"],
    (6, "Ignite"): ["DistributedSampler", "DistributedSampler,drop_last"],
    (6, "Accelerate"): ["use_seedable_sampler", "use_seedable_sampler,drop_last,split_batches"],
    (8, "Lightning"): ["save_on_exception", "save_on_exception,StatefulDataLoader"],
    (8, "Ignite"): ["terminate,DeterministicEngine,DistributedSampler"],
    (8, "Accelerate"): ["triggers,use_seedable_sampler"],
    (13, "Lightning"): ["torchmetrics"],
    (14, "Lightning"): ["EarlyStopping(check_finite),sync_dist", "detect_anomaly"],
    (14, "Ignite"): ["TerminateOnNan"],
    (14, "Accelerate"): ["triggers"],
    (15, "Lightning"): ["StatefulDataLoader", "StatefulDataLoader,DistributedSampler"],
    (15, "Ignite"): ["DeterministicEngine", "DeterministicEngine,DistributedSampler"],
    (15, "Accelerate"): ["use_seedable_sampler", "use_seedable_sampler,use_stateful_dataloader"],
    (17, "Accelerate"): ["split_batches"],
}


def make_environment(folder: Path) -> Path:
    """A virtual environment with the frameworks; its interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
        subprocess.run([*install, "-r", HERE / "requirements.txt"], check=True)
    return python


def versions(python: Path) -> dict[str, str]:
    source = f"""
import json, platform
from importlib.metadata import version
print(json.dumps({{"python": platform.python_version()}} | {{name: version(name) for name in {PACKAGES}}}))
"""
    done = subprocess.run([python, "-c", source], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def measure(number: int, contestant: Contestant) -> dict[str, Any]:
    """As documented, then with each option that should help, until all cases hold."""
    tried = []
    for fix in ["", *FIXES.get((number, contestant.name), [])]:
        seen = MEASURES[number](contestant, fix)
        tried.append({"with": fix, "held": seen.held, "cases": seen.cases, "seen": seen.text})
        print(f"{number} {contestant.name} [{fix}] {seen.held}/{seen.cases}: {seen.text}", flush=True)
        if holds(seen):
            break
    return {"date": datetime.date.today().isoformat(), "tried": tried}


def keep(number: int, name: str, found: dict[str, Any], known: dict[str, str]) -> None:
    """Beside what is there already, which another run may just have written."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"measured": {}}
    results["versions"] = known
    results["measured"].setdefault(str(number), {})[name] = found
    results["measured"] = dict(sorted(results["measured"].items(), key=lambda item: int(item[0])))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def holds(seen: Seen) -> bool:
    return seen.held == seen.cases > 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", type=Path, help="an interpreter that has them already")
    parser.add_argument("--environment", type=Path, default=Path.home() / ".cache/scaffold-frameworks")
    parser.add_argument("--only", type=int, nargs="*", default=list(MEASURES), choices=MEASURES)
    parser.add_argument("--of", nargs="*", help="contestants; all unless named")
    args = parser.parse_args()
    python = args.python or make_environment(args.environment)
    known = versions(python)
    failed = []
    for contestant in contestants(str(python)):
        if args.of and contestant.name not in args.of:
            continue
        for number in args.only:
            try:
                found = measure(number, contestant)
            except Exception as error:  # the others' figures are still wanted
                failed.append(f"{number} {contestant.name}: {error!r}"[:1500])
                print(failed[-1], flush=True)
                contestant.restart()
                continue
            keep(number, contestant.name, found, known)
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
