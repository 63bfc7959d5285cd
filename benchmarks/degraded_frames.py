"""Where do the spikes of the hybrid code earn their place? Networks that learn to live with a spoilt first frame.

    E=recipes/configs/evidence.yaml
    python recipes/train.py $E --data-root data --out runs/evidence
    python recipes/train.py $E recipes/configs/ablations/analogue.yaml --data-root data --ann runs/evidence --out runs/analogue
    python benchmarks/degraded_frames.py runs/evidence runs/analogue --data-root data --epochs 2 --out runs/degraded

takes the trained networks, both of which see the image at t = 1, and the first of which also sees a spike for each pixel at
t = 2..T. It spoils the image at t = 1, and that alone, in each way of `WAYS`, for training and test; spike times are those of
the image as it is. Where spikes help, the first network is the better one. Printed and written to --out/results.json:
accuracy over all test images, before and after so many epochs on spoilt frames, and read at t = 1.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from machine import provenance
from torch import Tensor, nn
from trained import EXPECTED, Trained, trained_ann  # first: it finds the recipes

from cifar.checkpoint import CheckpointError, Checkpoints
from cifar.data import Split, within
from cifar.folder import digest_of_weights, read_json
from cifar.pipeline import snn_stage
from cifar.reading import load_config
from cifar.seeds import seed_of
from cifar.stage import Runtime
from cifar.termination import Termination
from cifar.training import Trainer
from onespike.conversion import SpikingNetwork

BATCH = 250


def noisy(frame: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Add Gaussian noise with a quarter of the range as its standard deviation."""
    return frame + torch.randn_like(frame) * (high - low) / 4


def coarse(bits: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Leave so many bits of each pixel."""

    def spoil(frame: Tensor, low: Tensor, high: Tensor) -> Tensor:
        steps = 2**bits - 1
        return low + ((frame - low) / (high - low) * steps).round() / steps * (high - low)

    return spoil


def occluded(frame: Tensor, low: Tensor, high: Tensor) -> Tensor:  # noqa: ARG001
    """Set a square of half the side, anywhere in each image, to the mean colour."""
    (N, _, H, W), device = frame.shape, frame.device
    rows, columns = (within(torch.randint(length, (N,), device=device), length, length // 2) for length in (H, W))
    return frame.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def dropped(frame: Tensor, low: Tensor, high: Tensor) -> Tensor:  # noqa: ARG001
    """Leave out every other frame, at random."""
    return frame * (torch.rand(len(frame), 1, 1, 1, device=frame.device) < 0.5)


def moved(frame: Tensor, low: Tensor, high: Tensor) -> Tensor:  # noqa: ARG001
    """Shift each batch's frames by up to four pixels: what is seen has moved since."""
    down, right = torch.randint(-4, 5, (2,)).tolist()
    return frame.roll((down, right), (2, 3))


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

    def __init__(self, encoder: nn.Module, way: str) -> None:
        super().__init__()
        self.encoder, self.way, self.T = encoder, way, encoder.T

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


def measure(run: Path, base: Trained, epochs: int, ways: list[str], out: Path) -> dict[str, dict[str, list[float]]]:
    """Return a network's test accuracies, by the way in which frames are spoilt, before and after training with them."""
    ann, _, data, fabric = base
    config = load_config([run / "config.yaml"], [f"snn.epochs={epochs}"])
    if config.encoder not in ("hybrid", "analogue"):
        raise CheckpointError(f"{run} must be a run of encoder=hybrid or analogue, got {config.encoder}")
    conversion = read_json(run / "conversion.json")
    found: dict[str, dict[str, list[float]]] = {}
    for way in ways:
        network = SpikingNetwork.load(run / "model").to(memory_format=torch.channels_last)
        network.encoder = SpoiltFrame(network.encoder, way)
        found[way] = {"before": by_step(network, data.test)}
        about = {"run": digest_of_weights(network), "way": way, "epochs": epochs}
        checkpoints = Checkpoints(out / run.name / way.replace(" ", "_"), about)
        with Termination() as termination:
            runtime = Runtime(config, data, fabric, termination, 300, recorded=False)
            stage = snn_stage(ann, conversion, runtime, checkpoints, lambda _: None)
            Trainer(
                replace(stage, describe=lambda _: {}), network, runtime
            ).fit()  # spikes are not counted behind such an encoder
        found[way]["after"] = by_step(network, data.test)
        before, after = found[way]["before"], found[way]["after"]
        print(f"{run.name:<20}{way:<28}{before[-1]:8.2f}{after[-1]:8.2f}{after[0]:8.2f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs; the first has trained the ANN")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=2, help="of training with spoilt frames (default %(default)s)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument(
        "--out", type=Path, default=Path("runs/degraded"), help="folder (default %(default)s); what is there goes on"
    )
    arguments = parser.parse_args()
    print(f"{'accuracy, %':<48}  before   after   t = 1")
    try:
        base = trained_ann(arguments.runs[0], arguments.data_root, [])
        found = {run.name: measure(run, base, arguments.epochs, arguments.ways, arguments.out) for run in arguments.runs}
    except EXPECTED as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    record = {"provenance": provenance(torch.device("cpu")), "epochs": arguments.epochs, "results": found}
    (arguments.out / "results.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
