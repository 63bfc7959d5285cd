"""The package as an installed thing: imports, layers, metadata."""

import ast
import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import onespike

ROOT = Path(onespike.__file__).parent


def test_importing_onespike_needs_torch_alone():
    hosts = "{'spikingjelly', 'snntorch', 'cupy', 'torchvision', 'matplotlib', 'safetensors'}"
    code = f"import onespike, onespike.functional, sys; assert not {hosts} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("host", "modules", "message"),
    [
        (
            "spikingjelly",
            "spikingjelly peers conversion metrics pretrained nir",
            "onespike.spikingjelly needs SpikingJelly: pip install spikingjelly",
        ),
        ("snntorch", "snntorch", 'onespike.snntorch needs snnTorch: pip install "onespike[snntorch]"'),
    ],
)
def test_a_missing_host_names_the_remedy(host, modules, message):
    code = (
        f"import importlib, sys; sys.modules['{host}'] = None\n"
        f"for module in {modules.split()}:\n"
        "    try: importlib.import_module(f'onespike.{module}')\n"
        "    except ImportError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [message] * len(modules.split())


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


def run_setuptools(call, folder):
    """Run a hook of the build backend in a folder, without a network, and return the name that it gives."""
    code = f"from setuptools import build_meta; print(build_meta.{call}, file=open('name', 'w'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return (folder / "name").read_text().strip()


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The repository copied, the sdist made of it and unpacked, and the wheel made of that."""
    repository, out = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("built")
    ignored = [line.rstrip("/") for line in (ROOT.parents[1] / ".gitignore").read_text().splitlines()]
    ignore = shutil.ignore_patterns(".git", *ignored)
    shutil.copytree(ROOT.parents[1], repository, ignore=ignore, dirs_exist_ok=True)
    files = files_below(repository)
    with tarfile.open(out / run_setuptools(f"build_sdist({str(out)!r})", repository)) as sdist:
        sdist.extractall(out, filter="data")
    (unpacked,) = (path for path in out.iterdir() if path.is_dir())
    contents = files_below(unpacked)
    return files, contents, zipfile.ZipFile(out / run_setuptools(f"build_wheel({str(out)!r})", unpacked))


def test_the_sdist_holds_the_repository(built):
    repository, sdist, _ = built
    assert {"tests/cuda_shim/cuda_on_cpu.h", "recipes/configs/digits.yaml", ".ci/run"} <= repository
    made = {"PKG-INFO", "setup.cfg"}  # in an unpacked sdist, which these tests pass in as well, they are there before
    assert {file for file in sdist - made if not file.startswith("plugin/onespike.egg-info/")} == repository - made


def test_the_wheel_holds_the_package_and_nothing_else(built):
    repository, _, wheel = built
    package = {file.removeprefix("plugin/") for file in repository if file.startswith("plugin/")}
    assert {"onespike/py.typed", "onespike/kernels/lif.cu", "onespike/pretrained/cifar10_vgg6_small/network.json"} <= package
    folder = f"onespike-{onespike.__version__}.dist-info/"
    assert {file for file in wheel.namelist() if not file.startswith(folder)} == package
    assert f"{folder}licenses/LICENSE" in wheel.namelist()
    metadata = email.message_from_bytes(wheel.read(f"{folder}METADATA"))
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT.parents[1] / "README.md").read_text().strip()


@pytest.mark.parametrize("name", ["cpu", "gpu", "nightly"])
def test_workflows_run_what_the_repository_holds(name):
    repository = ROOT.parents[1]
    workflow = yaml.safe_load((repository / ".github" / "workflows" / f"{name}.yml").read_text())
    triggers = workflow[True]  # YAML's reading of `on`
    assert ("pull_request" in triggers) == (name == "cpu")
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"]
    commands = "\n".join(step["run"] for step in job["steps"] if ("uses" in step) != ("run" in step) and "run" in step)
    paths = [repository / path for path in re.findall(r"(?:\.ci|tests|benchmarks)/[\w.]+", commands)]
    assert {"cpu": ".ci/run", "gpu": "benchmarks/on_gpu.sh", "nightly": ".ci/nightly"}[name] in commands
    assert all(path.exists() for path in paths)
    scripts = [path for path in paths if path.suffix != ".py"]
    assert all(
        os.access(path, os.X_OK) and not subprocess.run(["bash", "-n", path], check=False).returncode for path in scripts
    )
    for part in job.get("strategy", {}).get("matrix", {}).get("part", []):
        assert f"[{part}]" in (repository / ".ci" / "nightly").read_text()
