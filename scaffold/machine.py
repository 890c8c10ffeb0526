"""What this machine has: a quick look for defaults, a thorough one through PyTorch for `scaffold doctor`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

PROBE = """
import json, torch
found = {"torch": torch.__version__}
accelerator = torch.accelerator.current_accelerator(check_available=True)
if accelerator is not None:
    kind = accelerator.type
    module = getattr(torch, kind)
    found["accelerator"] = kind
    found["devices"] = torch.accelerator.device_count()
    if hasattr(module, "get_device_name"):
        found["device_name"] = module.get_device_name()
    if hasattr(module, "is_bf16_supported"):
        found["bf16"] = module.is_bf16_supported()
found["distributed"] = [
    name for name in ("gloo", "nccl", "xccl", "mpi")
    if torch.distributed.is_available() and getattr(torch.distributed, f"is_{name}_available", bool)()
]
print(json.dumps(found))
"""


def quick_hardware() -> str:
    """`tpu`, `gpu` or `cpu`, from device files alone: milliseconds, no PyTorch."""
    if os.environ.get("TPU_NAME") or list(Path("/dev").glob("accel[0-9]*")):
        return "tpu"
    if Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists():
        return "gpu"
    return "gpu" if (sys.platform, platform.machine()) == ("darwin", "arm64") else "cpu"


def inspect(python: str = sys.executable) -> dict[str, Any]:
    """What `python` can train with. PyTorch is asked in a process of its own: it may be slow or broken."""
    from importlib import metadata

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpus": os.cpu_count(),
        "hardware": quick_hardware(),
        "torch": None,
        "torch_xla": None,
        "accelerator": None,
        "devices": 0,
        "bf16": None,
        "distributed": [],
    }
    with suppress(metadata.PackageNotFoundError):
        found["torch_xla"] = metadata.version("torch_xla")
    try:
        probe = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return found | {"problem": f"PyTorch could not be asked: {error}"}
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        return found | {"problem": f"PyTorch cannot be imported: {last}"}
    found |= json.loads(probe.stdout.splitlines()[-1])
    if found["accelerator"]:
        found["hardware"] = "gpu"
    elif found["hardware"] == "gpu":
        found["problem"] = "this machine has a GPU that this PyTorch cannot use: install the build for it"
    return found
