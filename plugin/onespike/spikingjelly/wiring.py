"""Modules that make a graph of a chain: sums, concatenation, factors, biases, and the sequence that is wired with them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn

from onespike.spikingjelly.memory import CopyableMemory


class Add(nn.Module):
    """The sum of two branches: currents that meet before a neuron, or spikes before a weight."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add two tensors of one shape."""
        return x + y


class Concat(nn.Module, base.StepModule):
    """Branches side by side along a dimension of [N, C, *], which in step mode "m" is one further on."""

    def __init__(self, dim: int = 1, step_mode: str = "s") -> None:
        super().__init__()
        self.dim = dim
        self.step_mode = step_mode

    def forward(self, *branches: Tensor) -> Tensor:
        """Concatenate [N, C_i, *], or [T, N, C_i, *] in step mode "m"."""
        return torch.cat(branches, self.dim + (self.step_mode == "m" and self.dim >= 0))

    def extra_repr(self) -> str:
        return f"{self.dim}, step_mode={self.step_mode}"


class Scale(nn.Module, base.StepModule):
    """A trainable factor, one for all or one by channel, on a branch whose spikes stand for something else than others do.

    Args:
        channels: number of channels C of x [N, C, *]; None for one factor. Features [N, n C] that were flattened take each
            channel's n times.
        step_mode: "m" for x [T, N, *], "s" for x [N, *].
    """

    def __init__(self, channels: int | None = None, step_mode: str = "m") -> None:
        super().__init__()
        self.channels = channels
        self.step_mode = step_mode
        self.weight = nn.Parameter(torch.ones(() if channels is None else channels))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [N, *], or [T, N, *] in step mode "m"."""
        if self.channels is None:
            return x * self.weight
        dim = 2 if self.step_mode == "m" else 1
        weight = self.weight.repeat_interleave(x.shape[dim] // self.channels)
        return x * weight.view(-1, *[1] * (x.dim() - dim - 1))

    def extra_repr(self) -> str:
        return f"{self.channels}, step_mode={self.step_mode}"


class Bias(CopyableMemory):
    """A bias that acts once, at the first step of a sequence, as the analogue image does. `reset_net` starts a sequence.

    Args:
        channels: number of channels C.
        dims: dimensions that follow the channels: 2 behind a Conv2d, 0 behind a Linear layer.
        step_mode: "m" for x [T, N, C, *], "s" for x [N, C, *].

    Attributes:
        keep_state: whether step mode "m" goes on with a sequence and remembers it; see `SingleSpikeLIFNode`.
    """

    started: bool
    keep_state = True

    def __init__(self, channels: int, dims: int = 0, step_mode: str = "m") -> None:
        super().__init__()
        self.channels, self.dims = channels, dims
        self.step_mode = step_mode
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_memory("started", False)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Add the bias to the first of [T, N, C, *], unless they go on with a sequence."""
        if self.keep_state:
            started, self.started = self.started, True
            if started:
                return x_seq
        return torch.cat([x_seq[:1] + self._shaped(), x_seq[1:]])

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Add the bias to x [N, C, *] at the first step."""
        started, self.started = self.started, True
        return x if started else x + self._shaped()

    def _shaped(self) -> Tensor:
        return self.bias.view(-1, *[1] * self.dims)

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.dims}, step_mode={self.step_mode}"


class Wiring(nn.Sequential):
    """A sequence of modules of which each takes what the one before gives, or what `inputs` names instead.

    Args:
        modules: in an order in which each comes behind all that it takes.
        inputs: position of a module -> what it takes: 0 for the sequence's input, i + 1 for what module i gives.
    """

    def __init__(self, modules: Sequence[nn.Module], inputs: Mapping[int, tuple[int, ...]] | None = None) -> None:
        super().__init__(*modules)
        self.inputs = {at: tuple(sources) for at, sources in (inputs or {}).items() if tuple(sources) != (at,)}

    def forward(self, x: Tensor) -> Tensor:
        """Run the modules in order and return what the last one gives."""
        last_use = {source: at for at in range(len(self)) for source in self.sources(at)}
        values: dict[int, Any] = {0: x}
        for at, module in enumerate(self._modules.values()):
            sources = self.sources(at)
            inputs = [values[source] for source in sources]
            for source in sources:
                if last_use[source] == at:
                    values.pop(source, None)
            x = module(*inputs)
            del inputs
            values[at + 1] = x
        return x

    def sources(self, at: int) -> tuple[int, ...]:
        """Return what the module at a position takes, as `inputs` has it."""
        return self.inputs.get(at, (at,))

    def __getitem__(self, index: Any) -> Any:
        """Return a module, or, of the first modules, a sequence of their own."""
        if not isinstance(index, slice):
            return super().__getitem__(index)
        chosen = range(len(self))[index]
        plain = chosen.step == 1 and (chosen.start == 0 or not self.inputs)
        if not plain:
            raise IndexError(f"only the first modules of a graph are one, got {index}")
        return Wiring(list(self)[index], {at: sources for at, sources in self.inputs.items() if at in chosen})
