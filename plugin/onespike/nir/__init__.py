"""Exchange of single-spike networks through NIR, the Neuromorphic Intermediate Representation.

NIR has no soft reset and no neuron that fires once, and needs neither. Until its first spike a neuron of eqs. 6-8 is an
ordinary leaky integrator, and afterwards it only has to stay silent: an ordinary `nir.LIF` (`nir.IF` at leak 1) does both when
its spike comes back to it, one step later, through a strong negative weight.

    tau = dt / (1 - leak),   r = tau / dt,   v_leak = v_reset = 0

The negative weight decays with the potential, by leak^(T-2) until step T: a graph serves the number of steps that it was
written for, which it carries as the metadatum T.

The graph's input is the encoded sequence, one step at a time, and its output the last layer's currents W_L O^t: the encoder and
the readout are not neurons and stay outside. Dropout is left out.

Other importers: SpikingJelly 2.0's runs such a graph in step mode "s". It fires at U >= V, not U > V, so that a potential
exactly at the threshold differs, and for a leak below 1 it computes v - v / tau, which rounds differently from leak * v.
"""

import onespike.spikingjelly  # noqa: F401  (first, for it names the remedy where SpikingJelly is missing)

try:
    import nir  # noqa: F401  (only to name the remedy when it is missing)
except ImportError as error:
    raise ImportError('onespike.nir needs NIR: pip install "onespike[nir]"') from error

from onespike.nir.read import from_nir
from onespike.nir.write import to_nir

__all__ = ["from_nir", "to_nir"]
