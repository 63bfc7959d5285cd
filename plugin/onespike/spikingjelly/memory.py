"""What onespike's stateful modules add to SpikingJelly's base class."""

import copy
from collections.abc import Callable
from typing import Any, Self

from spikingjelly.activation_based import base
from torch import Tensor, nn


class CopyableMemory(base.MemoryModule):
    """A `MemoryModule` that can be copied, pickled and detached in the middle of a sequence, and made on the meta device."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Take the argument that the host's own leaves out, and `to_empty` gives."""
        return super()._apply(fn) if recurse else nn.Module._apply(self, fn, recurse=False)

    def detach(self) -> None:
        """Cut the state off its graph; not in place, as the host does it, which autograd refuses for views."""
        for name, value in self._memories.items():
            self._memories[name] = detached(value)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the graph that computed the state behind: autograd's tensors refuse to be copied."""
        values = {name: detached(value) for name, value in self.__dict__.items()}
        values["_memories"] = {name: detached(value) for name, value in self._memories.items()}
        return values

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy what `__getstate__` leaves: a parametrised module would be copied with its graph, or refuse to be."""
        memo[id(self)] = twin = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(CopyableMemory.__getstate__(self), memo))
        return twin


def detached(value: Any) -> Any:
    """Detach a tensor; pass anything else through."""
    return value.detach() if isinstance(value, Tensor) else value
