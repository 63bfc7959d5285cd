"""Spiking activity, operation counts and compute energy (Section VI)."""

import onespike.spikingjelly  # noqa: F401  (first, for it names the remedy where SpikingJelly is missing)
from onespike.metrics.activity import SpikingActivity
from onespike.metrics.energy import TECHNOLOGIES, EnergyReport, energy
from onespike.metrics.health import LayerHealth, NetworkHealth
from onespike.metrics.macs import count_macs

__all__ = ["TECHNOLOGIES", "EnergyReport", "LayerHealth", "NetworkHealth", "SpikingActivity", "count_macs", "energy"]
