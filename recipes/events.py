"""Classify moving digits seen by a simulated event camera: a frame first, then at most one spike per pixel and polarity.

    python recipes/events.py [--seed 0] [--epochs 15] [--out runs/events]

scikit-learn's bundled digits move across a small sensor, each in its own direction; a camera model turns the movement into
events where the logarithm of the intensity passes multiples of a contrast threshold. Beside the network that sees frame and
events, two controls are trained: one that sees the frame alone, one that sees the events alone. The held-out test split is
read once, at the end.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn
from torch.nn.functional import grid_sample, pad
from tqdm import tqdm

from onespike.functional import hybrid_encode_events, predict
from onespike.spikingjelly import HybridCrossEntropyLoss, SingleSpikeLIFNode, SpikeTimeReadout, project_net

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EVENTS = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", np.int8)])
T = 5
FRAMES = 12  # of the film behind a recording
DURATION = 100_000  # microseconds
CONTRAST = 0.25  # change of log intensity that makes an event
DARKNESS = 0.1  # added to intensities in 0..1 before the logarithm
PATH = 3.0  # pixels that a digit moves


def film(images: Tensor, seed: int) -> Tensor:
    """Move each image [N, 8, 8] along its own straight line over a sensor of 12 x 12 pixels: [FRAMES, N, 12, 12]."""
    generator = torch.Generator().manual_seed(seed)
    angles = 2 * torch.pi * torch.rand(len(images), generator=generator)
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    scenes = pad(images, (2, 2, 2, 2)).unsqueeze(1)
    size = scenes.shape[-1]
    places = (torch.arange(size) + 0.5) * 2 / size - 1
    grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1)
    frames = []
    for moment in torch.linspace(-0.5, 0.5, FRAMES):
        shift = (directions * moment * PATH * 2 / size).view(-1, 1, 1, 2)
        frames.append(grid_sample(scenes, grid - shift, align_corners=False)[:, 0])
    return torch.stack(frames)


def camera(frames: Tensor) -> np.ndarray:
    """Turn the film of one scene, [FRAMES, H, W] in 0..1, into events.

    A pixel makes an event whenever the logarithm of its intensity passes a multiple of `CONTRAST`, counted from where it began.
    Between frames the logarithm is taken to change evenly, which gives the moment of each crossing.
    """
    logs = torch.log(frames.clamp_min(0) + DARKNESS)
    levels = (logs - logs[0]) / CONTRAST
    events = []
    for k in range(FRAMES - 1):
        before, after = levels[k], levels[k + 1]
        for sign in (1, -1):
            start, stop = torch.floor(sign * before), torch.floor(sign * after)
            for step in range(1, int((stop - start).max().clamp_min(0)) + 1):
                crossing = start + step
                y, x = ((stop >= crossing) & (stop > start)).nonzero(as_tuple=True)
                share = ((crossing - sign * before) / (sign * (after - before)))[y, x]
                t = ((k + share) * DURATION / (FRAMES - 1)).long()
                polarity = torch.full_like(t, sign)
                events.append(np.rec.fromarrays([v.numpy() for v in (x, y, t, polarity)], dtype=EVENTS))
    return np.concatenate(events) if events else np.empty(0, EVENTS)


def load_data(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Record every digit and encode it: training and test sequences [T, N, 3, 12, 12] with their labels."""
    pixels, digits = load_digits(return_X_y=True)
    frames = film(torch.tensor(pixels, dtype=torch.float32).view(-1, 8, 8) / 16, seed)
    recordings = [camera(frames[:, n]) for n in range(len(digits))]
    x_seq = hybrid_encode_events(frames[0].unsqueeze(1), recordings, T, window=(0, DURATION))
    labels = torch.tensor(digits, dtype=torch.int64)
    train, test = train_test_split(range(len(labels)), test_size=360, stratify=digits, random_state=0)
    return (x_seq[:, train], labels[train]), (x_seq[:, test], labels[test])


