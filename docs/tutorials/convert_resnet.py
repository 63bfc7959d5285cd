"""A residual network with batch norm as a single-spike network: train, convert, look at the report, fine-tune at T = 5.

The network is `onespike.models.resnet`, of torchvision's blocks; any of torchvision's ResNets converts the same way. With the
image at every step, neurons that fire as often as they like and 200 steps, the conversion is as good as its ANN: so nothing is
lost in units, biases, batch norm and shortcuts. With one spike and five steps much is lost, and trained back. The data are
scikit-learn's handwritten digits; nothing is downloaded.

    python docs/tutorials/convert_resnet.py
"""

import argparse
from functools import partial

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onespike.conversion import calibrate_thresholds, compare, convert
from onespike.functional import Readout, hybrid_cross_entropy
from onespike.metrics import SpikingActivity, energy
from onespike.models import resnet
from onespike.spikingjelly import DirectEncoder, SingleSpikeLIFNode, project_net

T = 5
LONG = 200
Split = tuple[Tensor, Tensor]


def digits(seed: int) -> tuple[Split, Split]:
    """Load images [N, 1, 8, 8], normalised by the training mean and std, and labels [N]: training and test."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    train, test = train_test_split(range(len(y)), test_size=360, stratify=labels, random_state=seed)
    x = (x - x[train].mean()) / x[train].std()
    return (x[train], y[train]), (x[test], y[test])


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
    scores = []
    for x in split[0].split(60):
        output = model(x)
        scores.append(output if isinstance(output, Tensor) else output.potential)
    return 100 * (torch.cat(scores).argmax(1) == split[1]).float().mean().item()


def main() -> None:
    """Train, convert, compare, fine-tune."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12, help="of the ANN and of the spiking network (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.epochs < 1 or not 0 <= args.seed < 2**32:
        parser.error(f"--epochs must be >= 1 and --seed in [0, 2^32), got {args.epochs} and {args.seed}")
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    training, test = digits(args.seed)
    ann = resnet("resnet8", 10, in_channels=1)
    train(ann, training, args.epochs)

    images = training[0][:256]
    thresholds = calibrate_thresholds(ann, images, timesteps=100)
    exact = convert(
        ann,
        images[:1],
        threshold_scale=1,
        thresholds=thresholds,
        encoder=DirectEncoder(LONG),
        neuron=partial(SingleSpikeLIFNode, single_spike=False),
    )
    network = convert(ann, images, T=T, thresholds=thresholds)
    untrained = accuracy(network.eval(), test)
    train(network, training, args.epochs)

    print(f"{'ann: batch norm, shortcuts':48s}{accuracy(ann, test):8.1f} %")
    print(f"{f'exact: image at every step, T = {LONG}':48s}{accuracy(exact, test):8.1f} %")
    print(f"{f'converted: hybrid, one spike, T = {T}':48s}{untrained:8.1f} %")
    with SpikingActivity(network) as activity:
        print(f"{'trained: the same, fine-tuned':48s}{accuracy(network, test):8.1f} %")
    ratio = energy(activity, accounting="events").ratio
    print(f"{activity.mean:.2f} spikes per neuron; energy by events, E_ANN / E_SNN: {ratio:.1f}")
    print(f"\nwhat became of the ANN, and what training made of it\n{compare(ann, network, images)}")


if __name__ == "__main__":
    main()
