"""lif.cu without a GPU: it compiles for real GPUs, and run on the CPU it equals the reference."""

import contextlib
import re
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
from cuda_on_cpu import CudaOnCpu
from parity import CASES, check, planted_error_is_caught

from onespike.kernels import cupy as backend

SOURCE = backend.source()
TYPES = {np.int64: "index_t", np.float32: "float", np.bool_: "bool"}
PLANTED = {
    "reset added": ("__fsub_rn(charged, threshold)", "__fadd_rn(charged, threshold)"),
    "threshold reached, not passed": ("above = u.lane[lane] > threshold", "above = u.lane[lane] >= 1.5f * threshold"),
    "gradient through time negated": ("? leak[lane] * total", "? -leak[lane] * total"),
    "threshold gradient's sign": ("threshold_sum.lane[lane] -= through_spike", "threshold_sum.lane[lane] += through_spike"),
    "reset's gradient lost": ("threshold_sum.lane[lane] -= total", "threshold_sum.lane[lane] -= 0 * total"),
    "half of a block not summed": ("half = blockDim.x / 2", "half = blockDim.x / 4"),
}


def compile_for(arch: str, *expressions: str, source: str = SOURCE, options: tuple[str, ...] = backend.OPTIONS):
    """Compile instances of the kernels with NVRTC, which needs no driver; return its verdict, its log and the PTX."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC comes with a torch built for CUDA")
    pathfinder = pytest.importorskip("cuda.pathfinder")
    error, program = nvrtc.nvrtcCreateProgram(source.encode(), b"lif.cu", 0, [], [])
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS
    for expression in expressions:
        nvrtc.nvrtcAddNameExpression(program, expression.encode())
    flags = [*options, f"-arch={arch}", f"-I{pathfinder.find_nvidia_header_directory('cudart')}", "--ptxas-options=-v"]
    (verdict,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
    texts = []
    for size_of, get in (("LogSize", "Log"), ("PTXSize", "PTX")):
        size_error, size = getattr(nvrtc, f"nvrtcGet{'Program' if get == 'Log' else ''}{size_of}")(program)
        size = size if size_error == nvrtc.nvrtcResult.NVRTC_SUCCESS else 0
        text = bytes(size + 1)  # NVRTC writes into it, and CPython shares `bytes` of one byte or none with everybody
        getattr(nvrtc, f"nvrtcGet{'Program' if get == 'Log' else ''}{get}")(program, text)
        texts.append(text.rstrip(b"\0").decode())
    return verdict == nvrtc.nvrtcResult.NVRTC_SUCCESS, *texts


def instances(scalar: str, steps: int) -> list[str]:
    """Name every instance that the launcher can ask for."""
    wide = 8 if scalar != "float" and 1 <= steps <= 8 else 4
    return [
        f"{name}<{scalar}, {steps}, {lanes}, {per_neuron}>"
        for name in backend.ARGUMENTS
        for lanes, per_neuron in ((1, "false"), (1, "true"), (wide, "false"), (4, "true"))
    ]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("scalar", list(backend.SCALARS.values()))
def test_compiles_without_spills(scalar, arch):
    for steps in (1, 2, 4, 5, 8, 0):
        names = [name for name in instances(scalar, steps) if steps == 5 or ", 1, " not in name]
        fine, log, _ = compile_for(arch, *names)
        assert fine, log
        spills = [int(spilled) for spilled in re.findall(r"(\d+) bytes spill stores", log)]
        assert len(spills) == len(names)
        assert not any(spills), log


def test_compile_errors_show_their_line():
    broken = SOURCE.replace("__fmul_rn(leak, u)", "__fmul_rn(leek, u)")
    line = 1 + broken[: broken.index("leek")].count("\n")
    fine, log, _ = compile_for("sm_80", "lif_forward<float, 5, 4, false>", source=broken)
    assert not fine
    assert f"lif.cu({line}): error" in log


def test_potentials_are_never_contracted():
    _, _, ptx = compile_for("compute_80", "lif_forward<float, 5, 4, false>", options=("-std=c++17",))
    assert "mul.rn.f32" in ptx
    assert "add.rn.f32" in ptx
    assert "fma.rn.f32" not in ptx
    contracted = SOURCE.replace("__fadd_rn(__fmul_rn(leak, u), x)", "leak * u + x")
    assert "fma.rn.f32" in compile_for("compute_80", "lif_forward<float, 5, 4, false>", source=contracted, options=())[2]


@pytest.mark.parametrize("name", list(backend.ARGUMENTS))
def test_launcher_passes_what_the_kernel_takes(name):
    signature = re.search(rf"\b{name}\((.*?)\)\s*{{", SOURCE, re.DOTALL).group(1)
    taken = [re.fullmatch(r"(.*?)(\w+)", " ".join(part.split())).groups() for part in signature.split(",")]
    passed = backend.ARGUMENTS[name]
    assert [argument for _, argument in taken] == list(passed)
    for kind, argument in taken:
        assert ("*" in kind) == (passed[argument] is np.uint64)
        assert "*" in kind or kind.strip() == TYPES[passed[argument]]


def test_launcher_shares_the_constants_of_the_source():
    for name in ("SEGMENT", "MAX_BLOCK"):
        assert f"constexpr int {name} = {getattr(backend, name)};" in SOURCE


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    return CudaOnCpu(SOURCE, tmp_path_factory.mktemp("cuda"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_the_cpu_equals_the_reference(case, device, monkeypatch):
    monkeypatch.setattr(backend, "launch", device)
    check(case, backend.forward, backend.backward)


def test_the_cases_reach_every_kind_of_instance(device):
    kind_of = {0: 0} | dict.fromkeys(range(1, 9), 1) | dict.fromkeys(range(9, 17), 16)
    kinds = {re.sub(r", (\d+),", lambda m: f", {kind_of[int(m[1])]},", name, count=1) for name in device.launched}
    wanted = {instance for steps in (0, 1, 16) for scalar in backend.SCALARS.values() for instance in instances(scalar, steps)}
    assert wanted == kinds


@pytest.mark.parametrize("fault", list(PLANTED))
def test_a_planted_error_is_caught(fault, tmp_path, monkeypatch):
    right, wrong = PLANTED[fault]
    assert SOURCE.count(right) == 1
    monkeypatch.setattr(backend, "launch", CudaOnCpu(SOURCE.replace(right, wrong), tmp_path))
    assert planted_error_is_caught(backend.forward, backend.backward)


def test_an_empty_batch_launches_nothing(device, monkeypatch):
    monkeypatch.setattr(backend, "launch", device)
    before = len(device.launched)
    for leak in (torch.tensor(0.9), torch.full((4, 1, 1), 0.9)):
        x_seq, threshold = torch.ones(3, 0, 4, 2, 2), torch.ones(())
        s_seq, v, fired, _ = backend.forward(x_seq, leak, threshold, None, None, True, False)
        assert (s_seq.shape, v.shape, fired.shape) == (x_seq.shape, x_seq.shape[1:], x_seq.shape[1:])
        grads = backend.backward(s_seq, None, None, x_seq, leak, threshold, None, None, 0.3, True, True)
        assert torch.equal(grads[1], torch.zeros_like(leak))
        assert torch.equal(grads[2], torch.zeros(()))
    assert len(device.launched) == before


def test_float64_is_refused():
    x_seq = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r'for backend "cupy", got torch\.float64: use backend="torch"'):
        backend.forward(x_seq, torch.tensor(0.9), torch.ones(()), None, None, True, False)
    with pytest.raises(TypeError, match=r'for backend "cupy", got torch\.float64'):
        backend.backward(None, None, None, x_seq, torch.tensor(0.9), torch.ones(()), None, None, 0.3, True, True)


def test_parameters_keep_their_dtype(device, monkeypatch):
    monkeypatch.setattr(backend, "launch", device)
    x_seq, leak, threshold = (
        torch.ones(3, 2, 5),
        torch.full((5,), 0.5, dtype=torch.bfloat16),
        torch.tensor(1.0, dtype=torch.float64),
    )
    grads = backend.backward(torch.ones_like(x_seq), None, None, x_seq, leak, threshold, None, None, 0.3, True, True)
    assert (grads[1].dtype, grads[1].shape) == (torch.bfloat16, (5,))
    assert (grads[2].dtype, grads[2].shape) == (torch.float64, ())


def test_unaligned_tensors_are_read_one_by_one(device, monkeypatch):
    monkeypatch.setattr(backend, "launch", device)
    memory = torch.randn(5 * 1024 + 1)
    outputs = []
    for x_seq in (memory[1:].view(5, 1024), memory[1:].view(5, 1024).clone()):
        outputs.append(backend.forward(x_seq, torch.tensor(0.9), torch.ones(()), None, None, True, False)[0])
    assert torch.equal(*outputs)
    assert device.launched[-2:] == ["lif_forward<float, 5, 1, false>", "lif_forward<float, 5, 4, false>"]


class FakeCupy(types.ModuleType):
    """Records what `launch` asks of CuPy: which device and stream were current, what was compiled and called."""

    def __init__(self, with_protocol: bool):
        super().__init__("cupy")
        self.entered, self.calls, self.modules = [], [], []
        self.cuda = types.SimpleNamespace(Device=partial(self.enter, "device"), Stream=types.SimpleNamespace())
        self.cuda.ExternalStream = partial(self.enter, "address")
        if with_protocol:
            self.cuda.Stream.from_external = partial(self.enter, "stream")

    @contextlib.contextmanager
    def enter(self, *what):
        self.entered.append(what)
        yield
        self.entered.remove(what)

    def RawModule(self, **settings):
        self.modules.append(settings)
        call = lambda *arguments: self.calls.append((list(self.entered), arguments))  # noqa: E731
        return types.SimpleNamespace(get_function=lambda name: call)


@pytest.mark.parametrize("with_protocol", [True, False])
def test_launch_uses_the_device_and_the_stream_of_torch(with_protocol, monkeypatch):
    cupy = FakeCupy(with_protocol)
    stream = types.SimpleNamespace(cuda_stream=4321, device_index=1, __cuda_stream__=lambda: (0, 4321))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream if device.index == 1 else None)
    backend.compiled.cache_clear()
    expression = "lif_forward<float, 5, 4, false>"
    for _ in range(2):
        backend.launch(expression, 7, 256, (np.int64(3),), torch.device("cuda", 1))
    backend.compiled.cache_clear()
    on = ("stream", stream) if with_protocol else ("address", 4321, 1)
    assert cupy.calls == [([("device", 1), on], ((7,), (256,), (3,)))] * 2
    (settings,) = cupy.modules
    assert settings == {"code": SOURCE, "options": ("-std=c++17", "--fmad=false"), "name_expressions": (expression,)}
