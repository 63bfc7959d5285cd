"""A snnTorch training script, before and after: from `Leaky` neurons to at most one spike per neuron.

Before, as in snnTorch's tutorials: the image is shown at every step, the forward pass loops over time and the output spikes are
counted. After: `spikegen` becomes `hybrid`, `Leaky` becomes `SingleSpikeLeaky`, whose `sequence` needs no loop, and the loss is
taken of the output's potential and spike time. Both train on scikit-learn's handwritten digits; nothing is downloaded.

    python docs/tutorials/snntorch_digits.py
"""

import argparse
from collections.abc import Callable

import snntorch as snn
import snntorch.functional as SF
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from snntorch import surrogate
from torch import Tensor, nn

from onespike.snntorch import SingleSpikeLeaky, SpikeTimeReadout, accuracy_potential, ce_spike_time_potential_loss, hybrid

NUM_STEPS = 5
HIDDEN = 128


class Before(nn.Module):
    """The tutorials' fully-connected network."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, HIDDEN, bias=False)
        self.lif1 = snn.Leaky(beta=0.9, spike_grad=surrogate.fast_sigmoid())
        self.fc2 = nn.Linear(HIDDEN, 10, bias=False)
        self.lif2 = snn.Leaky(beta=0.9, spike_grad=surrogate.fast_sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output's and the hidden layer's spikes, [T, B, 10] and [T, B, HIDDEN]."""
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spk_rec, hidden_rec = [], []
        for _ in range(NUM_STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            hidden_rec.append(spk1)
        return torch.stack(spk_rec), torch.stack(hidden_rec)


class After(nn.Module):
    """The same layers with one spike per neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, HIDDEN, bias=False)
        self.lif1 = SingleSpikeLeaky(beta=0.9)
        self.fc2 = nn.Linear(HIDDEN, 10, bias=False)
        self.readout = SpikeTimeReadout()

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the output's (potential, spike time), [B, 10] each, and the hidden layer's spikes [T, B, HIDDEN]."""
        spk_in = hybrid(x, NUM_STEPS, intensity_range=(0.0, 1.0))
        hidden_rec, _ = self.lif1.sequence(self.fc1(spk_in))
        return self.readout(self.fc2(hidden_rec)), hidden_rec

    def project_(self) -> None:
        """Keep beta in [0, 1] and the thresholds above 0; call after each optimizer step."""
        self.lif1.project_()
        self.readout.project_()


def digits(seed: int) -> list[Tensor]:
    """Load the images, 0..1, [N, 64], and labels: training and test images, training and test labels."""
    images, labels = load_digits(return_X_y=True)
    return [torch.as_tensor(part) for part in train_test_split(images.astype("float32") / 16, labels, random_state=seed)]


def train(net: nn.Module, loss_fn: Callable, images: Tensor, labels: Tensor, epochs: int) -> None:
    """The training loop of the tutorials; only project_ is new."""
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            output, _ = net(images[chosen])
            loss = loss_fn(output, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if isinstance(net, After):
                net.project_()


def main() -> None:
    """Train both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.epochs < 1 or not 0 <= args.seed < 2**32:
        parser.error(f"--epochs must be >= 1 and --seed in [0, 2^32), got {args.epochs} and {args.seed}")
    images, test_images, labels, test_labels = digits(args.seed)
    print(f"{'':42s}{'accuracy, %':>12s}{'spikes per hidden neuron':>26s}")
    for name, make, loss_fn, accuracy_fn in (
        ("before: Leaky, image repeated", Before, SF.ce_rate_loss(), SF.accuracy_rate),
        ("after: one spike, hybrid", After, ce_spike_time_potential_loss(), accuracy_potential),
    ):
        torch.manual_seed(args.seed)
        net = make()
        train(net, loss_fn, images, labels, args.epochs)
        with torch.no_grad():
            output, hidden_rec = net(test_images)
        accuracy = 100 * float(accuracy_fn(output, test_labels))
        print(f"{name:42s}{accuracy:12.1f}{float(hidden_rec.sum(0).mean()):26.2f}")


if __name__ == "__main__":
    main()
