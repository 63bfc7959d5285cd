"""The neuron written once more, as differently as possible: Python floats, one scalar at a time (eqs. 6-8, 19-23)."""

from dataclasses import dataclass


@dataclass
class Scalar:
    """Everything about one neuron over T steps; gradients are those of sum_t gO^t O^t + gU U^T."""

    spikes: list[float]
    potentials: list[float]
    fired: bool
    grad_x: list[float]
    grad_leak: float
    grad_threshold: float
    grad_v: float
    crossings: int


def run(
    x: list[float],
    leak: float,
    threshold: float,
    v: float,
    fired: bool,
    grad_spikes: list[float],
    grad_final: float,
    *,
    gamma: float,
    single_spike: bool,
    grad_after_spike: bool,
    temporal_gradient: bool,
) -> Scalar:
    """Run one neuron forward, then its back-propagation through time."""
    T = len(x)
    u = [v]
    spikes, had_fired = [], []
    for t in range(T):
        u.append(leak * u[t] + x[t] - (threshold if u[t] > threshold else 0.0))
        crossed = u[t + 1] > threshold
        spikes.append(1.0 if crossed and not (single_spike and fired) else 0.0)
        had_fired.append(fired)
        fired = fired or crossed

    grad_x = [0.0] * T
    grad_leak = grad_threshold = 0.0
    carried = grad_final
    for t in reversed(range(T)):
        surrogate = gamma * max(0.0, 1 - abs(u[t + 1] / threshold - 1))
        if had_fired[t] and not grad_after_spike:
            surrogate = 0.0
        total = grad_spikes[t] * surrogate / threshold + carried
        grad_x[t] = total
        grad_leak += total * u[t]
        grad_threshold += -grad_spikes[t] * surrogate * u[t + 1] / threshold**2 - (total if u[t] > threshold else 0.0)
        carried = leak * total if temporal_gradient else 0.0
    crossings = sum(potential > threshold for potential in u[1:])
    return Scalar(spikes, u[1:], fired, grad_x, grad_leak, grad_threshold, carried, crossings)


def eq19_21_23(x, leak, threshold, grad_spikes, gamma) -> tuple[list[float], float, float]:
    """Eqs. 19, 21 and 23 as printed, from U = 0: the gradients of x, V and leak, with no path through time."""
    u, grad_x, grad_threshold, grad_leak = 0.0, [], 0.0, 0.0
    for current, grad in zip(x, grad_spikes, strict=True):
        reset = 1.0 if u / threshold - 1 > 0 else 0.0
        after = leak * u + current - threshold * reset
        dz_do = gamma * max(0.0, 1 - abs(after / threshold - 1))
        grad_x.append(grad * dz_do / threshold)
        grad_threshold += grad * dz_do * (-threshold * reset - after) / threshold**2
        grad_leak += grad * dz_do / threshold * u
        u = after
    return grad_x, grad_threshold, grad_leak
