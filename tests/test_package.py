"""The package as an installed thing: imports, layers, metadata."""

import ast
import importlib.metadata
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


def test_imports_only_go_down():
    floors = {
        "kernels": 0,
        "functional": 1,
        "swap": 1,
        "optim": 2,
        "spikingjelly": 2,
        "snntorch": 2,
        "models": 2,
        "conversion": 3,
        "metrics": 3,
        "nir": 3,
        "plots": 3,
        "pretrained": 4,
        "__main__": 5,
    }
    checked = 0
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith("onespike.") and (target := module.split(".")[1]) != room:
                assert floors[target] < floors[room], f"{path.name} imports {module}"
                checked += 1
    assert checked > 20


def test_version_and_extras():
    metadata = importlib.metadata.metadata("onespike")
    assert metadata["Version"] == onespike.__version__
    assert {"snntorch", "cupy-cuda12x", "cupy-cuda13x", "recipes", "nir", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert (ROOT / "py.typed").exists()
