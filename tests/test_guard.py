"""When a training is given up."""

import pytest
import recipe_runs  # noqa: F401  (puts the recipes on the path)

from cifar.guard import PATIENCE, at_chance, why_dead


@pytest.mark.parametrize(
    ("percent", "classes", "images", "guessing"),
    [
        (10.0, 10, 5000, True), (11.6, 10, 5000, True), (11.8, 10, 5000, False),
        (13.0, 10, 100, True), (1.5, 100, 5000, True), (2.0, 100, 5000, False),
    ],
)  # fmt: skip
def test_chance(percent, classes, images, guessing):
    assert at_chance(percent, classes, images) is guessing


@pytest.mark.parametrize(
    ("accuracies", "dead", "reason"),
    [
        ([29.0, 10.0], [], "its validation accuracy is 10.0 %, chance, and was 29.0 %"),
        ([0.0, 10.0, 45.0, 60.0, 9.8], [], "its validation accuracy is 9.8 %, chance, and was 60.0 %"),
        ([0.0, 10.0], [], None),
        ([13.0, 10.0], [], None),  # it was about there
        ([13.0, 10.0], ["3", "7"], "hardly a potential of layer 3, 7 is within the surrogate's support"),
        ([0.0] + [10.2] * (PATIENCE - 1) + [9.9], [], None),
        ([0.0] + [10.2] * PATIENCE + [9.9], [], f"its validation accuracy is still 9.9 %, chance, after {PATIENCE} epochs"),
        ([0.0] + [13.0] * 30 + [9.9], [], None),  # it has learnt something
    ],
)
def test_a_network_at_chance_is_dead_if_it_fell_if_nothing_gets_through_or_if_it_never_rose(accuracies, dead, reason):
    found = why_dead(accuracies, 10, 5000, dead)
    assert found is None if reason is None else found.startswith(reason)
