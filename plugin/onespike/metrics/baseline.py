"""A spiking network against the quantised ANN that says as much, data movement counted."""

from dataclasses import dataclass
from math import ceil, log2

from onespike.functional.checks import check_T
from onespike.metrics.activity import SpikingActivity, check_activity
from onespike.metrics.energy import MEMORIES, check_known

PUBLISHED_LIMIT = 0.057
"""Spikes per neuron and step below which a spiking network wins at T = 5 on typical neuromorphic hardware (Yan et al.,
arXiv:2409.08290, v4; v2 and v3 give 0.064 for T = 5 to 10)."""

PIXEL_BITS = 8
STATE_BITS = 16
"""Of a membrane potential, and of a spike's address."""


@dataclass(frozen=True)
class QuantisedBaseline:
    """A spiking network beside its quantised ANN, for one image.

    Attributes:
        memory: a name in `MEMORIES`.
        weight_bits: bits of a weight, in both.
        activation_bits: bits of an activation in the ANN.
        steps: time steps of the spiking network.
        spike_rate: its spikes per neuron and step.
        limit: the spike rate at which both would take the same energy, the events that each spike of a neuron causes and all
            else (spikes of pixels, biases) as counted; 0 where the spiking network loses even without a spike, infinite where
            it wins and no neuron spiked, so that nothing says what a spike costs.
        published_limit: `PUBLISHED_LIMIT`, for comparison: from another model of the hardware, and for T = 5.
        ann_pj, snn_pj: computing and memory access, in picojoules.
    """

    memory: str
    weight_bits: int
    activation_bits: int
    steps: float
    spike_rate: float
    limit: float
    published_limit: float
    ann_pj: float
    snn_pj: float

    @property
    def ratio(self) -> float:
        """How many times less energy the spiking network takes than the quantised ANN; below 1 it takes more."""
        return self.ann_pj / self.snn_pj

    def __str__(self) -> str:
        """Say on which side of both lines the network falls."""
        own, published = [
            f"{'below' if self.spike_rate < limit else 'above'} {100 * limit:.1f} %"
            for limit in (self.limit, self.published_limit)
        ]
        ann = f"an ANN of {self.activation_bits}-bit activations"
        said = {
            0.0: f"even without a spike no less energy than {ann} takes",
            float("inf"): f"less energy than {ann} takes",
        }.get(self.limit, f"{own}, where {ann} takes as much energy")
        return (
            f"{100 * self.spike_rate:.1f} % spikes per neuron and step: {said} ({self.memory}, {self.weight_bits}-bit "
            f"weights), and {published}, the limit of arXiv:2409.08290 at T = 5"
        )


def quantised_baseline(activity: SpikingActivity, *, memory: str = "sram_32KB", weight_bits: int = 8) -> QuantisedBaseline:
    """Compare what `activity` recorded with the ANN whose activations have as many levels as T steps have spike counts.

    Such an ANN has activations of b = ceil(log2(T + 1)) bits (Yan et al., arXiv:2409.08290). Both networks have weights of w
    bits, read from memory at each use, as activations are; pixels have 8 bits (b = 8 in the first layer), potentials and
    addresses of spikes p = 16.

    Equations, in bits of memory access at E_M each, and computing in 45 nm (Horowitz, 2014; Table IV):
        ANN:  MACs * (w + b), and b for each neuron that writes its activation
        SNN:  analogue MACs * (w + b) + accumulates * (w + 2 p) + 2 p * neurons * T + 2 p * spikes
        E_multiply = 3.1 pJ * w * b / 32^2,   E_add = 0.1 pJ, in accumulators of 32 bits

    MACs and accumulates are exact events, borders left out. That k spikes of an average pool are k accumulates, where the ANN
    has one MAC, weighs against the spiking network; that the ANN's zeros are not skipped weighs for it. Where spikes of pixels
    and of neurons are joined before they reach weights, all count as the neurons' for the limit.

    Args:
        activity: a monitor that has seen images.
        memory: a name in `MEMORIES`: where weights, activations and potentials lie.
        weight_bits: w.

    Raises:
        TypeError: `activity` is no monitor, `weight_bits` no integer.
        ValueError: an unknown memory, or weights of less than one bit.
        RuntimeError: the monitor has seen no image.
    """
    check_activity(activity)
    check_known("memory", memory, MEMORIES)
    weight_bits = check_T(weight_bits, name="weight_bits")
    steps, neurons, synapses = activity.steps, sum(activity.neurons.values()), activity.synapses.values()
    bits = max(1, ceil(log2(steps + 1)))

    def mac_pj(input_bits: int) -> float:
        return 3.1 * weight_bits * input_bits / 32**2 + 0.1 + MEMORIES[memory] * (weight_bits + input_bits)

    ann_pj = sum(layer.dense * mac_pj(bits if layer.sources else PIXEL_BITS) for layer in synapses)
    ann_pj += MEMORIES[memory] * bits * neurons
    analogue = sum(float(layer.analogue_events) for layer in synapses) / activity.images
    caused = sum(float(layer.events) for layer in synapses if layer.sources) / activity.images
    accumulates = sum(float(layer.events + layer.bias_events) for layer in synapses) / activity.images
    state_pj = MEMORIES[memory] * 2 * STATE_BITS
    ac_pj = 0.1 + MEMORIES[memory] * weight_bits + state_pj
    silent_pj = analogue * mac_pj(PIXEL_BITS) + (accumulates - caused) * ac_pj + state_pj * neurons * steps
    spiking_pj = caused * ac_pj + state_pj * activity.mean * neurons
    rate = activity.mean / steps
    spared_pj = max(0.0, ann_pj - silent_pj)
    limit = rate * spared_pj / spiking_pj if spiking_pj else float("inf") if spared_pj else 0.0
    return QuantisedBaseline(
        memory=memory,
        weight_bits=weight_bits,
        activation_bits=bits,
        steps=steps,
        spike_rate=rate,
        limit=limit,
        published_limit=PUBLISHED_LIMIT,
        ann_pj=ann_pj,
        snn_pj=silent_pj + spiking_pj,
    )
