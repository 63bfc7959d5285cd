"""The paper's surrogate gradient for SpikingJelly's own neurons."""

from typing import Any

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor

from onespike.functional.checks import check_positive

# 0.0.0.0.14 has a base class of its own for parameters that are not called alpha.
Base: Any = getattr(surrogate, "MultiArgsSurrogateFunctionBase", surrogate.SurrogateFunctionBase)


class TriangleFunction(torch.autograd.Function):
    """Heaviside of x, x >= 0 as everywhere in SpikingJelly, with the gradient gamma * max(0, 1 - |x|)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gamma = gamma
        return surrogate.heaviside(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * (1 - x.abs()).clamp_min(0) * ctx.gamma, None


class Triangle(Base):
    """Triangular surrogate gradient (eq. 20) as a `surrogate_function` of the host's neurons.

    Equation:
        dO/dx = gamma * max(0, 1 - |x|),   x = U - V

    The host's neurons do not divide by V: with V = 1 it is the surrogate of `SingleSpikeLIFNode`.

    Args:
        gamma: height of the triangle.
        spiking: False makes the forward pass the integral of the triangle, 0..gamma, as the host's surrogates do.

    Raises:
        ValueError: `gamma` is not above 0.
    """

    def __init__(self, gamma: float = 0.3, spiking: bool = True) -> None:
        check_positive("gamma", gamma)
        super().__init__(spiking=spiking, gamma=gamma)
        self.gamma = gamma

    @staticmethod
    def spiking_function(x: Tensor, gamma: float) -> Tensor:
        """Return 1 where x >= 0, else 0, with the triangular gradient."""
        return TriangleFunction.apply(x, gamma)

    @staticmethod
    def primitive_function(x: Tensor, gamma: float) -> Tensor:
        """Return the integral of the triangle from below: 0 up to x = -1, gamma from x = 1."""
        x = x.clamp(-1, 1)
        return gamma * (0.5 + x - x * x.abs() / 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map U - V to spikes."""
        return self.spiking_function(x, self.gamma) if self.spiking else self.primitive_function(x, self.gamma)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, spiking={self.spiking}"
