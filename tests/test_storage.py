"""What `SpikingNetwork.load` says about files that are not what `save` wrote."""

import copy
import hashlib
import json
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import NONSENSE, examples, json_values, mutated, replaced
from torch import nn

from onespike.conversion import CorruptModelError, SpikingNetwork, convert
from onespike.conversion.description import digest
from onespike.conversion.storage import FILE


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small network of every kind of layer, its folder, document and weights."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Dropout(0.1),
        nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3, bias=False),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("network")
    convert(ann, torch.rand(8, 1, 8, 8), thresholds={"1": 1.0, "5": 1.0}).save(folder)
    document = json.loads((folder / FILE).read_text())
    return document, safetensors.torch.load_file(folder / document["weights"])


def write(folder, document, weights):
    """Write a network whose sums are right, whatever is in it."""
    folder.mkdir(exist_ok=True)
    content = weights if isinstance(weights, bytes) else safetensors.torch.save(weights)
    (folder / document["weights"]).write_bytes(content)
    document["weights_sha256"] = hashlib.sha256(content).hexdigest()
    document["structure_sha256"] = digest(document["structure"])
    (folder / FILE).write_text(json.dumps(document))
    return folder


def altered(document, path, value):
    """Return a copy of the document with a value somewhere in its structure."""
    *keys, last = path
    document = copy.deepcopy(document)
    holder = document["structure"]
    for key in keys:
        holder = holder[key]
    holder[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("layers", 0, "kind"), "Conv9d"),
        (("layers", 0, "kind"), "__class__"),
        (("layers", 0, "name"), None),
        (("layers", 0, "arguments"), None),
        (("layers", 0, "arguments", "stride"), 0),
        (("layers", 0, "arguments", "stride"), [1.5, 1]),
        (("layers", 0, "arguments", "dilation"), -1),
        (("layers", 0, "arguments", "groups"), 1e308),
        (("layers", 0, "arguments", "padding_mode"), "sideways"),
        (("layers", 0, "arguments", "code"), "print(1)"),
        (("layers", 1, "arguments", "gamma"), -1),
        (("layers", 1, "arguments", "single_spike"), "no"),
        (("layers", 1, "arguments", "backend"), "abacus"),
        (("layers", 2, "arguments", "kernel_size"), 0),
        (("layers", 3, "arguments", "p"), 7),
        (("layers", 7, "arguments", "in_features"), 10**30),
        (("layers",), []),
        (("encoder",), None),
        (("encoder", "T"), -1),
        (("encoder", "T"), 10**12),
        (("encoder", "T"), 2.5),
        (("encoder", "intensity_range"), [[1.0], [0.0]]),
        (("encoder", "intensity_range"), "wide"),
        (("readout", "beta"), -1),
        (("readout", "time_gradient"), "backwards"),
        (("frozen",), 5),
        (("step_mode",), "x"),
    ],
)
def test_nonsense_in_a_description_is_named_at_load(saved, path, value, tmp_path):
    document, weights = saved
    write(tmp_path, altered(document, path, value), weights)
    with pytest.raises(
        CorruptModelError, match=r"network.json does not describe the network of weights-.*: save the network again"
    ):
        SpikingNetwork.load(tmp_path)


def test_missing_and_foreign_weights_are_named_at_load(saved, tmp_path):
    document, weights = saved
    half = dict(list(weights.items())[::2])
    renamed = {f"other.{name}": tensor for name, tensor in weights.items()}
    halved = {name: tensor[: max(1, len(tensor) // 2)] if tensor.dim() else tensor for name, tensor in weights.items()}
    for content in (half, renamed, halved, {}, pickle.dumps(weights), *NONSENSE):
        write(tmp_path, copy.deepcopy(document), content)
        with pytest.raises(CorruptModelError, match=r"network.json does not describe the network"):
            SpikingNetwork.load(tmp_path)


@pytest.mark.parametrize("content", [*NONSENSE, b'{"format": 1}'], ids=lambda content: repr(content[:12]))
def test_nonsense_in_the_place_of_a_description_is_named(content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CorruptModelError, match=rf"{tmp_path / FILE} is not a network description"):
        SpikingNetwork.load(tmp_path)


@pytest.mark.parametrize("name", ["\0", "\ud800", "..", "x" * 5000, ""])
def test_a_weights_file_that_no_disk_can_have_is_named(saved, name, tmp_path):
    document = {**copy.deepcopy(saved[0]), "weights": name}
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(CorruptModelError, match="cannot be read"):
        SpikingNetwork.load(tmp_path)


def reaches_a_verdict(folder):
    """Load, or say what is wrong: nothing else."""
    try:
        return SpikingNetwork.load(folder)
    except CorruptModelError as error:
        assert str(folder) in str(error)
        return None


@examples(60)
@given(st.data())
def test_any_description_is_read_or_refused(saved, tmp_path_factory, data):
    document, weights = copy.deepcopy(saved[0]), saved[1]
    replaced(document["structure"], data.draw(json_values()), data.draw)
    folder = write(tmp_path_factory.mktemp("network"), document, weights)
    reaches_a_verdict(folder)


@examples(60)
@given(st.data())
def test_no_byte_of_a_network_changes_unseen(saved, tmp_path_factory, data):
    document, weights = copy.deepcopy(saved[0]), saved[1]
    folder = write(tmp_path_factory.mktemp("network"), document, weights)
    path = folder / data.draw(st.sampled_from([FILE, document["weights"]]))
    path.write_bytes(data.draw(mutated(path.read_bytes())))
    network = reaches_a_verdict(folder)
    if network is not None:
        assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@examples(40)
@given(st.data())
def test_any_weights_are_read_or_refused(saved, tmp_path_factory, data):
    document, weights = copy.deepcopy(saved[0]), safetensors.torch.save(saved[1])
    reaches_a_verdict(write(tmp_path_factory.mktemp("network"), document, data.draw(mutated(weights))))
