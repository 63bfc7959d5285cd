"""Readout, loss and decision: definitions, surrogate gradients, errors."""

import pytest
import torch

from onespike.functional import Readout, hybrid_cross_entropy, predict, spike_time_readout
from onespike.spikingjelly import HybridCrossEntropyLoss


def first_crossing(v_seq, threshold):
    """The prose of eq. 10: the first t with U^t >= V, else T; by search, not by counting."""
    T = len(v_seq)
    crossed = v_seq >= threshold
    crossed[-1] = True
    steps = torch.arange(1, T + 1).view(-1, *[1] * (v_seq.dim() - 1)).expand_as(v_seq)
    return torch.where(crossed, steps, T).amin(0)


def test_spike_time_is_the_first_crossing_on_a_million_traces():
    g = torch.Generator().manual_seed(0)
    currents = torch.randn(6, 100_000, 10, generator=g) + 0.2
    readout = spike_time_readout(currents, 1.0)
    v_seq = currents.cumsum(0)
    fell_back = (v_seq[:-1].amax(0) >= 1.0) & (v_seq[-1] < 1.0)
    assert fell_back.float().mean() > 0.1, "non-monotone traces are missing"
    assert torch.equal(readout.spike_time.long(), first_crossing(v_seq, 1.0))
    assert torch.equal(readout.potential, v_seq[-1])
    assert set(readout.spike_time.unique().tolist()) == {1, 2, 3, 4, 5, 6}


def test_golden_readout():
    # U = 0.5, 1.0, 0.25: crosses V = 1 at t = 2 (>=) and falls back; U = 0, 0, 3 crosses at T; U never crosses: T.
    x_seq = torch.tensor([[0.5, 0.5, -0.75], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]).T.unsqueeze(1)
    readout = spike_time_readout(x_seq, 1.0)
    assert readout.spike_time.tolist() == [[2, 3, 3]]
    assert readout.potential.tolist() == [[0.25, 3.0, 0.0]]
    assert spike_time_readout(x_seq[:1], 1.0).spike_time.tolist() == [[1, 1, 1]]


def threshold_slope(currents, threshold, beta, **options):
    threshold = torch.tensor(threshold, requires_grad=True)
    readout = spike_time_readout(currents, threshold, beta=beta, **options)
    return torch.autograd.grad(readout.spike_time.sum(), threshold)[0].item()


def test_a_higher_threshold_never_spikes_earlier():
    for seed in range(50):
        currents = torch.randn(8, 20, 10, generator=torch.Generator().manual_seed(seed))
        assert threshold_slope(currents, 0.8, 0.3) >= 0


def test_the_threshold_gradient_is_a_finite_difference_slope():
    for seed in range(5):
        currents = torch.randn(6, 20_000, 5, generator=torch.Generator().manual_seed(seed)) * 0.6 + 0.3
        for threshold in (0.5, 1.0):
            beta = 0.2
            slope = threshold_slope(currents, threshold, beta) / (2 * beta)
            above, below = (spike_time_readout(currents, threshold + d).spike_time.double().sum() for d in (beta, -beta))
            assert slope == pytest.approx((above - below).item() / (2 * beta), rel=0.15)


def test_full_sends_the_opposite_gradient_to_the_step_that_set_the_maximum():
    # U = 0.9, 0.4, 0.9, 2: M^2 was set at t = 1, M^3 (a tie) at t = 3; with V = 1, all are within beta = 0.2.
    currents = torch.tensor([0.9, -0.5, 0.5, 1.1]).view(4, 1, 1).requires_grad_()
    threshold = torch.tensor(1.0, requires_grad=True)
    readout = spike_time_readout(currents, threshold, time_gradient="full")
    grad_x, grad_threshold = torch.autograd.grad(readout.spike_time.sum(), (currents, threshold))
    assert readout.spike_time.item() == 4
    assert grad_threshold == 3
    # dT/dU = (-2, 0, -1, 0); a current moves every later U: reverse cumulative sum
    assert grad_x.flatten().tolist() == [-3, -1, -1, 0]


