"""Whether a network that is trained can still learn, and what ends a training that cannot."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cifar.data import Data
from cifar.stage import Progress, Stage


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


def broken_weights(network: nn.Module) -> list[str]:
    """Return the names of the parameters that are not finite."""
    return [name for name, parameter in network.named_parameters() if not parameter.isfinite().all()]


class Guard:
    """Ends a training that cannot go on, with an error that names the last good checkpoint and the remedy."""

    def __init__(self, stage: Stage, network: nn.Module, data: Data, progress: Progress) -> None:
        self.stage, self.network, self.data, self.progress = stage, network, data, progress

    @contextmanager
    def failing_numbers(self) -> Iterator[None]:
        """Turn what a network says about NaN and infinite numbers inside into a TrainingError; other errors pass."""
        try:
            yield
        except ValueError as error:
            if broken := broken_weights(self.network):
                raise self.not_finite(f"the weights {', '.join(broken)}") from error
            if "finite" in str(error):  # currents that have left their range, by weights that have not
                raise self.not_finite(f"a number in the network ({error})") from error
            raise

    def require_finite_loss(self, loss: Tensor) -> None:
        """Raise a TrainingError unless the losses so far are finite."""
        if not loss.isfinite():
            raise self.not_finite(f"the loss of {self.stage.name}")

    def require_finite_weights(self) -> None:
        """Raise a TrainingError unless the weights, leaks and thresholds are finite."""
        if broken := broken_weights(self.network):
            raise self.not_finite(f"the weights {', '.join(broken)}")

    def require_alive(self, found: float, images: int, *, between: bool = False) -> None:
        """Raise a DeadTrainingError if the network will not recover.

        Args:
            found: its validation accuracy, in percent, over so many `images`.
            between: in the middle of an epoch, where gradients of few images may all be 0 for a while.
        """
        stage, classes, history = self.stage, self.data.classes, self.progress.history
        if not at_chance(found, classes, images):
            return
        best = max([stage.accuracy, *(entry["validation_accuracy"] for entry in history)])
        reason = why_dead(found, best, classes, images, [] if between else stage.dead_layers(self.network))
        remedy = f"a lower {stage.name}.lr or, for a spiking network, with snn.relative=true and snn.warmup"
        if reason is None and not between and self.out_of_patience():
            reason = f"after {len(history)} epochs its accuracy is still {found:.1f} %, chance"
            remedy = f"another {stage.name}.lr, init=centred, {stage.name}.centralize=true or less dropout"
        if reason:
            when = f"{stage.name} can learn no more at step {self.progress.step}"
            raise DeadTrainingError(f"{when}: {reason}; {stage.checkpoints.last()}; begin again with {remedy}")

    def out_of_patience(self) -> bool:
        """Whether the network has not left chance in the epochs that it was given for it."""
        settings, history, data = self.stage.settings, self.progress.history, self.data
        if not settings.patience or len(history) < settings.patience + settings.warmup:
            return False
        return never_rose(history, data.classes, training=len(data.train), validation=len(data.validation))

    def not_finite(self, what: str) -> TrainingError:
        """Say what became NaN or infinite, and what to do."""
        name = self.stage.name
        when = f"{what} became NaN or infinite by step {self.progress.step}"
        also = "" if self.stage.timesteps is None else " or gamma"  # which multiplies gradients layer by layer
        return TrainingError(f"{when}: {self.stage.checkpoints.last()}; lower {name}.lr{also} or set {name}.clip")
