"""Options of the test suite."""

import os

from hypothesis import settings

# The tensors are small: more threads gain nothing, and where cores are shared they wait for one another. Before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# `pytest --hypothesis-profile thorough --timeout 0` looks longer: at the state machines and at damaged files above all.
settings.register_profile("default", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption(
        "--require-gpu", action="store_true", help="fail, instead of skipping, the tests that find no usable GPU backend"
    )
