"""Run the hosts' own test files with the single-spike neurons in the place of theirs.

    python tests/host_suites.py CHECKOUT

CHECKOUT is a clone of SpikingJelly's or snnTorch's repository at the tag of the installed version; the installed one is tested.
Each test runs with the host's neurons and then with ours under their names. It counts if a neuron of ours was built or called
in it; what fails with either counts for neither. `LEFT_OUT` says which tests cannot hold for a single-spike neuron, and why:
they run all the same, and one that passes is an error as much as an unlisted failure is.

Our neurons take the arguments of those that they replace. Those without a counterpart are ignored: in SpikingJelly `v_reset`,
`surrogate_function` and `detach_reset`; in snnTorch `spike_grad`, `surrogate_disable`, `inhibition`, `reset_mechanism`,
`state_quant`, `graded_spikes_factor`, `learn_graded_spikes_factor` and `reset_delay`. `snntorch.utils.reset`, which knows the
host's classes alone, becomes `onespike.snntorch.reset`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import snntorch
import torch
from snntorch import utils
from spikingjelly.activation_based import neuron

import onespike.snntorch
from onespike.snntorch import SingleSpikeLeaky
from onespike.spikingjelly import SingleSpikeLIFNode

FILES = {
    "test/activation_based/": (
        *(
            "test_functional.py",
            "test_memory.py",
            "test_neuron_dtype_invariance.py",
            "test_learning.py",
            "test_model_families.py",
        ),
        *("test_distributed_temporal.py", "test_distributed_vision.py", "test_op_counter_neuron_state.py"),
        *("test_op_counter_simple_energy.py", "test_op_counter_snn_energy.py"),
    ),
    "tests/": ("test_surrogate_pickle.py",),
    "tests/test_snntorch/": ("test_leaky.py", "test_utils.py", "test_zeros.py", "test_dtypes.py"),
}
LEFT_OUT = {
    "expects one state a neuron, and ours has two, v and fired": (
        *("test_named_memories", "test_named_memories_nested", "test_memories", "test_extract_memories"),
        "test_simple_energy_breaks_memory_energy_into_parameter_and_state_parts",
    ),
    "passes one state of our two, and a scalar without a batch": (
        "test_memory_module_functional_forward_is_pure_and_backs_regular_forward",
    ),
    "expects the numbers of a hard reset": ("test_simple_nodes_match_production_nodes",),
    "reads decay_input and surrogate_function, which our node has not": (
        "test_ms_resnet_and_max_resnet_tiny_forward_and_backward",
    ),
    "counts the ATen operations on a neuron's state, and our node is one operator": (
        "test_neuron_state_counter_ifnode_multi_step_has_state_metrics",
        "test_neuron_state_counter_lif_projection_tracks_potential_access",
        "test_neuron_state_counter_still_exposes_scalar_and_structured_views",
    ),
    "applies formulas that take the host's own classes and no other": (
        "test_lemaire_energy_report_uses_single_authoritative_total",
        "test_lemaire_energy_conv_inference_report_has_memory_and_addressing",
        "test_lemaire_energy_manual_profiler_usage_defaults_to_forward_only",
    ),
    "expects other resets than a subtraction": ("test_leaky_reset",),
    "expects a factor on the spikes that can be learned": ("test_leaky_hidden_learn_graded_instance",),
}
REASONS = {test: reason for reason, tests in LEFT_OUT.items() for test in tests}


class Counted:
    """Counts how often exchanged neurons are built and called."""

    uses = 0

    def __init__(self, *args, **kwargs):
        Counted.uses += 1
        super().__init__(*args, **kwargs)

    def __call__(self, *args, **kwargs):
        Counted.uses += 1
        return super().__call__(*args, **kwargs)


class IFNode(Counted, SingleSpikeLIFNode):
    def __init__(self, v_threshold=1.0, v_reset=0.0, surrogate_function=None, detach_reset=False, step_mode="s", **settings):
        super().__init__(settings.pop("leak", 1.0), v_threshold, step_mode=step_mode, **settings)


class LIFNode(IFNode):
    def __init__(self, tau=2.0, decay_input=True, v_threshold=1.0, *args, **settings):
        super().__init__(v_threshold * tau if decay_input else v_threshold, *args, leak=1 - 1 / tau, **settings)


class ParametricLIFNode(LIFNode):
    def __init__(self, init_tau=2.0, *args, **settings):
        super().__init__(init_tau, *args, **settings)


class Leaky(Counted, SingleSpikeLeaky):
    """Takes and returns the potential alone, as the host's neuron does, and keeps `fired` beside it."""

    def __init__(
        self, beta, threshold=1.0, init_hidden=False, output=False, learn_beta=False, learn_threshold=False, **ignored
    ):
        super().__init__(beta, threshold, learn_beta, learn_threshold, init_hidden, output)

    def init_leaky(self):
        return self.reset_mem()[1]

    def forward(self, input_, mem=None):
        if self.init_hidden:
            result = super().forward(input_, None, mem)
            return (result[0], result[2]) if self.output else result
        state = () if mem is None or mem.shape == (0,) else (self.fired, mem)
        spk, self.fired, mem = super().forward(input_, *state)
        return spk, mem

    # The host's reset calls these of the class named Leaky; ours resets each neuron afterwards.
    reset_hidden = detach_hidden = staticmethod(lambda: None)


