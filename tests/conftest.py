"""Options of the test suite."""


def pytest_addoption(parser):
    parser.addoption(
        "--require-gpu", action="store_true", help="fail, instead of skipping, the tests that find no usable GPU backend"
    )
