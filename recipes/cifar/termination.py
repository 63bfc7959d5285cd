"""Signals by which a scheduler, a terminal or a user asks a run to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from cifar.output import OutputError, complain

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
TERMINATED = 128 + signal.SIGTERM


class Termination:
    """What these signals do: end the process at once or, where work could be lost, at the next safe moment.

    A signal that the process was started to ignore, as nohup does with SIGHUP, stays ignored. As a context, it puts back at its
    end what the signals did before.

    Args:
        hint: how to go on, for the line that the process ends with.

    Attributes:
        status: with which the process is to end; 0 as long as nothing asked for it.
        reason: what asked for it.
        output_lost: nobody takes what is printed.
    """

    def __init__(self, hint: str = "--resume goes on from there") -> None:
        self.hint = hint
        self.status = 0
        self.reason = ""
        self.output_lost = False
        self._deferred = False
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._receive) for number in heard}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: Any) -> None:
        self.ask(128 + number, signal.Signals(number).name)
        if not self._deferred:
            self.leave()

    def ask(self, status: int, reason: str) -> None:
        """Note that the process is to end; what asked first is what counts."""
        if not self.status:
            self.status, self.reason = status, reason

    def leave(self) -> None:
        """End the process; this may happen in a signal handler, where nothing can be printed in the usual way."""
        complain(f"stopped by {self.reason}: {self.hint}")
        raise SystemExit(self.status)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note inside what asks for the end; after it, end the process if that came too late to be seen.

        An `OutputError` inside, too, is what asks, if it is handed to `lose`.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.status:
            self.leave()

    def lose(self, error: OutputError) -> None:
        """Note that nobody takes the output any more."""
        self.output_lost = True
        self.ask(error.status, str(error))
