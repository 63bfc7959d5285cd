"""Event-camera input: golden values, a loop as oracle, formats, mistakes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onespike.functional import hybrid_encode_events

DTYPE = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", bool)])
FRAME = torch.arange(6.0).view(1, 2, 3) / 10


def recording(*events):
    return np.array(list(events), dtype=DTYPE)


def by_loop(events, height, width, T, window=None):
    """Each pixel's first event, one event after another, in exact integers."""
    spikes = np.zeros((T, 2, height, width))
    if not len(events):
        return spikes
    start, end = window or (min(int(e["t"]) for e in events), max(int(e["t"]) for e in events))
    seen = set()
    for event in sorted(events, key=lambda e: int(e["t"])):
        x, y, t, p = (int(event[name]) for name in ("x", "y", "t", "p"))
        if start <= t <= end and (p, y, x) not in seen:
            seen.add((p, y, x))
            step = 2 + ((T - 1) * (t - start)) // (end - start) if end > start else 2
            spikes[min(step, T) - 1, p, y, x] = 1
    return spikes


def test_golden_values():
    # T = 5: four bins of 25 us in 0..100; the end belongs to the last one.
    events = recording((0, 0, 0, 1), (0, 0, 99, 1), (1, 0, 24, 1), (2, 0, 25, 0), (0, 1, 75, 0), (2, 1, 100, 1), (0, 0, 50, 0))
    x_seq = hybrid_encode_events(FRAME, events, 5)
    assert x_seq.shape == (5, 3, 2, 3)
    assert torch.equal(x_seq[0], torch.cat([FRAME, torch.zeros(2, 2, 3)]))
    spikes = {tuple(index) for index in x_seq[1:].nonzero().tolist()}
    # step - 2, channel (1 darker, 2 brighter), row, column
    assert spikes == {(0, 2, 0, 0), (0, 2, 0, 1), (1, 1, 0, 2), (3, 1, 1, 0), (3, 2, 1, 2), (2, 1, 0, 0)}


events_of_a_small_sensor = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 60), st.integers(0, 1)), max_size=30
)


@settings(max_examples=200, deadline=None)
@given(events_of_a_small_sensor, st.integers(2, 7), st.sampled_from([None, (0, 60), (10, 31)]))
def test_equals_a_loop_over_the_events(events, T, window):
    events = recording(*events)
    x_seq = hybrid_encode_events(FRAME, events, T, window=window)
    assert np.array_equal(x_seq[1:, 1:].numpy(), by_loop(events, 2, 3, T, window)[1:])
    assert x_seq[1:].sum(0).max() <= 1
    assert not x_seq[1:, 0].any()
    assert not x_seq[0, 1:].any()


def test_tensors_and_batches_say_the_same():
    one, two = recording((0, 0, 5, 1), (1, 1, 9, 0), (2, 0, 7, 1)), recording((2, 1, 3, 0))
    as_tensor = torch.tensor([[0, 0, 5, 1], [1, 1, 9, -1], [2, 0, 7, 1]])
    expected = hybrid_encode_events(FRAME, one, 4)
    assert torch.equal(hybrid_encode_events(FRAME, as_tensor, 4), expected)
    batch = hybrid_encode_events(torch.stack([FRAME, 2 * FRAME]), [one, two], 4)
    assert batch.shape == (4, 2, 3, 2, 3)
    assert torch.equal(batch[:, 0], expected)
    assert torch.equal(batch[:, 1], hybrid_encode_events(2 * FRAME, two, 4))


def test_mappings_of_arrays_and_npz_files_say_the_same(tmp_path):
    """SpikingJelly's recordings, of whatever types it reads them in."""
    fields = {"t": [10, 90, 40, 55], "x": [0, 2, 1, 2], "y": [0, 1, 1, 1], "p": [1, 0, 0, 1]}
    frame = torch.rand(1, 2, 3)
    table = torch.tensor([fields[name] for name in ("x", "y", "t", "p")]).T
    expected = hybrid_encode_events(frame, table, 5)
    for kind in ("int64", "int16", "uint16", "float32"):
        arrays = {name: np.array(values, dtype=bool if name == "p" else kind) for name, values in fields.items()}
        assert torch.equal(hybrid_encode_events(frame, arrays, 5), expected)
        np.savez(tmp_path / "events.npz", **arrays)
        with np.load(tmp_path / "events.npz") as recording:
            assert torch.equal(hybrid_encode_events(frame, recording, 5), expected)
    assert torch.equal(
        hybrid_encode_events(frame, {name: torch.tensor(values) for name, values in fields.items()}, 5), expected
    )


def test_microseconds_of_a_day_keep_their_precision():
    start = 86_400_000_000_000
    events = recording((0, 0, start, 1), (1, 0, start + 33, 1), (2, 0, start + 34, 1), (0, 1, start + 100, 1))
    assert hybrid_encode_events(FRAME, events, 4)[1:, 2].nonzero().tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 2], [2, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32])
