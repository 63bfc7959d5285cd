"""The numbers of NeuroBench's algorithm track, under its names."""

from torch import nn

from onespike.metrics.activity import SpikingActivity, check_activity
from onespike.metrics.macs import WEIGHTED
from onespike.metrics.watched import check_network


def neurobench_report(network: nn.Module, activity: SpikingActivity) -> dict[str, float]:
    """Report what NeuroBench (Yik et al., 2025) calls by these names, of a network that `activity` watched.

    Its harness, run step by step, gives the same numbers to the unit, but for these:
        Footprint: bytes of parameters and buffers.
        ConnectionSparsity: share of Conv and Linear weights that are 0, which NeuroBench rounds to four digits.
        ActivationSparsity: share of neurons and steps without a spike.
        Effective_ACs: spike events per image, borders and biases left out. A synapse whose weight is 0 counts here, not there.
            What an average pool makes of k spikes counts as k here; it is no spike there, but one MAC.
        Effective_MACs: analogue events per image. A pixel of exactly 0 counts here, not there; a direct frame counts at the
            first step here, and there at each.
        Dense: synapses times steps, borders left out. What a shortcut adds to currents as it is counts in none of them.

    Args:
        network: the network.
        activity: a monitor that has seen images in it.

    Raises:
        TypeError: the network is no module, or `activity` no monitor.
        ValueError: the network has no Conv or Linear layer, or is not the one that was watched.
        RuntimeError: the monitor has seen no image.
    """
    check_network(network)
    weights = [module.weight for module in network.modules() if isinstance(module, WEIGHTED)]
    if not weights:
        raise ValueError(f"network must hold a Conv or Linear layer, got {type(network).__name__} without any")
    check_activity(activity)
    activity.check_watched(network)
    steps, images = activity.steps, activity.images
    synapses = [layer for layer in activity.synapses.values() if layer.macs]
    updates = sum(layer.updates for layer in activity.layers.values())
    spikes = sum(float(layer.spikes) for layer in activity.layers.values())
    return {
        "Footprint": sum(x.numel() * x.element_size() for x in (*network.parameters(), *network.buffers())),
        "ConnectionSparsity": sum((w == 0).sum().item() for w in weights) / sum(w.numel() for w in weights),
        "ActivationSparsity": 1 - spikes / updates,
        "Effective_MACs": sum(float(layer.analogue_events) for layer in synapses) / images,
        "Effective_ACs": sum(float(layer.events) for layer in synapses) / images,
        "Dense": steps * sum(layer.dense for layer in synapses),
    }
