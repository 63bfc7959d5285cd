"""Convert two ANNs with batch norm: what is lost at each T, beside SpikingJelly's ann2snn, and what training brings back.

    python benchmarks/convert_digits.py [--seeds 0 1 2] [--json FILE]

A residual network and a VGG with biases and maximum pools on scikit-learn's digits: 1400 images to train on, 397 to test.
Prints the table of docs/conversion.md; five minutes on one core.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import provenance
from sklearn.datasets import load_digits
from spikingjelly.activation_based import ann2snn, functional
from torch import Tensor, nn

from onespike.conversion import SpikingNetwork, calibrate_thresholds, convert
from onespike.functional import hybrid_cross_entropy
from onespike.metrics import SpikingActivity
from onespike.models import resnet
from onespike.optim import ADAM_EPS, parameter_groups
from onespike.spikingjelly import DirectEncoder, SingleSpikeLIFNode

STEPS = (8, 32, 200)
TRAINED, CALIBRATED, BATCH = 1400, 256, 32
many = partial(SingleSpikeLIFNode, single_spike=False)


def digits() -> tuple[Tensor, Tensor]:
    """Return images [N, 1, 8, 8], normalised, and labels [N], in one order for all seeds."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(pixels, dtype=torch.float32)[order].view(-1, 1, 8, 8)
    return (x - x[:TRAINED].mean()) / x[:TRAINED].std(), torch.tensor(labels)[order]


def vgg_bn() -> nn.Sequential:
    """Return a VGG with biases, batch norm and maximum pools."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


NETWORKS = {"ResNet-8": partial(resnet, "resnet8", 10, in_channels=1), "VGG": vgg_bn}


def fit(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer, epochs: int, loss_of: Any) -> None:
    """Minimise loss_of(output, positions of the batch) by a cosine schedule; the model is in eval mode afterwards."""
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-TRAINED // BATCH))
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(TRAINED).split(BATCH):
            optimizer.zero_grad()
            loss_of(model(x[chosen]), chosen).backward()
            optimizer.step()
            scheduler.step()
            if isinstance(model, SpikingNetwork):
                model.project_()
    model.eval()


def train_plainly(network: SpikingNetwork, x: Tensor, y: Tensor) -> None:
    """Train all steps for 20 epochs, by Adam at one rate."""
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    fit(network, x, optimizer, 20, lambda output, chosen: hybrid_cross_entropy(output, y[chosen]))


def train_as_advised(network: SpikingNetwork, x: Tensor, y: Tensor, logits: Tensor) -> None:
    """Train t = 1 for 40 epochs as docs/training.md says: rates in units of thresholds, distillation."""
    T, network.T = network.T, 1

    def loss(output: Any, chosen: Tensor) -> Tensor:
        student, aim = (F.log_softmax(values / 2, 1) for values in (output.potential, logits[chosen]))
        return hybrid_cross_entropy(output, y[chosen]) + 4 * F.kl_div(student, aim, reduction="batchmean", log_target=True)

    fit(network, x, torch.optim.Adam(parameter_groups(network, 0.7), eps=ADAM_EPS), 40, loss)
    network.T = T
    network.calibrate_readout(x[:CALIBRATED])


@torch.no_grad()
def accuracy(scores: Any, x: Tensor, y: Tensor) -> float:
    """Return the accuracy, in percent, of scores(images) -> [N, 10]."""
    hits = sum((scores(batch).argmax(1) == labels).sum().item() for batch, labels in zip(x.split(50), y.split(50), strict=True))
    return 100 * hits / len(y)


def of_ann2snn(ann: nn.Module, images: Tensor, steps: int) -> Any:
    """Convert by SpikingJelly, at the 99.9th percentile over `images`; return what sums the outputs over the steps."""
    recipe = ann2snn.RateCodingRecipe(images.split(64), mode="99.9%")
    converted = ann2snn.FXConverter(recipe).convert(ann).eval()

    def scores(images: Tensor) -> Tensor:
        functional.reset_net(converted)
        return torch.stack([converted(images) for _ in range(steps)]).sum(0)

    return scores


def of_many_spikes(ann: nn.Module, images: Tensor, x: Tensor, y: Tensor, timesteps: int) -> dict[str, float]:
    """Return the accuracies of plain conversions, the image at every step and any number of spikes, ours and ann2snn's."""
    simulated = calibrate_thresholds(ann, images, timesteps=timesteps)
    of_activations = calibrate_thresholds(ann, images, percentile=99.9, timesteps=None)
    found = {}
    for steps in STEPS:
        for name, thresholds in (("simulated", simulated), ("of activations", of_activations)):
            encoder = DirectEncoder(steps)
            network = convert(ann, images[:1], thresholds=thresholds, threshold_scale=1.0, encoder=encoder, neuron=many).eval()
            found[f"thresholds {name}, T = {steps}"] = accuracy(lambda batch, net=network: net(batch).potential, x, y)
        found[f"ann2snn, T = {steps}"] = accuracy(of_ann2snn(ann, images, steps), x, y)
    return found


def measure(make: Any, seed: int, x: Tensor, y: Tensor) -> dict[str, float]:
    """Train an ANN and convert it in every way; return the test accuracies by name, and the spikes of the trained network."""
    torch.manual_seed(seed)
    ann = make()
    fit(ann, x, torch.optim.Adam(ann.parameters(), 3e-3), 12, lambda output, chosen: F.cross_entropy(output, y[chosen]))
    test = x[TRAINED:], y[TRAINED:]
    found = {"ANN": accuracy(ann, *test)}
    images = x[:CALIBRATED]
    thresholds = calibrate_thresholds(ann, images, timesteps=100)
    found |= of_many_spikes(ann, images, *test, timesteps=100)
    with torch.no_grad():
        logits = ann(x[:TRAINED])
    for name, train in (
        ("one spike, untrained", SpikingNetwork.eval),
        ("one spike, trained plainly", lambda network: train_plainly(network, x, y)),
        ("one spike, trained as advised", lambda network: train_as_advised(network, x, y, logits)),
    ):
        torch.manual_seed(seed)
        network = convert(ann, x[:TRAINED], thresholds=thresholds, T=5).eval()
        train(network)
        with SpikingActivity(network) as activity:
            found[name] = accuracy(lambda batch, network=network: network(batch).potential, *test)
        found[f"{name}: spikes"] = activity.mean
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, y = digits()
    results = {name: [measure(make, seed, x, y) for seed in arguments.seeds] for name, make in NETWORKS.items()}
    for name, runs in results.items():
        print(f"\n{name}, seeds {', '.join(map(str, arguments.seeds))}")
        for row in runs[0]:
            values = [run[row] for run in runs]
            digits_shown = 2 if row.endswith("spikes") else 1
            shown = " / ".join(f"{value:.{digits_shown}f}" for value in values)
            print(f"  {row:<40}{shown}   mean {sum(values) / len(values):.2f}")
    if arguments.json:
        record = {"provenance": provenance(torch.device("cpu")), "seeds": arguments.seeds, "results": results}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
