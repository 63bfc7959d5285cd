"""Time the recipe's resident CIFAR batches against torchvision's per-sample transforms with a DataLoader.

    python benchmarks/bench_loader.py --data-root data --out benchmarks/results/loader_cpu.json

Both crop with a border of 4 pixels, mirror half of the images and normalise. The two take turns in every round, the DataLoader
with 0 and with 2 workers; what is compared is images per second over the same number of batches.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import provenance
from measure import ratio, summary, write_json
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from cifar.data import STATISTICS, Epoch, Split

BATCH = 128


def resident(split: Split, batches: int) -> None:
    """Take batches as the recipe does, drawing an epoch's plan included."""
    epoch = Epoch.draw(len(split), torch.Generator().manual_seed(0), crop=4, flip=True)
    for first in range(0, batches * BATCH, BATCH):
        split.augmented(epoch.take(slice(first, first + BATCH)))


def per_sample(loader: DataLoader, batches: int) -> None:
    """Take as many batches from a DataLoader, its start included."""
    for taken, _ in enumerate(loader, 1):
        if taken == batches:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder of CIFAR-10 (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=100, help="of 128 images, in each round (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench_loader.json"), help="JSON file for the results")
    arguments = parser.parse_args()

    mean, std = STATISTICS["cifar10"]
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    chain = transforms.Compose([*augment, transforms.ToTensor(), transforms.Normalize(mean, std)])
    files = datasets.CIFAR10(arguments.data_root, transform=chain, download=True)
    images, labels = torch.from_numpy(files.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(files.targets)
    split = Split(images, labels, mean, std, crop=4, memory_format=torch.channels_last)
    works = {"resident": lambda: resident(split, arguments.batches)}
    for workers in (0, 2):
        loader = DataLoader(files, BATCH, shuffle=True, num_workers=workers)
        works[f"DataLoader, {workers} workers"] = lambda loader=loader: per_sample(loader, arguments.batches)

    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(arguments.rounds):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begin)
    rows = {
        name: {
            **summary(times),
            "images_per_second": arguments.batches * BATCH / statistics.median(times),
            "resident_is_faster_by": ratio(times, seconds["resident"]),
        }
        for name, times in seconds.items()
    }
    case = {"batch": BATCH, "batches": arguments.batches, "rows": rows}
    print(markdown(case))
    write_json(
        arguments.out, {"benchmark": "loader", **provenance(torch.device("cpu")), "heap": "as it comes", "cases": [case]}
    )


def markdown(case: dict[str, Any]) -> str:
    """Lay out the case as a Markdown table."""
    lines = [
        f"CIFAR-10 batches of {case['batch']}, cropped, mirrored and normalised:",
        "",
        "| batches from | images/s | the resident ones are faster by |",
        "|---|---|---|",
    ]
    for name, row in case["rows"].items():
        lines.append(f"| {name} | {row['images_per_second']:.0f} | {row['resident_is_faster_by']:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
