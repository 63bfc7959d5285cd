"""The "inductor" backend against the reference, and what it costs in compilations and memory."""

import copy
import functools
import os
import re
import shutil
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import metrics
from torch._inductor.utils import fresh_cache
from torch.utils.checkpoint import checkpoint

from onespike.functional import BackendUnavailableError, LIFState, backends, single_spike_lif, why_unavailable
from onespike.functional.backends import AUTO_COMPILES_FROM, resolve_backend
from onespike.functional.plans import plan_of
from onespike.kernels import inductor, steps
from onespike.kernels.compiled import compiler_options
from onespike.kernels.plan import Switches
from onespike.kernels.reference import single_spike_lif_ref
from onespike.spikingjelly import SingleSpikeLIFNode

pytestmark = [
    pytest.mark.skipif(bool(why_unavailable("inductor", "cpu")), reason="; ".join(why_unavailable("inductor", "cpu"))),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
inductor_lif = functools.partial(single_spike_lif, backend="inductor")


def compilations() -> int:
    return counters["stats"]["unique_graphs"]


def draw(T, *step, dtype=torch.float32):
    """Currents that fire about half of the neurons."""
    x = torch.randn(T, *step) * (0.5 + 0.7 / T) + 0.6 / T
    return x.to(dtype)


def assert_parity(x_seq, leak=0.9, v_threshold=0.8, state=None, *, gradients=True, rtol=2e-4, **switches):
    """Compare spikes and state bit for bit, and all gradients, with the float32 reference."""

    def leaves():
        tensors = [x_seq, torch.as_tensor(leak), torch.as_tensor(v_threshold), *([] if state is None else [state.v])]
        return [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_() for tensor in tensors]

    ours, theirs = leaves(), leaves()
    fired = None if state is None else state.fired
    own_state = None if state is None else LIFState(ours[3], fired)
    s_seq, (v, now_fired) = inductor_lif(*ours[:3], state=own_state, **switches)
    expected, trace, expected_fired = single_spike_lif_ref(*theirs, *([] if state is None else [fired]), **switches)

    assert 0.05 < (expected > 0).any(0).float().mean() < 0.95
    assert s_seq.dtype == x_seq.dtype
    assert torch.equal(s_seq, expected)
    assert torch.equal(v, trace[-1])
    assert torch.equal(now_fired, expected_fired)
    if not gradients:
        return
    grad_s, grad_v = torch.randn_like(expected), torch.randn_like(v)
    torch.autograd.backward((s_seq, v), (grad_s, grad_v))
    torch.autograd.backward((expected, trace), (grad_s, torch.cat([torch.zeros_like(trace[1:]), grad_v[None]])))
    for own, other in zip(ours, theirs, strict=True):
        want = torch.zeros_like(other) if other.grad is None else other.grad
        got = torch.zeros_like(own) if own.grad is None else own.grad
        torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * float(want.abs().max()))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("T", [1, 2, 5, 11])
def test_equals_the_reference_at_any_number_of_steps(T):
    assert_parity(draw(T, 41, 25))


@pytest.mark.parametrize("T", [12, 21])
def test_long_sequences_run_in_chunks(T):
    assert_parity(draw(T, 41, 25))


@pytest.mark.parametrize("size", [1, 33, 1025])
def test_equals_the_reference_at_odd_sizes(size):
    assert_parity(torch.cat([draw(5, 1, size), torch.full((5, 1, size), -1.0), torch.full((5, 1, size), 0.3)], 1))


@pytest.mark.parametrize("single_spike", [True, False])
@pytest.mark.parametrize("temporal_gradient", [True, False])
@pytest.mark.parametrize("grad_after_spike", [True, False])
def test_every_switch(single_spike, temporal_gradient, grad_after_spike):
    switches = {"temporal_gradient": temporal_gradient, "grad_after_spike": grad_after_spike, "gamma": 0.5}
    assert_parity(draw(5, 8, 129), single_spike=single_spike, **switches)


