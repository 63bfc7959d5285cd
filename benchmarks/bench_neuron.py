"""Time and memory of one layer of neurons, forward and backward, against the peers and against a copy of the same bytes.

Every peer maps x_seq [T, N, *] to spikes and back-propagates a given dL/ds_seq to x_seq and its own parameters. All run in
turn within each round, and each round puts the input at other addresses. Nothing is timed unless every backend of ours equals
the float32 reference first.

    python benchmarks/bench_neuron.py --out benchmarks/results/neuron_cpu.json
"""

import argparse
import random
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from machine import provenance
from measure import (
    add_heap_option,
    interleave,
    peak_bytes,
    ratio,
    saved_bytes,
    set_heap,
    summary,
    usable_device,
    write_json,
)
from peers import Reference, SnnTorch, SpikingJelly, onespike_node, timed_backends
from torch import Tensor, nn

mpl.use("Agg")
import matplotlib.pyplot as plt

COPY = "copy of the same bytes"
SHAPES = {"conv": (64, 64, 32, 32), "fc": (256, 4096)}
GPU_SHAPES = {"conv": (256, 64, 32, 32), "fc": (256, 4096)}
QUICK_SHAPES = {"conv": (8, 16, 16, 16), "fc": (16, 256)}


def make_peers(device: torch.device, T: int, max_compiled_T: int) -> dict[str, nn.Module]:
    """Build the modules to be compared, by name; the hosts' own are compiled up to `max_compiled_T` steps."""
    peers: dict[str, nn.Module] = {f"onespike {name}": onespike_node(name)() for name in timed_backends(device)}
    peers["reference loop"] = Reference()
    peers["SpikingJelly LIFNode"] = SpikingJelly()
    peers["SpikingJelly LIFNode, reset detached"] = SpikingJelly(detach_reset=True)
    peers["SpikingJelly ParametricLIFNode"] = SpikingJelly(parametric=True)
    peers["snnTorch Leaky"] = SnnTorch()
    if max_compiled_T >= T:
        peers["SpikingJelly LIFNode, reset detached, compiled"] = torch.compile(SpikingJelly(detach_reset=True))  # type: ignore[assignment]
        peers["snnTorch Leaky, compiled"] = torch.compile(SnnTorch())  # type: ignore[assignment]
    return {name: peer.to(device).train() for name, peer in peers.items()}


