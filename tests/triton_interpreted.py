"""What test_triton.py runs in a process of its own, with TRITON_INTERPRET=1: not collected by itself."""

import pytest
import torch
from parity import CASES, check, planted, planted_error_is_caught

from onespike.kernels import triton as backend


@pytest.mark.parametrize("case", [case for case in CASES if case.T in (1, 3, 5, 6, 17, 18, 33)], ids=str)
def test_equals_the_reference(case):
    check(case, backend.forward, backend.backward)


def test_programs_that_take_several_tiles_equal_the_reference(monkeypatch):
    monkeypatch.setattr(backend, "MAX_PROGRAMS", 2)
    monkeypatch.setattr(backend, "TILE", 128)
    for case in (CASES[3], CASES[5], CASES[6]):
        check(case, backend.forward, backend.backward)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("charged - threshold, charged", "charged + threshold, charged"),
        ("carried = leak * total", "carried = -leak * total"),
        ("threshold_sum -= through_spike", "threshold_sum += through_spike"),
    ],
)
def test_a_planted_error_is_caught(right, wrong, tmp_path):
    broken = planted(backend, right, wrong, tmp_path)
    assert planted_error_is_caught(broken.forward, broken.backward)


def test_an_empty_batch_launches_nothing():
    x_seq, leak = torch.ones(3, 0, 4), torch.full((4,), 0.9)
    s_seq, *_ = backend.forward(x_seq, leak, torch.ones(()), None, None, True, False)
    assert s_seq.shape == x_seq.shape
    assert torch.equal(
        backend.backward(s_seq, None, None, x_seq, leak, torch.ones(()), None, None, 0.3, True, True)[1], leak * 0
    )
