"""What a number was measured on: processor, GPU and driver, versions, commit and command."""

import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from onespike.machine import commit, driver, processor, versions

IMPORTED = ("torch", "triton", "spikingjelly", "snntorch", "cupy")


def provenance(device: torch.device) -> dict[str, Any]:
    """Describe machine, versions, commit and command of this run."""
    record = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(*IMPORTED),
        "commit": str(commit(Path(__file__).parent, "../plugin", "*.py")),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        record |= {"cuda": torch.version.cuda, "driver": driver()}
    return record
