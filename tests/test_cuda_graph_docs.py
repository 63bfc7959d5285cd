"""The loop of docs/cuda_graphs.md, as a reader runs it: on a GPU if there is one, and on a CPU without the recording."""

import re
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from onespike.spikingjelly import HybridCrossEntropyLoss, HybridEncoder, SingleSpikeLIFNode, SpikeTimeReadout, project_net

TEXT = (Path(__file__).parents[1] / "docs" / "cuda_graphs.md").read_text()
STEPS = 8


def parts(device, seed=0):
    """A network with dropout, and batches for it."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        HybridEncoder(5),
        layer.Conv2d(1, 6, 3, padding=1, bias=False, step_mode="m"),
        SingleSpikeLIFNode(v_threshold=0.2),
        layer.Dropout(0.2, step_mode="m"),
        layer.Flatten(step_mode="m"),
        layer.Linear(6 * 36, 4, bias=False, step_mode="m"),
        SpikeTimeReadout(),
    ).to(device)
    batches = [(torch.rand(16, 1, 6, 6, device=device), torch.randint(4, (16,), device=device)) for _ in range(STEPS)]
    return net, batches


def rate(number):
    return 1e-2 / (1 + number)


def seeded(batches):
    """Batches before each of which the seed is set, as a run does that goes on from any step."""
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        yield batch


def as_written(device, *, recorded):
    """Run the loop of the page; return the trained weights and the last loss."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    code = code.replace('device="cuda"', f'device="{device}"')
    if not recorded:
        code = code.replace("take = record(step)", "take = step")
        assert "take = record" not in code
    net, batches = parts(device)
    there = {"net": net, "loss_function": HybridCrossEntropyLoss(), "batches": seeded(batches), "rate": rate}
    exec(code, there)
    return [*net.state_dict().values(), there["loss"]]


def by_hand(device):
    """The same steps in an ordinary loop."""
    net, batches = parts(device)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True, capturable=device == "cuda")
    loss_function = HybridCrossEntropyLoss()
    for number, (x, y) in enumerate(seeded(batches)):
        optimizer.param_groups[0]["lr"] = torch.tensor(rate(number), device=device)
        optimizer.zero_grad()
        loss = loss_function(net(x), y)
        loss.backward()
        optimizer.step()
        project_net(net)
        functional.reset_net(net)
    return [*net.state_dict().values(), loss.detach()]


def test_the_loop_without_a_recording():
    for got, want in zip(as_written("cpu", recorded=False), by_hand("cpu"), strict=True):
        assert torch.equal(got, want)


@pytest.mark.gpu
def test_the_loop_on_a_gpu(request, monkeypatch):
    if not torch.cuda.is_available():
        refuse = pytest.fail if request.config.getoption("--require-gpu") else pytest.skip
        refuse("torch.cuda.is_available() is False")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # or two runs differ, recorded or not
    for got, want in zip(as_written("cuda", recorded=True), by_hand("cuda"), strict=True):
        torch.testing.assert_close(got, want)
