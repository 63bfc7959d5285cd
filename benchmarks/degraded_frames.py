"""Where do the spikes of the hybrid code earn their place? Networks that learn to live with a spoilt first frame.

    bash recipes/evidence.sh data runs base
    python benchmarks/degraded_frames.py runs/hybrid-T5-s0 runs/analogue-T5-s0 --data-root data --out runs/degraded

takes the trained networks, both of which see the image at t = 1, and the first of which also sees a spike for each pixel at
t = 2..T. It spoils the image at t = 1, and that alone, in each way of `WAYS`, for training and test; spike times are those of
the image as it is. Where spikes help, the first network is the better one. Printed and written to results.json in --out:
accuracy over all test images at each step, before and after so many epochs on spoilt frames. What is finished is kept, and
what was stopped goes on.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import provenance
from torch import Tensor, nn
from trained import EXPECTED, Trained, trained_ann  # first: it finds the recipes

from cifar.checkpoint import CheckpointError, Checkpoints
from cifar.data import Split, within
from cifar.folder import digest_of_weights, owned, read_json
from cifar.pipeline import snn_stage
from cifar.reading import load_config
from cifar.seeds import seed_of
from cifar.stage import Runtime
from cifar.termination import Termination
from cifar.training import Trainer
from onespike.conversion import SpikingNetwork
from onespike.files import write_atomically

BATCH = 250
FARTHEST = 4
"""Pixels by which an image may have moved."""


def noisy(frame: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Add Gaussian noise with a quarter of the range as its standard deviation."""
    return frame + torch.randn(frame.shape, device=frame.device) * (high - low) / 4