@pytest.mark.parametrize(
    "x_seq",
    [
        draw(7, 5, 6, 11).transpose(0, 1),
        draw(5, 5, 6, 7, 3).permute(0, 1, 4, 2, 3),
        draw(5, 9, 22)[:, ::2, 1::3],
        draw(10, 9, 12)[::2],
        draw(5, 1, 33).expand(5, 4, 33),
    ],
    ids=["transposed", "channels_last", "sliced", "every_second_step", "expanded"],
)
def test_any_strides(x_seq):
    x_seq = x_seq[:5]
    assert_parity(x_seq)
    expected = torch.empty_like(x_seq).stride()
    s_seq, state = inductor_lif(x_seq, 0.9, 0.8)
    assert s_seq.stride() == expected
    assert state.v.stride() == state.fired.stride() == torch.empty_like(x_seq[0]).stride()


@pytest.mark.parametrize("T", [4, 12])
@pytest.mark.parametrize("order_of_x", [(0, 1, 2, 3), (0, 1, 3, 2), (3, 0, 1, 2)])
@pytest.mark.parametrize("order_of_v", [(0, 1, 2), (0, 2, 1), (2, 0, 1)])
def test_the_operators_keep_torchs_contract_in_any_memory_order(T, order_of_x, order_of_v):
    x_seq, v = ordered(draw(T, 6, 5, 4), order_of_x), ordered(torch.randn(6, 5, 4), order_of_v)
    values = x_seq, torch.tensor(0.9), torch.tensor(0.8), v, torch.zeros(6, 5, 4, dtype=torch.bool)
    forward, backward = torch.ops.onespike.single_spike_lif, torch.ops.onespike.single_spike_lif_backward
    gradients = torch.randn_like(x_seq), torch.randn_like(v), None
    leaves = [value.requires_grad_() if value.is_floating_point() else value for value in values]
    checked = {
        **torch.library.opcheck(forward, (*leaves, 0.3, True, True, True, False, "inductor")),
        **torch.library.opcheck(backward, (*gradients, *(leaf.detach() for leaf in leaves), 0.3, True, True, "inductor")),
    }
    assert set(checked.values()) == {"SUCCESS"}


