"""From a SpikingJelly network of IF and LIF nodes to a single-spike one."""

import torch
from spikingjelly.activation_based import neuron
from torch import nn

from onespike.functional.swap import SwapReport, swap_neurons
from onespike.spikingjelly.neuron import SingleSpikeLIFNode


def to_single_spike(net: nn.Module) -> tuple[nn.Module, SwapReport]:
    """Return a copy of `net` whose IFNode, LIFNode and ParametricLIFNode are `SingleSpikeLIFNode`, and what became of each.

    Weights are kept. Until a neuron's first spike its potential is the same as before, so that each layer's first spikes are
    those of the host's neurons for the same input, but for ties (the host fires at U >= V, we at U > V) and rounding:

        leak = 1 - 1 / tau (1 for IFNode),   V = v_threshold, times tau where the host's `decay_input` divides the input by tau

    What a neuron does after its first spike changes on purpose: it stays silent, and its reset is soft, whatever the host's
    was. A single spike carries less to the next layer: train the network again.

    Args:
        net: any module holding SpikingJelly neurons; it is left as it is.

    Returns:
        The network and a report; print it to read which neurons were exchanged, how, and which were left and why.

    Raises:
        ValueError: `net` holds no SpikingJelly neuron.
        RuntimeError: a neuron that is left holds the state of a sequence: call `functional.reset_net(net)` first.
    """

    def is_neuron(module: nn.Module) -> bool:
        of_host = isinstance(module, neuron.BaseNode) or type(module).__module__.startswith(neuron.__name__)
        return of_host and not isinstance(module, SingleSpikeLIFNode)

    return swap_neurons(net, "SpikingJelly", is_neuron, exchange)


def exchange(node: nn.Module) -> tuple[nn.Module | None, str]:
    """Return the single-spike neuron for one of the host's, or None, and a note."""
    kind = type(node)
    if kind not in (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode):
        return None, f"only IFNode, LIFNode and ParametricLIFNode have a single-spike counterpart, not {kind.__name__}"
    if node.v_reset not in (None, 0.0):
        return None, f"v_reset must be None or 0, where the potential starts and decays to, got {node.v_reset}"
    decay, learns, dtype = 0.0, False, None
    if kind is neuron.LIFNode:
        decay = 1 / float(node.tau)  # type: ignore[arg-type]
    elif kind is neuron.ParametricLIFNode:
        decay, learns, dtype = torch.sigmoid(node.w).item(), node.w.requires_grad, node.w.dtype  # type: ignore
    scaled = decay and node.decay_input
    ours = SingleSpikeLIFNode(
        1 - decay,
        node.v_threshold / decay if scaled else node.v_threshold,  # type: ignore[operator, arg-type]
        learn_leak=learns,
        learn_threshold=False,
        step_mode=node.step_mode,  # type: ignore[arg-type]
        store_v_seq=bool(node.store_v_seq),
    ).to(dtype)  # type: ignore[arg-type]
    notes = ["the threshold takes up decay_input's 1 / tau"] if scaled else []
    if node.v_reset is not None:
        notes.append("the reset to 0 became a subtraction of the threshold")
    return ours, "; ".join(notes) + "." if notes else "Exact until the first spike."
