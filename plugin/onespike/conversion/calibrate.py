"""Firing thresholds from the distribution of each layer's input current (Section V)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from onespike.conversion.chain import NEURON, ConversionError, Layer, check_images, read_chain
from onespike.conversion.percentile import nearest_percentile
from onespike.conversion.spike_bits import STEPS, SpikeBits
from onespike.functional import LIFState, single_spike_lif
from onespike.functional.checks import check_T

KEPT_BYTES = 2**30
"""Currents of a layer that are kept, from when its threshold is sought until its spikes are; the others are computed twice."""


class SilentLayerError(ConversionError):
    """A layer of an ANN gets no positive input on the calibration images.

    Attributes:
        found: which layer, and what it gets; the message names the remedy, too.
    """

    def __init__(self, found: str) -> None:
        super().__init__(f"{found}: raise timesteps or the percentile, or train the ANN further")
        self.found = found


@torch.no_grad()
def calibrate_thresholds(
    ann: nn.Module, images: Tensor, *, percentile: float = 99.7, timesteps: int = 200, batch_size: int = 128
) -> dict[str, float]:
    """Find each hidden layer's firing threshold: a percentile of its input current, layer by layer.

    The ANN's neurons become integrate-and-fire neurons (leak 1, any number of spikes) that see the analogue image at every
    step. A layer's threshold is the largest over the steps of the percentile over images and neurons, with the layers before
    it already at theirs. Scaling is left to `convert`.

    The network is walked through once: each layer's spikes are kept, a bit each, for what lies before the next threshold. Held
    at once, beside network and images: timesteps / 8 bytes for every image and neuron of the largest layer, up to 1 GiB of
    currents (`KEPT_BYTES`), one step's currents of all images, and currents and spikes of eight steps of one batch. For VGG-16,
    512 images and 200 steps these are 0.8 + 1.0 + 0.1 + 0.6 GiB.

    Args:
        ann: a bias-free feed-forward ANN; used in eval mode, left unchanged.
        images: training images, [N, *], as the ANN takes them; the paper uses 512.
        percentile: in (0, 100].
        timesteps: number of steps to simulate; the paper uses 200.
        batch_size: images at a time; changes memory, not the result.

    Returns:
        Path of each ReLU in the ANN -> threshold, in forward order, in the unit of that layer's current.

    Raises:
        ConversionError: the ANN cannot be converted, or a layer gets no positive input.
        TypeError, ValueError: an argument leaves its range.
    """
    layers, weights = read_chain(ann)
    check_images(layers, images)
    if not len(images):
        raise ValueError(f"images must hold at least one image, got shape {tuple(images.shape)}")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must be in (0, 100], got {percentile}")
    timesteps = check_T(timesteps, name="timesteps")
    batch_size = check_T(batch_size, name="batch_size")

    modules = build_modules(layers, weights)
    for module in modules.values():
        module.eval()
        module.step_mode = "s"  # type: ignore[assignment]
    device = next(iter(weights.values())).device
    sources: list[Tensor | SpikeBits] = [batch.to(device) for batch in images.split(batch_size)]
    neurons = [position for position, layer in enumerate(layers) if layer.kind == NEURON]
    thresholds: dict[str, float] = {}
    for before, position in zip([-1, *neurons], neurons, strict=False):
        layer = layers[position]
        stage = Stage([modules[between.name] for between in layers[before + 1 : position]], sources, timesteps)
        highest = stage.highest_percentile(percentile)
        if not 0 < highest < float("inf"):
            raise SilentLayerError(
                f"{layer.name}: the {percentile} percentile of its input current is {highest:.4g}, not above 0: "
                "the layer is silent on these images"
            )
        thresholds[layer.name] = highest
        if position != neurons[-1]:
            stage.fire(highest)
    return thresholds


class Stage:
    """What lies between two layers of neurons, or between the images and the first: spikes go in, currents come out.

    A call takes one step of one batch. Folding steps into the batch would round some products of matrices differently (on a CPU
    those of a linear layer whose batch is no multiple of its blocks), and thresholds would depend on how steps were cut.

    Args:
        modules: the layers, single-step.
        sources: for each batch the images [N, *], the same at every step, or the spikes of the neurons before; `fire` puts
            those of the neurons behind in their place.
        timesteps: number of steps.
    """

    def __init__(self, modules: list[nn.Module], sources: list[Tensor | SpikeBits], timesteps: int) -> None:
        self.modules, self.sources, self.timesteps = modules, sources, timesteps
        self.kept: dict[tuple[int, int], Tensor] = {}

    def highest_percentile(self, percentile: float) -> float:
        """Return the largest, over the steps, of the currents' percentile, and keep of them what `KEPT_BYTES` can hold."""
        highest, room = -float("inf"), KEPT_BYTES
        steps = self.timesteps if isinstance(self.sources[0], SpikeBits) else 1
        for step in range(steps):
            currents = [self.current(step, batch) for batch in range(len(self.sources))]
            highest = nearest_percentile(currents, percentile, floor=highest)
            for batch, current in enumerate(currents):
                if current.nbytes <= room:
                    room -= current.nbytes
                    self.kept[step, batch] = current
        return highest

    def fire(self, v_threshold: float) -> None:
        """Run integrate-and-fire neurons on the currents, and put their spikes in the place of what went in."""
        for batch in range(len(self.sources)):
            spikes, state = SpikeBits(), None
            for start in range(0, self.timesteps, STEPS):
                steps = range(start, min(start + STEPS, self.timesteps))
                s_seq, state = integrate_and_fire((self.current(step, batch) for step in steps), len(steps), v_threshold, state)
                spikes.append(s_seq)
            self.sources[batch] = spikes
            self.kept = {place: current for place, current in self.kept.items() if place[1] != batch}

    def current(self, step: int, batch: int) -> Tensor:
        """Return the current of one step and batch, [N, *]."""
        source = self.sources[batch]
        constant = isinstance(source, Tensor)
        found = self.kept.get((0 if constant else step, batch))
        if found is not None:
            return found
        x = source if isinstance(source, Tensor) else source.at(step)
        for module in self.modules:
            x = module(x)
        return x


def integrate_and_fire(
    currents: Iterable[Tensor], steps: int, v_threshold: float, state: LIFState | None
) -> tuple[Tensor, LIFState]:
    """Run so many steps of neurons without leak that may fire at each; return spikes [steps, N, *] and the last state."""
    x_seq: Tensor | None = None
    for step, current in enumerate(currents):
        if x_seq is None:
            x_seq = current.new_empty_strided((steps, *current.shape), (current.numel(), *current.stride()))
        x_seq[step] = current
    assert x_seq is not None
    backend = "torch" if x_seq.device.type == "cpu" else "auto"  # compiling takes longer than a CPU's calibration
    return single_spike_lif(x_seq, 1.0, v_threshold, state=state, single_spike=False, backend=backend)


def build_modules(layers: list[Layer], weights: dict[str, Tensor]) -> dict[str, nn.Module]:
    """Make every layer but the neurons, by name, with copies of the weights."""
    modules = {layer.name: layer.build() for layer in layers if layer.kind != NEURON}
    for name, weight in weights.items():
        modules[name].weight = nn.Parameter(weight.detach().clone())
    return modules
