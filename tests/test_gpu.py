"""The GPU backends on a real device, through the public function, against backend="torch" there."""

import pytest
import torch
from parity import CASES, TOLERANCE, Case, inputs_of, poisoned_memory
from recipe_runs import DIGITS, SHORT, outcome, train

from cifar import training
from onespike.functional import LIFState, single_spike_lif, why_unavailable
from onespike.spikingjelly.pool import AvgPool2d

pytestmark = pytest.mark.gpu
BACKENDS = ("cupy", "triton")


@pytest.fixture(params=BACKENDS)
def backend(request):
    """A backend that can run on the first CUDA device; skip with its own reasons, or fail with --require-gpu."""
    reasons = why_unavailable(request.param, "cuda")
    if reasons:
        refuse = pytest.fail if request.config.getoption("--require-gpu") else pytest.skip
        refuse("; ".join(reasons))
    return request.param


def run(case: Case, backend: str, device: str = "cuda"):
    """Return the outputs and the gradients of x_seq, leak, threshold and v that have one."""
    x_seq, leak, threshold, v, fired, (grad_s_seq, grad_v, _) = inputs_of(case, device)
    leaves = [tensor.requires_grad_() for tensor in (x_seq.detach(), leak, threshold, v) if tensor is not None]
    state = None if v is None else LIFState(leaves[3], fired)
    flags = {name: getattr(case, name) for name in ("single_spike", "grad_after_spike", "temporal_gradient")}
    s_seq, last = single_spike_lif(*leaves[:3], state=state, gamma=0.3, backend=backend, **flags)
    pairs = [(s_seq, grad_s_seq), (last.v, grad_v)]
    pairs = [(output, grad) for output, grad in pairs if grad is not None] or [(s_seq, torch.zeros_like(s_seq))]
    outputs, grads = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, leaves, grads, allow_unused=True, materialize_grads=True)
    return (s_seq.detach(), last.v.detach(), last.fired), found


def compare(case: Case, backend: str, device: str = "cuda") -> None:
    """Compare `backend` with "torch": outputs bit for bit, gradients within rounding."""
    want, want_grads = run(case, "torch", device)
    share = want[2].float().mean().item()
    assert want[2].numel() < 30 or 0.05 <= share <= (0.95 if case.T < 12 else 1.0), f"{share:.0%} of the neurons fired"
    with poisoned_memory():
        got, got_grads = run(case, backend, device)
    for expected, found in zip(want, got, strict=True):
        assert torch.equal(expected, found)
    tolerance = TOLERANCE[case.dtype]
    for expected, found in zip(want_grads, got_grads, strict=True):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_torch(case, backend):
    compare(case, backend)


@pytest.mark.parametrize(
    "case", [Case(T=1024, step=(33,)), Case(step=(64, 64, 32, 32), leak=(64, 1, 1), threshold=(64, 1, 1))], ids=str
)
def test_equals_torch_at_size(case, backend):
    x_seq, leak, threshold, *_ = inputs_of(case, "cuda")
    want, got = (single_spike_lif(x_seq, leak, threshold, backend=name) for name in ("torch", backend))
    assert torch.equal(want.s_seq, got.s_seq)
    assert torch.equal(want.state.v, got.state.v)