def test_times_that_fill_a_narrow_type_do_not_overflow(dtype):
    start, end = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    events = torch.tensor([[0, 0, start, 1], [1, 0, (start + end + 1) // 2, 1], [2, 0, end, 1]], dtype=dtype)
    assert hybrid_encode_events(FRAME, events, 9)[1:, 2].nonzero().tolist() == [[0, 0, 0], [4, 0, 1], [7, 0, 2]]


def test_a_window_may_be_an_array():
    expected = hybrid_encode_events(FRAME, recording((0, 0, 5, 1)), 4, window=(0, 10))
    for window in ([0, 10], np.array([0, 10]), torch.tensor([0, 10])):
        assert torch.equal(hybrid_encode_events(FRAME, recording((0, 0, 5, 1)), 4, window=window), expected)


@pytest.mark.parametrize("kind", [int, float, np.int64])
def test_a_window_of_any_number_type_keeps_microseconds(kind):
    start = 1_700_000_000_000_000
    events = recording((0, 0, start - 1, 1), (1, 0, start + 24, 1), (2, 0, start + 25, 1), (0, 1, start + 99, 1))
    x_seq = hybrid_encode_events(FRAME, events, 5, window=(kind(start), kind(start + 100)))
    assert x_seq[1:, 2].nonzero().tolist() == [[0, 0, 1], [1, 0, 2], [3, 1, 0]]


def test_a_recording_without_events_is_the_frame_and_silence():
    x_seq = hybrid_encode_events(FRAME, recording(), 4)
    assert not x_seq[1:].any()
    assert torch.equal(x_seq[0, :1], FRAME)


def test_the_gradient_of_the_frame_flows():
    frame = FRAME.clone().requires_grad_()
    (hybrid_encode_events(frame, recording((0, 0, 5, 1)), 4) * 3).sum().backward()
    assert torch.equal(frame.grad, torch.full_like(FRAME, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hybrid_encode_events(FRAME, recording(), 1), ValueError, "T must be >= 2, got 1"),
        (
            lambda: hybrid_encode_events(FRAME.to(torch.uint8), recording(), 4),
            TypeError,
            "frame must be a floating-point tensor",
        ),
        (lambda: hybrid_encode_events(FRAME[0], recording(), 4), ValueError, "frame must have at least 3 dimensions"),
        (lambda: hybrid_encode_events(FRAME, recording((3, 0, 1, 1)), 4), ValueError, r"x must be in 0..2, .* from 3 to 3"),
        (lambda: hybrid_encode_events(FRAME, recording((0, -1, 1, 1)), 4), ValueError, r"y must be in 0..1, .* from -1 to -1"),
        (lambda: hybrid_encode_events(FRAME, torch.tensor([[0, 0, 1, 2]]), 4), ValueError, "p must be 0 or -1 .* got 2"),
        (lambda: hybrid_encode_events(FRAME, torch.zeros(3, 5), 4), TypeError, r"tensor \[E, 4\].*\(3, 5\)"),
        (
            lambda: hybrid_encode_events(FRAME, np.zeros((3, 4)), 4),
            TypeError,
            "structured array or a mapping with the fields x, y, t, p.*ndarray",
        ),
        (
            lambda: hybrid_encode_events(FRAME, {"x": [1], "y": [1], "t": [1]}, 4),
            TypeError,
            r"a mapping with the fields x, y, t, p.* got keys \['t', 'x', 'y'\]",
        ),
        (
            lambda: hybrid_encode_events(FRAME, {"x": [1], "y": [1, 0], "t": [1], "p": [1]}, 4),
            ValueError,
            r"one number of each field for every event, \[E\], got x \(1,\), y \(2,\)",
        ),
        (lambda: hybrid_encode_events(FRAME, recording(), 4, window=(5, 5)), ValueError, "window must be .*start < end"),
        (lambda: hybrid_encode_events(FRAME, recording(), 4, window=5), ValueError, r"window must be a pair .* got 5"),
        (lambda: hybrid_encode_events(FRAME, recording(), 4, window=(1, 2, 3)), ValueError, r"window must be a pair"),
        (lambda: hybrid_encode_events(FRAME, recording(), 4, window=(0, float("inf"))), ValueError, "both finite"),
        (
            lambda: hybrid_encode_events(FRAME, torch.tensor([[0, 0, torch.nan, 1]]), 4),
            ValueError,
            "t must be finite, got nan",
        ),
        (
            lambda: hybrid_encode_events(FRAME, torch.tensor([[0, 0, 1, 1], [1, 0, torch.inf, 1]]), 4),
            ValueError,
            "t must be finite, got inf",
        ),
        (
            lambda: hybrid_encode_events(FRAME[None], recording(), 4),
            ValueError,
            "one recording for each of the 1 frames, got ndarray",
        ),
        (
            lambda: hybrid_encode_events(FRAME[None], [], 4),
            ValueError,
            "one recording for each of the 1 frames, got 0 recordings",
        ),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_pages_example_runs():
    page = (Path(__file__).parents[1] / "docs" / "event_cameras.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, names := {})
    assert names["x_seq"][1:].nonzero().tolist() == [[0, 2, 0, 0], [3, 1, 1, 2]]
