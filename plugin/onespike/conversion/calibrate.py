"""Firing thresholds from the distribution of each layer's input current (Section V)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onespike.conversion.assemble import Assembly
from onespike.conversion.layers import MAX_POOL, NEURON, Layer, check_images
from onespike.conversion.percentile import nearest_percentile
from onespike.conversion.rules import ConversionError, Plan, read_ann
from onespike.conversion.spike_bits import STEPS, SpikeBits
from onespike.functional import single_spike_lif, spike_max_pool
from onespike.functional.checks import check_T
from onespike.graph import INPUT

KEPT_BYTES = 2**30
"""Currents of a layer that are kept, from when its threshold is sought until its spikes are; the others are computed twice."""

Source = Tensor | SpikeBits | None
Spiking = Callable[..., tuple[Tensor, Any]]
"""Neurons or a pool over some steps: (x_seq, state=...) -> (s_seq, state)."""


class SilentLayerError(ConversionError):
    """A layer of an ANN gets no positive input on the calibration images.

    Attributes:
        found: which layer, and what it gets; the message names the remedy, too.
    """

    def __init__(self, found: str, raised: str = "timesteps or the percentile") -> None:
        super().__init__(f"{found}: raise {raised}, or train the ANN further")
        self.found = found


@torch.no_grad()
def calibrate_thresholds(
    ann: nn.Module, images: Tensor, *, percentile: float = 99.7, timesteps: int | None = 200, batch_size: int = 128
) -> dict[str, float]:
    """Find each hidden layer's firing threshold: a percentile of its input current, layer by layer.

    The ANN's neurons become integrate-and-fire neurons (leak 1, any number of spikes) that see the analogue image, and their
    biases, at every step. A layer's threshold is the largest over the steps of the percentile over images and neurons, with the
    layers before it already at theirs. Scaling is left to `convert`.

    The network is walked through once: each layer's spikes are kept, a bit each, as long as a layer behind needs them. Held
    at once, beside network and images: timesteps / 8 bytes for every image and neuron of the layers on which those behind the
    next threshold depend (of a chain: of the largest layer), up to 1 GiB of currents (`KEPT_BYTES`), one step's currents of all
    images, and currents and spikes of eight steps of one batch. For VGG-16, 512 images and 200 steps these are 0.8 + 1.0 + 0.1
    + 0.6 GiB.

    Args:
        ann: as `convert` takes it; used in eval mode, left unchanged.
        images: training images, [N, *], as the ANN takes them; the paper uses 512.
        percentile: in (0, 100].
        timesteps: number of steps to simulate; the paper uses 200. None simulates none: it takes the percentile of the ANN's
            own activations, to which currents settle over many steps. Single steps' currents, which come in whole spikes, are
            higher, and so are thresholds by them: to follow the ANN takes more steps then.
        batch_size: images at a time; changes memory, not the result.

    Returns:
        Path of each ReLU in the ANN -> threshold, in forward order, in the unit of that layer's current.

    Raises:
        ConversionError: the ANN cannot be converted, or a layer gets no positive input.
        TypeError, ValueError: an argument leaves its range.
    """
    plan = read_ann(ann)
    check_images(plan.layers, images)
    if not len(images):
        raise ValueError(f"images must hold at least one image, got shape {tuple(images.shape)}")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must be in (0, 100], got {percentile}")
    timesteps = None if timesteps is None else check_T(timesteps, name="timesteps")
    batch_size = check_T(batch_size, name="batch_size")
    simulation = Simulation(plan, images, percentile, timesteps, batch_size)
    return Assembly(plan, images, simulation.threshold).thresholds


class Simulation:
    """The spikes of the layers so far, over all steps and images, as long as a layer behind needs them; without steps, rates.

    Args:
        plan, images, percentile, timesteps, batch_size: see `calibrate_thresholds`.
    """

    def __init__(self, plan: Plan, images: Tensor, percentile: float, timesteps: int | None, batch_size: int) -> None:
        self.percentile, self.timesteps, self.rates = percentile, timesteps or 1, timesteps is None
        device = plan.device
        self.backend = "torch" if device.type == "cpu" else "auto"  # compiling takes longer than a CPU's calibration
        self.spikes: dict[str, list[Source]] = {INPUT: [batch.to(device) for batch in images.split(batch_size)]}
        self.waiting = listeners(plan.layers)

    def threshold(self, assembly: Assembly, neuron: Layer) -> float:
        """Find a neuron's threshold, and its spikes if a layer behind needs them."""
        stage = self.stage(assembly, neuron)
        highest = stage.highest_percentile(self.percentile)
        if not 0 < highest < float("inf"):
            raise SilentLayerError(
                f"{neuron.name}: the {self.percentile} percentile of its input current is {highest:.4g}, not above 0: "
                "the layer is silent on these images",
                "the percentile" if self.rates else "timesteps or the percentile",
            )
        fire = partial(single_spike_lif, leak=1.0, v_threshold=highest, single_spike=False, backend=self.backend)
        self.run(neuron, stage, partial(rate_of, v_threshold=highest) if self.rates else fire)
        return highest

    def stage(self, assembly: Assembly, target: Layer) -> "Stage":
        """Return what lies between the spikes that are known and the input of a layer; pools on the way run first."""
        between: list[Layer] = []
        sources, wanted = set(), set(target.inputs)
        for layer in reversed(assembly.layers):
            if layer.name not in wanted:
                continue
            if layer.kind == MAX_POOL and layer.name not in self.spikes:
                pool = pool_of_rates if self.rates else spike_max_pool
                self.run(layer, self.stage(assembly, layer), partial(pool, **layer.arguments))
            if layer.name in self.spikes:
                sources.add(layer.name)
            else:
                between.insert(0, layer)
                wanted.update(layer.inputs)
        if INPUT in wanted:
            sources.add(INPUT)
        return Stage(between, assembly.modules, target, {name: self.spikes[name] for name in sources}, self.timesteps)

    def run(self, layer: Layer, stage: "Stage", fire: Spiking) -> None:
        """Keep the spikes of a layer, if they are needed, and let go of those that were needed for them alone."""
        done = [name for name in stage.sources if self.waiting[name] == {layer.name}]
        if self.waiting[layer.name]:
            self.spikes[layer.name] = stage.fire(fire, done, bits=not self.rates)
        for name in stage.sources:
            self.waiting[name].discard(layer.name)
        for name in done:
            del self.spikes[name]


