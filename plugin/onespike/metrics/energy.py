"""Compute energy of a spiking network against its ANN, by three accountings (Section VI.B, Table IV)."""

from dataclasses import dataclass

from onespike.metrics.activity import SpikingActivity, Synapses

ACCOUNTINGS = ("paper", "input", "events")


@dataclass(frozen=True)
class Technology:
    """Energy of one operation, in picojoules."""

    mac_pj: float
    ac_pj: float


TECHNOLOGIES = {"int32_45nm": Technology(3.2, 0.1), "fp32_45nm": Technology(4.6, 0.9)}
"""32-bit multiply-accumulate and accumulate in 45 nm CMOS at 0.9 V (Table IV; Horowitz, 2014)."""


@dataclass(frozen=True)
class EnergyReport:
    """Compute energy for one image; memory access is not included.

    Attributes:
        accounting: "paper", "input" or "events".
        technology: a name in `TECHNOLOGIES`.
        ann_pj: the ANN, a MAC for each weight use, in picojoules.
        snn_pj: the spiking network, in picojoules.
        layers_pj: the spiking network's layers, in picojoules.
        first_layer_ac_pj: accumulates of a first layer that sees frames for pixel spikes at t >= 2, in picojoules; part of
            `snn_pj` under "input" and "events", left out of it under "paper", as the paper does.
        ceiling: the ratio at no spike at all, where only the first layer's MACs remain.
    """

    accounting: str
    technology: str
    ann_pj: float
    snn_pj: float
    layers_pj: dict[str, float]
    first_layer_ac_pj: float
    ceiling: float

    @property
    def ratio(self) -> float:
        """How many times less energy the spiking network takes than its ANN."""
        return self.ann_pj / self.snn_pj


def energy(activity: SpikingActivity, *, accounting: str = "paper", technology: str = "int32_45nm") -> EnergyReport:
    """Estimate the compute energy of what `activity` recorded, and that of the ANN of the same shape.

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

    Args:
        activity: a monitor that has seen images.
        accounting: "paper", "input" or "events".
        technology: a name in `TECHNOLOGIES`.

    Raises:
        ValueError: an unknown accounting or technology.
        RuntimeError: the monitor has seen no image.
    """
    if accounting not in ACCOUNTINGS:
        raise ValueError(f"accounting must be one of {ACCOUNTINGS}, got {accounting!r}")
    if technology not in TECHNOLOGIES:
        raise ValueError(f"technology must be one of {tuple(TECHNOLOGIES)}, got {technology!r}")
    zeta, images, cost = activity.zeta, activity.images, TECHNOLOGIES[technology]

    def accumulates(layer: Synapses) -> float:
        if accounting == "events" or not layer.macs:
            return (float(layer.events) + float(layer.bias_events)) / images
        if accounting == "paper" and not layer.framed:
            return layer.macs * (zeta[layer.target] if layer.target else 1.0)
        return layer.macs * float(layer.arrivals) / (layer.positions * images)

    layers_pj = {name: accumulates(layer) * cost.ac_pj for name, layer in activity.synapses.items()}
    first_layer_ac_pj = frame_pj = 0.0
    for name, layer in activity.synapses.items():
        if not layer.framed:
            continue
        frame = (float(layer.analogue_events) / images if accounting == "events" else layer.macs) * cost.mac_pj
        first_layer_ac_pj, frame_pj = first_layer_ac_pj + layers_pj[name], frame_pj + frame
        layers_pj[name] = frame if accounting == "paper" else frame + layers_pj[name]
    ann_pj = sum(layer.macs for layer in activity.synapses.values()) * cost.mac_pj
    return EnergyReport(
        accounting=accounting,
        technology=technology,
        ann_pj=ann_pj,
        snn_pj=sum(layers_pj.values()),
        layers_pj=layers_pj,
        first_layer_ac_pj=first_layer_ac_pj,
        ceiling=ann_pj / frame_pj if frame_pj else float("inf"),
    )
