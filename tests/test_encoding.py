"""The hybrid encoder: golden vectors, an independent oracle, ranges, edges and errors."""

import copy
import re
import warnings
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from snntorch import spikegen

from onespike.functional import hybrid_encode, spike_times
from onespike.spikingjelly import HybridEncoder

LEVELS = torch.arange(256) / 255


def exact_spike_time(level: int, T: int) -> int:
    """Eq. 4 for an 8-bit level, in exact arithmetic, ties up."""
    return min(max(floor(T - (T - 2) * Fraction(level, 255) + Fraction(1, 2)), 2), T)


def test_golden_vector_at_T_5():
    times = spike_times(LEVELS.view(1, -1), 5, intensity_range=(0.0, 1.0))[0]
    assert times.dtype == torch.int64
    assert times.tolist() == [5] * 43 + [4] * 85 + [3] * 85 + [2] * 43


@pytest.mark.parametrize("T", range(2, 21))
def test_all_levels_equal_exact_arithmetic_raw_and_normalised(T):
    expected = [exact_spike_time(level, T) for level in range(256)]
    assert spike_times(LEVELS.view(1, -1), T, intensity_range=(0.0, 1.0))[0].tolist() == expected
    for mean, std in ((0.4914, 0.2023), (0.4408, 0.2761), (0.5, 0.5)):
        x = (LEVELS - mean) / std
        assert spike_times(x.view(1, -1), T, intensity_range=((0 - mean) / std, (1 - mean) / std))[0].tolist() == expected


@pytest.mark.parametrize("T", [2, 3, 5, 8, 10])
def test_spikes_equal_snntorchs_latency_code(T):
    x = LEVELS.view(1, -1)
    latency = spikegen.latency(x, num_steps=T, first_spike_time=1, normalize=True, linear=True)
    assert torch.equal(hybrid_encode(x, T, intensity_range=(0.0, 1.0))[1:], latency[1:])
    assert latency[0].sum() == 0


@pytest.mark.parametrize("T", [2, 5])
def test_a_range_too_narrow_to_divide_by(T):
    assert spike_times(torch.tensor([[0.0, 1.0]]), T, intensity_range=(0.0, 1e-40)).tolist() == [[T, 2]]


@given(
    pixels=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=12),
    T=st.integers(2, 12),
    low=st.floats(-1, 0.5, width=32),
    span=st.floats(0.125, 3, width=32),
)
def test_each_pixel_spikes_exactly_once_and_brighter_is_never_later(pixels, T, low, span):
    x = torch.tensor(pixels).view(1, -1)
    x_seq = hybrid_encode(x, T, intensity_range=(low, low + span))
    assert torch.equal(x_seq[0], x)
    assert torch.equal(x_seq[1:].sum(0), torch.ones_like(x))
    times = spike_times(x, T, intensity_range=(low, low + span))
    assert torch.equal(x_seq.gather(0, times[None] - 1), torch.ones_like(x_seq[:1]))
    order = x[0].argsort()
    assert (times[0][order].diff() <= 0).all()
    assert (times[0][x[0] <= low] == T).all()
    assert (times[0][x[0] >= low + span] == 2).all()


def test_ties_round_up():
    # At T = 5 the times of 1/6, 1/2, 5/6 are 4.5, 3.5, 2.5; exact in binary for 1/2, as for level 8 of 16.
    assert spike_times(torch.tensor([[0.5, 8 / 16]]), 5, intensity_range=(0.0, 1.0)).tolist() == [[4, 4]]
    assert spike_times(torch.tensor([[2.0, 6.0, 10.0]]), 5, intensity_range=(0.0, 12.0)).tolist() == [[5, 4, 3]]


def test_edges():
    x = torch.rand(3, 2, 4, 4)
    assert torch.equal(hybrid_encode(x, 1, intensity_range=(0.0, 1.0)), x[None])
    assert (spike_times(x, 2, intensity_range=(0.0, 1.0)) == 2).all()
    flat = torch.full((2, 1, 3, 3), 0.7)
    assert (spike_times(flat, 6, intensity_range="image") == 6).all()
    assert (spike_times(flat, 6, intensity_range=(0.7, 0.7)) == 6).all()
    assert hybrid_encode(x[:0], 5, intensity_range="image").shape == (5, 0, 2, 4, 4)


