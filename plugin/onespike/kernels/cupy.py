"""The "cupy" backend: the kernels of lif.cu, compiled by CuPy and launched on torch's memory and current stream.

Two passes over memory in all: the forward pass reads x and writes the spikes, the backward pass reads x and the gradient
of the spikes and writes that of x. Both walk tensors in the order in which they lie in memory (see `layout`).

CuPy compiles with flush-to-zero, so potentials below 1.2e-38 count as 0 here. No spike depends on that as long as
thresholds are not themselves that small.
"""

import functools
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from onespike.kernels.layout import Layout, check_dtype, layout_of, shared_values, step_stride

POINTER, INDEX, FLOAT, BOOL = np.uint64, np.int64, np.float32, np.bool_

SHARED_ARGUMENTS = {
    "x_seq": POINTER,
    "x_stride": INDEX,
    "leak_values": POINTER,
    "leak_inner": INDEX,
    "leak_count": INDEX,
    "threshold_values": POINTER,
    "threshold_inner": INDEX,
    "threshold_count": INDEX,
    "v": POINTER,
    "fired": POINTER,
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "lif_forward": SHARED_ARGUMENTS
    | {
        "s_seq": POINTER,
        "v_last": POINTER,
        "fired_last": POINTER,
        "v_seq": POINTER,
        "steps": INDEX,
        "row": INDEX,
        "size": INDEX,
        "single_spike": BOOL,
    },
    "lif_backward": {
        "grad_s_seq": POINTER,
        "grad_s_stride": INDEX,
        "grad_v": POINTER,
        "grad_v_seq": POINTER,
        "grad_v_stride": INDEX,
    }
    | SHARED_ARGUMENTS
    | {
        "checkpoints": POINTER,
        "grad_x_seq": POINTER,
        "leak_sums": POINTER,
        "threshold_sums": POINTER,
        "grad_v_initial": POINTER,
        "steps": INDEX,
        "row": INDEX,
        "size": INDEX,
        "gamma": FLOAT,
        "grad_after_spike": BOOL,
        "temporal_gradient": BOOL,
    },
}
"""The kernels' parameters in the order of lif.cu, with the type each is passed as."""

SCALARS = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "bfloat16"}
OPTIONS = ("-std=c++17", "--fmad=false")
SEGMENT = 16  # as in lif.cu: up to so many steps are known to the compiler, longer sequences are cut
MAX_BLOCK = 256


