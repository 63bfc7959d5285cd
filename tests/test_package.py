"""The package as an installed thing: imports, layers, metadata."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import onespike

ROOT = Path(onespike.__file__).parent


def test_importing_onespike_needs_torch_alone():
    hosts = "{'spikingjelly', 'snntorch', 'cupy', 'torchvision', 'matplotlib', 'safetensors'}"
    code = f"import onespike, onespike.functional, sys; assert not {hosts} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("spikingjelly", "onespike.spikingjelly needs SpikingJelly: pip install spikingjelly"),
        ("snntorch", 'onespike.snntorch needs snnTorch: pip install "onespike[snntorch]"'),
    ],
)
def test_a_missing_host_names_the_remedy(host, message):
    code = f"import sys; sys.modules['{host}'] = None; import onespike.{host}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert f"ImportError: {message}" in result.stderr


def test_neither_host_needs_the_other():
    for host, other in (("spikingjelly", "snntorch"), ("snntorch", "spikingjelly")):
        code = f"import sys; sys.modules['{other}'] = None; import onespike.{host}"
        subprocess.run([sys.executable, "-c", code], check=True)


def imports_of(path):
    """The rooms of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "onespike":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onespike."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("onespike."))


def test_imports_go_down_as_the_map_of_the_architecture_says():
    page = (ROOT.parents[1] / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|([\w, ]*)\| .+ \|$", page, re.MULTILINE)
    floors = {room: int(floor) for floor, room, _ in rows}
    says = {room: {name.strip() for name in names.split(",")} - {""} for _, room, names in rows}
    does = {room: set() for room in floors}
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room != "__init__":
            does[room] |= set(imports_of(path)) - {room}
    assert says == does
    assert all(floors[target] < floors[room] for room, targets in does.items() for target in targets)


def test_version_and_extras():
    metadata = importlib.metadata.metadata("onespike")
    assert metadata["Version"] == onespike.__version__
    assert {"snntorch", "cupy-cuda12x", "cupy-cuda13x", "recipes", "nir", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert (ROOT / "py.typed").exists()
