"""What a number was measured on: processor, GPU and driver, versions, commit and command."""

import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from cifar.provenance import commit

IMPORTED = ("torch", "triton", "spikingjelly", "snntorch", "cupy")
VECTORS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve")
"""Vector instructions, as Linux spells them, that change the time of these benchmarks."""


def provenance(device: torch.device) -> dict[str, Any]:
    """Describe machine, versions, commit and command of this run."""
    sha, changed = commit(Path(__file__).parent, "../plugin", "*.py")
    record = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions_of(IMPORTED),
        "commit": (sha or "unknown") + (" with uncommitted changes" if changed else ""),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        record |= {"cuda": torch.version.cuda, "driver": driver()}
    return record


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """Name the processor, its cores and its vector instructions, and which of these torch's own kernels use."""
    fields: dict[str, list[str]] = {}
    for line in info.read_text().splitlines() if info.exists() else []:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), []).append(value.strip())
    model = fields.get("model name", [platform.processor() or platform.machine()])[0]
    flags = fields.get("flags", fields.get("Features", [""]))[0].split()
    known = " ".join(name for name in VECTORS if name in flags) or "vector instructions unknown"
    cores = len(fields.get("processor", [])) or "unknown number of"
    return f"{model} ({cores} cores; {known}; torch uses {torch.backends.cpu.get_cpu_capability()})"


def versions_of(imported: Iterable[str]) -> dict[str, str]:
    """Return the version of every distribution that brings one of these modules, by its own name: cupy-cuda13x for cupy."""
    brought = packages_distributions()
    return {name: version(name) for module in imported for name in sorted(set(brought.get(module, [])))}


def driver() -> str:
    """Return the version of the GPU's driver, "unknown" where nvidia-smi does not tell."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return lines[0] if lines else "unknown"
