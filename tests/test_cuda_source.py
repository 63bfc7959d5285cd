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
from parity import CASES, Case, check, check_nan, inputs_of, plan_for, planted_error_is_caught

from onespike.kernels import cupy as backend

SOURCE = backend.source()
KERNELS = ("lif_forward", "lif_backward")
TYPES = {int: "index_t", np.float32: "float", np.bool_: "bool"}
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
    half = scalar != "float"
    wide, narrow = 8 if half and 1 <= steps <= 8 else 4, 2 if half else 1
    forward = [("lif_forward", lanes, per) for lanes, per in ((1, "false"), (1, "true"), (wide, "false"), (4, "true"))]
    backward = [("lif_backward", lanes, per) for lanes in {1, narrow} for per in ("false", "true")]
    return [f"{name}<{scalar}, {steps}, {lanes}, {per_neuron}>" for name, lanes, per_neuron in forward + backward]


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


@pytest.mark.parametrize("T", [5, 40])
def test_launcher_passes_what_the_kernel_takes(T, monkeypatch):
    launched = {}
    monkeypatch.setattr(backend, "launch", lambda name, blocks, threads, arguments, device: launched.update({name: arguments}))
    x_seq, leak, threshold, v, fired, grads = inputs_of(Case(T=T, state=True))
    plan = plan_for(backend.CupyPlan, x_seq, leak, threshold, v, trace=True)
    plan.forward(x_seq, leak, threshold, v, fired)
    plan.backward(*grads, x_seq, leak, threshold, v, fired)
    assert len(launched) == len(KERNELS)
    for expression, passed in launched.items():
        name = expression.split("<")[0]
        signature = re.search(rf"\b{name}\((.*?)\)\s*{{", SOURCE, re.DOTALL).group(1)
        taken = [re.fullmatch(r"(.*?)(\w+)", " ".join(part.split())).groups() for part in signature.split(",")]
        assert len(taken) == len(passed)
        for (kind, argument), value in zip(taken, passed, strict=True):
            assert "*" in kind or kind.strip() == TYPES[type(value)], argument
            assert "*" not in kind or (value % 4 == 0) or value == fired.data_ptr(), argument
        numbers = dict(zip((argument for _, argument in taken), passed, strict=True))
        assert (numbers["steps"], numbers["size"]) == (T, x_seq[0].numel())
        assert numbers["x_seq"] == x_seq.data_ptr()
        assert (numbers["v"], numbers["fired"]) == (v.data_ptr(), fired.data_ptr())
        assert (numbers["leak_values"], numbers["threshold_values"]) == (leak.data_ptr(), threshold.data_ptr())


def test_launcher_shares_the_constants_of_the_source():
    for name in ("SEGMENT", "MAX_BLOCK"):
        assert f"constexpr int {name} = {getattr(backend, name)};" in SOURCE


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    return CudaOnCpu(SOURCE, tmp_path_factory.mktemp("cuda"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_the_cpu_equals_the_reference(case, device, monkeypatch):
    monkeypatch.setattr(backend, "launch", device)
    check(case, backend.CupyPlan)


def test_nan_is_never_hidden(device, monkeypatch):
    monkeypatch.setattr(backend, "launch", device)
    check_nan(backend.CupyPlan)


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
    assert planted_error_is_caught(backend.CupyPlan)


def test_float64_is_refused():
    x_seq = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r'for backend "cupy", got torch\.float64: use backend="torch"'):
        plan_for(backend.CupyPlan, x_seq, torch.tensor(0.9), torch.ones(()))


def test_parameters_keep_their_dtype(device, monkeypatch):
    monkeypatch.setattr(backend, "launch", device)
    x_seq, leak, threshold = (
        torch.ones(3, 2, 5),
        torch.full((5,), 0.5, dtype=torch.bfloat16),
        torch.tensor(1.0, dtype=torch.float64),
    )
    plan = plan_for(backend.CupyPlan, x_seq, leak, threshold)
    grads = plan.backward(torch.ones_like(x_seq), None, None, x_seq, leak, threshold, None, None)
    assert (grads[1].dtype, grads[1].shape) == (torch.bfloat16, (5,))
    assert (grads[2].dtype, grads[2].shape) == (torch.float64, ())


def test_unaligned_tensors_are_read_one_by_one(device, monkeypatch):
    monkeypatch.setattr(backend, "launch", device)
    memory, parameters = torch.randn(5 * 1024 + 1), (torch.tensor(0.9), torch.ones(()))
    outputs, grads = [], []
    for x_seq in (memory[1:].view(5, 1024), memory[1:].view(5, 1024).clone()):
        plan = plan_for(backend.CupyPlan, x_seq, *parameters)
        outputs.append(plan.forward(x_seq, *parameters, None, None)[0])
        grads.append(plan.backward(torch.ones(5, 1024), None, None, x_seq, *parameters, None, None))
    assert torch.equal(*outputs)
    assert torch.equal(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1:3], grads[1][1:3])
    forwards = [name for name in device.launched if name.startswith("lif_forward")]
    assert forwards[-2:] == ["lif_forward<float, 5, 1, false>", "lif_forward<float, 5, 4, false>"]


class FakeCupy(types.ModuleType):
    """Records what `launch` asks of CuPy: which stream was current, what was compiled and called."""

    def __init__(self, with_protocol: bool):
        super().__init__("cupy")
        self.entered, self.calls, self.modules = [], [], []
        self.cuda = types.SimpleNamespace(Stream=types.SimpleNamespace())
        self.cuda.ExternalStream = partial(Entered, self.entered, "address")
        if with_protocol:
            self.cuda.Stream.from_external = partial(Entered, self.entered, "stream")

    def RawModule(self, **settings):
        self.modules.append(settings)
        call = lambda *arguments: self.calls.append((list(self.entered), arguments))  # noqa: E731
        return types.SimpleNamespace(get_function=lambda name: call)


class Entered:
    """A context that is in the list while it is entered; it can be entered again."""

    def __init__(self, entered, *what):
        self.entered, self.what = entered, what

    def __enter__(self):
        self.entered.append(self.what)

    def __exit__(self, *exception):
        self.entered.remove(self.what)


@pytest.mark.parametrize("with_protocol", [True, False])
def test_launch_uses_the_device_and_the_stream_of_torch(with_protocol, monkeypatch):
    cupy, current = FakeCupy(with_protocol), [0]
    stream = types.SimpleNamespace(cuda_stream=4321, device_index=1, __cuda_stream__=lambda: (0, 4321))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream if device == current[-1] == 1 else None)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 4321 if device == 1 else 0, raising=False)

    @contextlib.contextmanager
    def guard(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", guard)
    backend.compiled.cache_clear()
    backend.external_stream.cache_clear()
    expression = "lif_forward<float, 5, 4, false>"
    for _ in range(2):
        backend.launch(expression, 7, 256, (np.int64(3),), 1)
    backend.compiled.cache_clear()
    backend.external_stream.cache_clear()
    on = ("stream", stream) if with_protocol else ("address", 4321, 1)
    assert cupy.calls == [([on], ((7,), (256,), (3,)))] * 2
    assert current == [0]
    (settings,) = cupy.modules
    assert settings == {"code": SOURCE, "options": ("-std=c++17", "--fmad=false"), "name_expressions": (expression,)}
