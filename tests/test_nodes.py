"""Two machines: network namespaces with a cable between them, a torchrun in each; one of them dies."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from tests.conftest import Make, Whole
from tests.projects import ENVIRONMENT, checkpoints, descendants, edit, kill_tree, metrics, same_run, until

pytestmark = pytest.mark.heavy

STEPS = ["--batch-size", 16, "--epochs", 100, "--max-steps", 900, "--log-every", 4, "--checkpoint-every", 25]
ADDRESSES = ("10.66.0.1", "10.66.0.2")
LIMIT = 150  # seconds in which a run goes on after a machine died


def command(*words: object) -> None:
    subprocess.run(list(map(str, words)), check=True, capture_output=True, timeout=10)


@dataclass
class Machine:
    """A network, a host name and /etc/hosts of its own; they end with the process that holds them."""

    name: str
    holder: subprocess.Popen[bytes]
    agent: subprocess.Popen[bytes] | None = None
    logs: list[Path] = field(default_factory=list)

    def inside(self, *words: object) -> list[str]:
        return ["nsenter", "-t", str(self.holder.pid), "-n", "-u", "-m", *map(str, words)]

    def apart(self) -> bool:
        """Has the holder left our namespaces? What went inside before that would change this machine."""
        if self.holder.poll() is not None:
            pytest.skip("this user cannot make network namespaces: unshare has ended")
        kinds = ("net", "uts", "mnt")
        theirs, ours = (
            [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds] for pid in (self.holder.pid, "self")
        )
        return not set(theirs) & set(ours)

    def unplug(self, state: str = "down") -> None:
        command(*self.inside("ip", "link", "set", "eth0", state))

    def start(self, project: Path, words: list[str]) -> None:
        self.logs.append(project.parent / f"{self.name}.{len(self.logs)}.log")
        with self.logs[-1].open("wb") as log:
            self.agent = subprocess.Popen(
                self.inside("env", "-C", project, *words),
                env=os.environ | ENVIRONMENT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def die(self) -> None:
        assert self.agent
        kill_tree(self.agent.pid)
        self.agent.wait(10)
        self.agent = None

    @property
    def code(self) -> int | None:
        return self.agent.poll() if self.agent else None


Machines = tuple[Machine, Machine]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """Two machines, where this user may make such."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} node{n}\n" for n, ip in enumerate(ADDRESSES)))
    found: list[Machine] = []
    try:
        for number in range(2):
            holder = subprocess.Popen(["unshare", "--net", "--uts", "--mount", "sleep", "infinity"])
            found.append(Machine(f"node{number}", holder))
        for machine in found:
            until(machine.apart, 10)
        ends = [f"n{machine.holder.pid}" for machine in found]
        try:
            command("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for machine, end, address in zip(found, ends, ADDRESSES, strict=True):
                command("ip", "link", "set", end, "netns", machine.holder.pid)
                command(*machine.inside("ip", "link", "set", end, "name", "eth0"))
                command(*machine.inside("ip", "address", "add", f"{address}/24", "dev", "eth0"))
                command(*machine.inside("ip", "link", "set", "lo", "up"))
                machine.unplug("up")
                command(*machine.inside("hostname", machine.name))
                command(*machine.inside("mount", "--bind", hosts, "/etc/hosts"))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"this user cannot make network namespaces: {error}")
        yield found[0], found[1]
    finally:
        for machine in found:
            if machine.agent:
                kill_tree(machine.agent.pid)
            machine.holder.kill()
            machine.holder.wait(10)


def test_a_machine_is_apart_once_its_holder_has_left_our_namespaces() -> None:
    with subprocess.Popen(["sleep", "infinity"]) as holder:
        assert not Machine("slow", holder).apart()
        holder.kill()
        holder.wait(10)
        with pytest.raises(pytest.skip.Exception, match="unshare has ended"):
            Machine("gone", holder).apart()


def noting_starts(project: Path) -> Path:
    """Each start of the first process writes from which step it goes on; steps take a little."""
    text = (project / "train.py").read_text()
    line = next(line for line in text.splitlines() if line.startswith("    step, best = saved.get"))
    note = '    if rank == 0:\n        (args.output_dir / "starts").open("a").write(f"{step}\\n")\n'
    edit(project / "train.py", line + "\n", line + "\n" + note)
    edit(
        project / "train.py",
        "    optimizer.step()\n",
        "    optimizer.step()\n        threading.Event().wait(0.005)\n",
    )
    return project


