"""The files for schedulers, and what these start, under stand-ins for the schedulers."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models

from scaffold.render import Tree
from scaffold.trial import free_port
from tests.conftest import Make, Whole
from tests.guarantees.harness import RANKS, everywhere
from tests.projects import checkpoints, choose, edit, metrics, render, same_run, started, tree_of, until

STEPS = ["--batch-size", 16, "--epochs", 100, "--max-steps", 400, "--log-every", 4, "--checkpoint-every", 90]

# Slurm's commands as far as a batch script sees them. srun starts a task a node and makes SIGTERM a SIGKILL
# of its tasks (src/srun/signals.c); scancel signals the tasks alone, as proctrack/cgroup does by default.
COMMANDS = {
    "srun": """
import os, signal, subprocess, sys, time
from pathlib import Path

words = sys.argv[1:]
kill_on_bad_exit = "--kill-on-bad-exit" in words
words = [word for word in words if word != "--kill-on-bad-exit"]
nodes = int(os.environ["SLURM_NNODES"])
tasks = [subprocess.Popen(words, start_new_session=True) for _ in range(nodes)]
Path(os.environ["STANDIN"], "tasks").write_text(" ".join(str(task.pid) for task in tasks))


def end(number):
    for task in tasks:
        if task.poll() is None:
            os.killpg(task.pid, number)


signal.signal(signal.SIGTERM, lambda *_: end(signal.SIGKILL))
while any(task.poll() is None for task in tasks):
    time.sleep(0.02)
    if kill_on_bad_exit and any(task.poll() for task in tasks):
        end(signal.SIGTERM)
        kill_on_bad_exit = False
sys.exit(max(task.returncode % 256 for task in tasks))
""",
    "scancel": """
import os, signal, sys
from pathlib import Path

option, job = sys.argv[1:]
assert job == os.environ["SLURM_JOB_ID"] and option.startswith("--signal=")
for task in Path(os.environ["STANDIN"], "tasks").read_text().split():
    os.kill(int(task), signal.Signals["SIG" + option.removeprefix("--signal=")])
""",
    "scontrol": """
import os, sys
from pathlib import Path

if sys.argv[1:3] == ["show", "hostnames"]:
    print("\\n".join(sys.argv[3].split(",")))
else:
    assert sys.argv[1:] == ["requeue", os.environ["SLURM_JOB_ID"]]
    Path(os.environ["STANDIN"], "requeued").touch()