def ordered(tensor: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor with its dimensions in this order in memory, outermost first."""
    return tensor.permute(order).contiguous().permute([order.index(d) for d in range(len(order))])


def test_dense_memory_is_not_copied():
    x_seq = draw(5, 2, 4, 4, 3).permute(0, 1, 4, 2, 3)
    plan = plan_of(x_seq, torch.tensor(0.9), torch.tensor(0.8), None, Switches(), "inductor")
    flat = plan.flat(plan.laid(x_seq))
    assert flat.data_ptr() == x_seq.data_ptr()
    assert flat.is_contiguous()
    assert plan.result(plan.shaped(flat)).data_ptr() == x_seq.data_ptr()
    assert plan.shaped(flat).stride() == x_seq.stride()


def test_parameters_per_channel_and_mixed():
    x_seq = draw(5, 4, 6, 5, 3)
    leak, v_threshold = torch.rand(6, 1, 1), 0.5 + torch.rand(6, 1, 1)
    assert_parity(x_seq, leak, v_threshold)
    assert_parity(x_seq, 0.7, v_threshold)
    assert_parity(x_seq.to(memory_format=torch.preserve_format), torch.rand(4, 6, 5, 3), 0.8)


@pytest.mark.parametrize("T", [5, 12])
def test_carried_state(T):
    state = LIFState(torch.randn(6, 41) * 0.4, torch.rand(6, 41) > 0.7)
    assert_parity(draw(T, 6, 41), state=state)
    assert_parity(draw(T, 6, 41), state=state, temporal_gradient=False)


def test_chunks_have_few_lengths_and_cover_the_sequence():
    for T in range(1, 200):
        cut = inductor.chunks(T)
        assert [t for chunk in cut for t in range(T)[chunk]] == list(range(T))
        lengths = {chunk.stop - chunk.start for chunk in cut}
        assert lengths == {T} if T <= inductor.LONGEST_WHOLE else lengths <= {4, 5, 8}


def test_another_number_of_steps_does_not_compile_again(caplog):
    def run(T):
        inductor_lif(draw(T, 41, 25).requires_grad_(), 0.9, 0.8).s_seq.sum().backward()

    for T in (12, 21):
        run(T)
    with caplog.at_level("INFO", logger="onespike"):  # torch's own counters count other programs, too
        for T in (*range(12, 30), 40, 100):
            run(T)
        assert not [record for record in caplog.records if record.name == "onespike"]


def test_what_is_compiled_is_logged_once(caplog):
    caplog.set_level("INFO", "onespike")
    with torch.no_grad():
        for size in (3, 70):
            inductor_lif(draw(1, size, dtype=torch.bfloat16), 0.9, 0.8)
    begun, done = [record.getMessage() for record in caplog.records if record.name == "onespike"]
    assert begun.startswith("compiling forward_steps of 1xM torch.bfloat16 on cpu, ")
    assert re.fullmatch(r"compiled forward_steps of 1xM torch.bfloat16 on cpu, \d+ threads in \d+\.\d s", done)


def test_chunks_of_a_sequence_equal_the_whole():
    x_seq = draw(10, 300)
    whole, state = inductor_lif(x_seq, 0.9, 0.8)
    first, carried = inductor_lif(x_seq[:5], 0.9, 0.8)
    second, last = inductor_lif(x_seq[5:], 0.9, 0.8, state=carried)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(last.v, state.v)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    assert_parity(draw(5, 8, 129, dtype=dtype), rtol={torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float64: 1e-6}[dtype])


def test_no_fused_multiply_add_in_two_million_neurons():
    """Contracted, a third of the potentials would differ."""
    x_seq = torch.rand(5, 2_000_003) * 0.9 - 0.1
    leak, v_threshold = torch.tensor(0.9173), torch.tensor(0.8231)
    s_seq, (v, fired) = inductor_lif(x_seq, leak, v_threshold)
    plan = plan_of(x_seq, leak, v_threshold, None, Switches(), "torch")
    expected, expected_v, expected_fired, _ = plan.forward(x_seq, leak, v_threshold, None, None)
    assert 0.05 < fired.float().mean() < 0.95
    contracted = torch.addcmul(x_seq[1].double(), leak.double(), x_seq[0].double()).float()
    assert (contracted != leak * x_seq[0] + x_seq[1]).float().mean() > 0.01
    assert torch.equal(s_seq, expected)
    assert torch.equal(v, expected_v)
    assert torch.equal(fired, expected_fired)
    x_seq.requires_grad_()
    grads = []
    for backend in ("inductor", "torch"):
        single_spike_lif(x_seq, leak, v_threshold, backend=backend).s_seq.sum().backward()
        grads.append(x_seq.grad)
        x_seq.grad = None
    assert torch.equal(*grads)


def test_sums_over_neurons_are_deterministic():
    x_seq, grads = draw(5, 100_003), []
    for _ in range(3):
        parameters = [torch.tensor(value, requires_grad=True) for value in (0.9, 0.8)]
        inductor_lif(x_seq, *parameters).s_seq.sum().backward()
        grads.append(torch.stack([parameter.grad for parameter in parameters]))
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_another_size_or_mode_does_not_compile_again():
    x_seq = draw(5, 7, 1000).requires_grad_()
    for first in (x_seq, draw(5, 50, 1000).requires_grad_()):
        inductor_lif(first, 0.9, 0.8).s_seq.sum().backward()
    before = compilations()
    for step in ((3, 1000), (5,), (2, 3, 4, 5), (100_000,), (11, 3001)):
        inductor_lif(draw(5, *step).requires_grad_(), 0.9, 0.8).s_seq.sum().backward()
    with torch.no_grad():
        inductor_lif(x_seq, 0.9, 0.8)
    with torch.autocast("cpu"):
        inductor_lif(x_seq, nn.Parameter(torch.tensor(0.7)), 0.8).s_seq.sum().backward()
    inductor_lif(x_seq, 0.9, 0.8, gamma=0.7).s_seq.sum().backward()
    assert compilations() == before


@pytest.mark.parametrize("T", [5, 20])
def test_nothing_is_kept_after_a_call(T):
    x_seq, tensors = draw(T, 1, 3).requires_grad_(), []
    for _ in range(2):  # compiled in the first
        s_seq, state = inductor_lif(x_seq, 0.9, 0.8)
        s_seq.sum().backward()
        tensors = [weakref.ref(tensor) for tensor in (s_seq, state.v, x_seq.grad)]
        del s_seq, state
        x_seq.grad = None
    assert [tensor() for tensor in tensors] == [None] * 3


def test_threads_may_meet_at_the_first_call():
    """In a process of its own, where nothing is compiled yet."""
    code = """
import threading, torch
from onespike.functional import single_spike_lif
xs, found = [torch.randn(4, 3000) for _ in range(4)], {}
def work(i):
    x = xs[i].clone().requires_grad_()
    s_seq = single_spike_lif(x, 0.9, 0.8, backend="inductor").s_seq
    found[i] = s_seq.detach(), torch.autograd.grad(s_seq.sum(), x)[0]
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
for i, x in enumerate(xs):
    x.requires_grad_()
    s_seq = single_spike_lif(x, 0.9, 0.8, backend="torch").s_seq
    assert torch.equal(found[i][0], s_seq)
    assert torch.equal(found[i][1], torch.autograd.grad(s_seq.sum(), x)[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_dynamo_switched_off_runs_the_equations_as_they_are():
    code = """
import torch
from onespike.functional import single_spike_lif
x = torch.rand(5, 3, 40, requires_grad=True)
outputs = [single_spike_lif(x, 0.9, 0.8, backend=name).s_seq for name in ("torch", "inductor")]
assert torch.equal(*outputs) and outputs[0].any()
assert torch.equal(*(torch.autograd.grad(out.sum(), x)[0] for out in outputs))
"""
    environment = os.environ | {"TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_one_kernel_each_way():
    x_seq, grad_s_seq, leak, v_threshold = draw(5, 2**15), draw(5, 2**15), torch.tensor(0.9), torch.tensor(0.8)
    forward = (steps.forward_steps, (x_seq, leak, v_threshold, None, None, None, None, True, True, False, True, True, False))
    gradients = (None, leak, v_threshold, None, None, None, torch.tensor(0.3), None)
    backward = (steps.backward_steps, (x_seq, grad_s_seq, *gradients, True, True, True))
    with fresh_cache():
        for body, arguments in (forward, backward):
            metrics.reset()
            torch.compile(body, dynamic=True, options=compiler_options())(*arguments)
            assert metrics.generated_kernel_count == 1


def test_only_the_input_is_saved():
    x_seq = draw(5, 7, 1000).requires_grad_()
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = inductor_lif(x_seq, nn.Parameter(torch.tensor(0.9)), 0.8)
    assert result.s_seq.requires_grad
    assert x_seq.untyped_storage().data_ptr() in saved
    assert sum(saved.values()) <= x_seq.nbytes + 64


@pytest.mark.parametrize("shape", [(5, 0, 3), (5, 3, 0), (40, 0)])
def test_an_empty_batch_passes(shape):
    x_seq, leak = torch.empty(shape, requires_grad=True), torch.tensor(0.9, requires_grad=True)
    s_seq, state = inductor_lif(x_seq, leak, 0.8)
    s_seq.sum().backward()
    assert s_seq.shape == x_seq.grad.shape == shape
    assert state.v.shape == shape[1:]
    assert leak.grad == 0


def results_of(net, call, x):
    node = net[1]
    node.reset()
    net.zero_grad()
    s_seq = call(x)
    (s_seq * torch.linspace(-1, 1, s_seq.shape[-1])).sum().backward()
    node.reset()
    return [s_seq.detach(), *(parameter.grad.clone() for parameter in net.parameters())]


def test_inside_a_compiled_network_a_copy_and_a_checkpoint():
    net = nn.Sequential(nn.Linear(16, 40), SingleSpikeLIFNode(0.9, 0.3, backend="inductor"))
    x = torch.randn(5, 12, 16)
    expected = results_of(net, net, x)
    assert 0.05 < expected[0].any(0).float().mean() < 0.95

    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    twin = copy.deepcopy(net)

    def checkpointed(x):
        def run(x):
            net[1].reset()
            return net(x)

        return checkpoint(run, x, use_reentrant=False)

    for model, call in ((net, compiled), (twin, twin), (net, checkpointed)):
        for got, want in zip(results_of(model, call, x), expected, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("T", [5, 12])
def test_the_membrane_trace_and_its_gradient_are_the_same(T):
    x_seq, results = draw(T, 30).requires_grad_(), []
    weights = torch.randn(T, 30)
    for backend in ("torch", "inductor"):
        node = SingleSpikeLIFNode(0.9, 0.8, backend=backend, store_v_seq=True)
        s_seq = node(x_seq)
        (s_seq * weights + node.v_seq * weights.flip(0)).sum().backward()
        results.append((s_seq, node.v_seq, node.v, x_seq.grad, node.leak.grad, node.v_threshold.grad))
        x_seq.grad = None
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    assert torch.equal(results[0][1], results[1][1])


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    backends.compiles_on_cpu.cache_clear()
    (reason,) = why_unavailable("inductor", "cpu")
    assert "C++ compiler" in reason
    with pytest.raises(BackendUnavailableError, match=r"needs a C\+\+ compiler: apt-get install g\+\+"):
        inductor_lif(draw(5, 3), 0.9, 0.8)
    assert resolve_backend("auto", "cpu", AUTO_COMPILES_FROM) == "torch"
    backends.compiles_on_cpu.cache_clear()


@pytest.mark.parametrize(
    ("kind", "gist"),
    [
        ("without headers", "fatal error: "),
        ("that cannot write", "No such file or directory: '/proc"),
    ],
)
def test_a_compiler_that_fails_is_a_reason_to_fall_back_and_an_error_by_name(kind, gist, tmp_path):
    """In a process of its own, where nothing is compiled yet."""
    code = f"""
import warnings, torch
from onespike.functional import single_spike_lif, why_unavailable
from onespike.functional.backends import AUTO_COMPILES_FROM
x = torch.rand(2, AUTO_COMPILES_FROM // 2)
expected = single_spike_lif(x, 0.9, 0.8, backend="torch").s_seq
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for layer in (x, torch.cat([x, x])):
        assert torch.equal(single_spike_lif(layer, 0.9, 0.8).s_seq[:2], expected)
(told,) = [str(one.message) for one in told if "auto" in str(one.message)]
assert 'backend "auto" takes "torch"' in told and "apt-get install" in told and {gist!r} in told, told
try:
    single_spike_lif(x, 0.9, 0.8, backend="inductor")
except RuntimeError as error:
    assert type(error).__name__ == "BackendUnavailableError" and {gist!r} in str(error), error
else:
    raise SystemExit("it ran")
"""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    if kind == "that cannot write":
        environment["TORCHINDUCTOR_CACHE_DIR"] = "/proc/nowhere"
    else:
        compiler = tmp_path / "c++"
        compiler.write_text(f'#!/bin/sh\nexec {shutil.which("g++")} -nostdinc "$@"\n')
        compiler.chmod(0o755)
        environment["CXX"] = str(compiler)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_other_devices_are_refused():
    assert "CPU and CUDA" in why_unavailable("inductor", "meta")[0]
    if not torch.cuda.is_available():
        assert "no CUDA device" in why_unavailable("inductor", "cuda")[0]


def test_auto_compiles_for_large_layers_only():
    assert resolve_backend("auto", "cpu", AUTO_COMPILES_FROM - 1) == "torch"
    assert resolve_backend("auto", "cpu", AUTO_COMPILES_FROM) == "inductor"
