"""Convert the ANN of a run plainly, the image at every step and any number of spikes, beside SpikingJelly's ann2snn.

    python recipes/train.py recipes/configs/cifar10_resnet_small.yaml --data-root data --out runs/resnet
    python benchmarks/convert_cifar.py runs/resnet --data-root data [--images 1000] [--json FILE]

All take their thresholds from the same training images: from currents of as many steps as the run took, from the ANN's own
activations, and as ann2snn has it. They are measured on the first test images, at T = 8, 32 and 200.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from convert_digits import accuracy, of_many_spikes
from machine import provenance
from trained import EXPECTED, trained_ann


def measure(run: Path, data_root: Path, images: int) -> dict[str, float]:
    """Return accuracies, in percent, by what was converted how."""
    ann, config, data, _ = trained_ann(run, data_root, [])
    calibration, _ = data.train.plain(slice(0, config.calibration_images))
    x, y = data.test.plain(slice(0, images))
    return {"ANN": accuracy(ann, x, y), **of_many_spikes(ann, calibration, x, y, config.calibration_T)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of recipes/train.py whose ANN is trained")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--images", type=int, default=1000, help="test images (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.images < 1:
        parser.error(f"--images must be >= 1, got {arguments.images}")
    torch.set_num_threads(1)
    try:
        found = measure(arguments.run, arguments.data_root, arguments.images)
    except EXPECTED as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    for name, percent in found.items():
        print(f"{name:<36}{percent:.2f}")
    if arguments.json:
        record = {"provenance": provenance(torch.device("cpu")), "images": arguments.images, "results": found}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
