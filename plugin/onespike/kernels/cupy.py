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
MAX_BLOCK = 256


class CupyPlan(GpuPlan):
    """The neuron in lif.cu.

    Attributes:
        lanes: neighbouring neurons of a thread where addresses allow accesses of 16 bytes; elsewhere it is one.
        of_forward, of_backward: the kernels' arguments after the tensors.
    """

    backend = "cupy"

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature)
        wide = 8 if self.dtype.itemsize == 2 and self.steps <= 8 and not self.per_neuron else 4  # what registers hold
        self.lanes = 1 if self.neurons % wide else wide
        self.wide = {name: self.of_lanes(name, self.lanes) for name in ("lif_forward", "lif_backward")}
        numbers, switches = (*self.indexing, self.steps, self.neurons), self.switches
        self.of_forward = *numbers, np.bool_(switches.single_spike)
        self.of_backward = (
            *numbers,
            np.float32(switches.gamma),
            np.bool_(switches.grad_after_spike),
            np.bool_(switches.temporal_gradient),
        )

    def launch_forward(self, *tensors: Tensor | None) -> None:
        pointers, lanes = self.addresses(tensors)
        launch(*self.instance("lif_forward", lanes), (*pointers, *self.of_forward), self.device.index)

    def launch_backward(self, *tensors: Tensor | None) -> Tensor:
        pointers, lanes = self.addresses(tensors)
        expression, blocks, threads = self.instance("lif_backward", lanes)
        parts = self.neurons if self.per_neuron else blocks
        sums = torch.empty((2, parts), dtype=torch.float32, device=self.device)
        kept = (self.steps - 1) // SEGMENT  # U at the start of each segment but the first, where T is not known to the compiler
        checkpoints = torch.empty((kept, self.neurons), dtype=torch.float32, device=self.device) if kept else None
        scratch = sums.data_ptr(), 0 if checkpoints is None else checkpoints.data_ptr()
        launch(expression, blocks, threads, (*pointers, *scratch, *self.of_backward), self.device.index)
        return sums

    def addresses(self, tensors: tuple[Tensor | None, ...]) -> tuple[list[int], int]:
        """Return the addresses, and how many lanes they allow; leak and threshold, the last two, are read one by one."""
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        together = 0
        for pointer in pointers[:-2]:
            together |= pointer
        return pointers, 1 if together & 15 else self.lanes

    def instance(self, name: str, lanes: int) -> tuple[str, int, int]:
        """Return an instance of kernel `name`, and its numbers of blocks and of threads of a block, a power of two."""
        return self.wide[name] if lanes == self.lanes else self.of_lanes(name, lanes)

    def of_lanes(self, name: str, lanes: int) -> tuple[str, int, int]:
        """Work out `instance`."""
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