def pytest_addoption(parser):
    parser.addoption("--outcomes", help="JSON file for each test's outcome and uses of an exchanged neuron")
    parser.addoption("--exchange", action="store_true", help="put our neurons in the place of the hosts'")


def pytest_configure(config):
    config.outcomes = {}
    if config.getoption("exchange"):
        neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode = IFNode, LIFNode, ParametricLIFNode
        snntorch.Leaky, utils.reset = Leaky, onespike.snntorch.reset


def pytest_runtest_setup(item):
    torch.manual_seed(0)  # some of the hosts' tests need spikes from random weights
    item.config.outcomes[item.nodeid] = ["passed", -Counted.uses]


def pytest_runtest_makereport(item, call):
    outcome = item.config.outcomes[item.nodeid]
    if call.excinfo is not None:
        outcome[0] = "skipped" if call.excinfo.typename == "Skipped" else "failed"
    if call.when == "teardown":
        outcome[1] += Counted.uses


def pytest_sessionfinish(session):
    Path(session.config.getoption("outcomes")).write_text(json.dumps(session.config.outcomes))


def run(checkout: Path, files: list[str], *options: str) -> tuple[dict[str, tuple[str, int]], str]:
    """Run test files in an interpreter of their own; return {test: (outcome, uses)} and what pytest printed."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder, "outcomes.json")
        settings = ["-c", os.devnull, f"--rootdir={checkout}", "--import-mode=importlib", "-q", "-p", "no:cacheprovider"]
        command = [
            sys.executable,
            "-P",
            "-m",
            "pytest",
            "-p",
            "host_suites",
            f"--outcomes={outcomes}",
            *settings,
            *options,
            *files,
        ]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # the packages that this script sees
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        return json.loads(outcomes.read_text()) if outcomes.exists() else {}, done.stdout + done.stderr


def main(checkout: Path) -> int:
    files = [folder + name for folder, names in FILES.items() for name in names if (checkout / folder / name).exists()]
    theirs, _ = run(checkout, files)
    ours, output = run(checkout, files, "--exchange")
    counts, wrong, left_out = Counter(), [], set()
    for test, (outcome, uses) in ours.items():
        file, name = Path(test.split("::")[0]).name, test.split("::")[-1].split("[")[0]
        with_host = theirs[test][0]
        if not uses or outcome == "skipped" or "failed" == outcome == with_host:
            continue
        if (outcome == "passed") == (name in REASONS):
            wrong.append(f"{test}: {'is left out, but passes' if outcome == 'passed' else 'fails with our neuron alone'}")
        elif outcome == "passed":
            counts[file, "passed"] += 1
            counts[file, "new"] += with_host == "failed"
        else:
            counts[file, "left out"] += 1
            left_out.add(f"{file}::{name} {REASONS[name]}")
    print("SpikingJelly", version("spikingjelly"), "snnTorch", version("snntorch"))
    print("| file | passed | of these, not with the host's neuron | left out |\n|---|---|---|---|")
    for file in (Path(file).name for file in files):
        print(f"| {file} | {counts[file, 'passed']} | {counts[file, 'new']} | {counts[file, 'left out']} |")
    print("\nLeft out:", *sorted(left_out), sep="\n")
    if wrong or not ours:
        print(output, *wrong, sep="\n")
    return bool(wrong or not ours)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
