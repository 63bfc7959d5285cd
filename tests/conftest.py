"""Options of the test suite."""

import os

# The tensors are small: more threads gain nothing, and where cores are shared they wait for one another. Before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--require-gpu", action="store_true", help="fail, instead of skipping, the tests that find no usable GPU backend"
    )
