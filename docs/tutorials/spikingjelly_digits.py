"""A SpikingJelly training script, before and after: from rate-coded LIF neurons to at most one spike per neuron.

Before, as SpikingJelly's users write it: the image is repeated at every step, and the output neurons' firing rates decide.
After: the encoder goes in front, `to_single_spike` exchanges the hidden neurons, and the readout and its loss take the place of
the output neurons. Both train on scikit-learn's handwritten digits; nothing is downloaded.

    python docs/tutorials/spikingjelly_digits.py
"""

import argparse
import copy
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onespike.spikingjelly import HybridCrossEntropyLoss, HybridEncoder, SpikeTimeReadout, project_net, to_single_spike

T = 5
Loss = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


def digits(seed: int) -> list[Tensor]:
    """Load the images, 0..1, [N, 64], and labels: training and test images, training and test labels."""
    images, labels = load_digits(return_X_y=True)
    return [torch.as_tensor(part) for part in train_test_split(images.astype("float32") / 16, labels, random_state=seed)]


def train(net: nn.Module, loss_of: Loss, images: Tensor, labels: Tensor, epochs: int) -> None:
    """The training loop: the same before and after, but for project_net, which a network without our nodes ignores."""
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            loss, _ = loss_of(net, images[chosen], labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            project_net(net)
            functional.reset_net(net)


@torch.no_grad()
def evaluate(net: nn.Module, loss_of: Loss, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the accuracy in % and the hidden neurons' spikes per neuron."""
    counts: list[float] = []
    hidden = [module for module in net if hasattr(module, "v_threshold") and not isinstance(module, SpikeTimeReadout)][:1]
    hooks = [node.register_forward_hook(lambda _, __, s_seq: counts.append(float(s_seq.sum(0).mean()))) for node in hidden]
    _, scores = loss_of(net, images, labels)
    functional.reset_net(net)
    for hook in hooks:
        hook.remove()
    return 100 * (scores.argmax(-1) == labels).float().mean().item(), counts[0]


def rate_loss(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Before: repeat the image, average the output spikes."""
    rates = net(images.expand(T, *images.shape)).mean(0)
    return cross_entropy(rates, labels), rates


def hybrid_loss(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """After: the network encodes the image itself and reads out potential and spike time."""
    readout = net(images)
    return HybridCrossEntropyLoss()(readout, labels), readout.potential


def main() -> None:
    """Train the one, turn it into the other, train that, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.epochs < 1 or not 0 <= args.seed < 2**32:
        parser.error(f"--epochs must be >= 1 and --seed in [0, 2^32), got {args.epochs} and {args.seed}")
    torch.manual_seed(args.seed)
    images, test_images, labels, test_labels = digits(args.seed)

    def lif() -> nn.Module:
        triangle = surrogate.PiecewiseQuadratic()
        return neuron.LIFNode(tau=2.0, decay_input=False, v_reset=None, surrogate_function=triangle, detach_reset=True)

    before = nn.Sequential(layer.Linear(64, 128, bias=False), lif(), layer.Linear(128, 10, bias=False), lif())
    functional.set_step_mode(before, "m")
    train(before, rate_loss, images, labels, args.epochs)

    hidden, report = to_single_spike(before[:2])
    print(report)
    after = nn.Sequential(HybridEncoder(T), *hidden, copy.deepcopy(before[2]), SpikeTimeReadout())
    functional.set_step_mode(after, "m")
    untrained, _ = evaluate(after, hybrid_loss, test_images, test_labels)
    train(after, hybrid_loss, images, labels, args.epochs)

    print(f"\n{'':42s}{'accuracy, %':>12s}{'spikes per hidden neuron':>26s}")
    for name, net, loss_of in (
        ("before: LIF, image repeated", before, rate_loss),
        ("after: one spike, hybrid", after, hybrid_loss),
    ):
        accuracy, spikes = evaluate(net, loss_of, test_images, test_labels)
        print(f"{name:42s}{accuracy:12.1f}{spikes:26.2f}")
    print(f"{'(after, not yet trained again)':42s}{untrained:12.1f}")


if __name__ == "__main__":
    main()