def launch(project: Path, output_dir: Path, *options: object) -> list[str]:
    """What the README says is started on each machine; here with a process each, and less patience."""
    text = (project / "README.md").read_text()
    found = re.search(r"^(\w+=1) torchrun (--nnodes.*) \\\n +(.*) --resume$", text, re.MULTILINE)
    assert found
    words = f"{found[2]} {found[3]}".replace("--nproc-per-node 2", "--nproc-per-node 1").replace(
        "HOST", "node0"
    )
    patience = "keep_alive_interval=1,keep_alive_max_attempt=5,read_timeout=15,join_timeout=120"
    given = ["--rdzv-conf", patience, *words.split(), "--output-dir", output_dir, *STEPS, *options]
    return ["env", found[1], sys.executable, "-m", "torch.distributed.run", *map(str, given)]


def step_of(output_dir: Path) -> int:
    """The last step in the record, which a start cuts off."""
    with suppress(OSError, ValueError, IndexError):
        return int(metrics(output_dir)[-1]["step"])
    return 0


def starts(output_dir: Path) -> list[int]:
    file = output_dir / "starts"
    return list(map(int, file.read_text().split())) if file.exists() else []


@dataclass
class Scheduler:
    """Starts an agent again wherever one has ended badly."""

    machines: Machines
    project: Path
    words: list[str]

    def look(self) -> bool:
        """Have both ended well?"""
        for machine in self.machines:
            if machine.agent is None or machine.code not in (None, 0):
                machine.start(self.project, self.words)
        return all(machine.code == 0 for machine in self.machines)

    def until(self, condition: Callable[[], bool], limit: float = LIMIT) -> float:
        """How long it took."""
        begin = time.monotonic()
        while not condition():
            assert time.monotonic() < begin + limit, "".join(
                machine.logs[-1].read_text()[-3000:] for machine in self.machines
            )
            assert not self.look() or condition()
            time.sleep(0.05)
        return time.monotonic() - begin


@dataclass(frozen=True)
class Death:
    """What the death of a machine cost."""

    saved: int  # the newest checkpoint's step, when it died
    resumed: int  # where the run went on
    noticed: float  # seconds until the other's process knew
    lasted: float  # and until the run went on


def dies(scheduler: Scheduler, output_dir: Path, number: int, silently: bool = False) -> Death:
    """One machine is gone at once, with all its processes; a second later it is back."""
    machine, other = scheduler.machines[number], scheduler.machines[1 - number]
    before = len(starts(output_dir))
    saved = max((int(path.name[5:13]) for path in checkpoints(output_dir)), default=0)
    assert other.agent
    workers = descendants(other.agent.pid)
    if silently:
        machine.unplug()
    machine.die()
    time.sleep(1)
    if silently:
        machine.unplug("up")
    noticed = scheduler.until(lambda: not any(Path(f"/proc/{pid}/fd/1").exists() for pid in workers))
    lasted = noticed + scheduler.until(lambda: len(starts(output_dir)) > before)
    return Death(saved, starts(output_dir)[-1], noticed, lasted)


Record = Callable[[str, object], None]


@pytest.mark.parametrize(
    ("distributed", "deaths", "silently"), [("ddp", 10, False), ("fsdp", 2, False), ("ddp", 2, True)]
)
def test_a_machine_that_dies_costs_what_was_not_saved(
    made: Make,
    whole: Whole,
    machines: Machines,
    tmp_path: Path,
    record_property: Record,
    distributed: str,
    deaths: int,
    silently: bool,
) -> None:
    """In turn the one that holds the rendezvous and the other die, at random moments."""
    project = made(noting_starts, task="tabular", distributed=distributed)
    out, rng = tmp_path / "out", random.Random(deaths)
    scheduler = Scheduler(machines, project, launch(project, out, "--resume"))
    for number in range(deaths):
        moment = step_of(out) + rng.randint(1, 50)
        scheduler.until(lambda moment=moment: step_of(out) >= moment)
        death = dies(scheduler, out, number % 2, silently)
        record_property(f"death {number}", asdict(death))
        assert death.saved <= death.resumed
    scheduler.until(lambda: all(machine.code == 0 for machine in machines))
    assert same_run(whole(project, *STEPS, ranks=2), out)


def test_control_a_machine_that_dies(made: Make, machines: Machines, tmp_path: Path) -> None:
    """Without --resume nothing goes on: what was saved stands in the way."""
    project = made(noting_starts, task="tabular", distributed="ddp")
    out = tmp_path / "out"
    scheduler = Scheduler(machines, project, launch(project, out))
    scheduler.until(lambda: bool(checkpoints(out)))
    machines[1].die()
    machines[1].start(project, scheduler.words)
    until(lambda: "holds a run: go on with --resume" in machines[0].logs[-1].read_text(), LIMIT)
