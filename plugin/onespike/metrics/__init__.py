"""Spiking activity, operation counts and compute energy (Section VI)."""

from onespike.metrics.activity import SpikingActivity
from onespike.metrics.energy import TECHNOLOGIES, EnergyReport, energy
from onespike.metrics.macs import count_macs

__all__ = ["TECHNOLOGIES", "EnergyReport", "SpikingActivity", "count_macs", "energy"]
