"""The package as an installed thing: imports, layers, metadata."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import onespike

ROOT = Path(onespike.__file__).parent


def test_importing_onespike_needs_torch_alone():
    hosts = "{'spikingjelly', 'snntorch', 'cupy', 'torchvision', 'matplotlib', 'safetensors'}"
    code = f"import onespike, onespike.functional, sys; assert not {hosts} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_host_names_the_remedy():
    code = "import sys; sys.modules['spikingjelly'] = None; import onespike.spikingjelly"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "ImportError: onespike.spikingjelly needs SpikingJelly: pip install spikingjelly" in result.stderr


def test_imports_only_go_down():
    floors = {
        "kernels": 0,
        "functional": 1,
        "spikingjelly": 2,
        "snntorch": 2,
        "models": 2,
        "conversion": 3,
        "metrics": 3,
        "plots": 3,
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
