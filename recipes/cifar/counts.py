"""What a spiking network's spikes come to, as recipes write it down."""

from collections import Counter
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from onespike.conversion import SpikingNetwork
from onespike.metrics import EnergyReport, QuantisedBaseline, SpikingActivity, energy, neurobench_report, quantised_baseline
from onespike.metrics.energy import ACCOUNTINGS, TECHNOLOGIES


def counts_of(network: SpikingNetwork, activity: SpikingActivity) -> dict[str, Any]:
    """Return spikes, by layer too, energy and operations of what was watched."""
    return {
        "spikes_per_neuron": activity.mean,
        "flop_weighted_spikes_per_neuron": activity.flop_weighted_mean,
        "activity": activity.zeta,
        "layers": layer_names(network, activity),
        "energy": {t: {a: written(energy(activity, accounting=a, technology=t)) for a in ACCOUNTINGS} for t in TECHNOLOGIES},
        "quantised_baseline": written(quantised_baseline(activity)),
        "neurobench": neurobench_report(network, activity),
    }


def written(report: EnergyReport | QuantisedBaseline) -> dict[str, Any]:
    """Return a report as JSON takes it: None for a bound that is infinite."""
    return {name: None if value == float("inf") else value for name, value in asdict(report).items()}


def layer_names(network: SpikingNetwork, activity: SpikingActivity) -> dict[str, str]:
    """Return a name for each spiking layer, conv1 or fc2, after the weights that feed it; a shortcut's do not count."""
    modules, names, found = network.named_layers(), dict[str, str](), Counter[str]()
    for name, synapses in activity.synapses.items():
        if synapses.target is not None and synapses.target not in names and name in modules:
            kind = "fc" if isinstance(modules[name], nn.Linear) else "conv"
            found[kind] += 1
            names[synapses.target] = f"{kind}{found[kind]}"
    return names


def spike_times(spike_time: Tensor, y: Tensor, T: int) -> Tensor:
    """Count the output neurons [N, K] that spike at each step 1..T: those of the true classes [N], then all others, [2, T]."""
    times = (spike_time.round().long() - 1).clamp(0, T - 1)
    true = torch.zeros_like(times, dtype=torch.bool).scatter_(1, y.unsqueeze(1), True)
    return torch.stack([times[which].bincount(minlength=T) for which in (true, ~true)])


def spike_time_counts(counts: Tensor) -> dict[str, list[int]]:
    """Name what `spike_times` returned."""
    return dict(zip(("true class", "other classes"), counts.long().tolist(), strict=True))
