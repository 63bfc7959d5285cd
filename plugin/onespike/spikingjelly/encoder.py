"""Input encoders as SpikingJelly modules: images [N, *] in, sequences [T, N, *] out."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn

from onespike.functional.checks import check_floating, check_positive, check_T, is_exported, shown
from onespike.functional.encoding import IntensityRange, RangeWatch, encode, parse_range
from onespike.functional.sequences import Presenter
from onespike.spikingjelly.memory import CopyableMemory


class HybridEncoder(CopyableMemory):
    """Encode images as the analogue pixel at t = 1 and one spike per pixel at t in 2..T (eqs. 4-5).

    In step mode "m" it is stateless and maps x [N, *] to [T, N, *]. In mode "s" each call takes the same images
    x [N, *] and returns the next step's [N, *]; `reset_net` starts over; `t` counts the steps (as a 0-d tensor under
    torch.compile). A range that is not the image's own is part of the state dict, as `low` and `high`; so is a unit. Images
    far outside of the range are warned of, once, on a CPU.

    Args:
        T: number of time steps, at least 1.
        intensity_range: (Imin, Imax), each a float or a tensor broadcastable to x; the default fits images in
            [0, 1], for normalised ones use `for_normalized`. Or "image" or "image_channel": each image's own range.
        step_mode: "m" or "s".
        analogue: present the pixels at t = 1; False leaves zeros there ("temporal coding alone").
        temporal: emit the spikes; False leaves zeros at t >= 2 (the control for what they contribute).
        unit: the intensity that counts as much as a spike, which is 1: the pixels are divided by it at t = 1. Give it where
            those of x are far from 1, such as 0..255. None leaves them as they are.

    Raises:
        TypeError, ValueError: see `onespike.functional.hybrid_encode`.
        RuntimeError: in mode "s", a step beyond T.
    """

    _version = 2  # since the range is part of the state dict
    t: int | Tensor
    low: Tensor
    high: Tensor
    unit: Tensor | None

    def __init__(
        self,
        T: int,
        intensity_range: IntensityRange = (0.0, 1.0),
        step_mode: str = "m",
        *,
        analogue: bool = True,
        temporal: bool = True,
        unit: float | None = None,
    ) -> None:
        super().__init__()
        if not (analogue or temporal):
            raise ValueError("analogue and temporal must not both be False: nothing would be encoded")
        self.T = T
        self.step_mode = step_mode
        self.analogue = analogue
        self.temporal = temporal
        self.presenter, self.watch = Presenter(), RangeWatch()
        self.register_memory("t", 0)
        parsed = parse_range(intensity_range)
        self.own_range = parsed if isinstance(parsed, str) else None
        low, high = (torch.zeros(()), torch.ones(())) if isinstance(parsed, str) else parsed
        self.register_buffer("low", low, persistent=self.own_range is None)
        self.register_buffer("high", high, persistent=self.own_range is None)
        if unit is not None:
            check_positive("unit", unit)
        self.register_buffer("unit", None if unit is None else torch.tensor(float(unit)))

    @classmethod
    def for_normalized(
        cls,
        T: int,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        step_mode: str = "m",
        *,
        analogue: bool = True,
        temporal: bool = True,
    ) -> Self:
        """Encoder for images in [0, 1] normalised as (x - mean) / std, per channel of x [N, C, H, W]."""
        centre, scale = torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(std, dtype=torch.float32)
        if not (scale > 0).all():
            raise ValueError(f"std must be > 0, got {std}")
        if centre.dim() > 1 or scale.dim() > 1 or (centre.dim() and scale.dim() and centre.shape != scale.shape):
            raise ValueError(f"mean and std must be numbers or one number per channel, got {mean} and {std}")
        low, high = (0 - centre) / scale, (1 - centre) / scale
        shape = (-1, 1, 1) if low.dim() else ()
        bounds = low.view(shape), high.view(shape)
        return cls(T, bounds, step_mode, analogue=analogue, temporal=temporal)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let the range follow the module to another device, but not to another dtype: rounding it would move spikes."""
        bounds = self.low, self.high, self.unit
        super()._apply(fn, recurse)
        if not bounds[0].is_meta:
            self.low, self.high = (bound.to(self.low.device) for bound in bounds[:2])
            self.unit = None if bounds[2] is None else bounds[2].to(self.low.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *arguments: Any
    ) -> None:
        """Load the range; a state dict that was written before ranges were part of it leaves the encoder's as it is."""
        bounds = {f"{prefix}low": self.low, f"{prefix}high": self.high}
        before = local_metadata.get("version", 1) < HybridEncoder._version and not bounds.keys() & state_dict.keys()
        if before and self.own_range is None:
            state_dict.update(bounds)
        unit = state_dict.get(f"{prefix}unit")  # there only where one is in force
        self.unit = None if unit is None else torch.empty_like(unit, device=self.low.device)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)

    @property
    def T(self) -> int:
        """Number of time steps; may be set."""
        return self._T

    @T.setter
    def T(self, value: int) -> None:
        self._T = check_T(value)

    @property
    def emits_spikes(self) -> bool:
        """Whether spikes are all that is emitted, so that `onespike.metrics` counts no multiplication behind it."""
        return not self.analogue

    @property
    def intensity_range(self) -> IntensityRange:
        """The range in force, as given: a name, or (Imin, Imax) as tensors."""
        return self.own_range or (self.low, self.high)

    def multi_step_forward(self, x: Tensor) -> Tensor:
        """Map images [N, *] to the whole sequence [T, N, *]."""
        self.presenter.present()
        return self.encoded(x)

    def encoded(self, x: Tensor) -> Tensor:
        """Do the work of `multi_step_forward`."""
        x_seq = encode(x, self.T, self.intensity_range, self.watch)
        if self.analogue and self.temporal and self.unit is None:
            return x_seq
        frame, spikes = x_seq[:1], x_seq[1:]
        if self.unit is not None:
            frame = frame / self.unit
        return torch.cat([frame if self.analogue else frame * 0, spikes if self.temporal else spikes * 0])

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Return step t of the sequence for the images x [N, *] and advance t."""
        (out,), (self.t,) = self.single_step_functional_forward((x,), (self.t,))
        return out

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[int | Tensor]
    ) -> tuple[tuple[Tensor], tuple[int | Tensor]]:
        """Explicit-state form: ((x,), (t,)) -> ((x_seq,), (t,))."""
        return (self.encoded(inputs[0]),), states

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[int | Tensor]
    ) -> tuple[tuple[Tensor], tuple[int | Tensor]]:
        """One step of the explicit-state form: ((x,), (t,)) -> ((x_t,), (t + 1,))."""
        (t,) = states
        x_seq = self.encoded(inputs[0])
        rule = f"t must stay below T = {self.T} in step mode 's'"
        if torch.compiler.is_compiling() and not is_exported():  # where a number would be a constant, compiled for each step
            t = torch.as_tensor(t)
            torch._assert_async(t < self.T, f"{rule}: call reset_net first")
            return (x_seq.index_select(0, t.to(x_seq.device))[0],), (t + 1,)
        if t >= self.T:
            raise RuntimeError(f"{rule}, got step {int(t) + 1}: call reset_net first")
        return (x_seq[t],), (t + 1,)

    def extra_repr(self) -> str:
        bounds = self.own_range or f"({self.low.flatten().tolist()}, {self.high.flatten().tolist()})"
        unit = "" if self.unit is None else f", unit={shown(self.unit)}"
        return f"T={self.T}, intensity_range={bounds}{unit}, step_mode={self.step_mode}"


class DirectEncoder(nn.Module, base.StepModule):
    """Present the analogue pixels at every step ("direct" encoding): [N, *] -> [T, N, *], or [N, *] a step in mode "s".

    Args:
        T: number of time steps, at least 1.
        step_mode: "m" or "s".
    """

    def __init__(self, T: int, step_mode: str = "m") -> None:
        super().__init__()
        self.T = check_T(T)
        self.step_mode = step_mode
        self.presenter = Presenter()

    def forward(self, x: Tensor) -> Tensor:
        check_floating("x", x, 1, "[N, *]")
        if self.step_mode == "s":
            return x
        self.presenter.present()
        return x.expand(self.T, *x.shape)

    def extra_repr(self) -> str:
        return f"T={self.T}, step_mode={self.step_mode}"
