"""The processes and devices of a run."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from cifar.config import Config, ConfigError
from cifar.data import Data, load_data
from onespike.functional import BackendUnavailableError
from onespike.functional.backends import resolve_backend


def make_fabric(device: str, config: Config) -> Fabric:
    """Launch Fabric on this process, or on all that torchrun started, once it is clear that the device can do its part."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError("--device cuda needs a CUDA device: torch.cuda.is_available() is False")
    resolve_backend(config.backend, device)  # or say now why it cannot run
    precision: Any = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if has_bf16_units(device) else "32-true"
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "WORLD_SIZE" not in os.environ:
        raise ConfigError("srun must start torchrun, once on each node: several tasks of train.py do not know each other")
    processes, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=processes // local,
        strategy="ddp" if processes > 1 else "auto",
        precision=precision,
    )
    fabric.launch()
    torch.backends.cudnn.deterministic = not config.cudnn_benchmark  # so that a run can go on to the last bit
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = config.tf32
    return fabric


def has_bf16_units(device: str) -> bool:
    """Whether bfloat16 is fast: on GPUs that compute with it, and on processors with matrix units (AMX)."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def load_in_turn(config: Config, root: Path, fabric: Fabric) -> Data:
    """Load the data: first one process, then one on each machine, then the others, as they may have to be downloaded."""
    own = 0 if fabric.is_global_zero else 1 if fabric.local_rank == 0 else 2
    for turn in range(3):
        if turn == own:
            data = load_data(config, root, fabric.device)
        fabric.barrier()
    return data
