"""From a trained ANN to a single-spike network: thresholds, conversion, saving and loading (Section V)."""

import onespike.spikingjelly  # noqa: F401  (first, for it names the remedy where SpikingJelly is missing)
from onespike.conversion.calibrate import calibrate_thresholds
from onespike.conversion.convert import convert
from onespike.conversion.description import CorruptModelError
from onespike.conversion.network import SpikingNetwork
from onespike.conversion.one_spike import fit_one_spike
from onespike.conversion.report import ConversionReport, compare
from onespike.conversion.rules import ConversionError

__all__ = [
    "ConversionError",
    "ConversionReport",
    "CorruptModelError",
    "SpikingNetwork",
    "calibrate_thresholds",
    "compare",
    "convert",
    "fit_one_spike",
]
