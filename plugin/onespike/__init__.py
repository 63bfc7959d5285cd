"""Single-spike, hybrid-encoded spiking neural networks as composable parts for SpikingJelly.

After Datta, Kundu and Beerel, "Training Energy-Efficient Deep Spiking Neural Networks with Single-Spike
Hybrid Input Encoding" (2021).
"""

from onespike import functional

__version__ = "0.1.0"

__all__ = ["__version__", "functional"]
