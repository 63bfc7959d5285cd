"""What a GPU backend says where it cannot run: every reason, with the command that mends it."""

import importlib.util
import sys
import types
import warnings

import pytest
import torch

from onespike.functional import BackendUnavailableError, backends, single_spike_lif, why_unavailable
from onespike.functional.backends import resolve_backend


@pytest.fixture(autouse=True)
def _forget_what_was_found():
    backends.cupy_is_missing.cache_clear()
    backends.triton_is_missing.cache_clear()
    yield
    backends.cupy_is_missing.cache_clear()
    backends.triton_is_missing.cache_clear()


def cupy_for(version):
    """A stand-in for a CuPy built for one version of CUDA, as the runtime numbers it."""
    module = types.ModuleType("cupy")
    module.__spec__ = importlib.util.spec_from_loader("cupy", None)
    module.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(runtimeGetVersion=lambda: version))
    return module


@pytest.mark.parametrize("backend", ["cupy", "triton"])
def test_only_cuda_devices(backend):
    assert f'backend "{backend}" runs on CUDA devices, got device "cpu"' in why_unavailable(backend, "cpu")
    with pytest.raises(BackendUnavailableError, match=r'cannot run on "cpu": .*runs on CUDA devices'):
        single_spike_lif(torch.zeros(2, 3), 0.9, 1.0, backend=backend)


@pytest.mark.parametrize("backend", ["cupy", "triton"])
def test_no_driver(backend, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert any("torch.cuda.is_available() is False" in reason for reason in why_unavailable(backend, "cuda:1"))


@pytest.mark.parametrize(("cuda", "extra"), [("12.8", "cupy-cuda12x"), ("13.2", "cupy-cuda13x")])
def test_cupy_is_not_installed(cuda, extra, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert backends.cupy_is_missing() == [f'backend "cupy" needs CuPy: pip install "onespike[{extra}]"']
    assert backends.triton_is_missing() == ['backend "triton" needs Triton: pip install triton']


def test_cupy_for_another_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setitem(sys.modules, "cupy", cupy_for(12090))
    (reason,) = backends.cupy_is_missing()
    assert reason.startswith("CuPy is built for CUDA 12, torch for CUDA 13: pip uninstall cupy-cuda12x")
    assert reason.endswith('pip install "onespike[cupy-cuda13x]"')


def test_cupy_that_does_not_load(monkeypatch):
    broken = cupy_for(13000)
    del broken.cuda
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setitem(sys.modules, "cupy", broken)
    assert "CuPy is installed but does not load (AttributeError" in backends.cupy_is_missing()[0]


def test_torch_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "needs a torch built for CUDA" in backends.cupy_is_missing()[0]


def test_everything_is_there(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", cupy_for(13020))
    assert why_unavailable("cupy", "cuda") == []


@pytest.fixture
def cuda_with(monkeypatch):
    """Make as if these backends were installed on a machine with a GPU, and say what each does when it is tried."""

    def install(**outcomes):
        monkeypatch.setattr(backends, "why_unavailable", lambda name, device: [] if name in outcomes else [f"no {name}"])
        monkeypatch.setattr(backends, "failures", lambda name, device: outcomes[name])

    backends.fastest_on_cuda.cache_clear()
    yield install
    backends.fastest_on_cuda.cache_clear()


def test_auto_takes_the_first_fused_backend_that_works_on_cuda(cuda_with):
    first, second = backends.AUTO_ON_CUDA
    cuda_with(**{first: [], second: []})
    assert resolve_backend("auto", "cuda") == first
    assert resolve_backend("auto", "cuda", dtype=torch.float64) == "torch"
    backends.fastest_on_cuda.cache_clear()
    cuda_with(**{second: []})
    assert resolve_backend("auto", "cuda") == second
    backends.fastest_on_cuda.cache_clear()
    cuda_with(**{first: ["it is broken"], second: []})
    assert resolve_backend("auto", "cuda") == second


def test_auto_says_once_why_it_takes_torch_on_cuda(cuda_with):
    first, second = backends.AUTO_ON_CUDA
    cuda_with(**{first: ["it is broken"]})
    with pytest.warns(UserWarning, match=rf'"auto" takes "torch" on CUDA.*it is broken; no {second}'):
        assert resolve_backend("auto", "cuda") == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_backend("auto", "cuda") == "torch"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the compilers work here")
def test_a_backend_that_fails_says_how(monkeypatch):
    (reason,) = backends.failures("triton", "cpu")
    assert reason.startswith('backend "triton" is installed but fails (')
    assert backends.failures("torch", "cpu") == []