@pytest.mark.parametrize("shape", [(), (10,), (30, 1), (30, 10)])
@pytest.mark.parametrize("time_gradient", ["threshold", "full"])
def test_the_surrogate_is_that_of_its_terms_differentiated_by_autograd(shape, time_gradient):
    g = torch.Generator().manual_seed(4)
    currents = (0.3 * torch.randn(5, 30, 10, generator=g) + 0.2).requires_grad_()
    threshold = (0.5 + 0.3 * torch.rand(shape, generator=g)).requires_grad_()
    target = torch.randint(10, (30,), generator=g)
    readout = spike_time_readout(currents, threshold, beta=0.3, time_gradient=time_gradient)

    v_seq = currents.cumsum(0)
    highest = v_seq.cummax(0).values[:-1]
    margin = threshold - (highest if time_gradient == "full" else highest.detach())
    terms = torch.where(margin.abs() < 0.3, margin, 0).sum(0)
    spike_time = 1 + (margin > 0).float().sum(0) + (terms - terms.detach())
    assert 0 < terms.count_nonzero() < terms.numel()
    gradients = [
        torch.autograd.grad(hybrid_cross_entropy(each, target), (currents, threshold))
        for each in (readout, Readout(v_seq[-1], spike_time))
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_only_the_threshold_learns_from_the_timing_loss_unless_full():
    currents = (0.3 * torch.randn(5, 30, 10, generator=torch.Generator().manual_seed(1)) + 0.3).requires_grad_()
    target = torch.arange(30) % 10
    grads = {}
    for mode in ("threshold", "full", "off", "eq17"):
        threshold = torch.tensor(0.6, requires_grad=True)
        readout = spike_time_readout(currents, threshold, time_gradient=mode)
        loss = hybrid_cross_entropy(readout, target)
        grads[mode] = torch.autograd.grad(loss, (currents, threshold), allow_unused=True)
    potential_only = torch.autograd.grad(torch.nn.functional.cross_entropy(currents.sum(0), target), currents)[0]
    for mode in ("threshold", "off", "eq17"):
        torch.testing.assert_close(grads[mode][0], potential_only)
    assert (grads["full"][0] - potential_only).abs().max() > 1e-3
    assert grads["threshold"][1].abs() > 0
    assert grads["full"][1] == grads["threshold"][1]
    assert grads["off"][1] is None


def test_eq17_to_the_letter():
    g = torch.Generator().manual_seed(2)
    currents = 0.3 * torch.randn(5, 40, 3, generator=g) + 0.2
    V, beta, T = 0.7, 0.2, 5
    v_seq = torch.cat([torch.zeros(1, 40, 3), currents.cumsum(0)])
    expected = 0.0
    for n in range(40):
        for k in range(3):
            u = v_seq[:, n, k].tolist()
            for t in range(1, T):
                a, b = u[t] - V, V - u[t - 1]
                expected += t * ((a >= 0) * (abs(b) < beta) - (b >= 0) * (abs(a) < beta))
            expected += T * (abs(V - u[T]) < beta)
    assert expected != 0
    assert threshold_slope(currents, V, beta, time_gradient="eq17") == pytest.approx(expected)


def test_a_descent_step_on_the_threshold_lowers_the_timing_loss():
    lowered = 0
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        target = torch.randint(10, (2000,), generator=g)
        currents = 0.4 * torch.randn(5, 2000, 10, generator=g) + 0.1
        currents[:, torch.arange(2000), target] += 0.25

        def timing_loss(threshold, currents=currents, target=target):
            return torch.nn.functional.cross_entropy(-spike_time_readout(currents, threshold).spike_time, target)

        threshold = torch.tensor(0.8, requires_grad=True)
        before = timing_loss(threshold)
        (gradient,) = torch.autograd.grad(before, threshold)
        assert gradient != 0
        lowered += timing_loss((threshold - 0.1 * gradient.sign()).detach()) < before
    assert lowered == 20


def test_loss_gradients_are_those_of_the_two_cross_entropies():
    g = torch.Generator().manual_seed(3)
    potential = torch.randn(6, 10, generator=g, requires_grad=True)
    spike_time = torch.randint(1, 6, (6, 10), generator=g).float().requires_grad_()
    target = torch.tensor([0, 3, 9, 2, 2, 5])
    loss = hybrid_cross_entropy(Readout(potential, spike_time), target, reduction="sum")
    grad_potential, grad_time = torch.autograd.grad(loss, (potential, spike_time))
    y = torch.nn.functional.one_hot(target, 10).float()
    torch.testing.assert_close(grad_potential, potential.softmax(1) - y)
    torch.testing.assert_close(grad_time, y - (-spike_time).softmax(1))
    by_hand = -(potential.log_softmax(1) + (-spike_time).log_softmax(1))[torch.arange(6), target]
    torch.testing.assert_close(loss, by_hand.sum())
    each = hybrid_cross_entropy(Readout(potential, spike_time), target, reduction="none")
    torch.testing.assert_close(each, by_hand)
    weight = torch.rand(10, generator=g)
    weighted = hybrid_cross_entropy(Readout(potential, spike_time), target, weight=weight)
    torch.testing.assert_close(weighted, (by_hand * weight[target]).sum() / weight[target].sum())
    for dtype in (torch.bfloat16, torch.float64):  # as casting a model leaves them
        cast = hybrid_cross_entropy(Readout(potential, spike_time), target, weight=weight.to(dtype))
        torch.testing.assert_close(cast, weighted, rtol=1e-2, atol=0)
        assert cast.dtype == weighted.dtype
    smooth = hybrid_cross_entropy(Readout(potential, spike_time), target, label_smoothing=0.1)
    assert smooth != by_hand.mean()


def pair(seed=0):
    g = torch.Generator().manual_seed(seed)
    potential = torch.randn(6, 10, generator=g, requires_grad=True)
    return Readout(potential, torch.randint(1, 6, (6, 10), generator=g).float().requires_grad_())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_soft_targets_are_the_mixture_of_hard_ones(reduction):
    readout, one, other = pair(), torch.tensor([0, 3, 9, 2, 2, 5]), torch.tensor([1, 3, 0, 7, 2, 9])
    mixed = 0.3 * torch.eye(10)[one] + 0.7 * torch.eye(10)[other]
    parts = [hybrid_cross_entropy(readout, target, reduction=reduction) for target in (one, other)]
    loss = hybrid_cross_entropy(readout, mixed.to(torch.float16 if reduction == "none" else torch.float64), reduction=reduction)
    torch.testing.assert_close(loss, 0.3 * parts[0] + 0.7 * parts[1], rtol=1e-3, atol=1e-4)
    assert loss.dtype == torch.float32
    grads, wanted = (
        torch.autograd.grad(value.sum(), tuple(readout), retain_graph=True) for value in (loss, 0.3 * parts[0] + 0.7 * parts[1])
    )
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_indices_of_any_integer_type(dtype):
    target = torch.tensor([0, 3, 9, 2, 2, 5])
    assert hybrid_cross_entropy(pair(), target.to(dtype)) == hybrid_cross_entropy(pair(), target)


@pytest.mark.parametrize("ignored", [-100, 255, 3])
def test_ignored_images_count_for_nothing(ignored):
    readout, target = pair(), torch.tensor([0, ignored, 9, 2, ignored, 5])
    kept = target != ignored
    rest = Readout(*(values[kept] for values in readout))
    loss = HybridCrossEntropyLoss(ignore_index=ignored)(readout, target)
    torch.testing.assert_close(loss, hybrid_cross_entropy(rest, target[kept]))
    grads = torch.autograd.grad(loss, tuple(readout))
    assert not any(grad[~kept].any() for grad in grads)
    each = hybrid_cross_entropy(readout, target, reduction="none", ignore_index=ignored)
    assert each[~kept].tolist() == [0, 0]
    assert hybrid_cross_entropy(readout, torch.full((6,), ignored), ignore_index=ignored).isnan(), (
        "the mean over none, as torch's"
    )


def test_decision_rules():
    readout = Readout(torch.tensor([[3.0, 2.0, 1.0], [0.0, 5.0, 4.0]]), torch.tensor([[5.0, 2.0, 2.0], [1.0, 4.0, 1.0]]))
    assert predict(readout).tolist() == [0, 1]
    assert predict(readout, "combined").tolist() == [1, 2]
    assert predict(readout, "time").tolist() == [1, 2]  # earliest, ties by potential
    with pytest.raises(ValueError, match=r"rule must be one of .* got 'vote'"):
        predict(readout, "vote")


def test_half_precision_and_empty_batches():
    half = spike_time_readout(torch.randn(4, 2, 3).half(), 1.0)
    assert half.potential.dtype == half.spike_time.dtype == torch.float32
    assert spike_time_readout(torch.zeros(4, 0, 3), 1.0).potential.shape == (0, 3)


CURRENTS = torch.zeros(3, 2, 4)
READOUT = spike_time_readout(CURRENTS, 1.0)
TARGET = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: spike_time_readout(CURRENTS[0], 1.0), ValueError, r"x_seq must have at least 3 dimensions, \[T, N, K\]"),
        (lambda: spike_time_readout(CURRENTS[None], 1.0), ValueError, r"x_seq must be \[T, N, K\] with T >= 1"),
        (lambda: spike_time_readout(CURRENTS[:0], 1.0), ValueError, r"x_seq must be \[T, N, K\] with T >= 1"),
        (lambda: spike_time_readout(CURRENTS.int(), 1.0), TypeError, "x_seq must be a floating-point tensor, got torch.int32"),
        (lambda: spike_time_readout(CURRENTS, 0.0), ValueError, "v_threshold must be > 0, got 0.0"),
        (
            lambda: spike_time_readout(CURRENTS, torch.ones(3)),
            ValueError,
            r"v_threshold must be 0-d or broadcastable to \[N, K\]",
        ),
        (lambda: spike_time_readout(CURRENTS, 1.0, beta=-1), ValueError, "beta must be > 0, got -1"),
        (lambda: spike_time_readout(CURRENTS, 1.0, time_gradient="x"), ValueError, "time_gradient must be one of .* got 'x'"),
        (
            lambda: hybrid_cross_entropy(READOUT, torch.tensor([0, 4])),
            ValueError,
            r"target must be in 0..3, got values from 0 to 4",
        ),
        (
            lambda: hybrid_cross_entropy(READOUT, torch.tensor([-1, 0])),
            ValueError,
            "target must be in 0..3, got values from -1",
        ),
        (
            lambda: hybrid_cross_entropy(READOUT, torch.tensor([0])),
            ValueError,
            r"target must be \[N\] with N = 2, got shape \(1,\)",
        ),
        (lambda: hybrid_cross_entropy(READOUT, [0, 1]), TypeError, "target must hold class indices or .*, got list"),
        (lambda: hybrid_cross_entropy(READOUT, TARGET > 0), TypeError, "target must hold class indices or .*, got torch.bool"),
        (
            lambda: hybrid_cross_entropy(READOUT, TARGET * 1j),
            TypeError,
            "target must hold class indices or .*, got torch.complex64",
        ),
        (
            lambda: hybrid_cross_entropy(READOUT, torch.full((2, 4), 1.5)),
            ValueError,
            r"target must hold probabilities in \[0, 1\], got values from 1.5 to 1.5",
        ),
        (
            lambda: hybrid_cross_entropy(READOUT, torch.full((2, 4), torch.nan)),
            ValueError,
            r"target must hold probabilities in \[0, 1\], got values from nan",
        ),
        (
            lambda: hybrid_cross_entropy(READOUT, torch.ones(2, 4), ignore_index=-100),
            ValueError,
            "ignore_index must be None where target holds probabilities, got -100",
        ),
        (
            lambda: hybrid_cross_entropy(READOUT, TARGET - 100, ignore_index=-1),
            ValueError,
            "target must be in 0..3, got values from -100 to -100",
        ),
        (
            lambda: hybrid_cross_entropy(READOUT, TARGET, ignore_index=1.0),
            TypeError,
            "ignore_index must be an int or None, got 1.0",
        ),
        (lambda: HybridCrossEntropyLoss(ignore_index=True), TypeError, "ignore_index must be an int or None, got True"),
        (
            lambda: hybrid_cross_entropy(Readout(torch.zeros(2, 3), torch.zeros(2, 4)), torch.tensor([0, 1])),
            ValueError,
            r"readout must hold two \[N, K\], got \(2, 3\) and \(2, 4\)",
        ),
        (
            lambda: hybrid_cross_entropy(READOUT, torch.zeros(2)),
            ValueError,
            r"target must be \[N, K\] = \(2, 4\) where it holds probabilities.*got shape \(2,\): class indices are integers",
        ),
        (
            lambda: hybrid_cross_entropy(Readout(torch.rand(2, 3, 4), torch.rand(2, 3, 4)), TARGET),
            ValueError,
            r"readout must hold two \[N, K\], got \(2, 3, 4\)",
        ),
        (lambda: hybrid_cross_entropy(READOUT, TARGET, reduction="avg"), ValueError, "reduction must be \"mean\".*got 'avg'"),
        (
            lambda: hybrid_cross_entropy(READOUT, TARGET, label_smoothing=2.0),
            ValueError,
            "label_smoothing must be in .*2.0",
        ),
        (
            lambda: hybrid_cross_entropy(READOUT, TARGET, weight=torch.ones(99)),
            ValueError,
            r"weight must be \[K\] with K = \d, got shape \(99,\)",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("time_gradient", ["threshold", "full", "off"])
def test_torchs_transforms_give_the_same_gradients(time_gradient):
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(3))
    threshold = torch.tensor(0.7)

    def loss(x, threshold):
        readout = spike_time_readout(x, threshold, beta=0.5, time_gradient=time_gradient)
        return readout.potential.square().sum() + readout.spike_time.square().sum()

    leaves = x.clone().requires_grad_(), threshold.clone().requires_grad_()
    want = torch.autograd.grad(loss(*leaves), leaves, allow_unused=True, materialize_grads=True)
    found = torch.func.grad(loss, argnums=(0, 1))(x, threshold)
    torch.testing.assert_close(found, want)
    tangents = torch.func.jvp(loss, (x, threshold), (torch.ones_like(x), torch.ones(())))[1]
    torch.testing.assert_close(tangents, sum(grad.sum() for grad in want))


