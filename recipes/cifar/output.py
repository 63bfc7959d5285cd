"""What a script prints, and how it ends: with one line where something expected went wrong, whoever reads it or does not."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

CLOSED_PIPE = 128 + 13
"""The status of a process that SIGPIPE ended."""


class OutputError(RuntimeError):
    """What is printed is not taken any more: a pipe was closed, or the disk of a log is full.

    Attributes:
        status: with which a process ends for that.
    """

    def __init__(self, error: OSError) -> None:
        broken = isinstance(error, BrokenPipeError)
        super().__init__("a closed output" if broken else f"an output that cannot be written ({error.strerror})")
        self.status = CLOSED_PIPE if broken else 1


def say(text: str) -> None:
    """Print a line, at once.

    Raises:
        OutputError: nobody takes it. What is printed afterwards is dropped.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        silence(sys.stdout)
        raise OutputError(error) from error


def complain(text: str) -> None:
    """Write a line to the standard error stream, if that takes it; signal handlers may call this."""
    with suppress(OSError):
        os.write(2, f"{script()}: {text}\n".encode())


def silence(stream: TextIO) -> None:
    """Let a stream that failed write into nothing, so that the interpreter can flush it in peace at its end."""
    with suppress(OSError):  # a stream that is no file
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def script() -> str:
    """Return the name of the running script."""
    return Path(sys.argv[0]).name


def conclude(main: Callable[[], None], *expected: type[Exception], lost: str) -> None:
    """Run a script's `main`; end the process with one line for an error that says all its user needs to know.

    Args:
        main: what to run.
        expected: those errors, beside an OSError.
        lost: what becomes of the work where the output is closed, such as "--resume goes on from there".
    """
    try:
        main()
    except OutputError as error:
        complain(f"stopped by {error}: {lost}")
        raise SystemExit(error.status) from error
    except (OSError, *expected) as error:
        sys.exit(f"{script()}: {error}")
