"""The neurons that are compared: ours by backend, and those of SpikingJelly and snnTorch, each [T, N, *] -> [T, N, *]."""

import snntorch
import torch
from snntorch import surrogate as snntorch_surrogate
from spikingjelly.activation_based import base, neuron, surrogate
from torch import Tensor, nn

from onespike.functional import available_backends
from onespike.kernels.reference import single_spike_lif_ref
from onespike.spikingjelly import SingleSpikeLIFNode


def timed_backends(device: torch.device) -> list[str]:
    """Name our backends that can run on `device`, but not "inductor" on a GPU: it compiles for a minute, which nobody needs."""
    return [name for name in available_backends(device) if (device.type, name) != ("cuda", "inductor")]


class Reference(nn.Module):
    """The equations as a loop over time under autograd."""

    def __init__(self, leak: float = 0.9, v_threshold: float = 1.0) -> None:
        super().__init__()
        self.leak, self.v_threshold = nn.Parameter(torch.tensor(leak)), nn.Parameter(torch.tensor(v_threshold))

    def forward(self, x_seq: Tensor) -> Tensor:
        return single_spike_lif_ref(x_seq, self.leak, self.v_threshold)[0]


class OneSpike(SingleSpikeLIFNode):
    """Our node, without a state from the call before."""

    def forward(self, x_seq: Tensor) -> Tensor:
        self.reset()
        s_seq = super().forward(x_seq)
        self.reset()
        return s_seq


class SpikingJelly(base.MemoryModule):
    """SpikingJelly's LIFNode or ParametricLIFNode with soft reset and a triangle as surrogate, all else as it comes.

    `detach_reset` keeps the spike in the reset out of the gradient, as our neuron does; by default SpikingJelly does not.
    """

    def __init__(
        self, leak: float = 0.9, v_threshold: float = 1.0, *, parametric: bool = False, detach_reset: bool = False
    ) -> None:
        super().__init__()
        self.step_mode = "m"
        tau = 1 / (1 - min(leak, 0.9))  # SpikingJelly asks for tau > 1; its cost does not hang on the value
        settings = {
            "v_threshold": v_threshold,
            "v_reset": None,
            "surrogate_function": surrogate.PiecewiseQuadratic(alpha=1.0),
            "detach_reset": detach_reset,
            "step_mode": "m",
        }
        self.node = neuron.ParametricLIFNode(tau, **settings) if parametric else neuron.LIFNode(tau, **settings)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        self.node.reset()
        s_seq = self.node(x_seq)
        self.node.reset()
        return s_seq


class SnnTorch(base.MemoryModule):
    """snnTorch's Leaky with learned beta and threshold, called step by step as its users do."""

    def __init__(self, leak: float = 0.9, v_threshold: float = 1.0) -> None:
        super().__init__()
        self.step_mode = "m"
        self.node = snntorch.Leaky(
            leak,
            v_threshold,
            snntorch_surrogate.triangular(),
            learn_beta=True,
            learn_threshold=True,
            reset_mechanism="subtract",
        )

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        mem = torch.zeros_like(x_seq[0])
        s_steps = []
        for x in x_seq:
            spk, mem = self.node(x, mem)
            s_steps.append(spk)
        return torch.stack(s_steps)


def onespike_node(backend: str):
    """Return a constructor (leak, v_threshold) of our node with this backend."""
    return lambda leak=0.9, v_threshold=1.0: OneSpike(leak, v_threshold, backend=backend)
