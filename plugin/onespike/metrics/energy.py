"""Compute energy of a spiking network against its ANN, by three accountings (Section VI.B, Table IV)."""

from collections.abc import Collection
from dataclasses import dataclass

from onespike.metrics.activity import SpikingActivity, check_activity
from onespike.metrics.counts import Synapses

ACCOUNTINGS = ("paper", "input", "events")


@dataclass(frozen=True)
class Technology:
    """Energy of one operation, in picojoules."""

    mac_pj: float
    ac_pj: float


TECHNOLOGIES = {"int32_45nm": Technology(3.2, 0.1), "fp32_45nm": Technology(4.6, 0.9)}
"""32-bit multiply-accumulate and accumulate in 45 nm CMOS at 0.9 V (Table IV; Horowitz, 2014)."""


MEMORIES = {"sram_8KB": 10 / 64, "sram_32KB": 20 / 64, "sram_1MB": 100 / 64, "dram": 1300 / 64}
"""Picojoules for each bit that is read or written, in 45 nm: 64 bits of a cache of that size take 10, 20 and 100 pJ, of DRAM
1.3 to 2.6 nJ, of which the lower is taken (Horowitz, 2014)."""


@dataclass(frozen=True)
class EnergyReport:
    """Energy for one image: of computing, and of memory access where it was asked for.

    Attributes:
        accounting: "paper", "input" or "events".
        technology: a name in `TECHNOLOGIES`.
        ann_pj: computing in the ANN, a MAC for each weight use, in picojoules.
        snn_pj: computing in the spiking network, in picojoules.
        layers_pj: computing in the spiking network's layers, in picojoules.
        first_layer_ac_pj: accumulates of a first layer that sees frames for pixel spikes at t >= 2, in picojoules; part of
            `snn_pj` under "input" and "events", left out of it under "paper", as the paper does.
        ceiling: the ratio at no spike at all, where the first layer's MACs remain, the biases added under "events", and with
            `memory` what both fetch and the updates of the potentials; infinite where nothing remains.
        memory: a name in `MEMORIES`; None where only computing is counted.
        ann_memory_pj, snn_memory_pj: memory access, in picojoules.
    """

    accounting: str
    technology: str
    ann_pj: float
    snn_pj: float
    layers_pj: dict[str, float]
    first_layer_ac_pj: float
    ceiling: float
    memory: str | None = None
    ann_memory_pj: float = 0.0
    snn_memory_pj: float = 0.0

    @property
    def ratio(self) -> float:
        """How many times less energy the spiking network takes than its ANN; infinite where it takes none."""
        return ratio_of(self.ann_pj + self.ann_memory_pj, self.snn_pj + self.snn_memory_pj)


def ratio_of(ann_pj: float, snn_pj: float) -> float:
    """Return how many times less energy one takes than the other."""
    return ann_pj / snn_pj if snn_pj else float("inf")


