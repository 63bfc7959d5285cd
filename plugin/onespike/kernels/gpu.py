"""What the CUDA backends share: how tensors and parameters reach a kernel, and how its partial sums are added up."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from onespike.kernels.plan import Plan, Signature

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class GpuPlan(Plan):
    """Two kernels, one launch each way; subclasses launch them.

    Neuron i has the leak `values[i // inner % count]`, likewise the threshold. The backward kernel writes partial sums of the
    parameters' gradients, [2, parts] float32, leak first: one for each neuron, or, for parameters that are one number, one for
    each block of neurons.

    Attributes:
        indexing: inner and count of the leak, then of the threshold.
    """

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature)
        if self.dtype not in DTYPES:
            raise TypeError(
                f'x_seq must be float32, float16 or bfloat16 for backend "{self.backend}", got {self.dtype}: '
                'use backend="torch"'
            )
        self.indexing = *self.index(signature.leak), *self.index(signature.v_threshold)

    @abstractmethod
    def launch_forward(self, *tensors: Tensor | None) -> None:
        """Run the kernel on x_seq, v, fired, s_seq, v_last, fired_last, v_seq, leak, v_threshold."""

    @abstractmethod
    def launch_backward(self, *tensors: Tensor | None) -> Tensor:
        """Run the kernel on grad_s_seq, grad_v, grad_v_seq, x_seq, v, fired, grad_x_seq, grad_initial, leak, v_threshold.

        Returns:
            The partial sums.
        """

    def forward(
        self, x_seq: Tensor, leak: Tensor, v_threshold: Tensor, v: Tensor | None, fired: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        s_seq, v_last, fired_last, v_seq = outputs = self.new_outputs()
        if v is not None:
            v, fired = self.laid(v, torch.float32), self.laid(fired)
        self.launch_forward(self.laid(x_seq), v, fired, *outputs, self.values(leak), self.values(v_threshold))
        return self.result(s_seq), v_last, fired_last, self.result(v_seq)

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
        grad_x = self.new_sequence(self.dtype)
        grad_initial = None
        if v is not None:
            v, fired, grad_initial = self.laid(v, torch.float32), self.laid(fired), self.new_step(torch.float32)
        sums = self.launch_backward(
            self.laid(grad_s_seq, self.dtype),
            self.laid(grad_v, torch.float32),
            self.laid(grad_v_seq, torch.float32),
            self.laid(x_seq),
            v,
            fired,
            grad_x,
            grad_initial,
            self.values(leak),
            self.values(v_threshold),
        )
        of_leak, of_threshold = (sums if self.per_neuron else sums.sum(1)).unbind()
        return self.result(grad_x), self.gradient(of_leak, leak), self.gradient(of_threshold, v_threshold), grad_initial

    def index(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return inner and count for a parameter of this shape: one for all, one for each place along a dimension, or any."""
        varying = [d for d, size in enumerate(shape, start=len(self.step_shape) - len(shape)) if size != 1]
        if len(varying) > 1:
            return 1, self.neurons
        return (self.step_stride[varying[0]], self.step_shape[varying[0]]) if varying else (1, 1)

    def values(self, parameter: Tensor) -> Tensor:
        """Return the values of a leak or threshold as `index` counts them."""
        if self.per_neuron and sum(size != 1 for size in parameter.shape) > 1:
            return self.new_step(torch.float32).copy_(parameter)
        values = parameter if parameter.dtype == torch.float32 else parameter.to(torch.float32)
        return values if values.is_contiguous() else values.contiguous()
