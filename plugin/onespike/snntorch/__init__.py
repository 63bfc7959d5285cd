"""The method in snnTorch's conventions: drop the parts into an ordinary snnTorch network.

Works with snnTorch 0.9.4 and 1.0. Sequences are [T, B, ...], time first; `beta` is the leak and `mem` the potential U.
"""

try:
    import snntorch  # noqa: F401  (only to name the remedy when it is missing)
except ImportError as error:
    raise ImportError('onespike.snntorch needs snnTorch: pip install "onespike[snntorch]"') from error

from onespike.functional.projection import project_net
from onespike.snntorch.functional import (
    accuracy_combined,
    accuracy_potential,
    accuracy_time,
    ce_spike_time_potential_loss,
    hybrid,
)
from onespike.snntorch.neuron import SingleSpikeLeaky, reset
from onespike.snntorch.readout import SpikeTimeReadout
from onespike.snntorch.swap import to_single_spike

__all__ = [
    "SingleSpikeLeaky",
    "SpikeTimeReadout",
    "accuracy_combined",
    "accuracy_potential",
    "accuracy_time",
    "ce_spike_time_potential_loss",
    "hybrid",
    "project_net",
    "reset",
    "to_single_spike",
]