def check_known(name: str, value: str, known: Collection[str]) -> None:
    """Raise unless `value` is one of the names in `known`."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {tuple(known)}, got {value!r}")


def energy(
    activity: SpikingActivity, *, accounting: str = "paper", technology: str = "int32_45nm", memory: str | None = None
) -> EnergyReport:
    """Estimate the energy of what `activity` recorded, and that of the ANN of the same shape.

    Equations, with F_l the MACs of layer l and zeta the spikes per neuron:
        E_ANN = E_MAC * sum_l F_l
        paper:  E_SNN = E_MAC * F_1 + E_AC * sum_{l>=2} F_l * zeta_l             (eq. 25; an output neuron spikes once)
        input:  E_SNN = E_MAC * F_1 + E_AC * sum_l F_l * (spikes that arrive per input of layer l; of the pixels for l = 1)
        events: E_SNN = E_MAC * (exact analogue events) + E_AC * (exact spike events + biases added), borders left out, a
                pooled value of k spikes counted as k
    Layer 1 is every layer that sees the image. Behind an encoder that emits spikes alone there is none: its E_MAC terms fall
    away, and the paper's accounting takes F * zeta of the first layer too. A spike that a shortcut adds to currents as it is
    counts E_AC in all three. A spike with a size counts E_AC as any other: what scales it is not counted, be it a shift for
    each event (weighted spikes, bursts) or a product for each neuron and step (T2FSNN's kernel), nor is batch norm.

    With `memory`, words of 32 bits at E_M each are added, kept there and fetched whenever they are used, as Lemaire et al.
    (2022, arXiv:2210.13107) count them for event-driven hardware. A MAC reads a weight and an input; an accumulate reads a
    weight, and reads and writes a potential; each neuron's potential is read and written at each step; a spike's address is
    written and read. No data is used again, on either side, so it bounds the cost of a real memory system from above:
        M_ANN = E_M * (2 * sum_l F_l + neurons)
        M_SNN = E_M * (2 * MACs + 3 * accumulates + 2 * neurons * T + 2 * spikes)

    Args:
        activity: a monitor that has seen images.
        accounting: "paper", "input" or "events".
        technology: a name in `TECHNOLOGIES`.
        memory: a name in `MEMORIES`; None counts computing alone, as the paper does.

    Raises:
        ValueError: an unknown accounting, technology or memory.
        TypeError: `activity` is no monitor.
        RuntimeError: the monitor has seen no image, or the network never calls one of its spiking layers.
    """
    check_activity(activity)
    check_known("accounting", accounting, ACCOUNTINGS)
    check_known("technology", technology, TECHNOLOGIES)
    if memory is not None:
        check_known("memory", memory, MEMORIES)
    zeta, images, cost = activity.zeta, activity.images, TECHNOLOGIES[technology]

    def accumulates_of(layer: Synapses) -> float:
        if accounting == "events" or not layer.macs:
            return (float(layer.events) + float(layer.bias_events)) / images
        if accounting == "paper" and not layer.framed:
            return layer.macs * (zeta[layer.target] if layer.target else 1.0)
        return layer.macs * float(layer.arrivals) / (layer.positions * images)

    accumulates = {name: accumulates_of(layer) for name, layer in activity.synapses.items()}
    first = {name: layer for name, layer in activity.synapses.items() if layer.framed}
    first_layer_ac_pj = sum(accumulates[name] for name in first) * cost.ac_pj
    if accounting == "paper":
        accumulates |= dict.fromkeys(first, 0.0)
    exact = accounting == "events"
    macs = {name: float(layer.analogue_events) / images if exact else layer.macs for name, layer in first.items()}
    layers_pj = {name: macs.get(name, 0) * cost.mac_pj + count * cost.ac_pj for name, count in accumulates.items()}
    dense = sum(layer.macs for layer in activity.synapses.values())

    word_pj = 32 * MEMORIES[memory] if memory else 0.0
    neurons = sum(activity.neurons.values())
    biases = sum(float(layer.bias_events) for layer in activity.synapses.values()) / images if exact else 0.0
    silent_pj = word_pj * (2 * sum(macs.values()) + 2 * neurons * activity.steps)
    spikes = activity.mean * neurons
    ann_memory_pj = word_pj * (2 * dense + neurons)
    floor_pj = sum(macs.values()) * cost.mac_pj + biases * cost.ac_pj + silent_pj + word_pj * 3 * biases
    return EnergyReport(
        accounting=accounting,
        technology=technology,
        ann_pj=dense * cost.mac_pj,
        snn_pj=sum(layers_pj.values()),
        layers_pj=layers_pj,
        first_layer_ac_pj=first_layer_ac_pj,
        ceiling=ratio_of(dense * cost.mac_pj + ann_memory_pj, floor_pj),
        memory=memory,
        ann_memory_pj=ann_memory_pj,
        snn_memory_pj=silent_pj + word_pj * (3 * sum(accumulates.values()) + 2 * spikes),
    )