def rate_of(x_seq: Tensor, state: None, v_threshold: float) -> tuple[Tensor, None]:
    """Return the rate to which neurons settle on currents [1, N, *], in spikes a step, however many that are."""
    return x_seq.clamp_min(0) / v_threshold, state


def pool_of_rates(x_seq: Tensor, state: None, **arguments: Any) -> tuple[Tensor, None]:
    """Return the largest rate of each window, of rates [1, N, C, H, W]."""
    return F.max_pool2d(x_seq[0], **arguments)[None], state


def listeners(layers: Sequence[Layer]) -> dict[str, set[str]]:
    """Return for each layer that spikes, and for the image, which spiking layers its spikes reach without another between."""
    behind: dict[str, set[str]] = {INPUT: {INPUT}}
    found: dict[str, set[str]] = {INPUT: set()}
    for layer in layers:
        sources = set().union(*(behind[name] for name in layer.inputs))
        if layer.kind in (NEURON, MAX_POOL):
            found[layer.name] = set()
            for name in sources:
                found[name].add(layer.name)
            sources = {layer.name}
        behind[layer.name] = sources
    return found


class Stage:
    """What lies between layers of neurons, or the images, and the next one: spikes go in, currents come out.

    A call takes one step of one batch. Folding steps into the batch would round some products of matrices differently (on a CPU
    those of a linear layer whose batch is no multiple of its blocks), and thresholds would depend on how steps were cut.

    Args:
        layers: the layers in between, in order.
        modules: their modules by name.
        target: the layer whose input is sought.
        sources: name of a layer -> for each batch the images [N, *], the same at every step, or its spikes.
        timesteps: number of steps.
    """

    def __init__(
        self,
        layers: list[Layer],
        modules: dict[str, nn.Module],
        target: Layer,
        sources: dict[str, list[Source]],
        timesteps: int,
    ) -> None:
        self.calls = [(layer, modules[layer.name].eval()) for layer in layers]
        for _, module in self.calls:
            module.step_mode = "s"  # type: ignore[assignment]
        (self.target,) = target.inputs
        self.sources, self.timesteps = sources, timesteps
        self.batches = len(next(iter(sources.values())))
        self.constant = set(sources) == {INPUT}
        self.kept: dict[tuple[int, int], Tensor] = {}

    def highest_percentile(self, percentile: float) -> float:
        """Return the largest, over the steps, of the currents' percentile, and keep of them what `KEPT_BYTES` can hold."""
        highest, room = -float("inf"), KEPT_BYTES
        for step in range(1 if self.constant else self.timesteps):
            currents = [self.current(step, batch) for batch in range(self.batches)]
            highest = nearest_percentile(currents, percentile, floor=highest)
            for batch, current in enumerate(currents):
                if current.nbytes <= room:
                    room -= current.nbytes
                    self.kept[step, batch] = current
        return highest

    def fire(self, run: Spiking, done: Sequence[str], *, bits: bool) -> list[Source]:
        """Run neurons or a pool on the currents and return their spikes by batch, and let go of sources that are done with.

        Without `bits` the last step is returned as it is.
        """
        found: list[Source] = []
        for batch in range(self.batches):
            spikes, state = SpikeBits(), None
            for start in range(0, self.timesteps, STEPS):
                s_seq, state = run(self.currents(range(start, min(start + STEPS, self.timesteps)), batch), state=state)
                if bits:
                    spikes.append(s_seq)
            found.append(spikes if bits else s_seq[-1])
            for name in done:
                self.sources[name][batch] = None
            self.kept = {place: current for place, current in self.kept.items() if place[1] != batch}
        return found

    def currents(self, steps: range, batch: int) -> Tensor:
        """Return the currents of some steps of a batch, [T, N, *], laid out as one step's are."""
        x_seq: Tensor | None = None
        for position, step in enumerate(steps):
            current = self.current(step, batch)
            if x_seq is None:
                x_seq = current.new_empty_strided((len(steps), *current.shape), (current.numel(), *current.stride()))
            x_seq[position] = current
        assert x_seq is not None
        return x_seq

    def current(self, step: int, batch: int) -> Tensor:
        """Return the current of one step and batch, [N, *]."""
        found = self.kept.get((0 if self.constant else step, batch))
        if found is not None:
            return found
        values: dict[str, Any] = {}
        for name, batches in self.sources.items():
            source = batches[batch]
            values[name] = source.at(step) if isinstance(source, SpikeBits) else source
        for layer, module in self.calls:
            values[layer.name] = module(*[values[name] for name in layer.inputs])
        return values[self.target]
