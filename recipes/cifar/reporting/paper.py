"""What the paper reports (Datta, Kundu, Beerel 2021)."""

from dataclasses import dataclass

TABLE1 = {
    ("cifar10", "vgg6"): (90.22, 89.98, 88.89),
    ("cifar10", "vgg11"): (91.02, 91.77, 90.66),
    ("cifar10", "vgg16"): (93.24, 93.16, 91.41),
    ("cifar100", "vgg16"): (71.02, 70.38, 66.46),
}
"""Accuracy of the ANN, converted at T = 200, trained at T = 5, in percent, by data set and full-width network."""

NETWORK = {"T": 5, "encoder": "hybrid", "single_spike": True, "width": 1, "hidden": 4096}
"""The settings of the networks in Table I."""


@dataclass(frozen=True)
class Peer:
    """A line of Table II: the results are (data, network, accuracy in percent, time steps)."""

    authors: str
    training: str
    encoding: str
    results: tuple[tuple[str, str, float, int], ...]


C10, C100 = "CIFAR-10", "CIFAR-100"
PEERS = {
    "sengupta2019": Peer("Sengupta et al. 2019", "conversion", "rate", ((C10, "VGG-16", 91.55, 2500),)),
    "wu2019": Peer("Wu et al. 2019", "surrogate gradient", "direct", ((C10, "5 conv, 2 linear", 90.53, 12),)),
    "rathi2020": Peer(
        "Rathi et al. 2020", "conversion + STDB", "rate", ((C10, "VGG-16", 91.13, 100), (C10, "VGG-16", 92.02, 200))
    ),
    "garg2020": Peer("Garg et al. 2020", "conversion + STDB", "DCT", ((C10, "VGG-9", 89.94, 48), (C100, "VGG-11", 68.3, 48))),
    "kim2018": Peer("Kim et al. 2018", "conversion", "phase", ((C10, "VGG-16", 91.2, 1500),)),
    "park2019": Peer("Park et al. 2019", "conversion", "burst", ((C10, "VGG-16", 91.4, 1125), (C100, "VGG-16", 68.77, 3100))),
    "park2020": Peer(
        "Park et al. 2020", "STDB", "time to first spike", ((C10, "VGG-16", 91.4, 680), (C100, "VGG-16", 68.8, 680))
    ),
    "kim2020": Peer("Kim & Panda 2020", "surrogate gradient", "rate", ((C10, "VGG-9", 90.5, 25), (C100, "VGG-9", 66.6, 50))),
    "diet_snn": Peer(
        "Rathi & Roy 2020",
        "conversion + STDB",
        "direct",
        ((C10, "VGG-16", 92.70, 5), (C10, "VGG-16", 93.10, 10), (C100, "VGG-16", 69.67, 5)),
    ),
    "lu2020": Peer("Lu & Sengupta 2020", "conversion", "direct", ((C100, "VGG-16", 63.20, 62),)),
    "": Peer("This method", "conversion + STDB", "hybrid", ((C10, "VGG-16", 91.41, 5), (C100, "VGG-16", 66.46, 5))),
}
"""Table II, by the config of `recipes/configs/peers` that runs the like of it here."""

VARIANTS = {
    "a": ("poisson", False, 94.8),
    "b": ("dct", False, 17.2),
    "c": ("direct", False, 2.0),
    "d": ("hybrid", False, None),
    "e": ("direct", True, None),
    "f": ("hybrid", True, 1.0),
}
"""Fig. 4: encoder, one spike, and how many times as many spikes as (f) the text reports, on VGG-16 and CIFAR-10."""

CEILING = 191
"""How many times less energy than its ANN VGG-16 would take on CIFAR-10 if no neuron fired, by the paper's accounting."""

ENERGY = {"cifar10": 70, "cifar100": 125}
"""How many times less energy than its ANN the paper's VGG-16 takes, by data set (Fig. 5)."""
