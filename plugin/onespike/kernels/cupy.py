"""The "cupy" backend: the kernels of lif.cu, compiled by CuPy and launched on torch's memory and current stream.

Two passes over memory in all: the forward pass reads x and writes the spikes, the backward pass reads x and the gradient
of the spikes and writes that of x. Both walk tensors in the order in which they lie in memory (see `plan`).

CuPy compiles with flush-to-zero, so potentials below 1.2e-38 count as 0 here. No spike depends on that as long as
thresholds are not themselves that small.
"""

from functools import cache, lru_cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onespike.kernels.gpu import GpuPlan
from onespike.kernels.plan import Signature

SCALARS = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "bfloat16"}
OPTIONS = ("-std=c++17", "--fmad=false")
SEGMENT = 16  # as in lif.cu: up to so many steps are known to the compiler, longer sequences are cut
MAX_BLOCK = 128


class CupyPlan(GpuPlan):
    """The neuron in lif.cu.

    Attributes:
        lanes: neighbouring neurons of a thread of each kernel, where addresses allow to access them at once; elsewhere one.
        of_forward, of_backward: the kernels' arguments after the tensors.
    """

    backend = "cupy"

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature)
        # Forward, the widest access that registers hold. Backward, 4 bytes: more threads hide more of the memory's latency
        # (on an H100, [5, 256, 64, 32, 32] float32 took 0.35 ms with one lane and 0.45 with four).
        size = self.dtype.itemsize
        wide = 8 if size == 2 and self.steps <= 8 and not self.per_neuron else 4
        self.lanes = {
            name: lanes if self.neurons % lanes == 0 else 1
            for name, lanes in (("lif_forward", wide), ("lif_backward", 4 // size))
        }
        self.instances = {(name, lanes): self.instance(name, lanes) for name in self.lanes for lanes in {1, self.lanes[name]}}
        numbers, switches = (*self.indexing, self.steps, self.neurons), self.switches
        self.of_forward = *numbers, np.bool_(switches.single_spike)
        self.of_backward = (
            *numbers,
            np.float32(switches.gamma),
            np.bool_(switches.grad_after_spike),
            np.bool_(switches.temporal_gradient),
        )

    def launch_forward(self, *tensors: Tensor | None) -> None:
        pointers, instance = self.suited("lif_forward", tensors)
        launch(*instance, (*pointers, *self.of_forward), self.device.index)

    def launch_backward(self, *tensors: Tensor | None) -> Tensor:
        pointers, (expression, blocks, threads) = self.suited("lif_backward", tensors)
        parts = self.neurons if self.per_neuron else blocks
        sums = torch.empty((2, parts), dtype=torch.float32, device=self.device)
        kept = (self.steps - 1) // SEGMENT  # U at the start of each segment but the first, where T is not known to the compiler
        checkpoints = torch.empty((kept, self.neurons), dtype=torch.float32, device=self.device) if kept else None
        scratch = sums.data_ptr(), 0 if checkpoints is None else checkpoints.data_ptr()
        launch(expression, blocks, threads, (*pointers, *scratch, *self.of_backward), self.device.index)
        return sums

    def suited(self, name: str, tensors: tuple[Tensor | None, ...]) -> tuple[list[int], tuple[str, int, int]]:
        """Return the tensors' addresses, and the instance of kernel `name` that they allow.

        Leak and threshold, the last two, are read one by one.
        """
        pointers, together = [0 if tensor is None else tensor.data_ptr() for tensor in tensors], 0
        for pointer in pointers[:-2]:
            together |= pointer
        return pointers, self.instances[name, 1 if together & 15 else self.lanes[name]]

    def instance(self, name: str, lanes: int) -> tuple[str, int, int]:
        """Name an instance of kernel `name`, with its numbers of blocks and of threads of a block, a power of two."""
        threads = min(MAX_BLOCK, max(32, 1 << (-(-self.neurons // lanes) - 1).bit_length()))
        steps = self.steps if self.steps <= SEGMENT else 0
        expression = f"{name}<{SCALARS[self.dtype]}, {steps}, {lanes}, {str(self.per_neuron).lower()}>"
        return expression, -(-self.neurons // (threads * lanes)), threads


def launch(expression: str, blocks: int, threads: int, arguments: tuple[Any, ...], device: int) -> None:
    """Put one instance of a kernel template on torch's current stream of a CUDA device."""
    if device != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(expression, blocks, threads, arguments, device)
        return
    with external_stream(device, torch._C._cuda_getCurrentRawStream(device)):
        compiled(expression, device)((blocks,), (threads,), arguments)


@lru_cache
def external_stream(device: int, address: int) -> Any:
    """Make torch's current stream, at `address`, CuPy's, by the stream protocol where both know it."""
    import cupy  # noqa: PLC0415, an optional dependency that `import onespike` must not need

    stream = torch.cuda.current_stream(device)
    if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
        return cupy.cuda.Stream.from_external(stream)
    return cupy.cuda.ExternalStream(address, device)


@cache
def compiled(expression: str, device: int) -> Any:  # noqa: ARG001, a kernel belongs to the device that is current
    """Compile one instance of a kernel template; CuPy also keeps it on disk, from run to run."""
    import cupy  # noqa: PLC0415

    return cupy.RawModule(code=source(), options=OPTIONS, name_expressions=(expression,)).get_function(expression)


@cache
def source() -> str:
    """The text of lif.cu."""
    return resources.files("onespike.kernels").joinpath("lif.cu").read_text(encoding="utf-8")