class Inputs:
    """Currents `x` that fire about half of the neurons in 5 steps, and a gradient `grad` of the spikes, both `shape`."""

    PAGE, LINE = 4096, 64  # bytes

    def __init__(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn(shape, generator=generator, device=device) * 0.5 + 0.15
        self.drawn = x.to(dtype), torch.randn(shape, generator=generator, device=device).to(dtype)
        self.offsets = random.Random(0)
        self.move()

    def move(self) -> None:
        """Put both at other places within a page of memory.

        Steps are whole pages apart, so that all of them meet in the same lines of a cache; which lines those are of x, grad
        and the results changes the time of a memory-bound loop by several percent.
        """
        placed = []
        for tensor in self.drawn:
            memory = torch.empty(tensor.numel() + self.PAGE // tensor.element_size(), dtype=tensor.dtype, device=tensor.device)
            start = self.offsets.randrange(0, self.PAGE, self.LINE) // tensor.element_size()
            placed.append(memory[start : start + tensor.numel()].view(tensor.shape).copy_(tensor))
        self.x, self.grad = placed[0].requires_grad_(), placed[1]


def step(peer: nn.Module, inputs: Inputs) -> None:
    """Run forward and backward once, and free the gradients."""
    peer(inputs.x).backward(inputs.grad)
    peer.zero_grad(set_to_none=True)
    inputs.x.grad = None


def copy_same_bytes(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Move what the neuron must: forward reads x and writes O; backward reads x and dL/dO and writes dL/dx."""
    x = inputs.x.detach()
    return x.clone(), torch.add(x, inputs.grad)


def check_parity(device: torch.device, dtype: torch.dtype, T: int) -> None:
    """Refuse to go on unless each backend's spikes equal the reference's and its gradients are close."""
    inputs = Inputs((T, 16, 32, 33), device, dtype)
    x, grad = inputs.x, inputs.grad
    expected_node = Reference().to(device)
    expected = expected_node(x)
    expected.backward(grad)
    expected_grads = [x.grad, expected_node.leak.grad, expected_node.v_threshold.grad]
    fired = expected.any(0).float().mean().item()
    if not 0.05 < fired < 0.95:
        raise SystemExit(f"parity says nothing: {fired:.1%} of the neurons fired")
    for name in timed_backends(device):
        x.grad = None
        node = onespike_node(name)().to(device)
        s_seq = node(x)
        s_seq.backward(grad)
        if not torch.equal(s_seq, expected):
            raise SystemExit(f"refusing to time: spikes of {name} differ from the reference at T = {T}")
        for ours, theirs in zip((x.grad, node.leak.grad, node.v_threshold.grad), expected_grads, strict=True):
            if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item()):
                raise SystemExit(f"refusing to time: gradients of {name} differ from the reference at T = {T}")


def measure_case(kind: str, shape: tuple[int, ...], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure all peers on one shape [T, N, *]."""
    dtype = getattr(torch, args.dtype)
    check_parity(device, dtype, shape[0])
    inputs = Inputs(shape, device, dtype)
    size = inputs.x.nbytes
    works: dict[str, Any] = {COPY: lambda: copy_same_bytes(inputs)}
    peers = make_peers(device, shape[0], args.max_compiled_T)
    for name, peer in peers.items():
        works[name] = lambda peer=peer: step(peer, inputs)
    rounds = args.rounds if shape[0] <= 5 else max(3, args.rounds // 2)
    times = interleave(works, rounds, device, inputs.move, queued=True)
    elapsed = {name: measured.elapsed for name, measured in times.items()}
    rows = {}
    for name, seconds in elapsed.items():
        rows[name] = summary(seconds) | {"times_copy": ratio(seconds, elapsed[COPY])}
        if device.type == "cuda":
            rows[name]["host_ms"] = summary(times[name].host)["median_ms"]
            rows[name]["device_ms"] = summary(times[name].device)["median_ms"]
        if name in peers:
            rows[name]["speedup_over_spikingjelly"] = ratio(elapsed["SpikingJelly LIFNode"], seconds)
            rows[name]["speedup_over_snntorch"] = ratio(elapsed["snnTorch Leaky"], seconds)
            rows[name]["peak_extra_memory"] = peak_bytes(works[name], device) / size
            rows[name]["saved_for_backward"] = saved_bytes(lambda peer=peers[name]: peer(inputs.x)) / size
    return {"kind": kind, "shape": shape, "dtype": args.dtype, "rounds": rounds, "rows": rows}


def markdown(case: dict[str, Any]) -> str:
    """Lay out one case as a Markdown table; memory in units of x_seq.

    On a GPU "ms" is what passes until the result is there, "host" until the call returns, "device" what the GPU takes when
    everything already waits in its queue.
    """
    columns = {
        "median_ms": "ms",
        "host_ms": "host, ms",
        "device_ms": "device, ms",
        "times_copy": "times a copy of the same bytes",
        "speedup_over_spikingjelly": "times faster than SpikingJelly",
        "speedup_over_snntorch": "than snnTorch",
        "peak_extra_memory": "peak memory / x_seq",
        "saved_for_backward": "saved / x_seq",
    }
    present = {name: title for name, title in columns.items() if any(name in row for row in case["rows"].values())}
    lines = [
        f"One layer of neurons, {case['kind']}, forward and backward, x_seq {list(case['shape'])} {case['dtype']}:",
        "",
        f"| neuron | {' | '.join(present.values())} |",
        "|---" * (1 + len(present)) + "|",
    ]
    digits = 2 if min(row["median_ms"] for row in case["rows"].values()) < 1 else 1
    for name, row in sorted(case["rows"].items(), key=lambda item: item[1]["median_ms"]):
        cells = [f"{row[column]:.{digits if column.endswith('_ms') else 2}f}" if column in row else "" for column in present]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(cases: list[dict[str, Any]], path: Path) -> None:
    """Draw time over the copy's time against T, one panel per kind of layer."""
    kinds = list(dict.fromkeys(case["kind"] for case in cases))
    figure, axes = plt.subplots(1, len(kinds), figsize=(6 * len(kinds), 4.5), sharey=True, squeeze=False, layout="constrained")
    for ax, kind in zip(axes[0], kinds, strict=True):
        chosen = [case for case in cases if case["kind"] == kind]
        for name in dict.fromkeys(name for case in chosen for name in case["rows"]):
            points = [(case["shape"][0], case["rows"][name]["times_copy"]) for case in chosen if name in case["rows"]]
            ax.plot(*zip(*points, strict=True), marker="o", label=name, linestyle="--" if name == COPY else "-")
        ax.set(xscale="log", yscale="log", xlabel="time steps T", title=f"{kind} {list(chosen[0]['shape'][1:])}")
        ax.set_xticks([case["shape"][0] for case in chosen], [str(case["shape"][0]) for case in chosen])
        ax.set_xticks([], minor=True)
    axes[0, 0].set_ylabel("forward + backward, time / same-bytes copy")
    axes[0, -1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure the cases asked for and write JSON, Markdown and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 5, 10, 20], help="numbers of time steps T")
    parser.add_argument("--kinds", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds up to T = 5; half of them above")
    parser.add_argument("--max-compiled-T", type=int, default=5, help="compile the hosts' neurons up to this T")
    add_heap_option(parser)
    parser.add_argument("--quick", action="store_true", help="small shapes, T = 5, three rounds: does the script run?")
    parser.add_argument("--out", type=Path, default=Path("bench_neuron.json"), help="JSON; .md and .png go beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.steps, args.rounds, args.max_compiled_T = [5], 3, 0
    shapes = QUICK_SHAPES if args.quick else GPU_SHAPES if args.device.startswith("cuda") else SHAPES
    cuts = ", ".join(f"{kind} {list(shapes[kind])}" for kind in args.kinds)
    device = usable_device(
        args.device, f"one layer of neurons, {args.dtype}, T = {args.steps}, [N, *] = {cuts}, by device events"
    )
    heap = set_heap(args.heap)

    cases: list[dict[str, Any]] = []
    for kind in args.kinds:
        for T in args.steps:
            shape = (T, *shapes[kind])
            cases.append(measure_case(kind, shape, args, device))
            print(markdown(cases[-1]), flush=True)
            write_json(args.out, {"benchmark": "neuron", **provenance(device), "heap": heap, "cases": cases})
    args.out.with_suffix(".md").write_text("\n".join(map(markdown, cases)))
    plot(cases, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
