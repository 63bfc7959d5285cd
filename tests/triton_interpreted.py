"""What test_triton.py runs in a process of its own, with TRITON_INTERPRET=1: not collected by itself."""

import pytest
from parity import CASES, check, check_nan, planted, planted_error_is_caught

from onespike.kernels import triton as backend


@pytest.mark.parametrize("case", [case for case in CASES if case.T in (1, 3, 5, 6, 17, 18, 33)], ids=str)
def test_equals_the_reference(case):
    check(case, backend.TritonPlan)


def test_nan_is_never_hidden():
    check_nan(backend.TritonPlan)


def test_programs_that_take_several_tiles_equal_the_reference(monkeypatch):
    monkeypatch.setattr(backend, "MAX_PROGRAMS", 2)
    monkeypatch.setattr(backend, "TILE", 128)
    for case in (CASES[3], CASES[5], CASES[6]):
        check(case, backend.TritonPlan)


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
    assert planted_error_is_caught(broken.TritonPlan)
