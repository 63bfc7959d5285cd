"""The converted network: encoder, spiking layers and readout, to be called, trained, saved and loaded."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any, Self

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from onespike.conversion.layers import NEURON, Layer, check_images, wires
from onespike.functional import Readout
from onespike.functional.checks import check_T
from onespike.spikingjelly import SingleSpikeLIFNode, SpikeMaxPool, SpikeTimeReadout, project_net
from onespike.spikingjelly.memory import CopyableMemory
from onespike.spikingjelly.wiring import Bias, Wiring

LEAKS = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)


class SpikingNetwork(CopyableMemory):
    """A feed-forward spiking network: images [N, *] -> `Readout` of potential and spike time, each [N, K].

    `encoder`, `body` and `readout` are ordinary SpikingJelly modules and may be used, swapped or hooked on their own. In step
    mode "m" every call is a presentation of its own and starts from a clean state, so nodes, pools and biases do not keep
    theirs (`keep_state` is False: the state costs time and memory). In mode "s" each call is one step; `reset()` starts over.

    Args:
        encoder: [N, *] -> [T, N, *], with an attribute `T`.
        layers: what the body's modules are, in an order in which each comes behind those that it takes.
        modules: the body's modules, one for each of `layers`.
        readout: [T, N, K] -> Readout.
    """

    body: Wiring

    def __init__(self, encoder: nn.Module, layers: list[Layer], modules: list[nn.Module], readout: SpikeTimeReadout) -> None:
        super().__init__()
        self.step_mode = "m"
        self.layers = tuple(layers)
        self.encoder = encoder
        self.body = Wiring(modules, wires(layers))
        self.readout = readout
        for module in self.body.modules():
            if isinstance(module, SingleSpikeLIFNode | SpikeMaxPool | Bias):
                module.keep_state = False

    @property
    def T(self) -> int:
        """Number of time steps; may be set."""
        return self.encoder.T  # type: ignore[return-value]

    @T.setter
    def T(self, value: int) -> None:
        check_T(value)
        self.encoder.T = value  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Readout:
        """Present images [N, *]: a whole sequence in step mode "m", one step in mode "s"."""
        return super().forward(x)

    def multi_step_forward(self, x: Tensor) -> Readout:
        """Present images [N, *] for T steps; a RuntimeError unless the whole network is in step mode "m"."""
        return self.readout(self.currents(x))

    def single_step_forward(self, x: Tensor) -> Readout:
        """Present images [N, *] for one step and read out the steps since the reset."""
        self.check_step_modes()
        check_images(self.layers, x, "x")
        return self.readout(self.body(self.encoder(x)))

    def currents(self, x: Tensor) -> Tensor:
        """Present images [N, *] and return the output layer's currents W_L O^t, [T, N, K].

        Their cumulative sum over the steps is the potential at each of them.

        Raises:
            RuntimeError: the network, or a part of it, is in step mode "s".
        """
        if self.step_mode != "m":
            raise RuntimeError('step_mode must be "m" to present whole sequences, got "s": call set_step_mode first')
        self.check_step_modes()
        check_images(self.layers, x, "x")
        self.reset()
        return self.body(self.encoder(x))

    def check_step_modes(self) -> None:
        """Raise a RuntimeError unless encoder, layers and readout all are in the network's step mode."""
        body = [(f"body.{name}", module) for name, module in self.body.named_children()]
        for name, module in [("encoder", self.encoder), *body, ("readout", self.readout)]:
            step_mode = getattr(module, "step_mode", self.step_mode)
            if step_mode != self.step_mode:
                raise RuntimeError(
                    f'step_mode must be "{self.step_mode}" throughout the network, got "{step_mode}" at {name}: '
                    f'call set_step_mode(network, "{self.step_mode}")'
                )

    def reset(self) -> None:
        """Clear the state of every layer, before a new presentation."""
        for module in self.modules():
            if module is not self and isinstance(module, base.MemoryModule):
                module.reset()

    def project_(self) -> None:
        """Bring every leak back to [0, 1] and every threshold to its floor; call after each optimizer step."""
        project_net(self.body)
        self.readout.project_()

    def named_layers(self) -> dict[str, nn.Module]:
        """Return the body's modules by their path in the ANN, in forward order."""
        return {layer.name: module for layer, module in zip(self.layers, self.body, strict=True)}

    def nodes(self) -> dict[str, nn.Module]:
        """Return the neurons by the path of the ReLU that each replaces, in forward order."""
        neurons = [layer.name for layer in self.layers if layer.kind == NEURON]
        return {name: module for name, module in self.named_layers().items() if name in neurons}

    @torch.no_grad()
    def calibrate_readout(self, images: Tensor, batch_size: int = 128) -> None:
        """Set V_L to the median of M^{ceil(T/2)}, the outputs' running maximum half-way, over `images` [N, *].

        It is never set below the readout's beta: under a nearly silent network the resting potential would lie inside the
        surrogate's window.

        Raises:
            TypeError, ValueError: `images` are empty, not floating point or of the wrong number of dimensions, or `batch_size`
                is not an int >= 1.
        """
        batches = self.batches(images, batch_size)
        with self.measuring():
            potentials = [self.currents(batch).cumsum(0) for batch in batches]
        halfway = torch.cat([v_seq[: ceil(self.T / 2)].amax(0) for v_seq in potentials])
        self.readout.v_threshold.fill_(halfway.median().clamp_min(self.readout.beta))
        self.readout.set_floor(self.readout.v_threshold.detach())

    @torch.no_grad()
    def calibrate_leaks(self, images: Tensor, leaks: Iterable[float] = LEAKS, batch_size: int = 128) -> None:
        """Set each leak, from the first layer on, to the one at which its layer fires least over `images` [N, *].

        For a network that was trained for t = 1 alone, of which no leak was learnt: it decides then, whatever the leaks are,
        and neurons that fire later do so to no purpose. A layer keeps its own leak where no other makes it fire less.

        Raises:
            TypeError, ValueError: one of `leaks` is no number or leaves [0, 1], a neuron has no leak or a parametrised one, or
                else as `calibrate_readout`.
            RuntimeError: the network is in step mode "s".
        """
        try:
            numbers = [float(leak) for leak in leaks]
        except (TypeError, ValueError) as error:
            raise TypeError(f"leaks must be one or more numbers in [0, 1], got {leaks!r}") from error
        if not numbers or not all(0 <= leak <= 1 for leak in numbers):
            raise ValueError(f"leaks must be one or more numbers in [0, 1], got {numbers}")
        for name, module in self.nodes().items():
            if not isinstance(module, SingleSpikeLIFNode):
                raise TypeError(f"{name} must be a SingleSpikeLIFNode, which has a leak, got {type(module).__name__}")
            if is_parametrized(module, "leak"):
                raise ValueError(f"{name}: leak must be a plain parameter, got one under torch.nn.utils.parametrize")
        batches = self.batches(images, batch_size)
        with self.measuring():
            node: Any
            for node in self.nodes().values():
                best = node.leak.clone()
                tried = [best, *(torch.full_like(best, leak) for leak in numbers)]
                spikes = torch.zeros(len(tried), dtype=torch.float64)
                try:
                    for batch in batches:
                        spikes += self.spikes_at(node, tried, batch)
                    best = tried[int(spikes.argmin())]  # the first of equals: its own
                finally:
                    node.leak.copy_(best)

    def spikes_at(self, node: Any, leaks: list[Tensor], images: Tensor) -> Tensor:
        """Return how often the neurons of a node fire over `images` at each of these leaks."""
        seen: list[Tensor] = []
        with node.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            self.currents(images)
        counts = []
        for leak in leaks:
            node.leak.copy_(leak)
            node.reset()  # it may have been told to keep its state
            counts.append(node(seen[0]).sum(dtype=torch.float64).cpu())
        return torch.stack(counts)

    def batches(self, images: Tensor, batch_size: int) -> list[Tensor]:
        """Check images [N, *] and cut them into batches on the network's device."""
        check_images(self.layers, images)
        if not len(images):
            raise ValueError(f"images must hold at least one image, got shape {tuple(images.shape)}")
        batch_size = check_T(batch_size, name="batch_size")
        return [batch.to(self.readout.v_threshold.device) for batch in images.split(batch_size)]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Be in eval mode meanwhile, and clean afterwards."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            yield
        finally:
            self.reset()
            for module, mode in modes.items():
                module.training = mode

    def save(self, folder: str | Path) -> None:
        """Write the network to `folder` as safetensors and JSON with SHA-256 sums; see `onespike.conversion.storage`."""
        from onespike.conversion.storage import save  # noqa: PLC0415  (safetensors is needed here alone)

        save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a network that `save` wrote, on the CPU and in eval mode; a CorruptModelError where anything was damaged."""
        from onespike.conversion.storage import load  # noqa: PLC0415

        return load(cls, Path(folder))
