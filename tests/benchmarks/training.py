"""The generated loop beside hand-written ones: race.py in a process of its own, on a pseudo-terminal."""

import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from workloads import ROUNDS

# glibc gives freed memory back to the kernel and faults it in again at the next step: a tenth or more of a
# convolution step, and most of its noise. Kept off for every contestant alike.
QUIET_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}
MEMORY = Path("/dev/shm")  # where runs are written: a shared disk would be measured otherwise


def drain(terminal: int, printed: list[bytes]) -> None:
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            return
        if not data:
            return
        printed[:] = [*printed[-20:], data]


def race(workload: str, rounds: int = ROUNDS) -> list[dict[str, dict[str, float]]]:
    """One entry a round: contestant -> seconds by wall clock and processor, and the final loss."""
    env = os.environ | QUIET_MALLOC | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"}
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        out = Path(folder, "rounds.json")
        command = [sys.executable, str(Path(__file__).with_name("race.py")), workload, str(out)]
        terminal, end = pty.openpty()
        printed: list[bytes] = []
        reader = threading.Thread(target=drain, args=(terminal, printed), daemon=True)
        reader.start()
        try:
            process = subprocess.Popen(
                [*command, "--rounds", str(rounds)],
                stdin=subprocess.DEVNULL,
                stdout=end,
                stderr=end,
                env=env | {"TMPDIR": folder},
                cwd=folder,
            )
            os.close(end)
            try:
                code = process.wait(timeout=540)
            finally:
                process.kill()
            reader.join(timeout=5)
        finally:
            os.close(terminal)
        assert code == 0, b"".join(printed).decode(errors="replace")[-2000:]
        return json.loads(out.read_text())


def ratio(rounds: list[dict[str, dict[str, float]]], who: str, base: str, clock: str = "processor") -> float:
    """The median over rounds of one contestant's time as a part of another's in the same round."""
    return statistics.median(times[who][clock] / times[base][clock] for times in rounds)
