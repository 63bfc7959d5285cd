"""Training steps and inference of a whole VGG, T = 5, with our neurons and with those of SpikingJelly and snnTorch.

All networks are converted from one ANN, so they differ in their neurons alone: hybrid encoder, time folded into the batch for
convolutions and linear layers, channels-last memory, spike-time readout, loss, optimizer and, with `--precision bf16`, autocast
are the same. All run in turn within each round; on a GPU a training step also runs as a CUDA graph: forward, loss, backward,
optimizer and projection.

    python benchmarks/bench_network.py --out benchmarks/results/network_cpu.json
    python benchmarks/bench_network.py --device cuda --networks vgg16 --batch-size 128 --precision bf16
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from graphs import graphed
from machine import provenance
from measure import add_heap_option, interleave, peak_bytes, ratio, set_heap, summary, usable_device, write_json
from peers import SnnTorch, SpikingJelly, onespike_node, timed_backends
from torch import Tensor, nn

from onespike.conversion import calibrate_thresholds, convert
from onespike.functional import hybrid_cross_entropy
from onespike.models import vgg

CLASSES, T = 10, 5
NETWORKS = {"vgg6": ("vgg6", 1.0, 64), "vgg6 width/4": ("vgg6", 0.25, 256), "vgg16": ("vgg16", 1.0, 64)}
"""Name -> architecture, width and batch size."""

PRECISIONS = {"float32": None, "bf16": torch.bfloat16}
"""Name -> dtype of autocast."""

GRAPHED = ", graphed"


def make_neurons(device: torch.device) -> dict[str, Any]:
    """Return the constructor (leak, v_threshold) of each kind of neuron, by name."""
    return {f"onespike {backend}": onespike_node(backend) for backend in timed_backends(device)} | {
        "SpikingJelly LIFNode": SpikingJelly,
        "SpikingJelly LIFNode, reset detached": partial(SpikingJelly, detach_reset=True),
        "snnTorch Leaky": SnnTorch,
    }


def make_networks(name: str, neurons: dict[str, Any], images: Tensor, device: torch.device) -> dict[str, nn.Module]:
    """Convert one ANN with each of these neurons."""
    architecture, width, _ = NETWORKS[name]
    torch.manual_seed(0)
    ann = vgg(architecture, CLASSES, width=width, hidden=round(4096 * width)).to(device)
    thresholds = calibrate_thresholds(ann, images[:16], timesteps=2 * T)
    return {
        label: convert(ann, images, T=T, leak=0.9, thresholds=thresholds, neuron=neuron).to(memory_format=torch.channels_last)
        for label, neuron in neurons.items()
    }


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which every network of a table computes."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=PRECISIONS[precision] is not None)


def check_parity(networks: dict[str, nn.Module], images: Tensor, precision: str) -> None:
    """Refuse to go on unless all backends of ours spike alike in the whole network: they must give the same potentials."""
    potentials = {}
    for label, network in networks.items():
        network.eval()
        if label.startswith("onespike"):
            potentials[label] = infer(network, images, precision)
    expected = potentials["onespike torch"]
    if not expected.any():
        raise SystemExit("parity says nothing: no spike reached the last layer")
    for label, potential in potentials.items():
        if not torch.equal(potential, expected):
            raise SystemExit(f"refusing to time: the outputs of {label} differ from those of the torch backend")


class TrainStep:
    """One optimizer step on the same images at every call; its loss stays in `loss`."""

    def __init__(self, network: nn.Module, images: Tensor, target: Tensor, precision: str) -> None:
        self.network, self.images, self.target, self.precision = network, images, target, precision
        on_gpu = images.device.type == "cuda"
        self.optimizer = torch.optim.Adam(network.parameters(), 1e-5, fused=True, capturable=on_gpu)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.precision, self.images.device):
            readout = self.network(self.images)
        loss = hybrid_cross_entropy(readout, self.target)
        loss.backward()
        self.loss = loss.detach()  # what a step leaves of its autograd graph would tie a capture to the warm-up's stream
        self.optimizer.step()
        self.network.project_()  # type: ignore[operator]


@torch.no_grad()
def infer(network: nn.Module, images: Tensor, precision: str) -> Tensor:
    """Return the output potentials."""
    with autocast(precision, images.device):
        return network(images).potential


def graph_of(step: TrainStep) -> tuple[Any, int]:
    """Capture a step, and refuse what it gives unless a replay does what an eager step does: its loss, but for dropout, and
    that parameters move. (Those of a network whose neurons are all silent do not.)"""
    replay, peak = graphed(step)
    captured = step.loss
    moved = moves(step.network, replay)
    found = captured.item()
    moved_eagerly = moves(step.network, step)
    if moved != moved_eagerly or not 0.5 < found / step.loss.item() < 2:
        raise SystemExit(
            f"refusing to time: parameters move in a replayed step: {moved}, in an eager one: {moved_eagerly}; the losses are "
            f"{found:.4g} and {step.loss.item():.4g}"
        )
    return replay, peak


def moves(network: nn.Module, work: Any) -> bool:
    """Whether `work` changes a parameter of `network`."""
    before = [parameter.detach().clone() for parameter in network.parameters()]
    work()
    return any(not torch.equal(now, old) for now, old in zip(network.parameters(), before, strict=True))


def measure_network(name: str, args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Measure training and inference of one architecture."""
    batch = args.batch_size or NETWORKS[name][2]
    images = (torch.rand(batch, 3, 32, 32, device=device) * 2 - 1).to(memory_format=torch.channels_last)
    target = torch.randint(CLASSES, (batch,), device=device)
    networks = make_networks(name, make_neurons(device), images, device)
    check_parity(networks, images, args.precision)
    cases = []
    for phase in ("train", "infer"):
        works: dict[str, Any] = {}
        peaks: dict[str, int] = {}
        not_graphed: dict[str, str] = {}
        for label, network in networks.items():
            network.train(phase == "train")
            if phase == "infer":
                works[label] = lambda n=network: infer(n, images, args.precision)
                continue
            works[label] = step = TrainStep(network, images, target, args.precision)
            if device.type != "cuda" or not args.graphs:
                continue
            if label.startswith("snnTorch"):
                not_graphed[label] = "its capture fails, and torch 2.11 draws no random numbers after that"
            else:
                works[label + GRAPHED], peaks[label + GRAPHED] = graph_of(step)
        times = interleave(works, args.rounds, device)
        elapsed = {label: measured.elapsed for label, measured in times.items()}
        rows = {}
        for label, seconds in elapsed.items():
            peak = peaks[label] if label in peaks else peak_bytes(works[label], device)
            rows[label] = summary(seconds) | {
                "images_per_second": batch / (summary(seconds)["median_ms"] / 1e3),
                "speedup_over_spikingjelly": ratio(elapsed["SpikingJelly LIFNode"], seconds),
                "speedup_over_snntorch": ratio(elapsed["snnTorch Leaky"], seconds),
                "peak_extra_mib": peak / 2**20,
            }
            if device.type == "cuda":
                rows[label]["host_ms"] = summary(times[label].host)["median_ms"]
        case = {"network": name, "phase": phase, "T": T, "batch": batch, "precision": args.precision, "rounds": args.rounds}
        cases.append(case | {"rows": rows, "not_graphed": not_graphed})
        print(markdown(cases[-1]), flush=True)
    return cases


