"""Where the epochs are written: JSON lines and CSV always, TensorBoard and Weights & Biases when asked for."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cifar.reading import flattened
from cifar.results import write_history


class LoggerError(RuntimeError):
    """A logger was asked for whose package is missing."""


def require(**asked: object) -> None:
    """Raise a LoggerError for a package that is asked for and not installed."""
    for package, wanted in asked.items():
        if wanted and find_spec(package) is None:
            raise LoggerError(f"--{package} needs its package: pip install {package}")


class Loggers:
    """Write each epoch once, wherever it was asked for; a resumed run writes its earlier epochs again.

    Args:
        folder: for the history and TensorBoard's files.
        config: settings of the run, by dotted name.
        tensorboard: write for TensorBoard.
        wandb: project at Weights & Biases, or None.
    """

    def __init__(self, folder: Path, config: dict[str, Any], *, tensorboard: bool, wandb: str | None) -> None:
        self.folder = folder
        self.written = 0
        self.tensorboard: Any = None
        self.wandb: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (an optional dependency)

            self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=0)
        if wandb is not None:
            import wandb as service  # noqa: PLC0415  (an optional dependency)

            self.wandb = service.init(project=wandb, name=folder.name, dir=str(folder), config=config)

    def write(self, history: list[dict[str, Any]]) -> None:
        """Write a history whose first epochs may have been written before."""
        write_history(self.folder, history)
        for position in range(self.written, len(history)):
            entry = history[position]
            values = {f"{entry['stage']}/{name}": value for name, value in flattened(entry).items() if isinstance(value, float)}
            if self.tensorboard is not None:
                for name, value in values.items():
                    self.tensorboard.add_scalar(name, value, entry["epoch"])
            if self.wandb is not None:
                self.wandb.log(values, step=position)
        self.written = len(history)

    def close(self) -> None:
        """Flush and close."""
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()
