"""When a training is given up."""

import pytest
import recipe_runs  # noqa: F401  (puts the recipes on the path)

from cifar.guard import at_chance, never_rose, why_dead


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
    ("now", "before", "dead", "reason"),
    [
        (10.0, 29.0, [], "its validation accuracy is 10.0 %, chance, and was 29.0 %"),
        (10.0, 0.0, [], None),
        (10.0, 13.0, [], None),  # it was about there
        (
            10.0,
            13.0,
            ["3", "7"],
            "hardly a potential of layer 3, 7 is within the surrogate's support: no gradient gets through",
        ),
    ],
)
def test_a_network_at_chance_is_dead_if_it_fell_or_if_nothing_gets_through(now, before, dead, reason):
    assert why_dead(now, before, 10, 5000, dead) == reason


def test_a_network_that_was_once_better_than_guessed_did_rise():
    chance = {"training_accuracy": 10.1, "validation_accuracy": 11.0}
    images = {"training": 45_000, "validation": 5000}
    assert never_rose([chance] * 30, 10, **images)
    assert not never_rose([chance] * 9 + [{**chance, "validation_accuracy": 13.0}] + [chance] * 20, 10, **images)
    assert not never_rose([chance] * 9 + [{**chance, "training_accuracy": 11.0}], 10, **images), "of more images 11 % say more"
