"""A training step as a CUDA graph: recorded once, then replayed, so that the host launches one thing a step.

A recording reads and writes the memory that it saw. So a step that is to be recorded does all it does on the device and in
place, takes a batch from buffers that are copied into before each replay, and finds its learning rates in tensors. The random
numbers of a replay follow from the seed that is set before it, as those of the step itself do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from lightning_fabric import Fabric

from cifar.config import Config, ConfigError
from cifar.data import Epoch

Work = Callable[[], None]
FIRST_STEPS = 3
"""Steps taken as they are before one is recorded: kernels are compiled and loaded in them, and optimisers make their states."""


class GraphError(RuntimeError):
    """A step cannot be recorded."""


class Replayed:
    """Take training steps of one batch size by a recording, and all others as they are; the numbers are the same.

    Args:
        step: takes one optimiser step with a batch; all on the device, in place.
        batch_size: of the batches whose step is recorded; smaller ones end an epoch.
        record: maps work to a function that does it again; the work itself is not done.
    """

    def __init__(self, step: Callable[[Epoch], None], batch_size: int, record: Callable[[Work], Work]) -> None:
        self.step, self.batch_size, self.record = step, batch_size, record
        self.taken = 0
        self.buffers: Epoch | None = None
        self.replay: Work | None = None

    def __call__(self, batch: Epoch) -> None:
        """Take one step."""
        if len(batch.index) != self.batch_size:
            self.step(batch)
        elif self.taken < FIRST_STEPS:
            self.taken += 1
            self.step(batch)
        else:
            self.copy(batch)
            if self.replay is None:
                self.replay = self.record(partial(self.step, self.buffers))
            self.replay()

    def copy(self, batch: Epoch) -> None:
        """Put a batch where the recording reads it."""
        if self.buffers is None:
            self.buffers = Epoch(*(values.clone() for values in batch))
        for buffer, values in zip(self.buffers, batch, strict=True):
            buffer.copy_(values)


def capture(optimizer: torch.optim.Optimizer, work: Work) -> Work:
    """Record `work`, which steps `optimizer`, as a CUDA graph, and return its replay.

    Raises:
        GraphError: something in it cannot be recorded. Torch is not usable for training in this process then.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with capturable(optimizer), torch.cuda.graph(graph):
            work()
    except RuntimeError as error:
        first = error.__context__ or error  # the recording, too, ends in an error then
        reason = str(first).splitlines()[0]
        raise GraphError(
            f"a step cannot be recorded as a CUDA graph: {reason}; go on with --resume --set cuda_graph=never"
        ) from error
    return graph.replay


@contextmanager
def capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let Adam be recorded inside; outside it would warn that it never was."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


def why_not_recorded(config: Config, fabric: Fabric) -> str | None:
    """Return why training steps are taken as they are, or None where they are to be recorded.

    Raises:
        ConfigError: `cuda_graph` is "always" where no step can be recorded.
    """
    if config.cuda_graph == "never":
        return "cuda_graph is never"
    reason = None
    if fabric.device.type != "cuda":
        reason = f"a CUDA device, got {fabric.device.type}"
    elif fabric.world_size > 1:
        reason = f"one process, got {fabric.world_size}: their exchange of gradients is not recorded"
    elif config.compile:
        reason = "compile=false, got true: a compiled network may be compiled again at any step"
    if reason is None:
        return None
    if config.cuda_graph == "always":
        raise ConfigError(f"cuda_graph=always needs {reason}")
    return f"cuda_graph needs {reason}"
