"""One suite for every implementation of the neuron: the cases, and what must hold against the reference.

An implementation is a subclass of `onespike.kernels.plan.Plan`.
"""

import contextlib
import importlib.util
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from onespike.kernels.plan import Signature, Switches
from onespike.kernels.reference import single_spike_lif_ref


@dataclass(frozen=True)
class Case:
    """What to compare: sizes, memory layout, settings.

    Attributes:
        layout: how x_seq and the gradients lie in memory; see `laid_out`.
        leak, threshold: shape of the parameter, broadcastable to `step`.
        state: start from a carried-in state.
        grads: which outputs get a gradient, of s_seq, v and v_seq.
    """

    T: int = 5
    step: tuple[int, ...] = (1025,)
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    leak: tuple[int, ...] = ()
    threshold: tuple[int, ...] = ()
    state: bool = False
    single_spike: bool = True
    grad_after_spike: bool = True
    temporal_gradient: bool = True
    grads: tuple[str, ...] = ("s_seq", "v", "v_seq")

    def __str__(self) -> str:
        default = Case()
        return " ".join(f"{name}={value}" for name, value in vars(self).items() if value != getattr(default, name)) or "default"


TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

SIZES = [Case(step=step) for step in [(1,), (33,), (1025,), (2, 1024), (3, 5, 7)]]
FEATURES = (3, 4, 8, 8)
LAYOUTS = [
    Case(step=FEATURES, layout=layout, leak=parameter, threshold=parameter, state=True)
    for layout in ("contiguous", "channels_last", "batch_first", "every_other_step", "every_other_neuron", "expanded")
    for parameter in ((), (4, 1, 1))
]
PARAMETERS = [
    Case(step=step, leak=leak, threshold=threshold, layout=layout)
    for layout in ("contiguous", "channels_last")
    for step, leak, threshold in [
        (FEATURES, (4, 1, 1), ()),
        (FEATURES, (), (1, 4, 1, 1)),
        (FEATURES, (4, 1, 1), (3, 1, 1, 1)),
        (FEATURES, (8, 8), (4, 8, 8)),
        (FEATURES, (4, 1, 8), (3, 1, 8, 1)),
        ((2, 3, 9, 11), (3, 1, 1), (3, 1, 1)),
        ((2, 3, 32, 64), (3, 1, 1), (3, 1, 1)),
    ]
] + [Case(step=(6, 10), leak=(10,), threshold=(6, 1)), Case(step=(3, 1, 70), leak=(1, 1), threshold=(70,))]
FLAGS = [
    Case(T=T, state=state, single_spike=single_spike, grad_after_spike=after, temporal_gradient=temporal)
    for T in (6, 20)
    for state in (False, True)
    for single_spike, after, temporal in [(False, True, True), (True, False, True), (True, True, False), (True, False, False)]
]
GRADS = [Case(T=T, state=True, grads=grads) for T in (3, 18) for grads in [("s_seq",), ("v",), ("v_seq",), ("s_seq", "v"), ()]]
DTYPES = [
    Case(T=T, dtype=dtype, step=step, state=True, leak=leak, grad_after_spike=after)
    for dtype in (torch.float16, torch.bfloat16)
    for T, after in [(5, True), (18, False)]
    for step, leak in [((33,), ()), ((2, 4, 8, 8), (4, 1, 1)), ((5, 7), (7,)), ((4, 32), (32,))]
]
STEPS = [Case(T=T, step=(33,), state=T % 2 == 0, grad_after_spike=T % 3 != 0) for T in (*range(1, 34), 100)]
WIDE_STEPS = [
    Case(T=T, dtype=dtype, step=step, leak=leak)
    for dtype in TOLERANCE
    for T in (8, 16, 17)
    for step, leak in [((2, 64), ()), ((2, 64), (64,)), ((5, 7), (7,)), ((5, 7), ())]
]
CASES = list(dict.fromkeys(SIZES + LAYOUTS + PARAMETERS + FLAGS + GRADS + DTYPES + STEPS + WIDE_STEPS))


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """Give `tensor` [T, N, *] the same values (but for "expanded": the first step's, T times) in another memory layout."""
    if layout == "channels_last" and tensor.dim() == 5:
        return tensor.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    if layout == "batch_first":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "every_other_step":
        return tensor.repeat_interleave(2, 0)[::2]
    if layout == "every_other_neuron":
        return tensor.repeat_interleave(2, -1)[..., ::2]
    if layout == "expanded":
        return tensor[:1].expand_as(tensor)
    return tensor.contiguous()


@contextlib.contextmanager
def poisoned_memory():
    """Fill what torch.empty and its kin return with NaN (True for bool), so that an element nobody wrote shows."""
    settings = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(settings[0])
        torch.utils.deterministic.fill_uninitialized_memory = settings[1]


