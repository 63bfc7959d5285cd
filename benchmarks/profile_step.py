"""Torch's profile of five training steps of a VGG with our neurons, as a table.

    python benchmarks/profile_step.py --device cuda --out profile.txt

The step is that of `bench_network.py`, run eagerly. Operators are sorted by the device's time on a GPU, else by the host's.
A kernel's time stands in its own line and again in that of the operator that launched it: the sum is at the end of the table.
"""

import argparse
from pathlib import Path

import torch
from bench_network import CLASSES, NETWORKS, PRECISIONS, T, TrainStep, make_networks
from measure import usable_device
from peers import onespike_node
from torch.profiler import ProfilerActivity, profile

STEPS = 5


def main() -> None:
    """Profile and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--network", choices=list(NETWORKS), default="vgg16")
    parser.add_argument("--backend", default="auto", help="of our neurons")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16")
    parser.add_argument("--out", type=Path, default=Path("profile.txt"))
    args = parser.parse_args()
    device = usable_device(args.device, f"five training steps of {args.network} at T = {T}")
    images = (torch.rand(args.batch_size, 3, 32, 32, device=device) * 2 - 1).to(memory_format=torch.channels_last)
    target = torch.randint(CLASSES, (args.batch_size,), device=device)
    network = make_networks(args.network, {"ours": onespike_node(args.backend)}, images, device)["ours"].train()
    step = TrainStep(network, images, target, args.precision)
    for _ in range(3):  # compiles and tunes
        step()
    activities, order = [ProfilerActivity.CPU], "self_cpu_time_total"
    if device.type == "cuda":
        activities, order = [*activities, ProfilerActivity.CUDA], "self_cuda_time_total"
        torch.cuda.synchronize()
    with profile(activities=activities) as recorded:
        for _ in range(STEPS):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    table = recorded.key_averages().table(sort_by=order, row_limit=60)
    title = f'{STEPS} training steps of {args.network}, T = {T}, batch {args.batch_size}, {args.precision}, "{args.backend}"\n'
    args.out.write_text(title + "\n".join(line.rstrip() for line in table.splitlines()) + "\n")


if __name__ == "__main__":
    main()
