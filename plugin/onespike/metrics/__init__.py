"""Spiking activity, operation counts and energy (Section VI)."""

import onespike.spikingjelly  # noqa: F401  (first, for it names the remedy where SpikingJelly is missing)
from onespike.metrics.activity import SpikingActivity
from onespike.metrics.baseline import QuantisedBaseline, quantised_baseline
from onespike.metrics.energy import MEMORIES, TECHNOLOGIES, EnergyReport, energy
from onespike.metrics.health import LayerHealth, NetworkHealth
from onespike.metrics.macs import count_macs
from onespike.metrics.neurobench import neurobench_report

__all__ = [
    "MEMORIES",
    "TECHNOLOGIES",
    "EnergyReport",
    "LayerHealth",
    "NetworkHealth",
    "QuantisedBaseline",
    "SpikingActivity",
    "count_macs",
    "energy",
    "neurobench_report",
    "quantised_baseline",
]
