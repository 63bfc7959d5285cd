"""The method as pure functions of tensors: no module, no hidden state, torch alone.

Sequences are [T, N, *], time first; equation numbers are those of Datta, Kundu and Beerel, "Training
Energy-Efficient Deep Spiking Neural Networks with Single-Spike Hybrid Input Encoding" (2021).
"""

from onespike.functional.backends import BackendUnavailableError, available_backends, why_unavailable
from onespike.functional.encoding import hybrid_encode, spike_times
from onespike.functional.events import hybrid_encode_events
from onespike.functional.lif import LIFState, SingleSpikeLIFOutput, single_spike_lif
from onespike.functional.pool import PoolState, spike_max_pool
from onespike.functional.readout import Readout, hybrid_cross_entropy, predict, spike_time_readout
from onespike.kernels.reference import single_spike_lif_ref

__all__ = [
    "BackendUnavailableError",
    "LIFState",
    "PoolState",
    "Readout",
    "SingleSpikeLIFOutput",
    "available_backends",
    "hybrid_cross_entropy",
    "hybrid_encode",
    "hybrid_encode_events",
    "predict",
    "single_spike_lif",
    "single_spike_lif_ref",
    "spike_max_pool",
    "spike_time_readout",
    "spike_times",
    "why_unavailable",
]
