"""Where a number comes from: processor, versions and commit."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def cpu_model() -> str:
    """Name the processor, with its instruction sets for vectors, which say more than a virtual machine's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({torch.backends.cpu.get_cpu_capability()}, {len(names)} cores)"


def installed(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are there."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def commit(folder: Path, *paths: str) -> tuple[str | None, bool]:
    """Return the commit checked out at `folder`, None outside a repository, and whether files at `paths` differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "HEAD") or None, bool(git("status", "--porcelain", "--", *paths))