def test_ranges_per_image_and_channel_do_not_look_at_batch_mates():
    x = torch.rand(4, 3, 5, 5) * torch.tensor([1.0, 2.0, 5.0, 9.0]).view(-1, 1, 1, 1) + torch.arange(3).view(-1, 1, 1)
    for name, dims in (("image", (1, 2, 3)), ("image_channel", (2, 3))):
        whole = spike_times(x, 7, intensity_range=name)
        bounds = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
        assert torch.equal(whole, spike_times(x, 7, intensity_range=bounds))
        assert torch.equal(whole[1:2], spike_times(x[1:2], 7, intensity_range=name))
        assert (whole.amin(dims) == 2).all()
        assert (whole.amax(dims) == 7).all()
    low, high = torch.tensor([0.0, 1, 2]).view(3, 1, 1), torch.tensor([1.0, 3, 5]).view(3, 1, 1)
    per_channel = spike_times(x, 7, intensity_range=(low, high))
    assert torch.equal(per_channel[:, 1], spike_times(x[:, 1], 7, intensity_range=(1.0, 3.0)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_output_keeps_the_dtype_and_the_gradient_is_that_of_the_frame(dtype):
    x = torch.rand(2, 6).to(dtype).requires_grad_()
    x_seq = hybrid_encode(x, 4, intensity_range=(0.0, 1.0))
    assert x_seq.dtype == dtype
    weights = torch.rand(4, 2, 6).to(dtype)
    (x_seq * weights).sum().backward()
    assert torch.equal(x.grad, weights[0])


def test_it_compiles():
    x = torch.rand(2, 3, 4, 4)
    compiled = torch.compile(lambda x: hybrid_encode(x, 5, intensity_range="image_channel"), fullgraph=True)
    assert torch.equal(compiled(x), hybrid_encode(x, 5, intensity_range="image_channel"))


IMAGES = torch.rand(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("x", "T", "intensity_range", "error", "message"),
    [
        (IMAGES, 0, (0.0, 1.0), ValueError, "T must be >= 1, got 0"),
        (IMAGES, 5.0, (0.0, 1.0), TypeError, "T must be an int, got 5.0 of type float"),
        (IMAGES, True, (0.0, 1.0), TypeError, "T must be an int, got True of type bool"),
        (IMAGES, np.True_, (0.0, 1.0), TypeError, "T must be an int, got .*True_? of type bool"),
        (IMAGES, torch.tensor(True), (0.0, 1.0), TypeError, r"T must be an int, got tensor\(True\) of type Tensor"),
        (IMAGES, np.float64(5), (0.0, 1.0), TypeError, "T must be an int, got .*5.0.* of type float64"),
        (IMAGES, np.int64(0), (0.0, 1.0), ValueError, "T must be >= 1, got 0"),
        ((IMAGES * 255).byte(), 5, (0, 255), TypeError, r"x must be .* got torch.uint8: convert images with x.float\(\) / 255"),
        (IMAGES.long(), 5, (0, 1), TypeError, "x must be a floating-point tensor, got torch.int64"),
        (IMAGES / 0, 5, (0.0, 1.0), ValueError, "x must be finite, got 96 NaN or Inf values"),
        (IMAGES * float("nan"), 1, (0.0, 1.0), ValueError, "x must be finite"),
        (torch.tensor(0.5), 5, (0.0, 1.0), ValueError, r"x must have at least 1 dimensions, \[N, \*\], got shape \(\)"),
        (IMAGES[:, 0, 0, 0], 5, "image_channel", ValueError, "x must have at least 3 dimensions"),
        (IMAGES, 5, "batch", ValueError, "intensity_range must be .low, high., .*got 'batch'"),
        (IMAGES, 5, (1.0, 0.0), ValueError, r"intensity_range must have low <= high, both finite, got \(1.0, 0.0\)"),
        (IMAGES, 5, (float("-inf"), 1.0), ValueError, "intensity_range must have low <= high, both finite"),
        (IMAGES, 5, (-3e38, 3e38), ValueError, "intensity_range must have low <= high, both finite"),
        (IMAGES, 1, "batch", ValueError, "intensity_range must be"),
        (IMAGES, 5, 1.0, ValueError, "intensity_range must be a pair"),
        (IMAGES, 5, (0.0, 1.0, 2.0), ValueError, "intensity_range must be a pair"),
        (
            IMAGES,
            5,
            (torch.zeros(2), torch.ones(2)),
            ValueError,
            r"intensity_range: low must be broadcastable to x.*\[C, 1, 1\]",
        ),
    ],
)
def test_bad_input_is_named(x, T, intensity_range, error, message):
    with pytest.raises(error, match=message):
        hybrid_encode(x, T, intensity_range=intensity_range)


def test_whole_number_images_of_any_dtype_are_refused_with_the_remedy():
    for dtype in (torch.uint8, torch.int16, torch.int64):
        with pytest.raises(TypeError, match=rf"got {dtype}: convert images with x\.float\(\) / 255"):
            hybrid_encode(torch.ones(2, 3, dtype=dtype), 5, intensity_range=(0.0, 1.0))


PIXELS = torch.linspace(0, 1, 12).view(1, 3, 2, 2)
PER_CHANNEL = torch.zeros(3, 1, 1), torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1)


@pytest.mark.parametrize(
    ("x", "intensity_range", "message"),
    [
        (
            PIXELS * 255,
            (0.0, 1.0),
            r"x holds values above its intensity_range \(0, 1\), 92 % of them, from 0 to 255, which clamp",
        ),
        ((PIXELS - 0.5) / 0.25, (0.0, 1.0), r"below and above its .*HybridEncoder\.for_normalized\(T, mean, std\)"),
        (-PIXELS, (0.0, 1.0), r"x holds values below its intensity_range \(0, 1\)"),
        (PIXELS * 255, PER_CHANNEL, r"x holds values above its intensity_range \(0, 2\)"),
    ],
)
def test_images_far_outside_of_the_range_are_said_once(x, intensity_range, message):
    encoder = HybridEncoder(5, intensity_range)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            encoder(x)
    assert len(told) == 1
    assert re.search(message, str(told[0].message))
    spike_times(x, 5, intensity_range=intensity_range)  # a function of tensors tells nothing


@pytest.mark.parametrize("intensity_range", ["image", "image_channel"])
@pytest.mark.parametrize("encode", [hybrid_encode, spike_times])
def test_channels_that_pass_for_images_are_said(encode, intensity_range):
    colours = torch.rand(3, 8, 8)
    message = r"\(3, 8, 8\) for 3 images: if it is one of 3 channels, encode x\[None\]"
    with pytest.warns(UserWarning, match=message):
        encode(colours, 5, intensity_range=intensity_range)
    others = torch.rand(16, 8, 8), torch.rand(2, 8, 8), torch.rand(3, 16, 100), torch.rand(3, 8)
    for batch in (colours[None], colours[:1], *others):  # as below: a warning is an error
        encode(batch, 5, intensity_range="image")


@pytest.mark.parametrize("intensity_range", [(0.0, 1.0), "image", "image_channel"])
def test_images_about_within_the_range_are_passed_over(intensity_range):
    HybridEncoder(5, intensity_range)(PIXELS * 1.15 - 0.07)
    HybridEncoder(5, (0.0, 255.0))(PIXELS * 255)
    noisy = torch.rand(2, 3, 8, 8)
    noisy[0, 0, 0, :5] = 7.0
    HybridEncoder(5)(noisy)
    HybridEncoder(1, intensity_range)(PIXELS * 255)  # nothing clamps where there are no spikes
    HybridEncoder(5, "image")(PIXELS * 3)
    HybridEncoder(5, (0.5, 0.5))(PIXELS)


@pytest.mark.parametrize("scale", [1e-5, 255.0])
def test_a_unit_divides_the_frame_alone_and_is_part_of_the_state(scale):
    scale = np.float32(scale).item()
    encoder, plain = HybridEncoder(5, (0.0, scale), unit=scale), HybridEncoder(5)
    torch.testing.assert_close(encoder(PIXELS * scale), plain(PIXELS), rtol=1e-6, atol=0)
    stepped = copy.deepcopy(encoder)
    stepped.step_mode = "s"
    assert torch.equal(torch.stack([stepped(PIXELS * scale) for _ in range(5)]), encoder(PIXELS * scale))
    for twin in (HybridEncoder(5), HybridEncoder(5).to("meta").to_empty(device="cpu")):
        twin.load_state_dict(encoder.state_dict())
        assert torch.equal(twin(PIXELS * scale), encoder(PIXELS * scale))
        twin.load_state_dict(plain.state_dict())
        assert torch.equal(twin(PIXELS), plain(PIXELS))
    assert "unit" not in plain.state_dict()
    assert "unit=" in repr(encoder.bfloat16())
    assert encoder.unit.dtype == torch.float32
    with pytest.raises(ValueError, match="unit must be > 0, got 0"):
        HybridEncoder(5, unit=0)


@pytest.mark.parametrize("T", [np.int64(5), np.uint8(5), torch.tensor(5)])
def test_whole_numbers_of_other_kinds_count_steps(T):
    assert torch.equal(hybrid_encode(IMAGES, T, intensity_range="image"), hybrid_encode(IMAGES, 5, intensity_range="image"))
    assert torch.equal(spike_times(IMAGES, T, intensity_range="image"), spike_times(IMAGES, 5, intensity_range="image"))
    encoder = HybridEncoder(T)
    assert type(encoder.T) is int
    assert encoder(IMAGES).shape == (5, *IMAGES.shape)


def test_spike_times_need_two_steps():
    with pytest.raises(ValueError, match="T must be >= 2, got 1"):
        spike_times(IMAGES, 1, intensity_range=(0.0, 1.0))


def test_channels_last_images_give_channels_last_steps():
    x = torch.rand(2, 3, 4, 5)
    x_seq = hybrid_encode(x.to(memory_format=torch.channels_last), 5, intensity_range="image")
    assert torch.equal(x_seq, hybrid_encode(x, 5, intensity_range="image"))
    assert all(step.is_contiguous(memory_format=torch.channels_last) for step in x_seq)
    assert hybrid_encode(x, 5, intensity_range="image").is_contiguous()