def markdown(case: dict[str, Any]) -> str:
    """Lay out one case as a Markdown table; on a GPU with the time until the call returns, "host"."""
    phase = {"train": "training step", "infer": "inference"}[case["phase"]]
    precision = " bf16 autocast," if case.get("precision") == "bf16" else ""  # first results: float32, and do not say so
    host = any("host_ms" in row for row in case["rows"].values())
    lines = [
        f"{case['network']}, {phase},{precision} T = {case['T']}, batch {case['batch']}:",
        "",
        f"| neurons | ms |{' host, ms |' if host else ''} images/s | times faster than with SpikingJelly | than with snnTorch "
        "| peak memory, MiB |",
        "|---" * (7 if host else 6) + "|",
    ]
    for label, row in sorted(case["rows"].items(), key=lambda item: item[1]["median_ms"]):
        digits = 0 if row["median_ms"] >= 100 else 1
        times = [row["median_ms"], row["host_ms"]] if host else [row["median_ms"]]
        lines.append(
            f"| {label} | {' | '.join(f'{time:.{digits}f}' for time in times)} | {row['images_per_second']:.1f} "
            f"| {row['speedup_over_spikingjelly']:.2f} | {row['speedup_over_snntorch']:.2f} | {row['peak_extra_mib']:.0f} |"
        )
    lines += [f"\nNot graphed: {label}: {reason}" for label, reason in case.get("not_graphed", {}).items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the networks asked for and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), help="default: vgg16 on a GPU only")
    parser.add_argument("--batch-size", type=int, help="default: 64, or 256 for the narrow network")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="float32", help="bf16: forward under autocast")
    parser.add_argument("--no-graphs", dest="graphs", action="store_false", help="on a GPU, eager steps only")
    add_heap_option(parser)
    parser.add_argument(
        "--quick", action="store_true", help="the narrow network, a batch of 4, three rounds: does the script run?"
    )
    parser.add_argument("--out", type=Path, default=Path("bench_network.json"), help="JSON; .md goes beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    on_gpu = args.device.startswith("cuda")
    names = args.networks or (list(NETWORKS) if on_gpu else ["vgg6", "vgg6 width/4"])
    device = usable_device(args.device, f"training steps and inference of {', '.join(names)} at T = {T}, by device events")
    heap = set_heap(args.heap)
    if args.quick:
        names, args.batch_size, args.rounds = ["vgg6 width/4"], 4, 3

    cases: list[dict[str, Any]] = []
    for name in names:
        cases += measure_network(name, args, device)
        write_json(args.out, {"benchmark": "network", **provenance(device), "heap": heap, "cases": cases})
    args.out.with_suffix(".md").write_text("\n".join(map(markdown, cases)))


if __name__ == "__main__":
    main()
