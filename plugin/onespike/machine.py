"""Where a number comes from, as text: processor, driver, versions and commit."""

import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path

import torch

VECTORS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve")
"""Vector instructions, as Linux spells them, that change how fast neurons run."""


@dataclass(frozen=True)
class Commit:
    """The commit that a clone has checked out.

    Attributes:
        sha: its name; None outside of a clone, or where there is no git.
        changed: whether files differ from it.
    """

    sha: str | None = None
    changed: bool = False

    def __str__(self) -> str:
        return (self.sha or "unknown: not a clone, or there is no git") + (" with uncommitted changes" if self.changed else "")


def commit(folder: Path, *paths: str) -> Commit:
    """Return the commit of the clone that holds `folder`, and whether files at `paths`, relative to it, differ from it.

    It is unknown, too, where git does not answer within 20 seconds.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()

    if shutil.which("git") is None:
        return Commit()
    try:
        # The folder may lie, unknown to it, in another project's clone.
        sha = git("rev-parse", "--verify", "-q", "HEAD") if git("ls-files", ".") else ""
        return Commit(sha, bool(git("status", "--porcelain", "--", *paths))) if sha else Commit()
    except subprocess.TimeoutExpired:
        return Commit()


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


def driver() -> str:
    """Return the version of the NVIDIA driver, or why it is not known."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return "none found (there is no nvidia-smi)"
    if answer.returncode:
        return f"broken (nvidia-smi: {answer.stdout or answer.stderr})"
    return ", ".join(sorted(set(answer.stdout.split())))


def versions(*modules: str) -> dict[str, str]:
    """Return the version of every distribution that brings one of these modules, by its own name: cupy-cuda13x for cupy."""
    brought = packages_distributions()
    return {name: version(name) for module in modules for name in sorted(set(brought.get(module, [])))}
