"""What a tiny layer of neurons costs the host, forward and backward, in units of torch.relu on the same tensor.

On a GPU the kernels of a layer take less time than the Python that launches them, so this is what a network waits for. Without
one, "cupy" and "triton" run all of their Python on CPU tensors and launch nothing; the others compute; and the time is the
processor's, which other processes do not lengthen. SpikingJelly's LIFNode then takes its PyTorch path: the dispatcher binds its
Triton kernels to CUDA tensors, and there is no place to replace them at. With `--device cuda` all launch, and the time passes
until the call returns.

    python benchmarks/bench_overhead.py --out benchmarks/results/overhead_cpu.json

Peers take turns in every round; a round times a loop of calls for each. One thread.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from machine import provenance
from measure import Work, interleave, ratio, summary, usable_device, write_json
from operators import called_operators
from peers import SnnTorch, SpikingJelly, timed_backends
from stubs import STUBBED, stub_launches
from torch import Tensor, nn

from onespike.spikingjelly import SingleSpikeLIFNode

RELU = "torch.relu"
SHAPE = (5, 8, 16, 8, 8)
NO_LAUNCH = ", launches replaced by nothing"


class Fresh(nn.Module):
    """A node of ours that starts every call from a clean state, as in a network that resets itself."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.node = SingleSpikeLIFNode(0.9, 1.0, backend=backend)

    def forward(self, x_seq: Tensor) -> Tensor:
        self.node.reset()
        return self.node(x_seq)


def make_peers(device: torch.device) -> dict[str, nn.Module]:
    """Build what is compared, by name."""
    peers: dict[str, nn.Module] = {RELU: nn.ReLU()}
    peers |= {f"onespike {name}": Fresh(name) for name in timed_backends(device)}
    if device.type == "cpu":
        peers |= {f"onespike {name}{NO_LAUNCH}": Fresh(name) for name in STUBBED}
    peers["SpikingJelly LIFNode"] = SpikingJelly()
    peers["SpikingJelly ParametricLIFNode"] = SpikingJelly(parametric=True)
    peers["snnTorch Leaky"] = SnnTorch()
    return {name: peer.to(device).train() for name, peer in peers.items()}


def make_input(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return x_seq [T, N, C, H, W], each step with its channels last, and a gradient of the spikes that lies alike."""
    generator = torch.Generator(device).manual_seed(0)
    T, N, C, H, W = shape
    drawn = torch.randn(2, T, N, H, W, C, generator=generator, device=device).movedim(-1, 3)
    return (drawn[0] * 0.5 + 0.15).requires_grad_(), drawn[1]


def step(peer: nn.Module, x_seq: Tensor, grad: Tensor) -> None:
    """Run forward and backward once, and free the gradients."""
    peer(x_seq).backward(grad)
    x_seq.grad = None
    for parameter in peer.parameters():
        parameter.grad = None


def repeat(call: Work, times: int) -> Work:
    """Return a work that makes so many calls."""

    def loop() -> None:
        for _ in range(times):
            call()

    return loop


def measure_overhead(shape: tuple[int, ...], rounds: int, calls: int, device: torch.device) -> dict[str, Any]:
    """Time all peers on x_seq of this shape, and count the operators that each calls."""
    x_seq, grad = make_input(shape, device)
    with stub_launches() if device.type == "cpu" else nullcontext():
        steps = {name: (lambda peer=peer: step(peer, x_seq, grad)) for name, peer in make_peers(device).items()}
        operators = {name: called_operators(call) for name, call in steps.items()}
        times = interleave({name: repeat(call, calls) for name, call in steps.items()}, rounds, device)
    seconds = {name: measured.cpu if device.type == "cpu" else measured.host for name, measured in times.items()}
    rows = {
        name: {
            "median_us": 1e3 * summary(taken)["median_ms"] / calls,
            "times_relu": ratio(taken, seconds[RELU]),
            "operators": operators[name].total(),
            "called": dict(operators[name].most_common()),
        }
        for name, taken in seconds.items()
    }
    return {"shape": list(shape), "dtype": "float32", "rounds": rounds, "calls": calls, "rows": rows}


def markdown(case: dict[str, Any]) -> str:
    """Lay out the case as a Markdown table."""
    lines = [
        f"The host's time for one tiny layer, forward and backward, x_seq {case['shape']} {case['dtype']}, channels last:",
        "",
        "| neuron | us | times torch.relu | operators called |",
        "|---|---|---|---|",
    ]
    for name, row in sorted(case["rows"].items(), key=lambda item: item[1]["times_relu"]):
        lines.append(f"| {name} | {row['median_us']:.0f} | {row['times_relu']:.1f} | {row['operators']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", type=int, nargs=5, default=SHAPE, metavar=tuple("TNCHW"), help="of x_seq")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=100, help="calls in a round (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench_overhead.json"), help="JSON; .md goes beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = usable_device(args.device, f"the host's time for one layer of neurons, x_seq {list(args.shape)}")
    case = measure_overhead(tuple(args.shape), args.rounds, args.calls, device)
    print(markdown(case))
    write_json(args.out, {"benchmark": "overhead", **provenance(device), "heap": "as glibc manages it", "cases": [case]})
    args.out.with_suffix(".md").write_text(markdown(case))


if __name__ == "__main__":
    main()
