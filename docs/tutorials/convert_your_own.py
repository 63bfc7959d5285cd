"""An ANN of your own as a single-spike network: what has to change in it, conversion, training, and the numbers to compare.

The ANN is written as people have it: biases, batch norm, max pooling, all of which convert, and GELU, which does not: `convert`
names it, with whatever else stands in the way; with ReLU the network converts. Thresholds are calibrated once, their scale is
chosen on validation data, a report says what became of each module, and the spiking network is trained, saved and loaded again.
The data are scikit-learn's handwritten digits; nothing is downloaded.

    python docs/tutorials/convert_your_own.py
"""

import argparse
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onespike.conversion import ConversionError, SpikingNetwork, calibrate_thresholds, compare, convert
from onespike.functional import Readout, hybrid_cross_entropy
from onespike.metrics import SpikingActivity
from onespike.spikingjelly import project_net

T = 5
SCALES = (0.8, 0.4, 0.2, 0.1)
Split = tuple[Tensor, Tensor]


def build(activation: type[nn.Module]) -> nn.Sequential:
    """Build the ANN for images [N, 1, 8, 8]; conversion will object to any activation but ReLU."""
    layers: list[tuple[str, nn.Module]] = []
    for number, (inputs, outputs) in enumerate([(1, 16), (16, 32)], 1):
        layers += [
            (f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1)),
            (f"norm{number}", nn.BatchNorm2d(outputs)),
            (f"act{number}", activation()),
            (f"pool{number}", nn.MaxPool2d(2)),
        ]
    layers += [("flatten", nn.Flatten()), ("fc1", nn.Linear(32 * 4, 64)), ("act3", activation()), ("fc2", nn.Linear(64, 10))]
    return nn.Sequential(OrderedDict(layers))


def digits(seed: int) -> list[Split]:
    """Load images [N, 1, 8, 8], normalised by the training mean and std, and labels [N]: training, validation and test."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    rest, test = train_test_split(range(len(y)), test_size=360, stratify=labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=200, stratify=labels[rest], random_state=seed)
    x = (x - x[train].mean()) / x[train].std()
    return [(x[part], y[part]) for part in (train, validation, test)]


def loss_of(output: Tensor | Readout, labels: Tensor) -> Tensor:
    """Return the loss of an ANN's logits, or of what a spiking network reads out."""
    return cross_entropy(output, labels) if isinstance(output, Tensor) else hybrid_cross_entropy(output, labels)


def train(model: nn.Module, split: Split, epochs: int) -> None:
    """The same loop for both: project_net, which keeps leaks and thresholds in range, passes over an ANN."""
    x, y = split
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(x) // 32))
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(32):
            loss = loss_of(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            project_net(model)
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Return the accuracy in %, of a spiking network by its potential."""
    output = model(split[0])
    scores = output if isinstance(output, Tensor) else output.potential
    return 100 * (scores.argmax(1) == split[1]).float().mean().item()


def evaluate(network: SpikingNetwork, split: Split) -> tuple[float, float]:
    """Return the accuracy in % and the spikes per hidden neuron and image."""
    with SpikingActivity(network) as activity:
        found = accuracy(network, split)
    return found, activity.mean


def main() -> None:
    """Mend the ANN, convert it, train what comes out, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15, help="of each ANN and each spiking network (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/convert_your_own"), help="folder (default %(default)s)")
    args = parser.parse_args()
    if args.epochs < 1 or not 0 <= args.seed < 2**32:
        parser.error(f"--epochs must be >= 1 and --seed in [0, 2^32), got {args.epochs} and {args.seed}")
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    training, validation, test = digits(args.seed)

    print("what conversion says about the ANN")
    own, mended = build(nn.GELU), build(nn.ReLU)
    try:
        convert(own, training[0], T=T)
    except ConversionError as error:
        print(f"  {error}")
    for ann in (own, mended):
        train(ann, training, args.epochs)

    # The thresholds are found once; their scale decides how much gets through in T steps. Each is trained to the end: the
    # untrained network does not tell which will be best, and nor does one epoch.
    images = training[0][:512]
    thresholds = calibrate_thresholds(mended, images, timesteps=100)
    print("\naccuracy on validation data, by threshold_scale")
    trained: dict[float, SpikingNetwork] = {}
    on_validation: dict[float, float] = {}
    for scale in SCALES:
        network = convert(mended, images, T=T, threshold_scale=scale, thresholds=thresholds)
        untrained = accuracy(network, validation)
        train(network, training, args.epochs)
        trained[scale], on_validation[scale] = network, accuracy(network, validation)
        print(f"  {scale}: {untrained:.1f} % untrained, {on_validation[scale]:.1f} % trained")
    best = max(SCALES, key=on_validation.__getitem__)
    network, untrained_network = trained[best], convert(mended, images, T=T, threshold_scale=best, thresholds=thresholds)

    print(f"\n{'':42s}{'accuracy, %':>12s}{'spikes per hidden neuron':>26s}")
    print(f"{'own: ANN with GELU':42s}{accuracy(own, test):12.1f}")
    print(f"{'mended: ANN with ReLU':42s}{accuracy(mended, test):12.1f}")
    rows = {f"converted: scale {best}, untrained": untrained_network, "trained: one spike, hybrid": network}
    for name, net in rows.items():
        on_test, spikes = evaluate(net, test)
        print(f"{name:42s}{on_test:12.1f}{spikes:26.2f}")

    print(f"\nwhat became of the ANN, and what training made of it\n{compare(mended, network, images)}")
    try:
        network.save(args.out)
    except OSError as error:
        sys.exit(f"{error.filename} cannot be written: {error.strerror}")
    loaded = SpikingNetwork.load(args.out)
    same = torch.equal(loaded(test[0]).potential, network(test[0]).potential)
    print(f"\nsaved to {args.out}; loaded, it gives the same potentials: {same}")


if __name__ == "__main__":
    main()
