"""Draw the README's figure: the spikes of an ordinary LIF network beside those of a one-spike network, for one image.

Both have the same layers and learn scikit-learn's digits with T = 5: one with SpikingJelly's LIFNode and the image at every
step, the other with at most one spike a neuron and hybrid input, converted from an ANN and trained.

    python docs/figures/raster.py
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onespike import plots
from onespike.conversion import convert
from onespike.functional import hybrid_cross_entropy, predict
from onespike.spikingjelly import HybridEncoder, SingleSpikeLIFNode, project_net

T = 5
LAYERS = ("conv1", "conv2", "fc1")


def build(kinds: object, neurons: Callable[[], nn.Module]) -> nn.Sequential:
    """Return the layers of all three networks, of torch's or SpikingJelly's kinds, with weights of He et al."""
    net = nn.Sequential(
        kinds.Conv2d(1, 24, 3, padding=1, bias=False),
        neurons(),
        kinds.AvgPool2d(2),
        kinds.Conv2d(24, 48, 3, padding=1, bias=False),
        neurons(),
        kinds.AvgPool2d(2),
        kinds.Flatten(),
        kinds.Linear(192, 128, bias=False),
        neurons(),
        kinds.Linear(128, 10, bias=False),
    )
    for weight in net.parameters():
        if weight.dim() > 1:
            nn.init.kaiming_normal_(weight)
    return net


def lif() -> nn.Module:
    """SpikingJelly's LIF neuron with the paper's reset and surrogate, and the threshold that it comes with."""
    triangle = surrogate.PiecewiseQuadratic()
    return neuron.LIFNode(tau=2.0, decay_input=False, v_reset=None, surrogate_function=triangle, detach_reset=True)


def train(net: nn.Module, loss_of: Callable, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train any of the networks."""
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            loss = loss_of(net(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            project_net(net)
            functional.reset_net(net)


@torch.no_grad()
def run(net: nn.Module, nodes: list[nn.Module], images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the classes that a network gives, and the spikes of its hidden layers, [T, N, *]."""
    seen: list[Tensor] = []
    hooks = [node.register_forward_hook(lambda _, __, s_seq: seen.append(s_seq)) for node in nodes]
    found = net.eval()(images)
    functional.reset_net(net)
    for hook in hooks:
        hook.remove()
    return (predict(found) if isinstance(found, tuple) else found.argmax(-1)), seen


class Repeated(nn.Sequential):
    """A network that sees the image at every step and answers with the mean current of its last layer."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.expand(T, *images.shape)).mean(0)


def main() -> None:
    """Train both, print what they do, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits, classes = load_digits(return_X_y=True)
    split = train_test_split(digits.astype("float32").reshape(-1, 1, 8, 8) / 16, classes, test_size=360, random_state=0)
    images, test_images, labels, test_labels = map(torch.as_tensor, split)
    mean, std = images.mean(), images.std()
    images, test_images = (images - mean) / std, (test_images - mean) / std

    ordinary = Repeated(*build(layer, lif))
    functional.set_step_mode(ordinary, "m")
    train(ordinary, cross_entropy, images, labels, args.epochs)
    ann = build(nn, nn.ReLU)
    train(ann, cross_entropy, images, labels, args.epochs)
    encoder = HybridEncoder.for_normalized(T, mean, std)
    node = partial(SingleSpikeLIFNode, backend="torch")  # compiling would take longer than all the rest
    one_spike = convert(ann, images[:512], threshold_scale=0.4, encoder=encoder, neuron=node, timesteps=50)
    train(one_spike, hybrid_cross_entropy, images, labels, args.epochs)

    networks = {
        "LIF, image at every step": (ordinary, [m for m in ordinary if isinstance(m, neuron.LIFNode)]),
        "one spike, hybrid input": (one_spike, list(one_spike.nodes().values())),
    }
    figure, axes = plt.subplots(len(LAYERS), 2, figsize=(9, 6.4), sharex=True, layout="constrained")
    for column, (title, (net, nodes)) in enumerate(networks.items()):
        found, seen = run(net, nodes, test_images)
        spikes = sum(float(s_seq.sum()) for s_seq in seen) / sum(s_seq[0].numel() for s_seq in seen)
        accuracy = 100 * (found == test_labels).float().mean().item()
        print(f"{title}: {accuracy:.1f} % of {len(test_labels)} test images, {spikes:.2f} spikes per neuron")
        for row, (name, s_seq) in enumerate(zip(LAYERS, seen, strict=True)):
            ax = plots.raster(s_seq, max_neurons=48, ax=axes[row, column])
            ax.set_title("")
            ax.set_title(name, loc="left")
            ax.set_xlabel("time step t" if row == len(LAYERS) - 1 else "")
            ax.set_ylabel(f"neuron, of {s_seq[0, 0].numel()}" if column == 0 else "")
        axes[0, column].set_title(f"{title}\n{accuracy:.1f} %, {spikes:.2f} spikes per neuron\n")
    figure.suptitle("Spikes of one image of a digit, 48 neurons of each layer", fontweight="bold")
    figure.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
