"""Every kernel compiled by NVRTC for three generations of GPUs, on a machine that has none; and none of them spills registers."""

from __future__ import annotations

import re

import pytest
from cupy_backends.cuda.libs import nvrtc

from tensorlite.kernels.cuda.compile import FOLDER, OPTIONS, macros, source
from tests.cuda_on_cpu import KERNEL
from tests.cuda_variants import VARIANTS

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")  # A100, H100 and H200, B200
REGISTERS = 255  # of a thread
STATIC_SHARED = 48 * 1024  # bytes of a block

PER_KERNEL = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers([^\n]*)",
    re.DOTALL,
)


def compile_for(architecture, text, defines):
    """PTX, cubin and what the assembler says about them."""
    program = nvrtc.createProgram(text, "kernel.cu", (), ())
    try:
        options = (f"--gpu-architecture={architecture}", "--ptxas-options=-v", *OPTIONS, *macros(defines))
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            raise AssertionError(f"{error}\n{nvrtc.getProgramLog(program)}") from None
        return nvrtc.getPTX(program), nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


def test_every_file_has_its_variants():
    assert {path.name for path in FOLDER.glob("*.cu")} == set(VARIANTS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file, defines", [(file, defines) for file, several in VARIANTS.items() for defines in several], ids=str)
def test_kernels_compile_without_spills(file, defines, architecture, record_property):
    ptx, cubin, log = compile_for(architecture, source(file), defines)
    kernels = KERNEL.findall(source(file))
    used = {name: (*map(int, numbers), rest) for name, *numbers, rest in PER_KERNEL.findall(log)}
    assert set(used) == set(kernels), log
    for name, (stack, stores, loads, registers, rest) in used.items():
        assert (stores, loads) == (0, 0), f"{name} spills: {stores} bytes written, {loads} read"
        assert stack == 0, f"{name} keeps an array of {stack} bytes in memory that was meant for registers"
        shared = int(match[1]) if (match := re.search(r"(\d+) bytes smem", rest)) else 0
        assert registers <= REGISTERS and shared <= STATIC_SHARED
        record_property("cuda", (f"{file} {name}", architecture, registers, shared))
        assert f".visible .entry {name}(" in (ptx if isinstance(ptx, str) else ptx.decode())
    assert cubin[:4] == b"\x7fELF"


def test_a_kernel_that_needs_too_many_registers_is_seen_to_spill():
    """The log is read rightly: here is one that must spill."""
    names = range(300)
    body = " ".join([*(f"float a{i} = x[{i}];" for i in names), "__syncthreads();", *(f"x[{i}] = a{i} * a{299 - i};" for i in names)])
    text = f'extern "C" __global__ void __launch_bounds__(1024) test(volatile float* x) {{ {body} }}'
    _, _, log = compile_for("sm_90", text, {})
    assert int(PER_KERNEL.findall(log)[0][2]) > 0, log
