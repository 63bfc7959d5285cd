"""What an installed onespike has to do, whatever is installed beside it.

    python .ci/smoke.py SPIKINGJELLY SNNTORCH        (the start of the version that has to be there, or "absent")

`.ci/nightly` runs this in environments of its own. The last line names the versions it ran with.
"""

import importlib
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

import onespike
from onespike.functional import available_backends, single_spike_lif, single_spike_lif_ref


def version(package: str) -> str:
    """Return the installed version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def refusal(module: str) -> str:
    """Return what an import is refused with."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return str(error)
    raise AssertionError(f"{module} can be imported without what it needs")


def neurons() -> None:
    """Every backend that can run here gives the reference's spikes and gradients."""
    x_seq = torch.randn(5, 3, 70)

    def run(lif, **options) -> list[torch.Tensor]:
        inputs = [x_seq.clone().requires_grad_(), torch.tensor(0.9).requires_grad_(), torch.tensor(0.4).requires_grad_()]
        s_seq = lif(*inputs, **options)[0]
        assert 0 < s_seq.sum() < s_seq[0].numel()
        return [s_seq, *torch.autograd.grad((s_seq * x_seq).sum(), inputs)]

    expected = run(single_spike_lif_ref)
    for backend in ("auto", *available_backends("cpu")):
        torch.testing.assert_close(run(single_spike_lif, backend=backend), expected)


def report() -> None:
    """`python -m onespike` finds nothing broken and names the versions."""
    said = subprocess.run([sys.executable, "-m", "onespike"], capture_output=True, text=True, check=True).stdout
    assert "broken" not in said, said
    for package in ("torch", "spikingjelly", "snntorch"):
        found = version(package).replace("absent", "not installed")
        assert any(line.split()[:1] == [f"{package}:"] and found in line for line in said.splitlines()), said


def spikingjelly() -> None:
    """A step of training in SpikingJelly's terms."""
    from spikingjelly.activation_based import functional, layer  # noqa: PLC0415

    from onespike import spikingjelly as host  # noqa: PLC0415

    net = torch.nn.Sequential(
        host.HybridEncoder(T=5),
        layer.Conv2d(1, 4, 3, padding=1, bias=False),
        host.SingleSpikeLIFNode(v_threshold=0.3),
        layer.Flatten(),
        layer.Linear(256, 10, bias=False),
        host.SpikeTimeReadout(),
    )
    functional.set_step_mode(net, "m")
    host.HybridCrossEntropyLoss()(net(torch.rand(8, 1, 8, 8)), torch.randint(10, (8,))).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    host.project_net(net)
    functional.reset_net(net)


def snntorch() -> None:
    """A step of training in snnTorch's terms."""
    from onespike import snntorch as host  # noqa: PLC0415

    lif, fc = host.SingleSpikeLeaky(beta=0.9, threshold=0.3), torch.nn.Linear(64, 10, bias=False)
    spk_rec, _ = lif.sequence(host.hybrid(torch.rand(8, 64), num_steps=5, intensity_range=(0.0, 1.0)))
    host.ce_spike_time_potential_loss()(host.SpikeTimeReadout()(fc(spk_rec)), torch.randint(10, (8,))).backward()
    assert fc.weight.grad is not None
    assert fc.weight.grad.isfinite().all()
    assert lif.threshold.grad is not None


def pretrained() -> None:
    """The network that comes with the package gives classes, if safetensors is there."""
    from onespike.pretrained import load_pretrained  # noqa: PLC0415

    readout = load_pretrained("cifar10_vgg6_small")(torch.rand(2, 3, 32, 32))
    assert readout.potential.shape == (2, 10)


def main() -> None:
    """Check all of it."""
    for package, wanted in zip(("spikingjelly", "snntorch"), sys.argv[1:], strict=True):
        assert version(package).startswith(wanted), f"{package} is {version(package)}, not {wanted}"
    assert Path(onespike.__file__).is_relative_to(sysconfig.get_path("purelib")), f"not the installed one: {onespike.__file__}"
    neurons()
    report()
    if version("snntorch") == "absent":
        assert refusal("onespike.snntorch") == 'onespike.snntorch needs snnTorch: pip install "onespike[snntorch]"'
    else:
        snntorch()
    if version("spikingjelly") == "absent":
        for module in ("spikingjelly", "conversion", "metrics", "pretrained"):
            assert refusal(f"onespike.{module}") == "onespike.spikingjelly needs SpikingJelly: pip install spikingjelly"
    else:
        spikingjelly()
        if importlib.util.find_spec("safetensors"):
            pretrained()
        else:
            assert "needs safetensors" in refusal("onespike.pretrained")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "spikingjelly", "snntorch", "safetensors", "numpy"))
    print(f"Python {platform.python_version()}, {packages}: passed")


if __name__ == "__main__":
    main()
