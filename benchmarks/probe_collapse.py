"""What an optimiser step does to each layer of a converted network: why deep ones die, and from where.

    python recipes/train.py recipes/configs/cifar10_vgg16_small.yaml --data-root data --out runs/vgg16
    python benchmarks/probe_collapse.py runs/vgg16 --data-root data --set calibration=percentile threshold_scales=[0.4] \\
        snn.relative=false snn.lr=7e-4 one_step=0 distillation=0

takes the run's ANN, converts it as its settings and --set say, and trains it for some steps. Before some of them it prints,
over 250 validation images and all time steps: the share of potentials within the surrogate's support, of neurons that stay
silent, the gradient (see onespike.metrics.NetworkHealth), and by how much that one step, through the layer's own weights alone,
moves the layer's currents, as a share of its threshold (root mean square), and how much of that is common to all images.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from trained import EXPECTED, trained_ann  # first: it finds the recipes

from cifar.checkpoint import Checkpoints
from cifar.conversion import HEALTH_IMAGES, choose_thresholds, health, spiking_network
from cifar.evaluation import accuracy
from cifar.pipeline import snn_stage
from cifar.stage import Runtime
from cifar.termination import Termination
from cifar.training import Trainer

LOOKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of recipes/train.py whose ANN is trained")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--steps", type=int, default=65, help="optimiser steps (default %(default)s)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    try:
        probe(arguments.run, arguments.data_root, arguments.steps, arguments.set)
    except EXPECTED as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def probe(run: Path, data_root: Path, steps: int, overrides: list[str]) -> None:
    """Train, and look before the steps in `LOOKS`."""
    ann, config, data, fabric = trained_ann(run, data_root, [*overrides, f"snn.max_steps={steps}"])
    runtime = Runtime(config, data, fabric, Termination(), float("inf"), recorded=False)
    folder = run / "probe"
    folder.mkdir(exist_ok=True)
    (folder / "conversion.json").unlink(missing_ok=True)
    conversion = choose_thresholds(folder / "conversion.json", ann, runtime)
    network = spiking_network(ann, conversion, data, config)
    trainer = Trainer(snn_stage(ann, conversion, runtime, Checkpoints(folder, {}), lambda _: None), network, runtime)
    x, _ = data.validation.plain(slice(0, HEALTH_IMAGES))
    for step in range(steps):
        epoch, position = divmod(step, trainer.steps_per_epoch)
        if position == 0:
            order = trainer.draw(epoch)
        trainer.set_timesteps(epoch)
        trained_steps = network.T
        network.T = config.T
        seen = health(network, data.validation) if step in LOOKS else None
        inputs = inputs_of(network, x) if step in LOOKS else {}
        network.T = trained_steps
        before = {name: module.weight.detach().clone() for name, module in weighted(network).items()}
        network.train()
        size = config.snn.batch_size
        trainer.advance(order.take(slice(position * size, (position + 1) * size)))
        if seen is None:
            continue
        print(f"\nbefore step {step}: {accuracy(network, data.validation.head(1000), fabric):.1f} % after it")
        print("layer   support   silent  gradient  moved / V   common")
        for (name, module), (neuron, layer) in zip(list(weighted(network).items())[:-1], seen.layers.items(), strict=True):
            change = functional_call(module, {"weight": module.weight.detach() - before[name]}, inputs[name])
            unit = network.nodes()[neuron].v_threshold.item()
            moved, common = change.square().mean().sqrt().item() / unit, change.mean(1).square().mean().sqrt().item() / unit
            shares = f"{layer.support:>8.3f} {layer.silent:>8.3f} {layer.gradient or 0:>9.1e}"
            print(f"{name:<6} {shares} {moved:>10.3g} {common:>8.3g}", flush=True)


def weighted(network: Any) -> dict[str, Any]:
    """Return the layers with weights, by name."""
    return {name: module for name, module in network.named_layers().items() if isinstance(module, nn.Conv2d | nn.Linear)}


@torch.no_grad()
def inputs_of(network: Any, images: Tensor) -> dict[str, Tensor]:
    """Return what goes into each layer with weights, [T, N, *]."""
    found: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[name] = inputs[0]

    hooks = [module.register_forward_pre_hook(partial(keep, name)) for name, module in weighted(network).items()]
    network.eval()(images)
    for hook in hooks:
        hook.remove()
    return found


if __name__ == "__main__":
    main()