NAN = Readout(torch.tensor([[1.0, torch.nan]]), torch.tensor([[1.0, 2.0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spike_time_readout(torch.full((3, 1, 2), torch.nan), 1.0), "x_seq must be finite, got NaN in 6 of 6 values"),
        (lambda: hybrid_cross_entropy(NAN, torch.tensor([0])), "potential must be finite, got NaN in 1 of 2"),
        (lambda: hybrid_cross_entropy(Readout(*NAN[::-1]), torch.tensor([1])), "spike_time must be finite, got NaN"),
        (lambda: hybrid_cross_entropy(NAN, torch.tensor([0]), reduction="none"), "potential must be finite, got NaN"),
        (
            lambda: hybrid_cross_entropy(Readout(*[NAN[1]] * 2), torch.tensor([0]), weight=torch.full((2,), torch.nan)),
            "weight must be finite, got NaN",
        ),
        (lambda: predict(NAN), "potential must be finite, got NaN"),
        (lambda: predict(NAN, "time"), "potential must be finite, got NaN"),
        (lambda: predict(Readout(*NAN[::-1]), "time"), "spike_time must be finite, got NaN"),
    ],
)
def test_nan_is_named_on_a_cpu(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_infinities_that_stay_what_they_are_pass():
    masked = torch.tensor([[[1.0, -torch.inf]]])
    assert predict(spike_time_readout(masked, 1.0)).item() == 0
