"""Other codes for spiking networks, to compare with: encoders and neurons that fit `convert` and `SpikingNetwork`."""

import onespike.spikingjelly  # noqa: F401  (which names the remedy where its host is missing)
from onespike.peers.codes import decay_kernel, kernel_spikes, phase_size
from onespike.peers.dct import DCTEncoder, dct_components, ycbcr_blocks, zigzag
from onespike.peers.encoders import KernelEncoder, PhaseEncoder, PoissonEncoder, farthest_pixel
from onespike.peers.neurons import BurstNode, KernelNode, PhaseNode
from onespike.peers.norm import BatchNormThroughTime

__all__ = [
    "BatchNormThroughTime",
    "BurstNode",
    "DCTEncoder",
    "KernelEncoder",
    "KernelNode",
    "PhaseEncoder",
    "PhaseNode",
    "PoissonEncoder",
    "dct_components",
    "decay_kernel",
    "farthest_pixel",
    "kernel_spikes",
    "phase_size",
    "ycbcr_blocks",
    "zigzag",
]
