"""What makes our named tuples known to torch's files."""

from typing import Any, TypeVar

import torch
from torch.utils import _pytree

Record = TypeVar("Record", bound=type[tuple[Any, ...]])


def saved_by_torch(kind: Record) -> Record:
    """Let `torch.export` save programs that take or return this kind of named tuple, and `torch.load` read it."""
    _pytree._register_namedtuple(kind, serialized_type_name=f"onespike.{kind.__name__}")
    torch.serialization.add_safe_globals([kind])
    return kind
