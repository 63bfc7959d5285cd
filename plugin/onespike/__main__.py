"""`python -m onespike`: versions, devices and backends of this machine as plain text, for a look or for a bug report."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import onespike
from onespike import machine
from onespike.functional.backends import BACKENDS, resolve_backend, why_unavailable

PACKAGE = Path(onespike.__file__).parent
PACKAGES = ("spikingjelly", "snntorch", "triton", "numpy", "torchvision", "safetensors", "nir", "lightning-fabric")
SMALL, LARGE = 1, 2**40
"""Elements of an input that is small, and of one that is large, by any rule."""


def attempt(look: Callable[..., object], *about: object) -> str:
    """Return what `look(*about)` finds, with the warnings on the way, on one line; or what is broken: a report never fails."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = str(look(*about))
        except Exception as error:  # whatever is broken, the other lines are wanted all the more
            found = f"broken ({type(error).__name__}: {error})"
    return " ".join("; ".join([found, *(f"warning: {warning.message}" for warning in caught)]).split())


def package(name: str) -> str:
    """Return the version of an installed package, without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        spec = importlib.util.find_spec(name)
        return "not installed" if spec is None else f"of unknown version, at {spec.origin}"


def settings() -> str:
    """Return the environment's variables that change what runs and how fast."""
    prefixes = ("CUDA_", "KMP_", "MKL_", "NVIDIA_", "OMP_", "PYTORCH_", "TORCH", "TRITON_")
    return ", ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(prefixes)) or "none"


def cupy() -> str:
    """Return name and version of every installed wheel of CuPy: there is one for each CUDA, and two get in each other's way."""
    names = [distribution.metadata["Name"] for distribution in importlib.metadata.distributions()]
    wheels = sorted({name for name in names if name and name.lower().startswith("cupy")})
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in wheels) or package("cupy")


def cpu() -> str:
    """Return the processor, the cores that this process may use, and torch's threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{machine.processor()}, {cores} of them for this process, torch uses {torch.get_num_threads()} threads"


def gpu(place: int) -> str:
    """Return a GPU's name, memory and compute capability."""
    found = torch.cuda.get_device_properties(place)
    return f"{found.name}, {found.total_memory / 2**30:.1f} GiB, compute capability {found.major}.{found.minor}"


def backend(name: str, device: str) -> str:
    """Say whether a backend can run on a kind of device, or why not."""
    reasons = why_unavailable(name, device)
    return f"cannot run: {'; '.join(reasons)}" if reasons else "usable"


def auto(device: str) -> str:
    """Say which backend "auto" takes on a kind of device."""
    small, large = (resolve_backend("auto", device, elements) for elements in (SMALL, LARGE))
    return f'takes "{small}"' if small == large else f'takes "{small}" for small inputs, "{large}" for large ones'


def torch_build() -> str:
    """Return torch's version and the CUDA runtime that it brings."""
    return f"{torch.__version__}, CUDA runtime {torch.version.cuda or 'none: built for CPUs'}"


def report() -> Iterator[tuple[str, str]]:
    """Yield the lines: what each is about, and what was found."""
    yield "onespike", f"{onespike.__version__}, {PACKAGE}"
    yield "commit", attempt(machine.commit, PACKAGE, ".")
    yield "python", attempt(lambda: f"{platform.python_version()}, {platform.platform()}")
    yield "torch", attempt(torch_build)
    for name in PACKAGES:
        yield name, attempt(package, name)
    yield "cupy", attempt(cupy)
    yield "NVIDIA driver", attempt(machine.driver)
    yield "cpu", attempt(cpu)
    yield "environment", attempt(settings)

    available = attempt(torch.cuda.is_available)
    usable = available.startswith("True")
    if usable:
        for place in range(torch.cuda.device_count()):
            yield f"cuda:{place}", attempt(gpu, place)
    else:
        yield "cuda", f"no device that torch can use: torch.cuda.is_available() is {available}"

    yield '"auto" on cpu', attempt(auto, "cpu")
    for name in BACKENDS:
        yield f'"{name}" on cpu', attempt(backend, name, "cpu")
    if usable:
        yield '"auto" on cuda', attempt(auto, "cuda")
    for name in BACKENDS:
        found = attempt(backend, name, "cuda")
        if usable or found != "usable":
            yield f'"{name}" on cuda', found


def main() -> None:
    """Print the report, as far as somebody reads it."""
    try:
        for subject, found in report():
            print(f"{subject + ':':<20} {found}", flush=True)
    except BrokenPipeError:  # `| head` has read enough; what Python still wants to flush on exit goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