def build_network() -> nn.Sequential:
    """A small convolutional network of single-spike neurons; the sequence comes encoded."""
    net = nn.Sequential(
        layer.Conv2d(3, 24, 3, padding=1, bias=False),
        SingleSpikeLIFNode(v_threshold=0.4),
        layer.AvgPool2d(2),
        layer.Conv2d(24, 32, 3, padding=1, bias=False),
        SingleSpikeLIFNode(v_threshold=0.2),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(288, 10, bias=False),
        SpikeTimeReadout(time_gradient="full"),
    )
    functional.set_step_mode(net, "m")
    return net


def see(x_seq: Tensor, view: str) -> Tensor:
    """Leave of a sequence what a view sees: the frame is step 1, the events are all the others."""
    seen = x_seq.clone()
    if view == "events alone":
        seen[0] = 0
    if view == "frame alone":
        seen[1:] = 0
    return seen


def train(net: nn.Sequential, x_seq: Tensor, labels: Tensor, epochs: int, name: str) -> None:
    """Train with Adam, falling to a learning rate of 0 along a cosine."""
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs))
    for _ in tqdm(range(epochs), name, disable=None):
        for chosen in torch.randperm(len(labels)).split(32):
            functional.reset_net(net)
            loss = HybridCrossEntropyLoss()(net(x_seq[:, chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            project_net(net)
        schedule.step()


@torch.no_grad()
def evaluate(net: nn.Sequential, x_seq: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the accuracy in % and the hidden neurons' spikes per neuron."""
    spikes: list[Tensor] = []
    hooks = [net[i].register_forward_hook(lambda _, __, s_seq: spikes.append(s_seq.sum(0).flatten())) for i in (1, 4)]
    functional.reset_net(net)
    accuracy = 100 * (predict(net(x_seq)) == labels).float().mean().item()
    for hook in hooks:
        hook.remove()
    return {"accuracy": accuracy, "spikes_per_neuron": torch.cat(spikes).mean().item()}


def draw(x_seq: Tensor, path: Path) -> None:
    """Show one recording as the network gets it: the frame, then the pixels that spike at each step."""
    figure, axes = plt.subplots(1, T, figsize=(2.2 * T, 2.6), layout="constrained")
    axes[0].imshow(x_seq[0, 0], cmap="gray")
    axes[0].set_title("t = 1: frame")
    for t in range(1, T):
        axes[t].imshow(x_seq[t, 2] - x_seq[t, 1], cmap="RdBu_r", vmin=-1, vmax=1)
        axes[t].set_title(f"t = {t + 1}: events")
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=120)


def main() -> None:
    """Record, train the three networks, evaluate and write everything down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("runs/events"), help="folder for metrics.json and the figure")
    args = parser.parse_args()
    if args.epochs < 0:
        parser.error(f"--epochs must be >= 0, got {args.epochs}")
    torch.set_num_threads(1)  # the layers are small, and the result then does not depend on the machine's cores
    started = time.perf_counter()
    (x_train, y_train), (x_test, y_test) = load_data(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    draw(x_test[:, 0], args.out / "recording.png")

    results = {}
    print(f"{'':22s}{'accuracy, %':>12s}{'spikes per neuron':>20s}")
    for view in ("frame and events", "frame alone", "events alone"):
        torch.manual_seed(args.seed)
        net = build_network()
        train(net, see(x_train, view), y_train, args.epochs, view)
        results[view] = evaluate(net, see(x_test, view), y_test)
        print(f"{view:22s}{results[view]['accuracy']:12.1f}{results[view]['spikes_per_neuron']:20.2f}", flush=True)
    spiking = x_test[1:].sum(0)[:, 1:].mean().item()
    metrics = {"seed": args.seed, "epochs": args.epochs, "input_spikes_per_pixel_and_polarity": spiking, "results": results}
    (args.out / "metrics.json").write_text(json.dumps(metrics | {"seconds": time.perf_counter() - started}, indent=2) + "\n")


if __name__ == "__main__":
    main()
