"""Other codes: each encoder, neuron and norm by its paper's definition, in converted networks, and in the counters."""

import re
import sys
from functools import partial

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from onespike.conversion import ConversionError, SpikingNetwork, compare, convert
from onespike.functional.checks import NotFiniteError
from onespike.metrics import SpikingActivity, energy
from onespike.peers import (
    BatchNormThroughTime,
    BurstNode,
    DCTEncoder,
    KernelEncoder,
    KernelNode,
    PhaseEncoder,
    PhaseNode,
    PoissonEncoder,
    dct_components,
    decay_kernel,
    farthest_pixel,
    kernel_spikes,
    phase_size,
    ycbcr_blocks,
    zigzag,
)
from onespike.spikingjelly import DirectEncoder, SingleSpikeLIFNode, SpikeMaxPool


def signed(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_poisson_rate_converges_with_the_right_sign():
    torch.manual_seed(0)
    x = torch.tensor([[-2.0, -0.5, 0.0, 0.3, 1.9, 5.0]])
    s_seq = PoissonEncoder(4000, unit=2.0)(x)
    assert s_seq.shape == (4000, 1, 6)
    assert set(s_seq.unique().tolist()) == {-1.0, 0.0, 1.0}
    # Four standard deviations of a share of 4000 draws are 0.032 at most.
    torch.testing.assert_close(s_seq.mean(0), (x / 2).clamp(-1, 1), atol=0.032, rtol=0)
    assert not s_seq[:, 0, 2].any(), "a black pixel is silent"
    assert torch.equal(s_seq[:, 0, [0, 5]], torch.tensor([-1.0, 1.0]).expand(4000, 2)), "a rate is 1 at most"


def test_poisson_spikes_are_drawn_anew_and_follow_the_seed():
    x, encoder = signed(8, 3, 4, 4), PoissonEncoder(5)
    torch.manual_seed(1)
    first, second = encoder(x), encoder(x)
    torch.manual_seed(1)
    assert torch.equal(encoder(x), first)
    assert not torch.equal(second, first)


def test_a_phase_coded_value_decodes_to_a_256th_within_a_period():
    x = torch.cat([signed(500), torch.tensor([0.0, 1.0, -1.0, 192 / 256, -1 / 256])]).unsqueeze(0)
    s_seq = PhaseEncoder(16)(x)
    expected = x.sign() * torch.floor(x.abs().clamp(max=1 - 2**-8) * 256) / 256
    assert torch.equal(s_seq[:8].sum(0), expected)
    assert torch.equal(s_seq[8:], s_seq[:8]), "the second period repeats the first"
    sizes = torch.tensor([phase_size(t) for t in range(8)]).view(8, 1, 1)
    assert torch.equal(s_seq[:8].abs(), (s_seq[:8] != 0) * sizes)
    assert s_seq[:3, 0, -2].tolist() == [0.5, 0.25, 0.0], "192/256 of Kim et al.'s table"
    assert PhaseEncoder(3)(x).shape[0] == 3


def test_a_phase_neuron_sends_its_potential_as_a_binary_fraction():
    potentials = torch.rand(1, 400, generator=torch.Generator().manual_seed(0)) * 3.0
    x_seq = torch.cat([potentials.unsqueeze(0), torch.zeros(7, 1, 400)])
    node = PhaseNode(v_threshold=3.0)
    sent = node(x_seq).sum(0)
    lost = potentials / 3.0 - sent
    assert ((lost >= 0) & (lost < 2**-8 + 1e-6)).all()
    torch.testing.assert_close(node.v, 3.0 * lost, atol=1e-6, rtol=0)
    assert node(torch.zeros(1, 1, 400)).max() <= 0.5, "the ninth step is the first phase again"


def test_a_burst_doubles_until_a_step_without_a_spike():
    node = BurstNode(v_threshold=2.0, first=0.125)
    x_seq = torch.zeros(8, 1, 1)
    x_seq[0] = 2.0 * (0.125 + 0.25 + 0.5 + 0.125)  # three spikes, a step below the fourth, and an eighth begins anew
    assert node(x_seq).flatten().tolist() == [0.125, 0.25, 0.5, 0.0, 0.125, 0.0, 0.0, 0.0]
    assert node.v.item() == 0
    slow = BurstNode(beta=1.0, first=0.5)
    assert slow(torch.tensor([2.0, 0, 0, 0, 0]).view(5, 1, 1)).flatten().tolist() == [0.5, 0.5, 0.5, 0.5, 0.0], (
        "beta = 1: a rate"
    )


@pytest.mark.parametrize("tau", [4.0, 16.0])
def test_the_kernel_decodes_what_it_encodes(tau):
    T = 64
    low = torch.exp(torch.tensor(-(T - 1) / tau))
    x = low + (1 - low) * torch.rand(7, 300, generator=torch.Generator().manual_seed(0))
    s_seq = kernel_spikes(x, T, tau)
    assert ((s_seq > 0).sum(0) == 1).all(), "one spike"
    decoded = s_seq.sum(0)
    assert ((decoded <= x) & (decoded > x * torch.exp(torch.tensor(-1 / tau)) * (1 - 1e-6))).all()
    steps = torch.ceil(-tau * x.log()).long().clamp(0, T - 1)
    assert torch.equal(s_seq.argmax(0), steps), "the time of T2FSNN's encoding, -tau log x"
    torch.testing.assert_close(decoded, decay_kernel(T, tau, x)[steps])
    assert kernel_spikes(torch.tensor([[1.0, 7.0, 0.9 * low.item(), 0.0, -1.0]]), T, tau).sum(0).tolist() == [[1, 1, 0, 0, 0]]


def test_a_kernel_neuron_integrates_a_window_and_fires_in_the_next():
    node, x_seq = KernelNode(v_threshold=2.0, T=20, tau=5.0), signed(20, 3, 50)
    s_seq = node(x_seq)
    assert torch.equal(s_seq, kernel_spikes(x_seq.sum(0) / 2, 20, 5.0))
    assert torch.equal(node(x_seq.flip(0)).argmax(0), s_seq.argmax(0)), "when a current came says nothing"
    encoder = KernelEncoder(20, unit=2.0)
    assert torch.equal(encoder(x_seq[0]), kernel_spikes(x_seq[0].abs() / 2, 20, 5.0) * x_seq[0].sign())


def test_zigzag_is_that_of_jpeg():
    expected = "00 01 10 20 11 02 03 12 21 30 31 22 13 23 32 33"
    assert " ".join(f"{row}{column}" for row, column in zigzag()) == expected


def test_cosines_add_up_to_the_image():
    x = signed(2, 3, 8, 12)
    components = dct_components(x)
    assert components.shape == (16, 2, 3, 8, 12)
    torch.testing.assert_close(components.sum(0), x)
    blocks = components.unfold(3, 4, 4).unfold(4, 4, 4)
    torch.testing.assert_close(components[0], blocks[0].mean((-1, -2)).repeat_interleave(4, 2).repeat_interleave(4, 3))
    products = torch.einsum("fnchwij,gnchwij->fg", blocks, blocks)
    torch.testing.assert_close(products, products.diagonal().diag(), atol=1e-4, rtol=0)  # frequencies are orthogonal
    rising = torch.arange(4.0).expand(1, 1, 4, 4)
    strengths = dct_components(rising).abs().amax((1, 2, 3, 4))
    assert (strengths > 1e-5).nonzero().flatten().tolist() == [0, 1, 6], "along rows alone: (0, 0), (0, 1) and (0, 3)"


def test_images_are_laid_out_as_overlapping_blocks_of_brightness_and_colour():
    x = signed(2, 3, 6, 8)
    laid = ycbcr_blocks(x)
    assert laid.shape == (2, 3, 12, 16)
    red, green, blue = x.unbind(1)
    brightness = nn.functional.pad(0.299 * red + 0.587 * green + 0.114 * blue, (1, 1, 1, 1), mode="replicate")
    for row in range(3):
        for column in range(4):
            block = laid[:, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            torch.testing.assert_close(block, brightness[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4])
    torch.testing.assert_close(ycbcr_blocks(torch.ones(1, 3, 4, 4))[:, 1:], torch.zeros(1, 2, 8, 8), atol=1e-6, rtol=0)
    blue_alone = torch.zeros(1, 3, 4, 4)
    blue_alone[:, 2] = 1
    torch.testing.assert_close(ycbcr_blocks(blue_alone)[0, :, 0, 0], torch.tensor([0.114, 0.5, -0.081312]))


def test_accumulated_spikes_reconstruct_the_image():
    x = 0.7 * signed(4, 3, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3) + 0.02 * signed(4, 3, 8, 8)
    encoder = DCTEncoder(48, low=-0.05, high=0.06)
    s_seq = encoder(x)
    assert set(s_seq.unique().tolist()) == {-1.0, 0.0, 1.0}
    for cycles in (1, 2, 3):
        seen = s_seq[: 16 * cycles]
        decoded = (seen > 0).sum(0) * 0.06 - (seen < 0).sum(0) * 0.05
        torch.testing.assert_close(decoded, cycles * x, atol=0.06, rtol=0)
    assert encoder.unit == pytest.approx(16 * 0.055)


def test_cosine_thresholds_are_percentiles_and_then_frozen():
    images = signed(20, 3, 16, 16)
    encoder = DCTEncoder.calibrated(16, images)
    components = dct_components(images)
    for share in ((components > encoder.high).float().mean(), (components < encoder.low).float().mean()):
        assert share.item() == pytest.approx(0.065, abs=1e-4)
    thresholds = encoder.low, encoder.high
    both = encoder(torch.cat([images[:1], 100 * images[1:2]]))
    assert torch.equal(both[:, :1], encoder(images[:1])), "an image's code does not depend on its batch"
    assert (encoder.low, encoder.high) == thresholds


@pytest.mark.parametrize(
    "encoder",
    [PhaseEncoder(9), KernelEncoder(9), DCTEncoder(9, -0.1, 0.1), DCTEncoder(20, -0.1, 0.1)],
    ids=lambda e: type(e).__name__,
)
def test_encoders_step_as_they_run_at_once(encoder):
    x = signed(2, 3, 4, 4)
    at_once = encoder(x)
    assert len(at_once) == encoder.T
    functional.set_step_mode(encoder, "s")
    stepped = torch.stack([encoder(x) for _ in range(encoder.T)])
    assert torch.equal(stepped, at_once)
    with pytest.raises(RuntimeError, match=f"t must stay below T = {encoder.T} in step mode 's', got step {encoder.T + 1}"):
        encoder(x)
    functional.reset_net(encoder)
    assert torch.equal(encoder(x), at_once[0])
    functional.set_step_mode(encoder, "m")
    functional.reset_net(encoder)


def test_the_steps_of_a_presentation_are_those_of_one_encoding():
    x, encoder = signed(2, 3), PoissonEncoder(6)
    torch.manual_seed(1)
    at_once = encoder(x)
    functional.set_step_mode(encoder, "s")
    torch.manual_seed(1)
    assert torch.equal(torch.stack([encoder(x.clone()) for _ in range(6)]), at_once), "all steps are drawn at the first one"
    functional.reset_net(encoder)
    encoder(x)
    for other in (x + 1, x[:1]):
        with pytest.raises(ValueError, match=r"x must be the images of the earlier steps, \(2, 3\), got others, .* reset_net"):
            encoder(other)


NODES = [PhaseNode, BurstNode, lambda v_threshold=1.0: KernelNode(v_threshold, T=8)]
NODE_NAMES = ["phase", "burst", "kernel"]


@pytest.mark.parametrize("make", NODES, ids=NODE_NAMES)
def test_potentials_that_are_not_finite_are_named(make):
    for value, counts in ((float("nan"), "1 NaN and 0 Inf"), (float("-inf"), "0 NaN and 1 Inf")):
        x_seq, node = signed(8, 2, 3), make()
        x_seq[3, 1, 1] = value
        with pytest.raises(NotFiniteError, match=f"x_seq must be finite, got {counts} in 48 values"):
            node(x_seq)
        assert node.v == 0.0, "the state is as before"
    with pytest.raises(NotFiniteError, match="x_seq must not overflow the potential, got values from 3"):
        make()(torch.full((8, 2, 3), 3e38))
    assert make()(torch.zeros(8, 0, 3)).shape == (8, 0, 3)


@pytest.mark.parametrize("make", NODES, ids=NODE_NAMES)
def test_nan_goes_on_to_the_spikes_where_nobody_looks(make, monkeypatch):
    monkeypatch.setattr("onespike.peers.neurons.can_look_at", lambda x: False)  # as on a GPU
    x_seq = signed(8, 2, 3)
    x_seq[0, 1, 1] = float("nan")
    s_seq = make()(x_seq)
    assert s_seq[:, 1, 1].isnan().all()
    assert s_seq.isnan().sum() == 8


@pytest.mark.parametrize("make", [PoissonEncoder, PhaseEncoder, KernelEncoder, lambda T: DCTEncoder(T, -0.1, 0.1)])
def test_encoders_pass_nan_on_where_nobody_looks(make, monkeypatch):
    monkeypatch.setattr("onespike.functional.checks.can_look_at", lambda x: False)
    x = signed(1, 1, 4, 8)
    x[0, 0, 0, 0] = float("nan")
    s_seq = make(3)(x)
    assert s_seq[:, 0, 0, 0, 0].isnan().all()
    assert not s_seq[..., 4:].isnan().any(), "nor does it spread"


SAVED = {
    "phase": (lambda: PhaseNode(0.3), PhaseNode),
    "burst": (lambda: BurstNode(0.3, first=0.5, beta=1.5), BurstNode),
    "kernel": (lambda: KernelNode(0.3, T=8, tau=3.0), lambda: KernelNode(T=8)),
    "kernel, T / 4": (lambda: KernelNode(0.3, T=8), lambda: KernelNode(T=8, tau=3.0)),
    "phase encoder": (lambda: PhaseEncoder(8, unit=0.7), lambda: PhaseEncoder(8)),
    "kernel encoder": (lambda: KernelEncoder(8, unit=0.7, tau=3.0), lambda: KernelEncoder(8)),
    "cosines": (lambda: DCTEncoder(8, -0.03, 0.02), lambda: DCTEncoder(8, -0.1, 0.1)),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_state_dict_restores_what_is_computed(name):
    make, make_other = SAVED[name]
    one, other, x = make(), make_other(), signed(8, 3, 4, 4)
    expected = one(x)
    assert not torch.equal(other(x), expected)
    functional.reset_net(other)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(x), expected)
    assert getattr(other, "unit", None) == getattr(one, "unit", None)
    functional.reset_net(one)
    before = make()
    before.load_state_dict({})  # from before there were numbers in it
    assert torch.equal(before(x), expected)
    assert {buffer.dtype for buffer in one.half().buffers()} == {torch.float32}, "they are not rounded"


@pytest.mark.parametrize(("name", "number"), [("phase", "v_threshold"), ("kernel", "v_threshold"), ("kernel encoder", "unit")])
def test_numbers_that_were_loaded_are_looked_at(name, number):
    module = SAVED[name][0]()
    module.load_state_dict({**module.state_dict(), number: torch.tensor(float("nan"))})
    with pytest.raises(ValueError, match=f"{number} must be > 0, got nan"):
        module(signed(8, 3, 4, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_states_are_float32_and_spikes_have_the_dtype_of_the_input(dtype):
    x_seq = (signed(8, 4, 3, 4, 4) / 4).to(dtype)
    wide = x_seq if dtype == torch.float64 else x_seq.float()
    makes = [lambda: PhaseNode(0.3), lambda: BurstNode(0.3, beta=1.3), lambda: KernelNode(0.3, T=8)]
    for make in makes:
        node, twin = make(), make()
        s_seq, expected = node(x_seq), twin(wide)
        assert s_seq.dtype == dtype
        assert node.v.dtype == wide.dtype
        assert torch.equal(s_seq, expected.to(dtype)), "one rounding, at the end"
    x, wide = x_seq[0] * 4, wide[0] * 4
    for encoder in (PhaseEncoder(9, 0.9), KernelEncoder(64, 0.9), DCTEncoder(48, -0.03, 0.02)):
        assert encoder(x).dtype == dtype
        assert torch.equal(encoder(x), encoder(wide).to(dtype))
    assert PoissonEncoder(3)(x).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rare_spikes_are_as_rare_in_half_precision(dtype):
    torch.manual_seed(0)
    rate = 2.0**-12  # a draw of 8 bits is 0, which is never above it, 16 times as often
    s_seq = PoissonEncoder(100)(torch.full((1, 20000), rate, dtype=dtype))
    assert s_seq.float().mean().item() == pytest.approx(rate, rel=0.2)  # four standard deviations are 0.18


def test_the_kernel_follows_a_T_that_is_set():
    x, encoder, given = signed(2, 5), KernelEncoder(8), KernelEncoder(8, tau=2.0)
    encoder.T = given.T = 32
    assert torch.equal(encoder(x), KernelEncoder(32)(x))
    assert torch.equal(given(x), KernelEncoder(32, tau=2.0)(x))
    node, window = KernelNode(T=8), signed(32, 2, 5)
    node.T = 32
    assert torch.equal(node(window), KernelNode(T=32)(window))


@pytest.mark.parametrize("make", [PhaseNode, BurstNode], ids=["phase", "burst"])
def test_neurons_step_as_they_run_at_once(make):
    x_seq, node = signed(20, 3, 30), make(0.7)
    at_once = node(x_seq)
    assert 0 < (at_once > 0).sum() < at_once.numel()
    stepped = make(0.7, step_mode="s")
    assert torch.equal(torch.stack([stepped(x) for x in x_seq]), at_once)
    functional.reset_net(node)
    assert torch.equal(torch.cat([node(x_seq[:7]), node(x_seq[7:])]), at_once), "a sequence may come in chunks"
    with pytest.raises(
        ValueError, match=r"x must have the shape of the earlier steps, \(3, 30\), got \(2, 30\): call reset_net"
    ):
        node(x_seq[:, :2])
    functional.reset_net(node)
    assert torch.equal(node(x_seq), at_once)


def test_batch_norm_through_time_has_each_steps_own_statistics():
    x_seq = signed(3, 40, 5, 2, 2) * torch.tensor([1.0, 4.0, 0.5]).view(3, 1, 1, 1, 1) + 2
    norm = BatchNormThroughTime(5, T=4)
    with torch.no_grad():
        for step, single in enumerate(norm.norms):
            single.weight.fill_(step + 1.0)
    y_seq = norm(x_seq)
    for step in range(3):
        torch.testing.assert_close(y_seq[step].mean((0, 2, 3)), torch.zeros(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(y_seq[step].std((0, 2, 3), correction=0), torch.full((5,), step + 1.0), rtol=1e-3, atol=0)
    assert [name for name, _ in norm.named_parameters()] == [f"norms.{step}.weight" for step in range(4)], "scales, no shifts"
    norm.eval()
    at_once = norm(x_seq)
    functional.set_step_mode(norm, "s")
    assert torch.equal(torch.stack([norm(x) for x in x_seq]), at_once)
    functional.reset_net(norm)
    functional.set_step_mode(norm, "m")
    with pytest.raises(ValueError, match="x_seq must have at most the 4 steps that were trained, got step 5"):
        norm(torch.cat([x_seq, x_seq]))
    assert BatchNormThroughTime(7, T=2, dims=0)(signed(2, 6, 7)).shape == (2, 6, 7)


def test_batch_norm_through_time_names_the_host_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "snntorch", None)
    with pytest.raises(ImportError, match=r'BatchNormThroughTime needs snnTorch: pip install "onespike\[snntorch\]"'):
        BatchNormThroughTime(3, T=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PoissonEncoder(0), "T must be >= 1, got 0"),
        (lambda: PoissonEncoder(5, unit=0.0), "unit must be > 0, got 0.0"),
        (lambda: PoissonEncoder(5)(torch.tensor([[float("nan")]])), "x must be finite, got 1 NaN or Inf"),
        (lambda: KernelEncoder(5, tau=-1.0), "tau must be > 0, got -1.0"),
        (lambda: farthest_pixel((0.5, 0.5), (0.2, 0.0)), "std must be > 0"),
        (lambda: DCTEncoder(5, 0.1, 0.2), "low and high must be finite, with low < 0 < high, got 0.1 and 0.2"),
        (lambda: DCTEncoder.calibrated(5, signed(1, 3, 4, 4), percentile=50), r"percentile must be in \(50, 100\], got 50"),
        (lambda: DCTEncoder.calibrated(5, signed(1, 3, 4, 4)[:0]), "images must hold at least one image"),
        (lambda: DCTEncoder.calibrated(5, torch.ones(1, 3, 4, 4)), "images must have components of either sign at the perc"),
        (lambda: DCTEncoder.calibrated(5, torch.zeros(1, 3, 4, 4)), "at the percentile 93.5, got -?0 and -?0 there"),
        (lambda: DCTEncoder.calibrated(5, signed(1, 3, 6, 4)), r"images must be \[N, C, H, W\] with H and W multiples of 4"),
        (lambda: DCTEncoder(5, -float("inf"), 1.0), "low and high must be finite, with low < 0 < high"),
        (lambda: PoissonEncoder(5, unit=torch.ones(3)), r"unit must be one number for the layer, got a tensor of shape \(3,\)"),
        (lambda: PhaseEncoder(5, unit=float("nan")), "unit must be > 0, got nan"),
        (lambda: DCTEncoder(5, -1, 1)(signed(1, 3, 6, 4)), r"x must be \[N, C, H, W\] with H and W multiples of 4, got shape"),
        (lambda: ycbcr_blocks(signed(1, 1, 4, 4)), r"x must be \[N, 3, H, W\] with even H and W, got shape \(1, 1, 4, 4\)"),
        (lambda: ycbcr_blocks(signed(1, 3, 5, 4)), "with even H and W"),
        (lambda: ycbcr_blocks(signed(1, 3, 4, 4, 4)), "with even H and W"),
        (lambda: ycbcr_blocks(signed(1, 3, 0, 0)), "with even H and W"),
        (lambda: dct_components(signed(1, 3, 4, 4, 4)), r"multiples of 4, got shape \(1, 3, 4, 4, 4\)"),
        (lambda: dct_components(signed(1, 3, 0, 4)), "multiples of 4"),
        (lambda: kernel_spikes(signed(2, 3), 4, 0), "tau must be > 0, got 0.0"),
        (lambda: kernel_spikes(signed(2, 3), 4, -1), "tau must be > 0, got -1.0"),
        (lambda: kernel_spikes(signed(2, 3), 4, torch.tensor(-1.0)), "tau must be > 0, got -1.0"),
        (lambda: decay_kernel(-1, 2.0, signed(1)), "T must be >= 1, got -1"),
        (lambda: phase_size(3, 0), "period must be >= 1, got 0"),
        (lambda: PhaseNode()(signed(0, 2, 3)), r"x_seq must hold at least one time step, T >= 1, got shape \(0, 2, 3\)"),
        (lambda: BurstNode()(signed(0, 2, 3)), "x_seq must hold at least one time step"),
        (lambda: BatchNormThroughTime(3, 2)(signed(0, 2, 3, 4, 4)), "x_seq must hold at least one time step"),
        (
            lambda: BatchNormThroughTime(3, 2)(signed(2, 2, 4, 4, 4)),
            r"x must be \[N, 3, H, W\] at each step, got",
        ),
        (lambda: BatchNormThroughTime(3, 2)(signed(2, 2, 3)), r"x must be \[N, 3, H, W\] at each step, got shape \(2, 3\)"),
        (
            lambda: BatchNormThroughTime(3, 2, 0, "s")(signed(2, 3, 4)),
            r"x must be \[N, 3\] at each step, got shape",
        ),
        (lambda: PhaseNode(0.0), "v_threshold must be > 0, got 0.0"),
        (lambda: BurstNode(first=0.0), r"first must be in \(0, 1\], got 0.0"),
        (lambda: BurstNode(beta=0.5), "beta must be >= 1 and finite, got 0.5"),
        (lambda: KernelNode(T=3, tau=0.0), "tau must be > 0, got 0.0"),
        (lambda: KernelNode(T=3)(signed(4, 2, 5)), "x_seq must have the 3 steps of a window, got 4"),
        (lambda: BatchNormThroughTime(3, 2, dims=1), "dims must be 0 or 2, got 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("value", ["1", None, [1.0], True, 1j], ids=repr)
def test_what_is_no_number_is_named(value):
    makes = {
        "v_threshold": [PhaseNode, BurstNode, lambda value: KernelNode(value, T=3)],
        "unit": [partial(make, 3) for make in (PoissonEncoder, PhaseEncoder, KernelEncoder)],
        "tau": [lambda value: kernel_spikes(signed(2), 3, value)],
        "first": [lambda value: BurstNode(first=value)],
        "beta": [lambda value: BurstNode(beta=value)],
        "low": [lambda value: DCTEncoder(3, value, 1.0)],
        "high": [lambda value: DCTEncoder(3, -1.0, value)],
        "percentile": [lambda value: DCTEncoder.calibrated(3, signed(1, 3, 4, 4), value)],
    }
    if value is not None:  # which says T / 4 there
        makes["tau"] += [lambda value: KernelEncoder(3, tau=value), lambda value: KernelNode(T=3, tau=value)]
    for name, calls in makes.items():
        for call in calls:
            with pytest.raises(TypeError, match=f"^{name} must be a number, got {re.escape(repr(value))} of type"):
                call(value)
    assert PhaseNode(torch.tensor(2.0)).v_threshold == PhaseNode(np.float32(2)).v_threshold == PhaseNode(2).v_threshold == 2


def test_what_are_no_tensors_is_named():
    norm = BatchNormThroughTime(3, 2, dims=0, step_mode="s")
    for call in (norm, lambda x: DCTEncoder.calibrated(4, x), lambda x: kernel_spikes(x, 4, 1.0)):
        with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got list"):
            call([signed(1, 3)])
        with pytest.raises(TypeError, match=r"must be a floating-point tensor, got torch\.int64"):
            call(torch.ones(2, 3, dtype=torch.int64))


def test_whole_numbers_are_no_images():
    for call in (PoissonEncoder(5), PhaseNode(), KernelNode(T=5), DCTEncoder(5, -1, 1), ycbcr_blocks):
        with pytest.raises(TypeError, match=r"must be a floating-point tensor, got torch\.uint8: convert images with"):
            call(torch.zeros(5, 3, 4, 4, dtype=torch.uint8))


def small_ann():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(128, 30, bias=False), nn.ReLU(), nn.Linear(30, 10, bias=False),
    ).eval()  # fmt: skip


def without_leak(make):
    return lambda leak, v_threshold: make(v_threshold)


RATE = partial(SingleSpikeLIFNode, single_spike=False, backend="torch")
CODES = {
    "poisson": (PoissonEncoder, RATE, 64, 0.98),
    "dct": (lambda T: DCTEncoder(T, -0.2, 0.2), RATE, 64, 0.98),
    "phase": (PhaseEncoder, without_leak(PhaseNode), 64, 0.995),
    "burst": (PhaseEncoder, without_leak(BurstNode), 64, 0.995),
    "kernel": (KernelEncoder, without_leak(partial(KernelNode, T=64)), 64, 0.995),
}


@pytest.mark.parametrize("code", CODES)
def test_a_converted_network_of_each_code_follows_its_ann(code):
    encoder, neuron, T, least = CODES[code]
    ann, images = small_ann(), signed(24, 3, 8, 8)
    network = convert(ann, images, encoder=encoder(T), neuron=neuron, threshold_scale=1.0, timesteps=20)
    assert network.T == T
    with torch.no_grad():
        potential, logits = network(images).potential, ann(images)
    assert torch.corrcoef(torch.stack([potential.flatten(), logits.flatten()]))[0, 1] > least


@pytest.mark.parametrize("code", ["dct", "phase", "burst"])
def test_a_network_of_each_code_steps_as_it_runs_at_once(code):
    encoder, neuron, _, _ = CODES[code]
    ann, images = small_ann(), signed(4, 3, 8, 8)
    network = convert(ann, images, encoder=encoder(5), neuron=neuron, threshold_scale=0.5, timesteps=5)
    currents = network.currents(images)
    functional.set_step_mode(network, "s")
    network.reset()
    for _ in range(5):
        stepped = network(images)
    torch.testing.assert_close(stepped.potential, currents.sum(0))


@pytest.mark.parametrize("code", ["phase", "burst", "kernel"])
def test_maximum_pools_of_sized_spikes_are_refused_by_name(code):
    encoder, neuron, T, _ = CODES[code]
    ann = small_ann()
    ann[2] = nn.MaxPool2d(2)
    with pytest.raises(ConversionError, match=r"2 \(SpikeMaxPool\) must take spikes of 0 and 1, got those of .*Node.* average"):
        convert(ann, signed(4, 3, 8, 8), encoder=encoder(T), neuron=neuron, threshold_scale=1.0, timesteps=5)
    assert convert(ann, signed(4, 3, 8, 8), encoder=encoder(4), neuron=RATE, timesteps=5).T == 4


@pytest.mark.parametrize("unit", ["ms", "1", 0.0, -2, float("nan"), [1.0], torch.ones(3)], ids=repr)
def test_an_encoders_unit_that_is_no_number_is_named(unit):
    encoder = DirectEncoder(4)
    encoder.unit = unit
    with pytest.raises(ValueError, match=r"encoder\.unit must be a number > 0, got .* of DirectEncoder"):
        convert(small_ann(), signed(4, 3, 8, 8), encoder=encoder, timesteps=5)


@pytest.mark.parametrize("code", ["phase", "burst", "kernel", "host"])
def test_networks_of_other_neurons_are_compared_with_their_ann(code):
    host = DirectEncoder, lambda leak, v_threshold: neuron.IFNode(v_threshold, step_mode="m"), 8, None
    encoder, make, T, _ = {**CODES, "host": host}[code]
    ann, images = small_ann(), signed(8, 3, 8, 8)
    network = convert(ann, images, encoder=encoder(T), neuron=make, threshold_scale=1.0, timesteps=20)
    rows = {row.name: row for row in compare(ann, network, images).rows}
    for name, node in network.nodes().items():
        assert rows[name].became == type(node).__name__
        assert rows[name].threshold == pytest.approx(float(node.v_threshold))
        assert rows[name].error < 0.7


def test_windows_cannot_be_stepped_through():
    encoder, neuron, T, _ = CODES["kernel"]
    network = convert(small_ann(), signed(4, 3, 8, 8), encoder=encoder(T), neuron=neuron, threshold_scale=1.0, timesteps=5)
    functional.set_step_mode(network, "s")
    with pytest.raises(RuntimeError, match=r'step_mode must be "m" for KernelNode, .* got "s" and a step \(4, 8, 8, 8\)'):
        network(signed(4, 3, 8, 8))


def counted(encoder, make):
    """A pixel row of four, a Linear layer of fan-out 3, a neuron, and an output of fan-out 2."""
    net = nn.Sequential(encoder, layer.Linear(4, 3, bias=False), make(), layer.Linear(3, 2, bias=False))
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([1.0, -1.0, 0.0]).view(3, 1).expand(3, 4))
    return net.eval()


def test_signed_and_sized_spikes_are_accumulates_from_the_first_step_on():
    x = torch.tensor([[1.0, 0.75, -0.25, 0.0]])
    # Bits: 11111111, 11, 01 (negative), none: 8 + 2 + 1 spikes in a period, each with 3 synapses.
    net = counted(PhaseEncoder(8), PhaseNode)
    sent = int((net[:3](x) > 0).sum())
    functional.reset_net(net)
    with SpikingActivity(net) as activity:
        net(x)
    first = activity.synapses["1"]
    assert (first.spikes, first.events, first.analogue_events, first.sources) == (11, 33, 0, ())
    assert first.target == "2"
    assert activity.layers["2"].spikes == sent > 0
    assert activity.synapses["3"].events == 2 * sent

    events, by_input, paper = (energy(activity, accounting=name) for name in ("events", "input", "paper"))
    assert events.snn_pj == pytest.approx(0.1 * (33 + 2 * sent))
    assert by_input.snn_pj == pytest.approx(0.1 * (12 * 11 / 4 + 6 * sent / 3))
    assert paper.snn_pj == pytest.approx(0.1 * (12 * sent / 3 + 6)), "no MAC: layer 1 as any other"
    assert {report.first_layer_ac_pj for report in (events, by_input, paper)} == {0}
    assert paper.ann_pj == pytest.approx(3.2 * 18)
    assert paper.ceiling == float("inf")
    assert activity.flop_weighted_mean == pytest.approx(sent / 3)


def test_pooled_input_spikes_count_as_those_before_the_pool():
    pooled = nn.Sequential(PoissonEncoder(3), layer.AvgPool2d(2), layer.Flatten(), layer.Linear(4, 5, bias=False), RATE())
    functional.set_step_mode(pooled, "m")
    x = torch.tensor([1.0, -1.0]).repeat(8).view(1, 1, 4, 4)  # spikes of either sign at every step, which pools cancel
    with torch.no_grad(), SpikingActivity(pooled.eval()) as activity:
        pooled(x)
    synapses = activity.synapses["3"]
    assert (synapses.spikes, synapses.events, synapses.inputs) == (3 * 16, 3 * 16 * 5, 16)


def test_spikes_behind_a_maximum_pool_count_as_one_each_whatever_their_size_and_sign():
    signs = nn.Sequential(PoissonEncoder(5), layer.MaxPool2d(2), layer.Flatten(), layer.Linear(4, 3), RATE())
    sizes = nn.Sequential(PhaseEncoder(8), layer.Conv2d(1, 1, 1, bias=False), PhaseNode(), SpikeMaxPool(2), layer.Flatten())
    sizes += nn.Sequential(layer.Linear(4, 3), PhaseNode())
    nn.init.ones_(sizes[1].weight)
    for net, images, at, sources in ((signs, -torch.ones(2, 1, 4, 4), 1, ()), (sizes, signed(2, 1, 4, 4), 3, ("3",))):
        functional.set_step_mode(net, "m")
        with torch.no_grad(), SpikingActivity(net.eval()) as activity:
            net(images)
            functional.reset_net(net)
            pooled = net[: at + 1](images) if net is sizes else None
        synapses = activity.synapses[str(at + 2)]
        assert synapses.sources == sources, "pooled pixels stay pixels"
        assert synapses.events == 3 * synapses.spikes > 0
        if pooled is not None:
            assert synapses.spikes == (pooled != 0).sum() > pooled.sum()


def test_batches_without_a_reset_between_them_are_refused():
    net = counted(PhaseEncoder(4), PhaseNode)
    with SpikingActivity(net):
        net(signed(1, 4))
        with pytest.raises(RuntimeError, match="the network must be reset between batches to be counted"):
            net(signed(1, 4))


def test_networks_of_other_codes_are_refused_by_name_as_files(tmp_path):
    ann, images = small_ann(), signed(4, 3, 8, 8)
    for code, name in (
        ("poisson", "PoissonEncoder"),
        ("dct", "DCTEncoder"),
        ("phase", "PhaseEncoder"),
        ("kernel", "KernelEncoder"),
    ):
        encoder, neuron, T, _ = CODES[code]
        network = convert(ann, images, encoder=encoder(T), neuron=neuron, threshold_scale=1.0, timesteps=5)
        assert isinstance(network, SpikingNetwork)
        with pytest.raises(TypeError, match=f"encoder must be .* to be saved, got .*{name}"):
            network.save(tmp_path / code)
        assert not (tmp_path / code).exists()