def coarse(bits: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Leave so many bits of each pixel."""

    def spoil(frame: Tensor, low: Tensor, high: Tensor) -> Tensor:
        steps = 2**bits - 1
        return low + ((frame - low) / (high - low) * steps).round() / steps * (high - low)

    return spoil


def occluded(frame: Tensor, low: Tensor, high: Tensor) -> Tensor:  # noqa: ARG001
    """Set a square of half the side, somewhere in each image, to the mean colour."""
    (N, _, H, W), device = frame.shape, frame.device
    rows, columns = (
        within(size // 4 + torch.randint(size - size // 2 + 1, (N,), device=device), size, size // 2) for size in (H, W)
    )
    return frame.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def dropped(frame: Tensor, low: Tensor, high: Tensor) -> Tensor:  # noqa: ARG001
    """Leave out half of the frames, at random."""
    return frame * (torch.rand(len(frame), 1, 1, 1, device=frame.device) < 0.5)


def moved(frame: Tensor, low: Tensor, high: Tensor) -> Tensor:  # noqa: ARG001
    """Shift each frame by up to four pixels, with the mean colour at its border: what is seen has moved since."""
    (N, _, H, W), device = frame.shape, frame.device
    padded = F.pad(frame, [FARTHEST] * 4).permute(0, 2, 3, 1)
    top, left = torch.randint(2 * FARTHEST + 1, (2, N, 1), device=device)
    rows, columns = top + torch.arange(H, device=device), left + torch.arange(W, device=device)
    return padded[torch.arange(N, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "as it is": lambda frame, low, high: frame,  # noqa: ARG005
    "noise": noisy,
    "2 bits": coarse(2),
    "1 bit": coarse(1),
    "occluded": occluded,
    "half of the frames missing": dropped,
    "moved": moved,
}
"""How frames [N, C, H, W] with pixels from `low` to `high` are spoilt."""


class SpoiltFrame(nn.Module):
    """An encoder [N, *] -> [T, N, *] whose first step is spoilt."""

    def __init__(self, encoder: Any, way: str) -> None:
        super().__init__()
        self.encoder, self.way = encoder, way
        self.T: int = encoder.T  # of networks all of whose steps are trained, which never set it

    def forward(self, x: Tensor) -> Tensor:
        x_seq = self.encoder(x)
        frame = WAYS[self.way](x_seq[0], self.encoder.low, self.encoder.high)
        return torch.cat([frame[None], x_seq[1:]])


@torch.no_grad()
def by_step(network: SpikingNetwork, split: Split) -> list[float]:
    """Return the accuracy in percent at each time step."""
    network.eval()
    torch.manual_seed(seed_of("evaluation"))  # what is spoilt is drawn
    hits = torch.zeros(network.T)
    for first in range(0, len(split), BATCH):
        x, y = split.plain(slice(first, first + BATCH))
        hits += (network.currents(x).cumsum(0).argmax(2) == y).sum(1)
    return (100 * hits / len(split)).tolist()


def measure(run: Path, way: str, base: Trained, epochs: int, checkpoints: Path) -> dict[str, list[float]]:
    """Return a network's test accuracies, its frames spoilt, before and after training with such frames."""
    ann, _, data, fabric = base
    config, conversion = load_config([run / "config.yaml"], [f"snn.epochs={epochs}"]), read_json(run / "conversion.json")
    network = SpikingNetwork.load(run / "model").to(memory_format=torch.channels_last)
    about = {"run": digest_of_weights(network), "way": way, "epochs": epochs}
    network.encoder = SpoiltFrame(network.encoder, way)
    before = by_step(network, data.test)
    with Termination("the same command goes on from there") as termination:
        runtime = Runtime(config, data, fabric, termination, 300, recorded=False)
        stage = snn_stage(ann, conversion, runtime, Checkpoints(checkpoints, about), lambda _: None)
        Trainer(replace(stage, describe=lambda _: {}), network, runtime).fit()  # spikes are not counted behind such an encoder
    return {"before": before, "after": by_step(network, data.test)}


def check(run: Path, ann: nn.Module) -> None:
    """Raise a CheckpointError unless a run is finished, trains all of its steps, sees the image, and is made from this ANN."""
    config = load_config([run / "config.yaml"])
    if config.encoder not in ("hybrid", "analogue") or config.one_step:
        raise CheckpointError(
            f"{run} must be a run of encoder=hybrid or analogue and one_step=0, got {config.encoder} and {config.one_step}"
        )
    if not (run / "metrics.json").exists():
        raise CheckpointError(f"{run} must be a finished run, got one without metrics.json")
    read_json(run / "conversion.json", ANN=digest_of_weights(ann))


def run_all(arguments: argparse.Namespace) -> None:
    """Measure what is not measured yet, and print all of it."""
    runs = {run.name: run for run in arguments.runs}
    if len(runs) < len(arguments.runs):
        raise CheckpointError(f"runs must have names of their own, got {' '.join(run.name for run in arguments.runs)}")
    base = trained_ann(arguments.runs[0], arguments.data_root, [])
    for run in runs.values():
        check(run, base.ann)
    path = arguments.out / "results.json"
    with owned(arguments.out):
        found: dict[str, Any] = read_json(path)["results"] if path.exists() else {}
        for name, run in runs.items():
            for way in arguments.ways:
                key = f"{way}, {arguments.epochs} epochs"
                if key in found.setdefault(name, {}):
                    continue
                folder = arguments.out / name / key.replace(" ", "_").replace(",", "")
                found[name][key] = measure(run, way, base, arguments.epochs, folder)
                record = {"provenance": provenance(torch.device("cpu")), "results": found}
                write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
    print(f"\n{'accuracy, %':<68}  before   after   t = 1")
    for name, ways in found.items():
        for way, at in ways.items():
            print(f"{name:<28}{way:<40}{at['before'][-1]:8.2f}{at['after'][-1]:8.2f}{at['after'][0]:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs; the first has trained the ANN of all")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=2, help="of training with spoilt frames (default %(default)s)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--out", type=Path, default=Path("runs/degraded"), help="folder (default %(default)s)")
    try:
        run_all(parser.parse_args())
    except EXPECTED as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


if __name__ == "__main__":
    main()
