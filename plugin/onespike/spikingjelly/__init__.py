"""The method as SpikingJelly modules: drop them into an ordinary SpikingJelly network.

Works with SpikingJelly 0.0.0.0.14 and 2.x. Sequences are [T, N, *] in step mode "m" and [N, *] a step in mode "s".
"""

try:
    import spikingjelly.activation_based.base  # noqa: F401  (only to name the remedy when it is missing)
except ImportError as error:
    raise ImportError("onespike.spikingjelly needs SpikingJelly: pip install spikingjelly") from error

from onespike.functional.projection import project_net
from onespike.spikingjelly.encoder import DirectEncoder, HybridEncoder
from onespike.spikingjelly.neuron import SingleSpikeLIFNode
from onespike.spikingjelly.op_counter import ac_rules, mac_rules
from onespike.spikingjelly.pool import SpikeMaxPool
from onespike.spikingjelly.readout import HybridCrossEntropyLoss, SpikeTimeReadout
from onespike.spikingjelly.registration import register
from onespike.spikingjelly.surrogate import Triangle
from onespike.spikingjelly.swap import to_single_spike

__all__ = [
    "DirectEncoder",
    "HybridCrossEntropyLoss",
    "HybridEncoder",
    "SingleSpikeLIFNode",
    "SpikeMaxPool",
    "SpikeTimeReadout",
    "Triangle",
    "ac_rules",
    "mac_rules",
    "project_net",
    "register",
    "to_single_spike",
]
