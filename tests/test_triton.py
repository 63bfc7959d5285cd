"""The Triton kernels without a GPU: they equal the reference in Triton's interpreter, and lower for real GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity import plan_for

triton = pytest.importorskip("triton", reason="Triton has no build for this platform")
backend = pytest.importorskip("onespike.kernels.triton")
SUITE = Path(__file__).parent / "triton_interpreted.py"
ONES = ("steps", "tiles", "leak_inner", "leak_count", "threshold_inner")
OPTIONAL = ("v", "fired", "v_last", "fired_last", "v_seq", "grad_s_seq", "grad_v", "grad_v_seq", "grad_v_initial")


def test_the_interpreter_equals_the_reference():
    # Triton chooses between compiler and interpreter when it is imported.
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(SUITE)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("scalar", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["lif_forward", "lif_backward"])
def test_lowers_for(name, scalar, capability):
    kernel = getattr(backend, name)
    of_scalars, of_bools = {"x_seq", "s_seq", "grad_s_seq", "grad_x_seq"}, {"fired", "fired_last"}
    indices = {"steps", "size", "tiles"}
    for per_neuron, optional, index in ((False, True, "i64"), (True, False, "i32")):
        constants = {"TILE": 1024, "PER_NEURON": per_neuron, "SINGLE_SPIKE": True}
        constants |= {"GRAD_AFTER_SPIKE": optional, "TEMPORAL_GRADIENT": not optional}
        signature, fixed = {}, {}
        for argument in kernel.arg_names:
            if argument in ONES and not optional:  # a launch makes every integer that is 1 a constant
                signature[argument], fixed[argument] = "constexpr", 1
            elif argument.isupper() or (not optional and argument in OPTIONAL):
                signature[argument], fixed[argument] = "constexpr", constants.get(argument)
            elif argument in indices or argument.endswith(("_inner", "_count")):
                signature[argument] = index
            elif argument == "gamma":
                signature[argument] = "fp32"
            else:
                signature[argument] = "*" + (scalar if argument in of_scalars else "i1" if argument in of_bools else "fp32")
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=fixed)
        compiled = triton.compile(
            source, target=triton.backends.compiler.GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False}
        )
        assert f".target sm_{capability}" in compiled.asm["ptx"]
        assert "fma.rn.f32" not in compiled.asm["ptx"]


def test_float64_is_refused():
    x_seq = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r'for backend "triton", got torch\.float64: use backend="torch"'):
        plan_for(backend.TritonPlan, x_seq, torch.tensor(0.9), torch.ones(()))
