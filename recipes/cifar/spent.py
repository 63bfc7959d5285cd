"""What a stage of a run took: wall time and energy."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric


class Spent:
    """Wall time and, where the driver counts it, the energy of the GPUs of all processes, by stage."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.seconds: dict[str, float] = {}
        self.joules: dict[str, float | None] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure what is done inside."""
        device = self.fabric.device
        started, before = time.monotonic(), joules_used(device)
        yield
        self.seconds[stage] = time.monotonic() - started
        used = torch.tensor(joules_used(device) - before, device=device, dtype=torch.float64)
        joules = self.fabric.all_reduce(used, reduce_op="sum").item()  # NaN where one of them is not counted
        self.joules[stage] = None if math.isnan(joules) else joules


def joules_used(device: torch.device) -> float:
    """Return the energy that a GPU has used since its driver started, in joules, or NaN where none is counted."""
    if device.type != "cuda":
        return math.nan
    try:
        import pynvml  # noqa: PLC0415  (an optional dependency)
    except ImportError:
        return math.nan
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    except pynvml.NVMLError:  # an old GPU, or a driver that keeps it to itself
        return math.nan
