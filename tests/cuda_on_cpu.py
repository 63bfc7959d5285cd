"""Run lif.cu without a GPU: g++ compiles the unchanged source behind a header that stands in for CUDA's C++."""

import ctypes
import functools
import re
import subprocess
from pathlib import Path

import numpy as np

SHIM = Path(__file__).parent / "cuda_shim"
COMPILE = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC", f"-I{SHIM}"]
EXPORT = 'extern "C" void {name}(unsigned b, unsigned t, void** a) {{ launch_on_cpu({kernel}, b, t, a); }}\n'


class CudaOnCpu:
    """Stands in for `onespike.kernels.cupy.launch`, with `source` as the text of lif.cu."""

    def __init__(self, source: str, folder: Path) -> None:
        self.folder = folder
        (folder / "lif.cu").write_text(source)
        self.library = functools.cache(self.build)
        self.launched: list[str] = []

    def build(self, scalar: str, steps: str) -> ctypes.CDLL:
        """Compile every instance of the kernels for one dtype and number of steps."""
        text = '#include "cuda_on_cpu.h"\n#include "lif.cu"\n'
        for name in ("lif_forward", "lif_backward"):
            for lanes in ("1", "2", "4", "8"):
                for per_neuron in ("false", "true"):
                    kernel = f"{name}<{scalar}, {steps}, {lanes}, {per_neuron}>"
                    text += EXPORT.format(name="_".join((name, lanes, per_neuron)), kernel=kernel)
        unit = self.folder / f"{scalar}_{steps}.cpp"
        unit.write_text(text)
        subprocess.run([*COMPILE, f"-I{self.folder}", str(unit), "-o", str(unit.with_suffix(".so"))], check=True)
        return ctypes.CDLL(str(unit.with_suffix(".so")))

    def __call__(self, expression: str, blocks: int, threads: int, arguments: tuple, device: int | None) -> None:
        """Run the kernel as cuLaunchKernel would, with the address of every argument."""
        assert device is None
        name, scalar, steps, lanes, per_neuron = re.fullmatch(r"(\w+)<(\w+), (\d+), (\d+), (\w+)>", expression).groups()
        self.launched.append(expression)
        boxes = [np.array([argument]) for argument in arguments]
        addresses = (ctypes.c_void_p * len(boxes))(*[box.ctypes.data for box in boxes])
        getattr(self.library(scalar, steps), "_".join((name, lanes, per_neuron)))(blocks, threads, addresses)
