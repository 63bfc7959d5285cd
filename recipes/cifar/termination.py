"""SIGTERM, by which schedulers ask a run to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TERMINATED = 128 + signal.SIGTERM


class Termination:
    """What SIGTERM does: end the process at once or, where work could be lost, at the next safe moment."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_: Any) -> None:
        self.requested = True
        if not self._deferred:
            raise SystemExit(TERMINATED)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the signal inside, where `requested` tells; after it, end the process if it came too late to be seen."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            raise SystemExit(TERMINATED)