def inputs_of(case: Case, device: str = "cpu"):
    """Draw x_seq, leak, threshold, v, fired, and the gradients of s_seq, v and v_seq for `case`."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(device)

    def uniform(low, high, *shape):
        return (low + (high - low) * torch.rand(shape, generator=generator)).to(device)

    x_seq = laid_out((0.15 + 0.5 * draw(case.T, *case.step)).to(case.dtype), case.layout)
    leak, threshold = uniform(0.6, 1.0, *case.leak), uniform(0.7, 1.2, *case.threshold)
    v = laid_out(draw(1, *case.step), case.layout)[0] if case.state else None
    fired = draw(*case.step) > 1 if case.state else None
    grads = {
        "s_seq": laid_out(draw(case.T, *case.step).to(case.dtype), case.layout),
        "v": draw(*case.step),
        "v_seq": laid_out(draw(case.T, *case.step), case.layout),
    }
    return x_seq, leak, threshold, v, fired, [grads[name] if name in case.grads else None for name in grads]


def expected(case: Case, x_seq, leak, threshold, v, fired, grads):
    """The reference's outputs and gradients, the latter in float64 on the path that float32 takes."""
    options = {"grad_after_spike": case.grad_after_spike, "temporal_gradient": case.temporal_gradient}
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x_seq, leak, threshold, v)]
    outputs = single_spike_lif_ref(*leaves, fired, gamma=0.3, single_spike=case.single_spike, **options)
    s_seq, v_seq, fired_last = outputs
    weighted = sum(
        (
            (out.float() * grad.float()).sum()
            for out, grad in zip((s_seq, v_seq[-1], v_seq), grads, strict=True)
            if grad is not None
        ),
        start=(x_seq.sum() + leak.sum() + threshold.sum()) * 0,
    )
    present = [leaf for leaf in leaves if leaf is not None]
    if weighted.requires_grad:
        found = iter(torch.autograd.grad(weighted, present, allow_unused=True, materialize_grads=True))
    else:
        found = iter([torch.zeros_like(leaf) for leaf in present])
    return (s_seq, v_seq[-1], fired_last, v_seq), [None if leaf is None else next(found) for leaf in leaves]


DEFAULT = Switches()


def plan_for(kind, x_seq, leak, threshold, v=None, *, switches=DEFAULT, keep_state=True, trace=False):
    """Make a plan of class `kind` for these tensors."""
    return kind(Signature.of(x_seq, leak, threshold, v is not None, switches, keep_state, trace))


def check(case: Case, kind, device: str = "cpu") -> None:
    """Compare an implementation with the reference: spikes bit for bit, potentials too, gradients within rounding."""
    x_seq, leak, threshold, v, fired, grads = inputs_of(case, device)
    outputs, gradients = expected(case, x_seq, leak, threshold, v, fired, grads)
    share = outputs[2].float().mean().item()
    assert outputs[2].numel() < 30 or 0.05 <= share <= (0.95 if case.T < 12 else 1.0), f"{share:.0%} of the neurons fired"

    inputs = x_seq, leak, threshold, v, fired
    switches = Switches(0.3, case.single_spike, case.grad_after_spike, case.temporal_gradient)
    of = partial(plan_for, kind, *inputs[:4], switches=switches)
    with poisoned_memory():
        found = of(trace=True).forward(*inputs)
        without_trace = of().forward(*inputs)
        without_state = of(keep_state=False).forward(*inputs)
        found_gradients = of().backward(*grads, *inputs)
        again = of().backward(*grads, *inputs)

    for name, want, got in zip(("s_seq", "v", "fired", "v_seq"), outputs, found, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want.detach()), f"{name} differs from the reference"
    assert found[0].stride() == torch.empty_like(x_seq).stride()
    assert without_trace[3] is None
    for got, want in zip(without_trace[:3], found[:3], strict=True):
        assert torch.equal(got, want)
    assert torch.equal(without_state[0], found[0])
    assert without_state[1:] == (None, None, None)
    for name, want, got, twice in zip(("x_seq", "leak", "threshold", "v"), gradients, found_gradients, again, strict=True):
        if want is None:
            assert got is None
            continue
        assert torch.equal(got, twice), f"the gradient of {name} is not the same twice"
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        tolerance = TOLERANCE[got.dtype]
        scale = max(1.0, want.abs().max().item())
        torch.testing.assert_close(
            got, want, rtol=tolerance, atol=tolerance * scale, msg=lambda m, n=name: f"gradient of {n}: {m}"
        )


def check_nan(kind) -> None:
    """Compare potentials and spikes with the reference where a current, a carried potential or neither is NaN or infinite."""
    for T, dtype in ((5, torch.float32), (18, torch.float32), (5, torch.bfloat16), (5, torch.float16)):
        x_seq, leak, threshold, v, fired, _ = inputs_of(Case(T=T, step=(4, 33), dtype=dtype, state=True))
        x_seq[1, 0, 3], x_seq[T - 1, 1, 5], x_seq[0, 2, 7], x_seq[0, 2, 8] = torch.nan, torch.nan, torch.inf, -torch.inf
        x_seq[2, 2, 7], v[3, 9] = -torch.inf, torch.nan
        for single_spike in (True, False):
            switches = Switches(single_spike=single_spike)
            s_seq, v_last, *_ = plan_for(kind, x_seq, leak, threshold, v, switches=switches).forward(
                x_seq, leak, threshold, v, fired
            )
            want, v_seq, _ = single_spike_lif_ref(x_seq, leak, threshold, v, fired, single_spike=single_spike)
            assert {(0, 3), (1, 5), (2, 7), (3, 9)} == {(n, i) for n, i in v_seq[-1].isnan().nonzero().tolist()}
            torch.testing.assert_close(s_seq, want, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(v_last, v_seq[-1], rtol=0, atol=0, equal_nan=True)
            assert s_seq.dtype == dtype
            assert torch.equal(s_seq.isnan(), v_seq.isnan())


def planted(module, right: str, wrong: str, folder: Path):
    """Import a copy of `module` in which the one place that reads `right` reads `wrong`."""
    source = Path(module.__file__).read_text()
    assert source.count(right) == 1
    (folder / "broken.py").write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("broken", folder / "broken.py")
    broken = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(broken)
    return broken


def planted_error_is_caught(kind) -> bool:
    """Whether `check` refuses an implementation whose source was changed for the worse."""
    case = replace(Case(), step=(257,), state=True)
    try:
        check(case, kind)
    except AssertionError:
        return True
    return False
