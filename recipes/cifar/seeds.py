"""Seeds that stand for names and numbers, so that all that is random is a function of where in a run it is drawn."""

import hashlib
from typing import Any


def seed_of(*parts: Any) -> int:
    """Return a seed that stands for these names and numbers alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
