"""Options of the test suite."""

import os
import shutil

import pytest
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


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, to look at pages."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        own = shutil.which("chromium") or shutil.which("google-chrome")
        try:
            chromium = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"there is no Chromium ({str(error).splitlines()[0]}): playwright install chromium")
        yield chromium
        chromium.close()
