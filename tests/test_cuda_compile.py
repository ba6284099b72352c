"""Every kernel compiled by NVRTC for five kinds of GPUs, on a machine that has none: none spills registers, and each can be launched."""

from __future__ import annotations

import inspect
import re

import pytest
from cupy.cuda import compiler
from cupy_backends.cuda.libs import nvrtc

from tensorlite.kernels.cuda.attention import SMALL_SHARED, variant
from tensorlite.kernels.cuda.compile import FOLDER, OPTIONS, macros, source
from tests.cuda_on_cpu import KERNEL
from tests.cuda_variants import THREADS, VARIANTS, dynamic_shared

# A100, RTX 30, H100 and H200, B200, RTX 50: KB of shared memory for all blocks of a multiprocessor. A block may have 1 KB less, and
# CUDA takes 1 KB of each block for itself. CUDA C++ Programming Guide, table of technical specifications by compute capability. RTX 40
# (sm_89) has the limits of RTX 30 and executes its programs; compiled for it, all kernels had the same registers and shared memory.
SHARED = {"sm_80": 164, "sm_86": 100, "sm_90": 228, "sm_100": 228, "sm_120": 100}
REGISTERS = 255  # of a thread
ALL_REGISTERS = 65536  # of a multiprocessor, and of a block; a warp takes them in portions of 256
STATIC_SHARED = 48 * 1024  # bytes of a block, unless it asks for more as dynamic ones
CUPYS = ("-ftz=true",)  # what CuPy adds to the options of every compile

PER_KERNEL = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers([^\n]*)",
    re.DOTALL,
)


def compile_for(architecture, text, defines):
    """PTX, cubin and what the assembler says about them."""
    program = nvrtc.createProgram(text, "kernel.cu", (), ())
    try:
        options = (f"--gpu-architecture={architecture}", "--ptxas-options=-v", *CUPYS, *OPTIONS, *macros(defines))
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            raise AssertionError(f"{error}\n{nvrtc.getProgramLog(program)}") from None
        return nvrtc.getPTX(program), nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


def report(log):
    """{kernel: (bytes of stack, of spill stores, of spill loads, registers of a thread, bytes of static shared memory)}"""
    found = {}
    for name, *numbers, rest in PER_KERNEL.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        found[name] = (*map(int, numbers), int(shared[1]) if shared else 0)
    return found


