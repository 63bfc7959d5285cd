"""The neuron: golden traces, scalar oracle, autograd through the equations, chunks, operators, errors."""

import itertools

import oracle
import pytest
import snntorch
import torch
from parity import CASES, LAYOUTS, PARAMETERS, check, planted, planted_error_is_caught
from torch import nn

from onespike import snntorch as in_snntorch
from onespike.functional import (
    BackendUnavailableError,
    LIFState,
    available_backends,
    single_spike_lif,
    single_spike_lif_ref,
    why_unavailable,
)
from onespike.functional.checks import NotFiniteError
from onespike.functional.lif import Switches, lif
from onespike.kernels import eager, steps

SWITCHES = [
    dict(zip(("single_spike", "grad_after_spike", "temporal_gradient"), values, strict=True))
    for values in itertools.product([True, False], repeat=3)
]


def draw(T, shape, seed, drive=0.5, dtype=torch.float32):
    """Draw currents, state and output gradients; `drive` is the mean current in thresholds."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=dtype)

    x = 0.7 * normal(T, *shape) + drive
    state = LIFState(0.5 * normal(*shape), torch.rand(shape, generator=g) < 0.2)
    return x, state, normal(T, *shape), normal(*shape)


def gradients(function, x, leak, threshold, state, grad_s, grad_v, **switches):
    """Return outputs and the gradients of x, leak, threshold and the initial v."""
    inputs = [t.clone().requires_grad_() for t in (x, leak, threshold, state.v)]
    s_seq, v, fired = function(*inputs[:3], LIFState(inputs[3], state.fired), **switches)
    ((s_seq * grad_s).sum() + (v * grad_v).sum()).backward()
    return s_seq.detach(), v.detach(), fired, [torch.zeros_like(i) if i.grad is None else i.grad for i in inputs]


def by_reference(x, leak, threshold, state, **switches):
    s_seq, v_seq, fired = single_spike_lif_ref(x, leak, threshold, *state, **switches)
    return s_seq, v_seq[-1], fired


def by_operator(x, leak, threshold, state, **switches):
    s_seq, (v, fired) = single_spike_lif(x, leak, threshold, state=state, **switches)
    return s_seq, v, fired


def assert_neither_silent_nor_saturated(fired):
    assert 0.05 < fired.float().mean() < 0.95


def test_golden_trace():
    # leak 1/2, V = 1:  U = 3/4; 3/8 + 3/4 = 9/8 (spike); 9/16 + 5/4 - 1 = 13/16; 13/32 + 1 = 45/32 (silent); 45/64 - 1
    x = torch.tensor([0.75, 0.75, 1.25, 1.0, 0.0]).view(5, 1, 1)
    s_seq, v, fired, v_seq = lif(x, 0.5, 1.0, None, Switches(), "torch", trace=True)
    assert v_seq.flatten().tolist() == [3 / 4, 9 / 8, 13 / 16, 45 / 32, 45 / 64 - 1]
    assert s_seq.flatten().tolist() == [0, 1, 0, 0, 0]
    assert v.item() == 45 / 64 - 1
    assert fired.item() is True
    s_seq, _ = single_spike_lif(x, 0.5, 1.0, single_spike=False)
    assert s_seq.flatten().tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_torch_backend_equals_the_reference(case):
    check(case, eager.EagerPlan)


@pytest.mark.parametrize("size", [1, 100, 2**16])
def test_blocks_of_neurons_change_nothing(size, monkeypatch):
    monkeypatch.setattr(eager, "BLOCK_SIZE", size)
    for case in LAYOUTS + PARAMETERS:
        check(case, eager.EagerPlan)


def test_a_state_that_lies_as_spread_as_the_input():
    x, state, grad_s, grad_v = draw(5, (6, 20), seed=13)
    spread = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (x, state.v.expand(5, 6, 20))]
    leaves = spread[0].requires_grad_(), torch.tensor(0.9, requires_grad=True), torch.tensor(0.8, requires_grad=True)
    assert spread[1][2].stride() == x.transpose(0, 1).contiguous().transpose(0, 1)[2].stride() != state.v.stride()
    results = []
    for v in (spread[1][2], state.v):
        out, last = single_spike_lif(*leaves, state=LIFState(v, state.fired), backend="torch")
        results.append(torch.autograd.grad((out, last.v), leaves, (grad_s, grad_v)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("addcmul_(reset, v_threshold, value=-1)", "addcmul_(reset, v_threshold, value=1)"),
        ("of_threshold.sub_(inner(total, v_steps[t]", "of_threshold.add_(inner(total, v_steps[t]"),
        ("torch.mul(total, leak, out=decayed)", "torch.mul(total, -leak, out=decayed)"),
    ],
)
def test_a_planted_error_is_caught(right, wrong, tmp_path):
    broken = planted(eager, right, wrong, tmp_path)
    assert planted_error_is_caught(broken.EagerPlan)


def test_a_potential_at_the_threshold_does_not_fire():
    s_seq, state = single_spike_lif(torch.full((1, 1, 3), 1.0), 1.0, torch.tensor([1.0, 1.0 - 2**-24, 1.0 + 2**-23]))
    assert s_seq.flatten().tolist() == [0, 1, 0]
    assert state.fired.flatten().tolist() == [False, True, False]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize(("T", "drive"), [(1, 0.8), (2, 0.5), (5, 0.5), (5, 1.2), (20, 0.1), (20, 1.0)])
def test_forward_and_gradients_equal_the_scalar_oracle(T, drive, switches):
    x, state, grad_s, grad_v = draw(T, (2, 40), seed=T, drive=drive)
    leak, threshold = torch.tensor(0.9), torch.tensor(0.8)
    s_seq, v, fired, (grad_x, grad_leak, grad_threshold, grad_initial) = gradients(
        by_operator, x, leak, threshold, state, grad_s, grad_v, **switches
    )
    neurons = [
        oracle.run(
            x[:, n, i].double().tolist(),
            leak.double().item(),
            threshold.double().item(),
            state.v[n, i].item(),
            state.fired[n, i].item(),
            grad_s[:, n, i].tolist(),
            grad_v[n, i].item(),
            gamma=0.3,
            **switches,
        )
        for n in range(2)
        for i in range(40)
    ]
    # float32 and float64 may only disagree about a neuron at its very threshold; the seeds have none.
    assert min(abs(u - 0.8) for neuron in neurons for u in neuron.potentials) > 1e-6
    if drive >= 1.0 and T > 1:
        assert sum(neuron.crossings > 1 for neuron in neurons) >= 0.2 * len(neurons), "the soft reset was not exercised"
    assert fired.flatten().tolist() == [neuron.fired for neuron in neurons]
    assert s_seq.flatten(1).T.tolist() == [neuron.spikes for neuron in neurons]
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(v.flatten(), torch.tensor([neuron.potentials[-1] for neuron in neurons]), **close)
    torch.testing.assert_close(grad_x.flatten(1).T, torch.tensor([neuron.grad_x for neuron in neurons]), **close)
    torch.testing.assert_close(grad_initial.flatten(), torch.tensor([neuron.grad_v for neuron in neurons]), **close)
    torch.testing.assert_close(grad_leak, torch.tensor(sum(neuron.grad_leak for neuron in neurons)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        grad_threshold, torch.tensor(sum(neuron.grad_threshold for neuron in neurons)), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("parameters", [(), (3, 1, 1), (2, 3, 1, 1), (1, 1, 5)])
def test_bit_identical_to_the_reference_with_equal_gradients(switches, parameters):
    for T in (1, 3, 8):
        x, state, grad_s, grad_v = draw(T, (2, 3, 4, 5), seed=T, drive=0.3)
        leak = 0.5 + 0.5 * torch.rand(parameters, generator=torch.Generator().manual_seed(1))
        threshold = 0.5 + torch.rand(parameters, generator=torch.Generator().manual_seed(2))
        expected = gradients(by_reference, x, leak, threshold, state, grad_s, grad_v, **switches)
        found = gradients(by_operator, x, leak, threshold, state, grad_s, grad_v, **switches)
        assert_neither_silent_nor_saturated(expected[2])
        for a, b in zip(found[:3], expected[:3], strict=True):
            assert torch.equal(a, b)
        for a, b in zip(found[3], expected[3], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_without_temporal_gradient_the_sums_are_equations_19_21_and_23():
    x, _, grad_s, _ = draw(7, (1, 30), seed=3, drive=0.8)
    inputs = [t.requires_grad_() for t in (x, torch.tensor(0.9), torch.tensor(0.8))]
    (single_spike_lif(*inputs, temporal_gradient=False).s_seq * grad_s).sum().backward()
    printed = [oracle.eq19_21_23(x[:, 0, i].tolist(), 0.9, 0.8, grad_s[:, 0, i].tolist(), 0.3) for i in range(30)]
    torch.testing.assert_close(x.grad[:, 0].T, torch.tensor([p[0] for p in printed]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inputs[2].grad, torch.tensor(sum(p[1] for p in printed)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inputs[1].grad, torch.tensor(sum(p[2] for p in printed)), rtol=1e-4, atol=1e-4)


def test_the_surrogate_lives_on_after_the_spike_unless_masked():
    x = torch.tensor([1.5, 0.5, 0.4]).view(3, 1, 1)  # spikes at once, then U = 1.0 and 1.4 - 0 after the reset
    grads = {}
    for kept in (True, False):
        leaf = x.clone().requires_grad_()
        single_spike_lif(leaf, 1.0, 1.0, grad_after_spike=kept, temporal_gradient=False).s_seq.sum().backward()
        grads[kept] = leaf.grad.flatten()
    assert (grads[True] > 0).all()
    assert grads[False][0] == grads[True][0]
    assert grads[False][1:].tolist() == [0, 0]


@pytest.mark.parametrize("temporal_gradient", [True, False])
def test_chunks_equal_the_whole(temporal_gradient):
    x, state, grad_s, grad_v = draw(9, (4, 30), seed=5, drive=-0.2)
    leak, threshold = torch.tensor(0.8), torch.tensor(0.9)

    def in_chunks(x, leak, threshold, state, **switches):
        parts = []
        for part in x.split([1, 3, 5]):
            s_seq, state = single_spike_lif(part, leak, threshold, state=state, **switches)
            parts.append(s_seq)
        return torch.cat(parts), *state

    whole = gradients(by_operator, x, leak, threshold, state, grad_s, grad_v, temporal_gradient=temporal_gradient)
    chunks = gradients(in_chunks, x, leak, threshold, state, grad_s, grad_v, temporal_gradient=temporal_gradient)
    assert_neither_silent_nor_saturated(whole[2])
    for a, b in zip(chunks[:3], whole[:3], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(chunks[3], whole[3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_shutting_neurons_off_after_their_spike_gives_the_same_output():
    x, *_ = draw(12, (3, 50), seed=6, drive=-0.2)
    s_seq, state = single_spike_lif(x, 0.9, 1.0)
    v, off = torch.zeros(3, 50), torch.zeros(3, 50, dtype=torch.bool)
    for current, spikes in zip(x, s_seq, strict=True):
        v = torch.where(off, v, 0.9 * v + current)
        now = (v > 1.0) & ~off
        off |= now
        assert torch.equal(now.float(), spikes)
    assert_neither_silent_nor_saturated(state.fired)
    assert s_seq.sum(0).max() == 1


def test_the_membrane_is_that_of_snntorch_with_subtract_and_delay():
    x, *_ = draw(15, (4, 60), seed=7, drive=-0.2)
    leaky = snntorch.Leaky(beta=0.85, threshold=0.9, reset_mechanism="subtract", reset_delay=True)
    mem, trace = leaky.init_leaky(), []
    for current in x:
        _, mem = leaky(current, mem)
        trace.append(mem)
    _, _, fired, v_seq = lif(x, 0.85, 0.9, None, Switches(), "torch", trace=True)
    assert_neither_silent_nor_saturated(fired)
    torch.testing.assert_close(v_seq, torch.stack(trace), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_a_float32_state(dtype):
    x = draw(20, (4, 200), seed=8, drive=0.05)[0].to(dtype)
    halves, wide = x.clone().requires_grad_(), x.float().requires_grad_()
    leak = [torch.tensor(0.95, requires_grad=True) for _ in range(2)]
    s_half, state = single_spike_lif(halves, leak[0], 1.0)
    s_wide, state_wide = single_spike_lif(wide, leak[1], 1.0)
    assert_neither_silent_nor_saturated(state.fired)
    assert s_half.dtype == dtype
    assert state.v.dtype == torch.float32
    assert torch.equal(s_half.float(), s_wide)
    assert torch.equal(state.v, state_wide.v)
    grad_s = torch.randn_like(s_wide).to(dtype)
    s_half.backward(grad_s)
    s_wide.backward(grad_s.float())
    assert halves.grad.dtype == dtype
    torch.testing.assert_close(halves.grad.float(), wide.grad, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(leak[0].grad, leak[1].grad)


def test_float64_inputs_keep_their_precision():
    x = draw(5, (2, 10), seed=9, dtype=torch.float64)[0]
    s_seq, state = single_spike_lif(x, 0.9, 1.0)
    assert s_seq.dtype == state.v.dtype == torch.float64


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded"])
def test_any_strides(layout):
    base, _, grad_s, _ = draw(4, (3, 4, 6, 6), seed=10)
    x = {
        "channels_last": lambda: base.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, 3)),
        "transposed": lambda: base.transpose(0, 1).contiguous().transpose(0, 1),
        "sliced": lambda: base.repeat_interleave(2, -1)[..., ::2],
        "expanded": lambda: base[:1].expand(4, -1, -1, -1, -1),
    }[layout]()
    leaf, packed = x.detach().requires_grad_(), x.detach().contiguous().requires_grad_()
    strided, contiguous = single_spike_lif(leaf, 0.9, 0.8), single_spike_lif(packed, 0.9, 0.8)
    assert torch.equal(strided.s_seq, contiguous.s_seq)
    assert torch.equal(strided.state.v, contiguous.state.v)
    if layout == "channels_last":
        assert strided.s_seq.stride() == x.stride()
    strided.s_seq.backward(grad_s)
    contiguous.s_seq.backward(grad_s)
    torch.testing.assert_close(leaf.grad, packed.grad)


def test_an_empty_batch_gives_an_empty_result():
    x = torch.zeros(5, 0, 3, requires_grad=True)
    leak = torch.tensor(0.9, requires_grad=True)
    s_seq, state = single_spike_lif(x, leak, 1.0)
    s_seq.sum().backward()
    assert s_seq.shape == (5, 0, 3)
    assert state.v.shape == state.fired.shape == (0, 3)
    assert x.grad.shape == x.shape
    assert leak.grad == 0


def test_only_the_input_is_saved_for_backward():
    x = torch.randn(5, 8, 100, requires_grad=True)
    leak, threshold = torch.tensor(0.9, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.data_ptr()), t)[1], lambda t: t):
        single_spike_lif(x, leak, threshold)
    assert set(saved) == {tensor.data_ptr() for tensor in (x, leak, threshold)}


@pytest.mark.parametrize("return_v_seq", [True, False])
@pytest.mark.parametrize("carried", [True, False])
def test_the_operator_keeps_torchs_contract(return_v_seq, carried):
    x, state, *_ = draw(4, (3, 5), seed=11)
    parameters = torch.tensor(0.9, requires_grad=True), torch.tensor(0.8, requires_grad=True)
    v, fired = (state.v.T.contiguous().T.requires_grad_(), state.fired.T.contiguous().T) if carried else (None, None)
    arguments = (x.requires_grad_(), *parameters, v, fired, 0.3, True, True, True, return_v_seq, "torch")
    results = torch.library.opcheck(torch.ops.onespike.single_spike_lif, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_forward_mode_is_refused_not_zero():
    x = torch.rand(2, 3, 4)
    for call in (
        lambda: torch.func.jvp(lambda x: single_spike_lif(x, 1.0, 1.0).state.v, (x,), (x,)),
        lambda: torch.func.jacfwd(lambda leak: single_spike_lif(x, leak, 1.0).state.v)(torch.tensor(0.5)),
        lambda: torch.func.jacfwd(lambda v: single_spike_lif(x, 1.0, v).state.v)(torch.tensor(0.5)),
    ):
        with pytest.raises(RuntimeError, match="single_spike_lif has no forward-mode derivative"):
            call()


def test_second_derivatives_are_refused_not_zero():
    x, leak = torch.rand(3, 2, 4, requires_grad=True), torch.tensor(0.9, requires_grad=True)
    s_seq, _ = single_spike_lif(x, leak, 0.5)
    (grad,) = torch.autograd.grad((s_seq * x).sum(), x, create_graph=True)
    assert grad.abs().sum() > 0
    with pytest.raises(RuntimeError, match="single_spike_lif has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", ["torch", "inductor"])
def test_gradients_come_in_batches_too(backend):
    x, _, grad_s, _ = draw(5, (6, 30), seed=16)
    leaves = x.requires_grad_(), torch.tensor(0.9, requires_grad=True), torch.tensor(0.8, requires_grad=True)
    batch = torch.stack([grad_s, 2 * grad_s, grad_s.flip(0)])

    def found(grad, batched):
        s_seq = single_spike_lif(*leaves, backend=backend).s_seq
        return torch.autograd.grad(s_seq, leaves, grad, is_grads_batched=batched)

    for got, *want in zip(found(batch, True), *(found(grad, False) for grad in batch), strict=True):
        torch.testing.assert_close(got, torch.stack(want))


@pytest.mark.parametrize("backend", ["torch", "inductor"])
def test_tensors_that_are_negated_or_zero_by_a_flag_are_read_as_such(backend):
    x, _, grad_s, _ = draw(5, (6, 30), seed=17)
    x.requires_grad_()
    want = single_spike_lif(-x, 0.9, 0.8, backend=backend).s_seq
    got = single_spike_lif(torch._neg_view(x), 0.9, 0.8, backend=backend).s_seq
    assert want.any()
    assert torch.equal(got, want)
    for grad, value in ((torch._neg_view(grad_s), -grad_s), (torch._efficientzerotensor(grad_s.shape), 0 * grad_s)):
        results = [torch.autograd.grad(single_spike_lif(x, 0.9, 0.8, backend=backend).s_seq, x, g)[0] for g in (grad, value)]
        assert torch.equal(*results)


@pytest.mark.parametrize("T", [5, 20])
@pytest.mark.parametrize("backend", ["torch", "inductor"])
def test_outputs_may_be_written_to(backend, T):
    x = draw(T, (6, 30), seed=18)[0].requires_grad_()
    mask = (torch.arange(30) % 2).float()
    grads = []
    for in_place in (False, True):
        s_seq, state = single_spike_lif(x, 0.9, 0.8, backend=backend)
        s_seq, v = (s_seq.mul_(mask), state.v.mul_(2)) if in_place else (s_seq * mask, state.v * 2)
        grads.append(torch.autograd.grad(s_seq.sum() + v.sum(), x)[0])
    assert grads[0].any()
    assert torch.equal(*grads)


@pytest.mark.parametrize("backend", ["torch", "inductor"])
def test_every_mode_of_autograd_gives_the_same_spikes(backend):
    x = draw(5, (6, 30), seed=14)[0]
    want = single_spike_lif(x, 0.9, 0.8, backend=backend)
    assert_neither_silent_nor_saturated(want.state.fired)
    trained = x.clone().requires_grad_()
    with torch.inference_mode():
        inferred = single_spike_lif(x, 0.9, 0.8, backend=backend)
    with torch.autocast("cpu"):
        cast = single_spike_lif(trained, 0.9, 0.8, backend=backend)
    batched = torch.vmap(lambda x: single_spike_lif(x, 0.9, 0.8, backend=backend).s_seq, in_dims=1, out_dims=1)(x[..., None])
    for got in (inferred, cast, single_spike_lif(trained, 0.9, 0.8, backend=backend)):
        assert torch.equal(got.s_seq, want.s_seq)
        assert torch.equal(got.state.v, want.state.v)
        assert torch.equal(got.state.fired, want.state.fired)
    assert torch.equal(batched[..., 0], want.s_seq)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (1, 2), (3,), (0, 3)])
def test_only_what_is_trained_gets_a_gradient(needed):
    x, state, grad_s, grad_v = draw(5, (6, 30), seed=15)
    tensors = [x, torch.tensor(0.9), torch.tensor(0.8), state.v]
    everything = gradients(by_operator, *tensors[:3], state, grad_s, grad_v)[3]
    leaves = [tensor.clone().requires_grad_(at in needed) for at, tensor in enumerate(tensors)]
    s_seq, (v, _) = single_spike_lif(*leaves[:3], state=LIFState(leaves[3], state.fired))
    ((s_seq * grad_s).sum() + (v * grad_v).sum()).backward()
    for at, (leaf, want) in enumerate(zip(leaves, everything, strict=True)):
        assert (leaf.grad is None) == (at not in needed)
        assert leaf.grad is None or torch.equal(leaf.grad, want)


def test_a_network_compiles_without_a_graph_break():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 20, bias=False), nn.Linear(20, 4, bias=False)
    leak, threshold = torch.tensor(0.9, requires_grad=True), torch.tensor(0.4, requires_grad=True)

    def network(x):
        return second(single_spike_lif(first(x), leak, threshold).s_seq).sum(0)

    parameters = [first.weight, second.weight, leak, threshold]
    results = []
    for function in (network, torch.compile(network, fullgraph=True)):
        out = function(torch.ones(5, 3, 6))
        results.append((out.detach(), torch.autograd.grad(out.square().sum(), parameters)))
    assert results[0][0].abs().sum() > 0
    torch.testing.assert_close(results[1], results[0])


def test_the_gradient_of_a_membrane_trace_flows():
    x, _, grad_v_seq, _ = draw(5, (2, 10), seed=12)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    lif(found, 0.9, 0.8, None, Switches(), "torch", trace=True)[3].backward(grad_v_seq)
    single_spike_lif_ref(expected, torch.tensor(0.9), torch.tensor(0.8))[1].backward(grad_v_seq)
    torch.testing.assert_close(found.grad, expected.grad)


X = torch.zeros(3, 2, 4)
STATE = LIFState(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((X.long(), 0.9, 1.0), {}, TypeError, "x_seq must be a floating-point tensor, got torch.int64"),
        (([0.0], 0.9, 1.0), {}, TypeError, "x_seq must be a torch.Tensor, got list"),
        ((X[0, 0], 0.9, 1.0), {}, ValueError, r"x_seq must have at least 2 dimensions, \[T, N, \*\], got shape \(4,\)"),
        ((X[:0], 0.9, 1.0), {}, ValueError, "x_seq must hold at least one time step"),
        ((X, 1.5, 1.0), {}, ValueError, r"leak must be in \[0, 1\], got 1.5"),
        ((X, -0.1, 1.0), {}, ValueError, r"leak must be in \[0, 1\], got -0.1"),
        ((X, float("nan"), 1.0), {}, ValueError, r"leak must be in \[0, 1\], got NaN in 1 of 1: training has failed$"),
        ((X, 0.9, float("nan")), {}, ValueError, r"v_threshold must be > 0, got NaN in 1 of 1: training has failed$"),
        ((X, torch.tensor([0.5, 0.5, 0.5, 2.0]), 1.0), {}, ValueError, "leak must be in .* got values from 0.5 to 2.0"),
        ((X, 0.9, 0.0), {}, ValueError, "v_threshold must be > 0, got 0.0"),
        ((X, 0.9, float("inf")), {}, ValueError, "v_threshold must be finite, got inf"),
        ((X, 0.9, -0.5), {}, ValueError, r"v_threshold must be > 0, got -0.5 .*call project_\(\)"),
        (
            (X, torch.ones(3), 1.0),
            {},
            ValueError,
            r"leak must be 0-d or broadcastable to \[N, \*\] = \(2, 4\), got \(3,\)",
        ),
        ((X, 0.9, torch.ones(5, 2, 4)), {}, ValueError, "v_threshold must be 0-d or broadcastable"),
        ((X, 0.9, 1.0), {"gamma": 0.0}, ValueError, "gamma must be > 0, got 0.0"),
        ((X[:, :1], 0.9, 1.0), {"state": STATE}, ValueError, r"state.v must have the shape .* \(1, 4\), got \(2, 4\).*reset"),
        ((X, 0.9, 1.0), {"state": LIFState(STATE.v, STATE.v)}, TypeError, "state.fired must be a bool tensor"),
        ((X, 0.9, 1.0), {"backend": "cuda"}, ValueError, "backend must be one of 'auto', 'torch', .*got 'cuda'"),
    ],
)
def test_bad_input_is_named(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        single_spike_lif(*arguments, **keywords)


def spoilt(T, N, value):
    x_seq = torch.rand(T, N, 3)
    x_seq[T // 2, -1, 1] = value
    return x_seq


@pytest.mark.parametrize("backend", ["torch", "inductor"])
@pytest.mark.parametrize(("T", "N"), [(5, 4), (12, 4), (5, 3000), (5, 70_000)])
@pytest.mark.parametrize(("value", "message"), [(torch.nan, "1 NaN and 0 Inf"), (-torch.inf, "0 NaN and 1 Inf")])
def test_nan_and_infinite_currents_are_named_on_a_cpu(backend, T, N, value, message):
    for keep_state, grad in ((True, True), (False, False), (False, True)):
        x_seq = spoilt(T, N, value).requires_grad_(grad)
        with pytest.raises(NotFiniteError, match=f"x_seq must be finite, got {message} in {x_seq.numel()} values"):
            lif(x_seq, 0.9, 1.0, None, Switches(), backend, keep_state=keep_state)
        lif(torch.rand(T, N, 3).requires_grad_(grad), 0.9, 1.0, None, Switches(), backend, keep_state=keep_state)


def test_other_ways_to_nan_are_named():
    nan = LIFState(torch.full((2, 4), torch.nan), STATE.fired)
    with pytest.raises(NotFiniteError, match=r"state\.v must be finite, got 8 NaN and 0 Inf in 8 values"):
        single_spike_lif(X, 0.9, 1.0, state=nan)
    with pytest.raises(NotFiniteError, match="x_seq must not overflow the potential, got values from 3"):
        single_spike_lif(torch.full((3, 2, 4), 3e38), 1.0, 1.0)
    single_spike_lif(torch.full((3, 2, 4), 1e38), 1.0, 1.0)  # though their sum overflows
    with pytest.raises(NotFiniteError, match="x_seq must be finite, got 1 NaN"):
        torch.ops.onespike.single_spike_lif(
            spoilt(3, 2, torch.nan), torch.tensor(0.9), torch.tensor(1.0), None, None, *Switches(), False, "torch"
        )
    node = in_snntorch.SingleSpikeLeaky(0.9)
    with pytest.raises(NotFiniteError, match="input_ must be finite, got 1 NaN"):
        node(spoilt(3, 2, torch.nan)[1])


@pytest.mark.parametrize("single_spike", [True, False])
def test_off_the_cpu_spikes_of_nan_potentials_are_nan(single_spike):
    x_seq, state, *_ = draw(5, (33,), seed=3)
    x_seq[2, 7], state.v[4] = torch.nan, torch.nan
    leak, threshold = torch.tensor(0.9), torch.tensor(0.8)
    want, v_seq, _ = single_spike_lif_ref(x_seq, leak, threshold, *state, single_spike=single_spike)
    assert want.isnan().sum() == 5 + 3
    found = torch.empty_like(x_seq), torch.empty(33), torch.empty(33, dtype=torch.bool), None
    eager.forward_block(single_spike, True, x_seq, leak, threshold, *state, *found)
    by_steps = steps.forward_steps(
        x_seq, leak, threshold, state.v, state.fired.byte(), None, None, single_spike, True, False, True, False, True
    )
    for s_seq, v_last in (found[:2], (by_steps[0], by_steps[2])):
        torch.testing.assert_close(s_seq, want, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(v_last, v_seq[-1], rtol=0, atol=0, equal_nan=True)


def test_a_named_backend_never_falls_back():
    for backend in ("cupy", "triton"):
        reasons = why_unavailable(backend, "cpu")
        assert reasons
        with pytest.raises(BackendUnavailableError, match="CUDA"):
            single_spike_lif(X, 0.9, 1.0, backend=backend)
    assert "torch" in available_backends("cpu")
    assert set(available_backends(torch.device("cpu"))).isdisjoint({"cupy", "triton"})
    with pytest.raises(ValueError, match="backend must be one of"):
        why_unavailable("auto", "cpu")
