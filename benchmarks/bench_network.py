"""Training steps and inference of a whole VGG, T = 5, with our neurons and with those of SpikingJelly and snnTorch.

All networks are converted from one ANN, so they differ in their neurons alone: hybrid encoder, time folded into the batch for
convolutions and linear layers, channels-last memory, spike-time readout and loss are the same. All run in turn within each
round.

    python benchmarks/bench_network.py --out benchmarks/results/network_cpu.json
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import interleave, peak_bytes, provenance, ratio, summary, usable_device, warm_heap, write_json
from peers import SnnTorch, SpikingJelly, onespike_node
from torch import Tensor, nn

from onespike.conversion import calibrate_thresholds, convert
from onespike.functional import available_backends, hybrid_cross_entropy
from onespike.models import vgg

CLASSES, T = 10, 5
NETWORKS = {"vgg6": ("vgg6", 1.0, 64), "vgg6 width/4": ("vgg6", 0.25, 256), "vgg16": ("vgg16", 1.0, 64)}
"""Name -> architecture, width and batch size."""


def make_networks(name: str, images: Tensor, device: torch.device) -> dict[str, nn.Module]:
    """Convert one ANN with each kind of neuron."""
    architecture, width, _ = NETWORKS[name]
    torch.manual_seed(0)
    ann = vgg(architecture, CLASSES, width=width, hidden=round(4096 * width)).to(device)
    thresholds = calibrate_thresholds(ann, images[:16], timesteps=2 * T)
    neurons: dict[str, Any] = {f"onespike {backend}": onespike_node(backend) for backend in available_backends(device)}
    neurons |= {
        "SpikingJelly LIFNode": SpikingJelly,
        "SpikingJelly LIFNode, reset detached": partial(SpikingJelly, detach_reset=True),
        "snnTorch Leaky": SnnTorch,
    }
    return {
        label: convert(ann, images, T=T, leak=0.9, thresholds=thresholds, neuron=neuron).to(memory_format=torch.channels_last)
        for label, neuron in neurons.items()
    }


def check_parity(networks: dict[str, nn.Module], images: Tensor) -> None:
    """Refuse to go on unless all backends of ours spike alike in the whole network: they must give the same potentials."""
    potentials = {}
    for label, network in networks.items():
        network.eval()
        if label.startswith("onespike"):
            with torch.no_grad():
                potentials[label] = network(images).potential
    expected = potentials["onespike torch"]
    if not expected.any():
        raise SystemExit("parity says nothing: no spike reached the last layer")
    for label, potential in potentials.items():
        if not torch.equal(potential, expected):
            raise SystemExit(f"refusing to time: the outputs of {label} differ from those of the torch backend")


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, target: Tensor) -> None:
    """Do one optimizer step."""
    optimizer.zero_grad(set_to_none=True)
    hybrid_cross_entropy(network(images), target).backward()
    optimizer.step()
    network.project_()  # type: ignore[operator]


@torch.no_grad()
def infer(network: nn.Module, images: Tensor) -> Tensor:
    """Return the output potentials."""
    return network(images).potential


def measure_network(name: str, args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Measure training and inference of one architecture."""
    batch = args.batch_size or NETWORKS[name][2]
    images = (torch.rand(batch, 3, 32, 32, device=device) * 2 - 1).to(memory_format=torch.channels_last)
    target = torch.randint(CLASSES, (batch,), device=device)
    networks = make_networks(name, images, device)
    check_parity(networks, images)
    cases = []
    for phase in ("train", "infer"):
        works: dict[str, Any] = {}
        for label, network in networks.items():
            network.train(phase == "train")
            if phase == "train":
                optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
                works[label] = lambda n=network, o=optimizer: train_step(n, o, images, target)
            else:
                works[label] = lambda n=network: infer(n, images)
        times = interleave(works, args.rounds, device)
        rows = {}
        for label, seconds in times.items():
            rows[label] = summary(seconds) | {
                "images_per_second": batch / (summary(seconds)["median_ms"] / 1e3),
                "speedup_over_spikingjelly": ratio(times["SpikingJelly LIFNode"], seconds),
                "speedup_over_snntorch": ratio(times["snnTorch Leaky"], seconds),
                "peak_extra_mib": peak_bytes(works[label], device) / 2**20,
            }
        cases.append({"network": name, "phase": phase, "T": T, "batch": batch, "rounds": args.rounds, "rows": rows})
        print(markdown(cases[-1]), flush=True)
    return cases


def markdown(case: dict[str, Any]) -> str:
    """Lay out one case as a Markdown table."""
    phase = {"train": "training step", "infer": "inference"}[case["phase"]]
    lines = [
        f"{case['network']}, {phase}, T = {case['T']}, batch {case['batch']}:",
        "",
        "| neurons | ms | images/s | times faster than with SpikingJelly | than with snnTorch | peak memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for label, row in sorted(case["rows"].items(), key=lambda item: item[1]["median_ms"]):
        lines.append(
            f"| {label} | {row['median_ms']:.0f} | {row['images_per_second']:.1f} | {row['speedup_over_spikingjelly']:.2f} "
            f"| {row['speedup_over_snntorch']:.2f} | {row['peak_extra_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the networks asked for and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), help="default: vgg16 on a GPU only")
    parser.add_argument("--batch-size", type=int, help="default: 64, or 256 for the narrow network")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--heap", choices=["warm", "default"], default="warm", help="keep freed memory, or leave glibc alone")
    parser.add_argument(
        "--quick", action="store_true", help="the narrow network, a batch of 4, three rounds: does the script run?"
    )
    parser.add_argument("--out", type=Path, default=Path("bench_network.json"), help="JSON; .md goes beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    on_gpu = args.device.startswith("cuda")
    names = args.networks or (list(NETWORKS) if on_gpu else ["vgg6", "vgg6 width/4"])
    device = usable_device(args.device, f"training steps and inference of {', '.join(names)} at T = {T}, by device events")
    heap = warm_heap() if args.heap == "warm" else "as glibc manages it"
    if args.quick:
        names, args.batch_size, args.rounds = ["vgg6 width/4"], 4, 3

    cases: list[dict[str, Any]] = []
    for name in names:
        cases += measure_network(name, args, device)
        write_json(args.out, {"benchmark": "network", **provenance(device), "heap": heap, "cases": cases})
    args.out.with_suffix(".md").write_text("\n".join(map(markdown, cases)))


if __name__ == "__main__":
    main()