""",
}


@dataclass(frozen=True)
class Turn:
    """One turn of a job: how its script ended, and whether it asked for another."""

    code: int
    requeued: bool


@dataclass(frozen=True)
class Slurm:
    folder: Path
    job: int  # its port is free

    @contextmanager
    def submitted(self, project: Path, *options: object) -> Iterator[subprocess.Popen[str]]:
        """The batch script, as sbatch starts it."""
        (self.folder / "requeued").unlink(missing_ok=True)
        asked = dict(
            re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", (project / "train.sbatch").read_text(), re.MULTILINE)
        )
        environment = {
            "PATH": f"{self.folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "STANDIN": str(self.folder),
            "SLURM_JOB_ID": str(self.job),
            "SLURM_JOB_NODELIST": ",".join(["localhost"] * int(asked["nodes"])),
            "SLURM_NNODES": asked["nodes"],
        }
        words = ["bash", "train.sbatch", *map(str, options)]
        with started(project, words, environment, stdout=None, stderr=None) as script:
            yield script

    def turn(self, project: Path, output_dir: Path, *options: object, limit_at: int = 0) -> Turn:
        """Run a job until its script ends; its time is nearly up when it is at step `limit_at`."""
        with self.submitted(project, *options, "--output-dir", output_dir) as script:
            if limit_at:
                until(lambda: has_logged(output_dir, limit_at) or script.poll() is not None)
                self.warn(project, script)
            code = script.wait(60)
        return Turn(code, (self.folder / "requeued").exists())

    def warn(self, project: Path, script: subprocess.Popen[str]) -> None:
        """The signal that the script asked for, to its shell alone."""
        asked = re.search(
            r"^#SBATCH --signal=B:(\w+)@120$", (project / "train.sbatch").read_text(), re.MULTILINE
        )
        assert asked
        script.send_signal(signal.Signals[f"SIG{asked[1]}"])


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in COMMANDS.items():
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(0o755)
    return Slurm(folder, next(port for port in iter(free_port, 0) if 20_000 <= port < 30_000) - 20_000)


def has_logged(output_dir: Path, step: int) -> bool:
    path = output_dir / "metrics.jsonl"
    return path.exists() and any(row["step"] >= step for row in metrics(output_dir))


def slow(project: Path) -> Path:
    """Steps that take a little: time for a signal between them."""
    edit(
        project / "train.py",
        "    optimizer.step()\n",
        "    optimizer.step()\n        threading.Event().wait(0.005)\n",
    )
    return project


def one_process_a_node(project: Path) -> Path:
    script = project / "train.sbatch"
    script.write_text(script.read_text().replace("--nproc-per-node 2", "--nproc-per-node 1"))
    return project


@pytest.mark.heavy
@everywhere
def test_slurm_goes_on_after_the_time_limit(
    made: Make, whole: Whole, slurm: Slurm, tmp_path: Path, distributed: str
) -> None:
    project = made(slow, one_process_a_node, task="tabular", distributed=distributed, features=("slurm",))
    out = tmp_path / "out"
    first = slurm.turn(project, out, *STEPS, limit_at=100)
    assert first.requeued and first.code
    reached = [int(checkpoints(out)[-1].name[5:13]), int(metrics(out)[-1]["step"])]
    assert 100 <= reached[1] <= reached[0] < 400  # it saved where it was
    assert slurm.turn(project, out, *STEPS) == Turn(0, requeued=False)
    assert same_run(whole(project, *STEPS, ranks=RANKS[distributed]), out)


@pytest.mark.heavy
def test_slurm_takes_no_failure_for_the_time_limit(made: Make, slurm: Slurm, tmp_path: Path) -> None:
    project = made(task="tabular", features=("slurm",))
    assert slurm.turn(project, tmp_path, *STEPS, "--max-steps", 4) == Turn(0, requeued=False)
    assert slurm.turn(project, tmp_path, "--lr", -1) == Turn(2, requeued=False)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('scancel --signal=TERM "$SLURM_JOB_ID"', "kill -TERM $!"),  # srun ends its tasks at once
        ("--resume ", ""),
    ],
)
def test_control_slurm(slurm: Slurm, tmp_path: Path, old: str, new: str) -> None:
    project = slow(render(tmp_path / "demo", task="tabular", features=("slurm",)))
    edit(project / "train.sbatch", old, new)
    out = tmp_path / "out"
    assert slurm.turn(project, out, *STEPS, "--log-every", 1, limit_at=100).requeued
    saved, reached = int(checkpoints(out)[-1].name[5:13]), metrics(out)[-1]["step"]
    if "TERM" in old:
        assert saved < reached
    else:
        assert slurm.turn(project, out, *STEPS).code == 1


# What is rendered for Kubernetes, Docker and SkyPilot

FILES = ("kubernetes", "docker", "skypilot", "slurm")
CASES = pytest.mark.parametrize(("hardware", "distributed"), [*itertools.product(["cpu", "gpu"], RANKS)])
KINDS = {
    "Job": models.IoK8sApiBatchV1Job,
    "PersistentVolumeClaim": models.IoK8sApiCoreV1PersistentVolumeClaim,
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
}


def rendered(hardware: str, distributed: str, *more: str) -> Tree:
    return tree_of(
        choose(
            name="My_demo", task="tabular", data="files", hardware=hardware, distributed=distributed
        ).changed({"with": (*more, *FILES)})
    )


def unlike_schema(manifest: dict[str, Any]) -> bool:
    """Is it other than what its API takes? Wrong types raise, and keys that there are not get lost."""
    try:
        return bool(KINDS[manifest["kind"]].from_dict(manifest).to_dict() != manifest)
    except ValueError:
        return True


@CASES
def test_kubernetes_manifest(hardware: str, distributed: str) -> None:
    manifests = list(yaml.safe_load_all(rendered(hardware, distributed)["kubernetes.yaml"]))
    kinds = ["Job"] if distributed == "none" else ["TrainingRuntime", "TrainJob"]
    assert [manifest["kind"] for manifest in manifests] == ["PersistentVolumeClaim", *kinds]
    assert not any(map(unlike_schema, manifests))
    assert {manifest["metadata"]["name"] for manifest in manifests} == {"my-demo"}
    text = yaml.safe_dump_all(manifests)
    assert ("nvidia.com/gpu" in text) == (hardware == "gpu")
    assert ("--resume" in text, "restartPolicy: Never" in text) == (True, True)


def test_control_kubernetes_manifest() -> None:
    text = rendered("cpu", "ddp")["kubernetes.yaml"]
    for old, new in [
        ("restartPolicy", "restartPolicies"),
        ("numNodes: 2", 'numNodes: "2"'),
        ("backoffLimit: 0", "backoffLimit: none"),
        ("claimName: my-demo", "claimName: 1"),
        ("kind: TrainingRuntime\n    name: my-demo", "kind: TrainingRuntime"),
    ]:
        assert old in text
        assert any(map(unlike_schema, yaml.safe_load_all(text.replace(old, new)))), new


def wrong_in_dockerfile(text: str) -> list[str]:
    """What of its order would cost a layer, a privilege or a signal."""
    steps = [line.partition(" ")[::2] for line in text.splitlines() if line and line[0] not in " #"]
    names = [name for name, _ in steps]
    packages, everything = ("COPY", "pyproject.toml ."), ("COPY", ". .")
    last_run = max(n for n, name in enumerate(names) if name == "RUN")
    checks = {
        "form": names[0] == "FROM" and names[-1] == "ENTRYPOINT",
        "packages": {packages, everything} <= {*steps} and steps.index(packages) < steps.index(everything),
        "user": "USER" in names[last_run:],
        "shell": steps[-1][1].startswith("["),
    }
    return [name for name, sound in checks.items() if not sound]


@CASES
def test_dockerfile(hardware: str, distributed: str) -> None:
    text = rendered(hardware, distributed, "compile")["Dockerfile"]
    assert wrong_in_dockerfile(text) == []
    launch = json.loads(text.rpartition("ENTRYPOINT ")[2])
    assert launch[0] == ("python" if distributed == "none" else "torchrun") and launch[-1] == "train.py"
    assert ("\nARG " in text) == (hardware == "cpu")


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("FROM python", "# FROM python", "form"),
        ("COPY pyproject.toml .\n", "", "packages"),
        ("COPY pyproject.toml .\n", "COPY . .\nCOPY pyproject.toml .\n", "packages"),
        ("USER 1000\n", "", "user"),
        ("ENTRYPOINT", "RUN true\nENTRYPOINT", "user"),
        ('["torchrun", "--standalone", "--nproc-per-node", "2", "train.py"]', "python train.py", "shell"),
    ],
)
def test_control_dockerfile(old: str, new: str, wrong: str) -> None:
    text = rendered("cpu", "ddp")["Dockerfile"]
    assert old in text
    assert wrong in wrong_in_dockerfile(text.replace(old, new, 1))


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
@CASES
def test_dockerfile_by_hadolint(hardware: str, distributed: str) -> None:
    text = rendered(hardware, distributed, "compile")["Dockerfile"]
    # g++ of the system is the one that fits
    command = ["hadolint", "--ignore", "DL3008", "-"]
    subprocess.run(command, input=text, text=True, check=True, timeout=30)


def wrong_in_skypilot(tree: Tree, distributed: str) -> list[str]:
    """What would lose a run that goes on elsewhere, or start it as something else."""
    task, volume = (yaml.safe_load(tree[name]) for name in ("sky.yaml", "sky-volume.yaml"))
    checks = {
        "volume": task.get("volumes") == {"/mnt": volume.get("name")} == {"/mnt": "my-demo"},
        "shared": ("access_mode" in volume.get("config", {})) == (distributed != "none"),
        "resume": "--resume --output-dir /mnt/runs/My_demo" in task["run"],
        "launch": ("torchrun" in task["run"], "num_nodes" in task) == (distributed != "none",) * 2,
    }
    return [name for name, sound in checks.items() if not sound]


@CASES
def test_skypilot_task(hardware: str, distributed: str) -> None:
    assert wrong_in_skypilot(rendered(hardware, distributed), distributed) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "wrong"),
    [
        ("sky.yaml", "  /mnt: my-demo", "  /mnt: another", "volume"),
        ("sky-volume.yaml", "name: my-demo", "name: another", "volume"),
        ("sky-volume.yaml", "access_mode", "mode", "shared"),
        ("sky.yaml", "--resume ", "", "resume"),
        ("sky.yaml", "/mnt/runs", "runs", "resume"),
        ("sky.yaml", "num_nodes: 2\n", "", "launch"),
        ("sky.yaml", "torchrun", "python -m torch.distributed.run", "launch"),
    ],
)
def test_control_skypilot_task(file: str, old: str, new: str, wrong: str) -> None:
    tree = rendered("cpu", "ddp")
    assert old in tree[file]
    assert wrong_in_skypilot(tree | {file: tree[file].replace(old, new, 1)}, "ddp") == [wrong]


@CASES
def test_skypilot_task_by_its_schemas(hardware: str, distributed: str) -> None:
    schemas = pytest.importorskip("sky.utils.schemas", reason="SkyPilot is not installed")
    validate = pytest.importorskip("jsonschema").validate
    tree = rendered(hardware, distributed)
    task, volume = (yaml.safe_load(tree[name]) for name in ("sky.yaml", "sky-volume.yaml"))
    validate(task, schemas.get_task_schema())
    validate(task["resources"], schemas.get_resources_schema())
    validate(volume, schemas.get_volume_schema())


@pytest.mark.heavy
def test_steps_of_the_dockerfile(tmp_path: Path) -> None:
    """What the image is made of, by hand: its packages need one file, and its program takes SIGTERM."""
    project = render(tmp_path / "demo", task="tabular", features=FILES)
    alone = tmp_path / "app"
    alone.mkdir()
    (alone / "pyproject.toml").write_text((project / "pyproject.toml").read_text())
    made = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", made], check=True, timeout=120)
    install = [made / "bin" / "pip", "install", "-q", "--no-cache-dir", "--no-deps", "."]
    subprocess.run(install, cwd=alone, check=True, timeout=300)
    entry = re.search(r"^ENTRYPOINT (.+)$", (project / "Dockerfile").read_text(), re.MULTILINE)
    assert entry
    words = [*json.loads(entry[1]), *map(str, STEPS), "--output-dir", str(tmp_path / "out")]
    edit(
        project / "train.py",
        "    optimizer.step()\n",
        "    optimizer.step()\n        threading.Event().wait(0.005)\n",
    )
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "USER": "trainer",
        "HOME": "/tmp",
    }
    with started(project, words, environment, stdout=subprocess.DEVNULL) as process:
        until(lambda: has_logged(tmp_path / "out", 100))
        process.terminate()
        assert process.wait(60) == 143
    assert int(checkpoints(tmp_path / "out")[-1].name[5:13]) >= 100
