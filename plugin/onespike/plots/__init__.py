"""The figures of the method: spikes, membrane traces, activity, energy, training curves and spike times.

Every function draws on the Axes it is given, or on those of a new figure, and returns them; a title that they have stays. None
shows a figure or changes matplotlib's settings. Tensors may be on any device and part of a graph.
"""

try:
    import matplotlib.pyplot  # noqa: F401
except ImportError as error:
    raise ImportError('onespike.plots needs matplotlib: pip install "onespike[recipes]"') from error

from onespike.plots.axes import PALETTE
from onespike.plots.figures import activity_bars, energy_bars, membrane_traces, raster, spike_time_histogram, training_curves

__all__ = [
    "PALETTE",
    "activity_bars",
    "energy_bars",
    "membrane_traces",
    "raster",
    "spike_time_histogram",
    "training_curves",
]
