"""How a backend runs the neuron on sequences of one shape, worked out once: memory order, parameters, switches.

Every backend sees a sequence as flat [T, M] memory whose steps are contiguous, each in the order in which the caller's lies in
memory, so channels-last tensors are neither copied nor transposed. Tensors that lie otherwise (an outermost batch, gaps, a
broadcast step) are copied to it. Leak and threshold are one number for the layer, or one for each neuron.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import isfinite, prod
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from onespike.kernels.reference import state_dtype

Optional = TypeVar("Optional", bound=Tensor | None)


class Switches(NamedTuple):
    """The neuron's settings, with the meaning and the defaults of `onespike.functional.single_spike_lif`."""

    gamma: float = 0.3
    single_spike: bool = True
    grad_after_spike: bool = True
    temporal_gradient: bool = True


class Signature(NamedTuple):
    """All that a plan depends on.

    Attributes:
        shape, stride, dtype, device: of x_seq [T, N, *].
        leak, v_threshold: shapes of the parameters, broadcastable to [N, *].
        has_state: whether a state is carried in.
        switches: the neuron's settings.
        keep_state: whether the last state is wanted.
        trace: whether the membrane trace is wanted.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    leak: torch.Size
    v_threshold: torch.Size
    has_state: bool = False
    switches: Switches = Switches()
    keep_state: bool = True
    trace: bool = False

    @classmethod
    def of(cls, x_seq: Tensor, leak: Tensor, v_threshold: Tensor, *others: Any) -> Self:
        """Read off tensors what a plan depends on; `others` are the fields from `has_state` on."""
        return cls(x_seq.shape, x_seq.stride(), x_seq.dtype, x_seq.device, leak.shape, v_threshold.shape, *others)


class PotentialError(ArithmeticError):
    """Potentials became NaN or infinite."""


def require_finite(v: Any, total: Tensor | None = None) -> None:
    """Raise `PotentialError` if the last potentials, on a CPU, are not finite: they stay NaN or infinite once they are.

    Args:
        v: the potentials [M]; None if all there is of them is their sum, which is infinite too where large ones overflow.
        total: their sum, if it is known. (A product with themselves is quicker than a sum.)
    """
    if not isfinite((v.dot(v) if total is None else total).item()) and (v is None or not v.isfinite().all()):
        raise PotentialError


class Plan(ABC):
    """What a backend does for one `Signature`. It holds neither tensors nor streams, so threads and graphs may share it.

    Attributes:
        steps, neurons: T and M, the number of neurons of a step.
        per_neuron: whether leak and threshold are one for each neuron, not one number.
        state_dtype: dtype of potentials and sums.
    """

    backend: str

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.switches = signature.switches
        self.shape, self.dtype, self.device = signature.shape, signature.dtype, signature.device
        self.steps, self.neurons = self.shape[0], prod(self.shape[1:])
        self.per_neuron = prod(signature.leak) * prod(signature.v_threshold) != 1
        self.state_dtype = state_dtype(self.dtype)
        like = torch.empty_like(torch.empty_strided(self.shape, signature.stride, device="meta"))
        self.result_stride = like.stride()
        dense = time_first(self.shape, self.result_stride)
        self.stride = self.result_stride if same_memory(self.shape, self.result_stride, dense) else dense
        self.step_shape, self.step_stride = self.shape[1:], self.stride[1:]

    @abstractmethod
    def forward(
        self, x_seq: Tensor, leak: Tensor, v_threshold: Tensor, v: Tensor | None, fired: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Return s_seq [T, N, *]; the last v and fired, [N, *], if wanted; v_seq [T, N, *], if wanted.

        A potential that is NaN makes its neuron's spike NaN, so that the loss shows it; on a CPU it raises `PotentialError`.
        """

    @abstractmethod
    def backward(
        self,
        grad_s_seq: Tensor | None,
        grad_v: Tensor | None,
        grad_v_seq: Tensor | None,
        x_seq: Tensor,
        leak: Tensor,
        v_threshold: Tensor,
        v: Tensor | None,
        fired: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the gradients of x_seq, leak, v_threshold and, where there was one, the initial v.

        The potentials are computed again from x_seq. With G^t = dL/dU^t, S^t = gamma * max(0, 1 - |U^t / V - 1|) and G^{T+1}
        the gradient of the returned state:
            G^t     = gO^t * S^t / V + leak * G^{t+1}          (temporal_gradient=False drops the second term)
            dL/dx^t = G^t
            dL/dleak = sum_t <G^t, U^{t-1}>
            dL/dV    = sum_t [ -<gO^t * S^t, U^t> / V^2 - <G^t, 1[U^{t-1} > V]> ]
        """

    def laid(self, tensor: Optional, dtype: torch.dtype | None = None) -> Optional:
        """Return `tensor`, [T, N, *] or [N, *], in the plan's memory order and in `dtype`; copy it only if it is not."""
        if tensor is None:
            return tensor
        whole = tensor.dim() == len(self.shape)
        stride = self.stride if whole else self.step_stride
        if (
            (dtype is None or tensor.dtype == dtype)
            and (tensor.stride() == stride or same_memory(tensor.shape, tensor.stride(), stride))
            and not (tensor.is_neg() or tensor._is_zerotensor())  # whose memory does not hold their values
        ):
            return tensor
        return torch.empty_strided(tensor.shape, stride, dtype=dtype or tensor.dtype, device=self.device).copy_(tensor)  # type: ignore[return-value]

    def new_sequence(self, dtype: torch.dtype) -> Tensor:
        """Make room for [T, N, *] in the plan's memory order."""
        return torch.empty_strided(self.shape, self.stride, dtype=dtype, device=self.device)

    def new_step(self, dtype: torch.dtype) -> Tensor:
        """Make room for [N, *] in the memory order of a step."""
        return torch.empty_strided(self.step_shape, self.step_stride, dtype=dtype, device=self.device)

    def new_outputs(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Make room for what `forward` returns, in the plan's memory order."""
        keep_state, trace = self.signature.keep_state, self.signature.trace
        return (
            self.new_sequence(self.dtype),
            self.new_step(self.state_dtype) if keep_state else None,
            self.new_step(torch.bool) if keep_state else None,
            self.new_sequence(self.state_dtype) if trace else None,
        )

    def flat(self, tensor: Optional) -> Optional:
        """View a tensor in the plan's memory order, [T, N, *] or [N, *], as [T, M] or [M]."""
        if tensor is None:
            return tensor
        if tensor.dim() == len(self.shape):
            return tensor.as_strided((self.steps, self.neurons), (self.neurons, 1))  # type: ignore[return-value]
        return tensor.as_strided((self.neurons,), (1,))  # type: ignore[return-value]

    def shaped(self, flat: Optional) -> Optional:
        """View contiguous [T, M] or [M] as [T, N, *] or [N, *], the inverse of `flat`."""
        if flat is None:
            return flat
        shape, stride = (self.shape, self.stride) if flat.dim() == 2 else (self.step_shape, self.step_stride)
        # `data`, as autograd would not let users write into a view of something else.
        return flat.as_strided(shape, stride).data  # type: ignore[return-value]

    def result(self, sequence: Optional) -> Optional:
        """Return [T, N, *] with the strides of `torch.empty_like(x_seq)`, which it has unless N lies outside T in memory."""
        if sequence is None or self.stride == self.result_stride:
            return sequence
        result = torch.empty_strided(self.shape, self.result_stride, dtype=sequence.dtype, device=self.device)
        return result.copy_(sequence)  # type: ignore[return-value]

    def parameter(self, value: Tensor) -> Tensor:
        """Return a leak or threshold in the dtype of the potentials: 0-d, or [M] if the neurons have their own."""
        if not self.per_neuron:
            value = value if value.dtype == self.state_dtype else value.to(self.state_dtype)
            return value if value.dim() == 0 else value.reshape(())
        return self.flat(self.new_step(self.state_dtype).copy_(value))

    def height(self, v_threshold: Tensor) -> Tensor:
        """Return gamma / V^2, by which the surrogate's derivative needs no division at each step, for what `parameter` gave."""
        return self.switches.gamma / (v_threshold * v_threshold)

    def gradient(self, sums: Tensor, parameter: Tensor) -> Tensor:
        """Bring the gradient of a parameter, 0-d or [M] as `parameter` returns it, to its shape and dtype."""
        if self.per_neuron:
            sums = self.shaped(sums).sum_to_size(parameter.shape)
        elif sums.shape != parameter.shape:
            sums = sums.reshape(parameter.shape)
        return sums if sums.dtype == parameter.dtype else sums.to(parameter.dtype)


def time_first(shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of dense memory in which T is outermost and the other dimensions keep their order."""
    dense, size = [0] * len(shape), 1
    for d in (*sorted(range(1, len(shape)), key=lambda d: (stride[d], -d)), 0):
        dense[d] = size
        size *= max(shape[d], 1)
    return tuple(dense)


def same_memory(shape: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether strides `a` and `b` put every element in the same place; those of dimensions of size 1 do not matter."""
    return all(x == y or size == 1 for size, x, y in zip(shape, a, b, strict=True))
