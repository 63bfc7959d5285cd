"""Classify images with a trained network of one spike per neuron, and look at its spikes.

    python docs/tutorials/classify_images.py --data-root data       (CIFAR-10's test images, downloaded if they are not there)
    python docs/tutorials/classify_images.py photo.jpg other.png    (your own images, cut to a square)

Lines that start with "# %%" begin cells, for editors that run scripts as notebooks.
"""

# %% What to classify
import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2 as transforms

from onespike import plots
from onespike.functional import predict
from onespike.metrics import SpikingActivity, energy
from onespike.pretrained import load_pretrained, model_card

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES = 8

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images", nargs="*", type=Path, help="image files; none takes test images of CIFAR-10")
parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder of CIFAR-10 (default %(default)s)")
parser.add_argument("--out", type=Path, default=Path("classified.png"), help="the figure (default %(default)s)")
arguments = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has arguments of its own

pictures, truths = [], [path.name for path in arguments.images]
for path in arguments.images:
    try:
        pictures.append(Image.open(path).convert("RGB"))
    except OSError as error:  # missing, or no image
        sys.exit(f"{path} cannot be read as an image: {error}")
if not pictures:
    try:
        test = datasets.CIFAR10(arguments.data_root, train=False, download=True)
    except Exception as error:  # as many kinds as there are ways to have no network or a damaged file
        sys.exit(f"CIFAR-10 is not in {arguments.data_root} and cannot be downloaded ({error}): give its folder, or images")
    pictures = [test[i][0] for i in range(IMAGES)]
    truths = [CLASSES[test[i][1]] for i in range(IMAGES)]

# %% The network and what it was measured to do
network = load_pretrained("cifar10_vgg6_small")
print(model_card("cifar10_vgg6_small"))

prepare = transforms.Compose(
    [
        transforms.Resize(32),
        transforms.CenterCrop(32),
        transforms.ToImage(),
        transforms.ToDtype(torch.float32, scale=True),
        transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ]
)
x = torch.stack([prepare(picture) for picture in pictures])

# %% Classify, and count what it took
recorded: dict[str, torch.Tensor] = {}


def record(name: str) -> None:
    """Keep the spikes of a layer."""
    network.nodes()[name].register_forward_hook(lambda *call: recorded.__setitem__(name, call[-1]))


layers = list(network.nodes())
for name in layers:
    record(name)
with torch.no_grad(), SpikingActivity(network) as activity:
    readout = network(x)
guesses = predict(readout)
for truth, guess, time in zip(truths, guesses, readout.spike_time.gather(1, guesses[:, None])[:, 0], strict=True):
    print(f"{truth:<20} -> {CLASSES[guess]:<12} first output spike at t = {time:.0f}")
most = max(int(spikes.sum(0).max()) for spikes in recorded.values())
report = energy(activity)
print(f"{activity.mean:.3f} spikes per neuron, no neuron more than {most}")
print(f"compute energy: {report.ann_pj / report.snn_pj:.1f} times less than the ANN's, by the paper's accounting")

# %% See it
figure, axes = plt.subplots(2, len(layers), figsize=(3 * len(layers), 5.5), layout="constrained")
for ax in axes[0]:
    ax.set_axis_off()
for ax, picture, truth, guess in zip(axes[0], pictures, truths, guesses, strict=False):
    ax.imshow(picture)
    ax.set_title(f"{truth}: {CLASSES[guess]}", fontsize="small")
for ax, name in zip(axes[1], layers, strict=True):
    plots.raster(recorded[name], ax=ax).set_ylabel("neuron")
    ax.set_title(f"first image, layer {name}", fontsize="small")
try:
    figure.savefig(arguments.out, dpi=120)
except (OSError, ValueError) as error:  # a full disk, or the name of no format
    sys.exit(f"{arguments.out} cannot be written: {error}")
print(f"images and rasters are in {arguments.out}")