def forward(
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    single_spike: bool,
    return_v_seq: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return s_seq [T, N, *], the last v [N, *], fired [N, *] and v_seq [T, N, *] ([0] unless asked for).

    Raises:
        TypeError: x_seq is not float32, float16 or bfloat16.
    """
    check_dtype(x_seq, "cupy")
    s_seq = torch.empty_like(x_seq)
    v_seq = torch.empty_like(x_seq, dtype=torch.float32) if return_v_seq else x_seq.new_empty(0, dtype=torch.float32)
    v_last = torch.empty_like(x_seq[0], dtype=torch.float32)
    fired_last = torch.empty_like(x_seq[0], dtype=torch.bool)
    layout = layout_of(s_seq, leak, v_threshold)
    flat_s, flat_v, flat_fired = layout.flat(s_seq), layout.flat_step(v_last), layout.flat_step(fired_last)
    flat_trace = layout.flat(v_seq) if return_v_seq else None
    values = shared_values(layout, x_seq, leak, v_threshold, v, fired)
    values |= {"s_seq": flat_s, "v_last": flat_v, "fired_last": flat_fired, "v_seq": flat_trace, "single_spike": single_spike}
    run("lif_forward", geometry(layout, x_seq, values), x_seq, values)
    if flat_trace is not None:
        layout.give_back(flat_trace, v_seq)
    return (
        layout.give_back(flat_s, s_seq),
        layout.give_back_step(flat_v, v_last),
        layout.give_back_step(flat_fired, fired_last),
        v_seq,
    )


def backward(
    grad_s_seq: Tensor | None,
    grad_v: Tensor | None,
    grad_v_seq: Tensor | None,
    x_seq: Tensor,
    leak: Tensor,
    v_threshold: Tensor,
    v: Tensor | None,
    fired: Tensor | None,
    gamma: float,
    grad_after_spike: bool,
    temporal_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x_seq, leak, v_threshold and the initial v ([0] where there was none).

    The potentials are computed again from x_seq; the equations stand in `eager.backward`. The sums of the parameters'
    gradients are taken in a fixed order, so they are the same in every run.

    Raises:
        TypeError: x_seq is not float32, float16 or bfloat16.
    """
    check_dtype(x_seq, "cupy")
    grad_x_seq = torch.empty_like(x_seq)
    grad_initial = x_seq.new_empty(0, dtype=torch.float32) if v is None else torch.empty_like(v, dtype=torch.float32)
    layout = layout_of(grad_x_seq, leak, v_threshold)
    flat_x, flat_initial = layout.flat(grad_x_seq), None if v is None else layout.flat_step(grad_initial)
    flat_s = None if grad_s_seq is None else layout.flat(grad_s_seq.to(x_seq.dtype))
    flat_trace = None if grad_v_seq is None else layout.flat(grad_v_seq.to(torch.float32))
    values = shared_values(layout, x_seq, leak, v_threshold, v, fired)
    values |= {
        "grad_s_seq": flat_s,
        "grad_s_stride": step_stride(flat_s),
        "grad_v": None if grad_v is None else layout.flat_step(grad_v.to(torch.float32)),
        "grad_v_seq": flat_trace,
        "grad_v_stride": step_stride(flat_trace),
        "grad_x_seq": flat_x,
        "grad_v_initial": flat_initial,
        "gamma": gamma,
        "grad_after_spike": grad_after_spike,
        "temporal_gradient": temporal_gradient,
    }
    launch = geometry(layout, x_seq, values)
    parts = (layout.neurons, 1) if launch.per_neuron else (layout.rows, launch.blocks // max(layout.rows, 1))
    leak_sums, threshold_sums = flat_x.new_empty(parts, dtype=torch.float32), flat_x.new_empty(parts, dtype=torch.float32)
    later_segments = (len(x_seq) - 1) // SEGMENT
    values |= {
        "checkpoints": flat_x.new_empty(later_segments, layout.neurons, dtype=torch.float32),
        "leak_sums": leak_sums,
        "threshold_sums": threshold_sums,
    }
    run("lif_backward", launch, x_seq, values)
    if flat_initial is not None:
        layout.give_back_step(flat_initial, grad_initial)
    return (
        layout.give_back(flat_x, grad_x_seq),
        layout.sum_rows(leak_sums, leak),
        layout.sum_rows(threshold_sums, v_threshold),
        grad_initial,
    )


class Geometry(NamedTuple):
    """How a kernel is cut into threads.

    Attributes:
        lanes: neighbouring neurons of a thread; more than one where every address allows 16-byte accesses.
        per_neuron: whether each neuron has its own parameters.
        blocks: number of blocks.
        threads: threads of a block, a power of two.
    """

    lanes: int
    per_neuron: bool
    blocks: int
    threads: int


def geometry(layout: Layout, x_seq: Tensor, values: dict[str, Any]) -> Geometry:
    """Choose the widest accesses that the addresses allow, and blocks that stay within a row."""
    per_neuron = layout.row == 1
    span, spans = (layout.neurons, 1) if per_neuron else (layout.row, layout.rows)
    lanes = 8 if x_seq.element_size() == 2 and len(x_seq) <= 8 and not per_neuron else 4  # what registers hold
    walked = [values[name] for name in values.keys() - {"leak_values", "threshold_values"} if isinstance(values[name], Tensor)]
    strides = [value for name, value in values.items() if name.endswith("_stride")]
    if any(tensor.data_ptr() % 16 for tensor in walked) or any(stride % lanes for stride in (span, *strides)):
        lanes = 1
    threads = min(MAX_BLOCK, max(32, 1 << (-(-span // lanes) - 1).bit_length()))
    return Geometry(lanes, per_neuron, spans * -(-span // (threads * lanes)), threads)


def run(name: str, cut: Geometry, x_seq: Tensor, values: dict[str, Any]) -> None:
    """Launch kernel `name` with `values` in the order and the types of its signature."""
    if cut.blocks == 0:
        return
    steps = len(x_seq) if len(x_seq) <= SEGMENT else 0
    expression = f"{name}<{SCALARS[x_seq.dtype]}, {steps}, {cut.lanes}, {str(cut.per_neuron).lower()}>"
    arguments = []
    for argument, kind in ARGUMENTS[name].items():
        value = values[argument]
        arguments.append(kind(value.data_ptr() if isinstance(value, Tensor) else value or 0))
    launch(expression, cut.blocks, cut.threads, tuple(arguments), x_seq.device)


def launch(expression: str, blocks: int, threads: int, arguments: tuple[Any, ...], device: torch.device) -> None:
    """Put one instance of a kernel template on torch's current stream of `device`."""
    import cupy  # noqa: PLC0415, an optional dependency that `import onespike` must not need

    with cupy.cuda.Device(device.index):
        kernel = compiled(expression, device.index)
        with external_stream(torch.cuda.current_stream(device)):
            kernel((blocks,), (threads,), arguments)


def external_stream(stream: torch.cuda.Stream) -> Any:
    """Make torch's stream CuPy's, by the stream protocol where both know it, else by its address."""
    import cupy  # noqa: PLC0415

    if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
        return cupy.cuda.Stream.from_external(stream)
    return cupy.cuda.ExternalStream(stream.cuda_stream, stream.device_index)


@functools.cache
def compiled(expression: str, device: int) -> Any:
    """Compile one instance of a kernel template for `device`; CuPy also keeps it on disk, from run to run."""
    import cupy  # noqa: PLC0415

    with cupy.cuda.Device(device):
        return cupy.RawModule(code=source(), options=OPTIONS, name_expressions=(expression,)).get_function(expression)


def source() -> str:
    """The text of lif.cu."""
    return resources.files("onespike.kernels").joinpath("lif.cu").read_text(encoding="utf-8")
