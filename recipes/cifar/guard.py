"""Whether a network that is trained can still learn."""

import math
from typing import Any


class TrainingError(RuntimeError):
    """The loss or the weights are no longer finite."""


class DeadTrainingError(TrainingError):
    """The network has fallen back to chance, never left it, or no gradient gets through it any more."""


def at_chance(accuracy: float, classes: int, images: int, deviations: float = 4) -> bool:
    """Whether an accuracy in percent over so many images is better than guessing by so many standard deviations at most."""
    guess = 1 / classes
    return accuracy <= 100 * (guess + deviations * math.sqrt(guess * (1 - guess) / images))


def why_dead(now: float, before: float, classes: int, images: int, dead_layers: list[str]) -> str | None:
    """Say why a network that is at chance will not recover, or None where it may.

    Args:
        now: its accuracy over so many validation images, in percent.
        before: the best so far.
        classes, images: what chance depends on.
        dead_layers: those through which no gradient gets any more.
    """
    if dead_layers:
        named = ", ".join(dead_layers)
        return f"hardly a potential of layer {named} is within the surrogate's support: no gradient gets through"
    if at_chance(before, classes, images, deviations=8):  # a network that was about there may go up and down
        return None
    return f"its validation accuracy is {now:.1f} %, chance, and was {before:.1f} %"


def never_rose(history: list[dict[str, Any]], classes: int, *, training: int, validation: int) -> bool:
    """Whether no epoch was better than guessing, over so many training and so many validation images."""
    images = {"training_accuracy": training, "validation_accuracy": validation}
    return all(at_chance(entry[kind], classes, images[kind]) for entry in history for kind in images)