def check_launch(name, architecture, threads, registers, static, dynamic):
    """A block of this size can be there."""
    portion = -(-registers * 32 // 256) * 256
    assert portion * (threads // 32) <= ALL_REGISTERS, f"{name}: {threads} threads of {registers} registers are too many for a block"
    assert static <= STATIC_SHARED, f"{name}: {static} bytes of static shared memory"
    most = (SHARED[architecture] - 1) * 1024
    assert static + dynamic <= most, f"{name}: {static + dynamic} bytes of shared memory, {architecture} has {most} for a block"


def test_every_file_has_variants_and_every_kernel_a_thread_count():
    assert {path.name for path in FOLDER.glob("*.cu")} == set(VARIANTS)
    assert {kernel for file in VARIANTS for kernel in KERNEL.findall(source(file))} == set(THREADS)


@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize("file, defines", [(file, defines) for file, several in VARIANTS.items() for defines in several], ids=str)
def test_kernels_compile_without_spills_and_can_be_launched(file, defines, architecture, record_property):
    ptx, cubin, log = compile_for(architecture, source(file), defines)
    kernels, used = KERNEL.findall(source(file)), report(log)
    assert set(used) == set(kernels), log
    for name, (stack, stores, loads, registers, shared) in used.items():
        assert (stores, loads) == (0, 0), f"{name} spills: {stores} bytes written, {loads} read"
        assert stack == 0, f"{name} keeps an array of {stack} bytes in memory that was meant for registers"
        assert registers <= REGISTERS
        check_launch(name, architecture, THREADS[name], registers, shared, dynamic_shared(name, defines))
        record_property("cuda", (f"{file} {name}", architecture, registers, shared))
        assert f".visible .entry {name}(" in (ptx if isinstance(ptx, str) else ptx.decode())
    assert cubin[:4] == b"\x7fELF"


def test_bfloat16_is_rounded_on_gpus_before_ampere_too():
    """Tensors may be bfloat16 there, although training refuses it. sm_75 has no instruction that rounds to it."""
    _, cubin, _ = compile_for("sm_75", source("cast.cu"), {"Half": "bfloat16"})
    assert cubin[:4] == b"\x7fELF"


def test_the_options_are_those_that_cupy_adds():
    """Read in the source of the CuPy that is installed."""
    assert "options += ('-ftz=true',)" in inspect.getsource(compiler._compile_with_cache_cuda)
    ptx, _, _ = compile_for("sm_90", 'extern "C" __global__ void test(float* x) { x[0] *= x[1]; }', {})
    assert "mul.ftz.f32" in (ptx if isinstance(ptx, str) else ptx.decode())


def test_impossible_launches_are_detected():
    """Faults planted: as many threads as such registers do not allow, and more shared memory than a GeForce has."""
    names = range(100)
    body = " ".join([*(f"float a{i} = x[{i}];" for i in names), "__syncthreads();", *(f"x[{i}] = a{i} - a{(i + 1) % 100};" for i in names)])
    _, _, log = compile_for("sm_90", f'extern "C" __global__ void test(volatile float* x) {{ {body} }}', {})
    _, _, _, registers, static = report(log)["test"]
    check_launch("test", "sm_90", 512, registers, static, 0)
    with pytest.raises(AssertionError, match=r"1024 threads of 1\d\d registers are too many for a block"):
        check_launch("test", "sm_90", 1024, registers, static, 0)
    body = "__shared__ float s[8192]; s[threadIdx.x] = x[0]; __syncthreads(); x[1] = s[int(x[2])];"
    _, _, log = compile_for("sm_86", f'extern "C" __global__ void test(volatile float* x) {{ {body} }}', {})
    _, _, _, registers, static = report(log)["test"]
    assert static == 32768
    check_launch("test", "sm_90", 32, registers, static, 68 * 1024)
    check_launch("test", "sm_86", 32, registers, static, 67 * 1024)
    with pytest.raises(AssertionError, match="102400 bytes of shared memory, sm_86 has 101376 for a block"):
        check_launch("test", "sm_86", 32, registers, static, 68 * 1024)


@pytest.mark.parametrize("dropout", [False, True])
def test_two_blocks_of_attention_fit_on_every_kind_of_gpu(dropout):
    """In half precision, for heads of up to 64 numbers."""
    for architecture, kilobytes in SHARED.items():
        little = int(architecture.removeprefix("sm_")) in SMALL_SHARED
        defines = variant("bfloat16", 64, dropout=dropout, small_shared=little)
        _, _, log = compile_for(architecture, source("attention.cu"), defines)
        for name, (_, _, _, registers, static) in report(log).items():
            shared = static + dynamic_shared(name, defines) + 1024
            check_launch(name, architecture, 2 * THREADS[name], registers, static, 0)
            assert 2 * shared <= kilobytes * 1024, f"{name} for {architecture}: {shared} bytes, twice"
    if not dropout:
        too_large = variant("bfloat16", 64)
        assert 2 * dynamic_shared("attention_backward_q", too_large) > 100 * 1024, "then the other tiles are of no use"


def test_a_launch_larger_than_the_checked_ones_is_refused(standin):
    """A fault planted: a kernel is launched with more threads than the table says."""
    text = 'extern "C" __global__ void cast(float* x) { x[threadIdx.x] = 1; }'
    kernel = standin.RawModule(code=text, options=()).get_function("cast")
    x = standin.zeros(2 * THREADS["cast"], "float32")
    kernel((1,), (THREADS["cast"],), (x,))
    with pytest.raises(AssertionError, match="more than the table of variants says"):
        kernel((1,), (2 * THREADS["cast"],), (x,))


def test_spilled_registers_are_detected():
    """The log is read rightly: here is one that must spill."""
    names = range(300)
    body = " ".join([*(f"float a{i} = x[{i}];" for i in names), "__syncthreads();", *(f"x[{i}] = a{i} * a{299 - i};" for i in names)])
    text = f'extern "C" __global__ void __launch_bounds__(1024) test(volatile float* x) {{ {body} }}'
    _, _, log = compile_for("sm_90", text, {})
    assert int(PER_KERNEL.findall(log)[0][2]) > 0, log
