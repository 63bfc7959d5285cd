"""From a snnTorch network of Leaky neurons to a single-spike one."""

import snntorch
from torch import nn

from onespike.functional.swap import SwapReport, swap_neurons
from onespike.snntorch.neuron import SingleSpikeLeaky


def to_single_spike(net: nn.Module) -> tuple[nn.Module, SwapReport]:
    """Return a copy of `net` whose `Leaky` neurons with hidden state are `SingleSpikeLeaky`, and what became of each.

    Weights, beta, threshold and whether they learn are kept. Until a neuron's first spike its potential is the same as before,
    so that each layer's first spikes are those of `Leaky` for the same input. Afterwards it stays silent, and its reset is a
    subtraction, whatever the host's was. A single spike carries less to the next layer: train the network again.

    Neurons called as spk, mem = lif(x, mem) are left: the call itself has to change, to spk, fired, mem = node(x, fired, mem).

    Args:
        net: any module holding snnTorch neurons; it is left as it is.

    Returns:
        The network and a report; print it to read which neurons were exchanged, how, and which were left and why. Clear the
        network's state with `onespike.snntorch.reset`.

    Raises:
        ValueError: `net` holds no snnTorch neuron.
        RuntimeError: a neuron that is left holds the state of a sequence: call `snntorch.utils.reset(net)` first.
    """

    def is_neuron(module: nn.Module) -> bool:
        of_host = isinstance(module, snntorch.SpikingNeuron | snntorch.LeakyParallel)
        return of_host and not isinstance(module, SingleSpikeLeaky)

    return swap_neurons(net, "snnTorch", is_neuron, exchange)


def exchange(node: nn.Module) -> tuple[nn.Module | None, str]:
    """Return the single-spike neuron for one of the host's, or None, and a note."""
    if type(node) is not snntorch.Leaky:
        return None, f"only Leaky has a single-spike counterpart, not {type(node).__name__}"
    if not node.init_hidden or node.output:
        return None, "it returns mem: call a SingleSpikeLeaky as spk, fired, mem = node(x, fired, mem), or use init_hidden=True"
    if node.inhibition or node.state_quant:
        return None, "inhibition and state_quant have no single-spike counterpart"
    if node.beta.numel() > 1 or node.threshold.numel() > 1:  # type: ignore[operator]
        return None, "beta and threshold must be one number each"
    if node.graded_spikes_factor != 1 or node.graded_spikes_factor.requires_grad:
        return None, "graded_spikes_factor must be 1, and must not learn: our spikes are 0 or 1"
    learns = bool(node.beta.requires_grad), bool(node.threshold.requires_grad)
    beta, threshold = node.beta.detach().clamp(0, 1).item(), node.threshold.detach().item()  # type: ignore[operator]
    ours = SingleSpikeLeaky(beta, threshold, *learns, init_hidden=True)
    soft = node.reset_mechanism == "subtract"
    note = "Exact until the first spike." if soft else f'reset_mechanism "{node.reset_mechanism}" became "subtract".'
    return ours.to(node.beta), note  # type: ignore[arg-type]
