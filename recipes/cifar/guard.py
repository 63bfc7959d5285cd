"""Whether a network that is trained can still learn."""

import math

PATIENCE = 10
"""Epochs after which a network that was never better than chance is given up."""


class TrainingError(RuntimeError):
    """The loss or the weights are no longer finite."""


class DeadTrainingError(TrainingError):
    """The network has fallen back to chance, never left it, or no gradient gets through it any more."""


def at_chance(accuracy: float, classes: int, images: int, deviations: float = 4) -> bool:
    """Whether an accuracy in percent over so many images is better than guessing by so many standard deviations at most."""
    guess = 1 / classes
    return accuracy <= 100 * (guess + deviations * math.sqrt(guess * (1 - guess) / images))


def why_dead(accuracies: list[float], classes: int, images: int, dead_layers: list[str]) -> str | None:
    """Say why a network will not recover that is at chance now, or None where it may.

    Args:
        accuracies: over so many validation images, in percent: before training, after each epoch, and now.
        classes, images: what chance depends on.
        dead_layers: those through which no gradient gets any more; layers may be so for a while in the middle of an epoch.
    """
    *earlier, found = accuracies
    if dead_layers:
        named = ", ".join(dead_layers)
        return f"hardly a potential of layer {named} is within the surrogate's support: no gradient gets through"
    if not at_chance(max(earlier), classes, images, deviations=8):  # a network that was about there may go up and down
        return f"its validation accuracy is {found:.1f} %, chance, and was {max(earlier):.1f} %"
    epochs = len(earlier) - 1
    if at_chance(max(earlier), classes, images) and epochs >= PATIENCE:
        return f"its validation accuracy is still {found:.1f} %, chance, after {epochs} epochs"
    return None