def test_gradients_are_the_same_twice(backend):
    case = Case(step=(64, 64, 16, 16), leak=(64, 1, 1))
    for first, second in zip(run(case, backend)[1], run(case, backend)[1], strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("state", [False, True])
def test_opcheck(backend, state):
    x_seq, leak, threshold, v, fired, _ = inputs_of(Case(step=(3, 7), leak=(7,), state=state), "cuda")
    leaves = [None if tensor is None else tensor.requires_grad_() for tensor in (x_seq, leak, threshold, v)]
    torch.library.opcheck(torch.ops.onespike.single_spike_lif, (*leaves, fired, 0.3, True, True, True, False, backend))


def test_runs_on_the_current_stream(backend):
    x_seq, leak, threshold, *_ = inputs_of(Case(step=(1 << 22,)), "cuda")
    want = single_spike_lif(x_seq, leak, threshold, backend=backend).s_seq
    late = torch.zeros_like(x_seq)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(x_seq)
        got = single_spike_lif(late, leak, threshold, backend=backend).s_seq
    stream.synchronize()
    assert torch.equal(got, want)


def test_runs_on_another_device_than_the_current_one(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    compare(Case(step=(1025,)), backend, "cuda:1")


def test_is_captured_in_a_cuda_graph(backend):
    case = Case(step=(4, 8, 16, 16), leak=(8, 1, 1))
    x_seq, leak, threshold, _, _, (grad, *_) = inputs_of(case, "cuda")
    leaves = [tensor.requires_grad_() for tensor in (x_seq, leak, threshold)]

    def step():
        s_seq = single_spike_lif(*leaves, backend=backend).s_seq
        return s_seq, *torch.autograd.grad(s_seq, leaves, grad)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles, which a capture cannot hold
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x_seq.mul_(-1).add_(0.3)
    graph.replay()
    for want, got in zip(step(), captured, strict=True):
        assert torch.equal(want, got)


def test_more_than_2_to_the_31_elements(backend):
    neurons = (1 << 31) + 5
    if torch.cuda.mem_get_info()[0] < 30 * neurons:
        pytest.skip(f"needs {30 * neurons / 2**30:.0f} GiB of free GPU memory")
    x_seq = torch.full((1, neurons), 0.5, dtype=torch.float16, device="cuda")
    x_seq[0, -3:] = 2.0
    x_seq.requires_grad_()
    s_seq, state = single_spike_lif(x_seq, 0.9, 1.0, backend=backend)
    assert int(s_seq.sum(dtype=torch.float64)) == 3
    assert s_seq[0, -4:].tolist() == [0, 1, 1, 1]
    del state
    (grad,) = torch.autograd.grad(s_seq, x_seq, torch.ones_like(s_seq))
    assert grad[0, -4:].tolist() == pytest.approx([0.15, 0, 0, 0], abs=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_recorded_training_steps_are_the_plain_ones(precision, backend, monkeypatch, tmp_path):
    """A run of the recipe: 14 steps an epoch, the last one smaller, with dropout, clipping, SGD and then Adam."""
    settings = [*SHORT, f"backend={backend}", f"precision={precision}", "ann.batch_size=96", "snn.batch_size=96"]
    settings += ["ann.clip=1", "snn.clip=1", "ann.centralize=true", "snn.centralize=true", "cutout=8"]
    recorded, plain_capture, advance = [], training.capture, training.Trainer.advance

    def run(folder, *more):
        arguments = [DIGITS, "--out", tmp_path / folder, "--device", "cuda", "--save-every", 0, "--resume"]
        train(monkeypatch, *arguments, "--set", *settings, *more)
        return outcome(tmp_path / folder)

    def capture(*arguments):
        recorded.append(arguments)
        return plain_capture(*arguments)

    def stopped(trainer, batch):
        if trainer.stage.name == "snn" and trainer.progress.step == 20:
            raise KeyboardInterrupt
        advance(trainer, batch)

    monkeypatch.setattr(training, "LOOK_EVERY", 1)  # checkpoints after every step, to go on from
    monkeypatch.setattr(training, "capture", capture)
    plain = run("plain", "cuda_graph=never")
    assert not recorded
    assert run("recorded", "cuda_graph=always") == plain
    assert len(recorded) == 2, "one for the ANN and one for the SNN"
    with monkeypatch.context() as broken:
        broken.setattr(training.Trainer, "advance", stopped)
        with pytest.raises(KeyboardInterrupt):
            run("stopped", "cuda_graph=always")
    assert run("stopped", "cuda_graph=always") == plain
    assert len(recorded) == 5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_pool_equals_torchs(layout, dtype, request):
    if not torch.cuda.is_available():
        refuse = pytest.fail if request.config.getoption("--require-gpu") else pytest.skip
        refuse("torch.cuda.is_available() is False")
    spikes = (torch.rand(20, 6, 8, 12, device="cuda") < 0.3).to(dtype).contiguous(memory_format=layout).requires_grad_()
    found = []
    for pool in (AvgPool2d(2), torch.nn.AvgPool2d(2)):
        pooled = pool(spikes)
        weights = torch.linspace(-3, 2, pooled.numel(), dtype=dtype, device="cuda").view(pooled.shape)
        (grad,) = torch.autograd.grad(pooled, spikes, weights.contiguous(memory_format=layout))
        found.append((pooled.detach(), grad))
    for ours, torchs in zip(*found, strict=True):
        assert torch.equal(ours, torchs)
        assert ours.stride() == torchs.stride()
