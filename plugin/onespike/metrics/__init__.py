"""Spiking activity, operation counts and compute energy (Section VI)."""

from onespike.metrics.activity import SpikingActivity
from onespike.metrics.energy import TECHNOLOGIES, EnergyReport, energy
from onespike.metrics.health import LayerHealth, NetworkHealth
from onespike.metrics.macs import count_macs

__all__ = ["TECHNOLOGIES", "EnergyReport", "LayerHealth", "NetworkHealth", "SpikingActivity", "count_macs", "energy"]
