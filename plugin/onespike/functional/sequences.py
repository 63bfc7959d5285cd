"""Which whole sequence is under way: what neurons that keep their state need to know to notice a forgotten reset."""

import threading
import warnings
from typing import Any

import torch
from torch import Tensor

MANY = 32
"""Neurons of a layer that do not all fire in a part of a sequence, as a few may."""


class Presenter:
    """What presents whole sequences, such as an encoder."""

    def __init__(self) -> None:
        self.presentations = 0
        self.told = False

    def present(self) -> None:
        """Begin a new sequence: neurons that run next in this thread belong to it."""
        if not torch.compiler.is_compiling():
            self.presentations += 1
            under_way.sequence = self, self.presentations


class UnderWay(threading.local):
    """The presenter of the latest sequence, and its number there."""

    sequence: tuple[Presenter | None, int] = (None, 0)


under_way = UnderWay()


class Remembered:
    """The sequence that a neuron's state belongs to."""

    def __init__(self) -> None:
        self.sequence: tuple[Presenter | None, int] = (None, 0)
        self.steps = 0
        self.told = False

    def go_on(self, fired: Any, remedy: str, steps: int = 0) -> None:
        """Warn, once, if the neuron goes on from the state of an earlier sequence.

        It does so if its presenter has begun another one since, which costs no look at a tensor. On a CPU also if all neurons
        have fired before a call of as many steps as the one before, where nothing but a reset makes any fire again.

        Args:
            fired: the state, [N, *]; anything but a tensor after a reset.
            remedy: the call that resets.
            steps: how many steps the call takes; 0 where each is a call.
        """
        before, self.sequence = self.sequence, under_way.sequence
        same, self.steps = steps and steps == self.steps, steps
        if not isinstance(fired, Tensor):
            return
        presenter = self.sequence[0]
        if presenter is not None and presenter is before[0] and self.sequence[1] != before[1]:
            if not presenter.told:
                presenter.told = True
                warnings.warn(
                    "a sequence begins on neurons that hold the state of the one before: those that have fired stay silent. "
                    f"Call {remedy} before each sequence",
                    stacklevel=2,
                )
        elif same and not self.told and fired.device.type == "cpu" and fired.numel() >= MANY and fired.view(torch.uint8).amin():
            self.told = True
            warnings.warn(
                f"all neurons of a layer {tuple(fired.shape)} have fired before this call, so none can in it: if a sequence "
                f"begins here, call {remedy} first",
                stacklevel=2,
            )
