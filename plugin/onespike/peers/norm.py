"""Batch norm through time (BNTT; Kim & Panda, 2020), with snnTorch's layers."""

import torch
from torch import Tensor

from onespike.functional.checks import check_floating, check_T
from onespike.peers.numbers import check_sequence
from onespike.spikingjelly.memory import CopyableMemory


class BatchNormThroughTime(CopyableMemory):
    """Normalise the currents of each time step by statistics and a scale of its own, with no shift.

    Equation:
        y^t = gamma^t * (x^t - mean^t) / sqrt(variance^t + eps),   by channel

    It holds a `snntorch.BatchNormTT1d` or `BatchNormTT2d`, which are lists of layers, and hands each step to its own.

    Args:
        channels: number of channels C.
        T: number of time steps it knows.
        dims: dimensions that follow the channels: 2 behind a Conv2d, 0 behind a Linear layer.
        step_mode: "m" for x [T, N, C, *], "s" for x [N, C, *].

    Raises:
        ImportError: snnTorch is missing.
        TypeError, ValueError: an argument leaves its range, x is not floating point or has not C channels and `dims` dimensions
            behind them, or a sequence has no step or more than T.
    """

    t: int

    def __init__(self, channels: int, T: int, dims: int = 2, step_mode: str = "m") -> None:
        super().__init__()
        try:
            from snntorch import BatchNormTT1d, BatchNormTT2d  # noqa: PLC0415  (the other host, which nothing else needs here)
        except ImportError as error:
            raise ImportError('BatchNormThroughTime needs snnTorch: pip install "onespike[snntorch]"') from error
        layers = {0: BatchNormTT1d, 2: BatchNormTT2d}
        if dims not in tuple(layers):
            raise ValueError(f"dims must be 0 or 2, got {dims}")
        self.dims = int(dims)
        self.norms = layers[dims](check_T(channels, name="channels"), check_T(T))
        self.step_mode = step_mode
        self.register_memory("t", 0)

    def at(self, step: int, x: Tensor) -> Tensor:
        """Normalise the currents [N, C, *] of a step, counted from 0."""
        if step >= len(self.norms):
            raise ValueError(f"x_seq must have at most the {len(self.norms)} steps that were trained, got step {step + 1}")
        channels = self.norms[step].num_features
        if x.dim() != 2 + self.dims or x.shape[1] != channels:
            raise ValueError(f"x must be [N, {channels}{', H, W' * (self.dims > 0)}] at each step, got shape {tuple(x.shape)}")
        return self.norms[step](x)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Normalise a whole sequence [T, N, C, *]."""
        check_sequence(x_seq, 3, "[T, N, C, *]")
        return torch.stack([self.at(step, x) for step, x in enumerate(x_seq)])

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Normalise the next step [N, C, *]."""
        check_floating("x", x, 2, "[N, C, *]")
        y = self.at(self.t, x)
        self.t += 1
        return y
