"""Make the node and the surrogate known to SpikingJelly's registries."""

from onespike.spikingjelly.neuron import SingleSpikeLIFNode
from onespike.spikingjelly.surrogate import Triangle


def register() -> None:
    """Register `SingleSpikeLIFNode` and `Triangle` with SpikingJelly 2's vision configurations, which name neurons by class.

    Call it in every process that reads or writes such a configuration; calling it again changes nothing. Nothing else of
    onespike needs it.

    Raises:
        RuntimeError: this SpikingJelly has no such registry.
    """
    try:
        from spikingjelly.activation_based.distributed import vision  # noqa: PLC0415  (slow to import)
    except ImportError as error:
        raise RuntimeError("register needs SpikingJelly 2 with its registries: pip install -U spikingjelly") from error
    vision.register_neuron_class(SingleSpikeLIFNode)
    vision.register_surrogate_class(Triangle)
