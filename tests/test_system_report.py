"""`python -m onespike`: what it says on this machine, with torch alone, and where things are broken."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

import onespike
from onespike import __main__ as system
from onespike import machine
from onespike.functional import available_backends
from onespike.functional.backends import BACKENDS, resolve_backend


def lines(text):
    """Return the report as a dict: what a line is about -> what was found."""
    return {subject: found.strip() for subject, found in (line.split(":  ", 1) for line in text.splitlines())}


def run(code="import runpy; runpy.run_module('onespike', run_name='__main__')", **environment):
    paths = [str(Path(onespike.__file__).parents[1]), environment.pop("PYTHONPATH", "")]
    environment = os.environ | environment | {"PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return lines(result.stdout)


def test_the_module_prints_versions_devices_and_backends():
    result = subprocess.run([sys.executable, "-m", "onespike"], capture_output=True, text=True, check=True)
    found = lines(result.stdout)
    assert found["onespike"].startswith(onespike.__version__)
    assert found["torch"].startswith(torch.__version__)
    assert found["spikingjelly"][0].isdigit()
    small, large = resolve_backend("auto", "cpu", 1), resolve_backend("auto", "cpu", 2**40)
    assert f'"{small}"' in found['"auto" on cpu']
    assert f'"{large}"' in found['"auto" on cpu']
    for name in BACKENDS:
        assert (found[f'"{name}" on cpu'] == "usable") == (name in available_backends("cpu"))
    assert "broken" not in result.stdout


def test_a_reader_that_has_seen_enough_is_no_error():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "onespike"], **pipes) as report:
        assert report.stdout.readline().startswith("onespike:")
        report.stdout.close()
        assert report.stderr.read() == ""
    assert report.returncode == 0


def test_it_needs_torch_alone_and_imports_no_host():
    hosts = "('spikingjelly', 'snntorch', 'matplotlib', 'torchvision')"
    code = (
        "import sys, importlib.metadata as m\nfrom onespike import __main__ as system\n"
        f"for host in {hosts}: sys.modules[host] = None\n"
        "known = m.version\n"
        "def version(name):\n"
        "    if name != 'torch': raise m.PackageNotFoundError(name)\n"
        "    return known(name)\n"
        "m.version = version\n"
        "import importlib.util as u; u.find_spec = lambda name: None\n"
        "system.main()"
    )
    found = run(code)
    assert found["spikingjelly"] == found["snntorch"] == found["triton"] == "not installed"
    assert found['"torch" on cpu'] == "usable"


def test_what_is_broken_is_named_in_its_line(tmp_path):
    (tmp_path / "cupy.py").write_text("raise OSError('libnvrtc.so: cannot open\\nshared object file')")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho Driver/library version mismatch\nexit 18\n")
    program.chmod(0o755)
    found = run(PYTHONPATH=str(tmp_path), PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert found["NVIDIA driver"] == "broken (nvidia-smi: Driver/library version mismatch )"
    assert found["cupy"] == f"of unknown version, at {tmp_path / 'cupy.py'}"
    if torch.version.cuda:
        assert "(OSError: libnvrtc.so: cannot open shared object file)" in found['"cupy" on cuda']
    assert found['"torch" on cpu'] == "usable"


def test_gpus_are_named_and_a_broken_one_does_not_end_the_report(monkeypatch):
    def properties(place):
        if place:
            raise RuntimeError("CUDA error: device is lost")
        return SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=85 * 10**9, major=9, minor=0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    found = dict(system.report())
    assert found["cuda:0"] == "NVIDIA H100 80GB HBM3, 79.2 GiB, compute capability 9.0"
    assert found["cuda:1"] == "broken (RuntimeError: CUDA error: device is lost)"
    assert '"auto" on cuda' in found


def test_wheels_of_cupy_are_named_whatever_their_cuda(monkeypatch):
    wheels = [SimpleNamespace(metadata={"Name": name}) for name in ("torch", "cupy-cuda13x", "cupy-cuda12x", None)]
    monkeypatch.setattr(system.importlib.metadata, "distributions", lambda: wheels)
    monkeypatch.setattr(system.importlib.metadata, "version", lambda name: "14.2.0")
    assert system.cupy() == "cupy-cuda12x 14.2.0, cupy-cuda13x 14.2.0"


def test_warnings_stand_in_the_line_of_what_gave_them():
    def look():
        system.warnings.warn("the driver is too old", stacklevel=1)
        return False

    assert system.attempt(look) == "False; warning: the driver is too old"


def test_the_commit_is_that_of_our_clone_and_of_no_other(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    package = tmp_path / "onespike" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    assert machine.commit(package.parent, ".") == machine.Commit()
    git("init")
    git("commit", "--allow-empty", "-m", "another project's")
    assert str(machine.commit(package.parent, ".")) == "unknown: not a clone, or there is no git"
    git("add", ".")
    git("update-ref", "-d", "HEAD")
    assert machine.commit(package.parent, ".") == machine.Commit(), "files, and no commit"
    git("commit", "-m", "ours")
    found = machine.commit(package.parent, ".")
    assert len(str(found)) == len(found.sha) == 40
    package.write_text("changed")
    assert str(machine.commit(package.parent, ".")) == f"{found.sha} with uncommitted changes"
    assert not machine.commit(package.parent, "*.md").changed
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit(package.parent, ".") == machine.Commit()


def test_the_processor_and_the_distributions_are_named(monkeypatch, tmp_path):
    brought = {"cupy": ["cupy-cuda13x", "cupy-cuda13x"], "torch": ["torch"], "other": ["something"]}
    monkeypatch.setattr(machine, "packages_distributions", lambda: brought)
    monkeypatch.setattr(machine, "version", {"cupy-cuda13x": "14.2.0", "torch": "2.11.0"}.__getitem__)
    assert machine.versions("torch", "triton", "cupy") == {"torch": "2.11.0", "cupy-cuda13x": "14.2.0"}

    info = tmp_path / "cpuinfo"
    core = "processor\t: {}\nmodel name\t: Some EPYC\nflags\t\t: fpu avx2 avx512f avx512_bf16 fsrm\n"
    info.write_text("\n".join(core.format(i) for i in range(3)))
    capability = torch.backends.cpu.get_cpu_capability()
    assert machine.processor(info) == f"Some EPYC (3 cores; avx2 avx512f avx512_bf16; torch uses {capability})"
    assert "vector instructions unknown" in machine.processor(tmp_path / "none")


def test_variables_of_the_environment_that_matter_are_named(monkeypatch):
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/home/someone")
    assert system.settings() == "none"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert system.settings() == "CUDA_VISIBLE_DEVICES=, OMP_NUM_THREADS=1"
