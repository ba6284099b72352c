"""The runner of CUDA kernels on the CPU: its threads, barriers, shuffles and atomics behave as on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from tensorlite.kernels.cuda.compile import source
from tests.cuda_on_cpu import CompileError, KernelError, fenced, load
from tests.standin import machine

ORDERS = ("ascending", "descending", "shuffled")
HEADER = source("common.cuh")


def run(body, x, y, block=64, grid=1, shared_mem=0, order="ascending", parameters="float* x, float* y, int n"):
    module = load(f'{HEADER}\nextern "C" __global__ void test({parameters}) {{\n{body}\n}}\n')
    module.order = order
    module.launch("test", (grid,), (block,), (x.ctypes.data, y.ctypes.data, np.int32(x.size)), shared_mem=shared_mem)
    return y


def numbers(n):
    return np.random.default_rng(0).standard_normal(n).astype(np.float32)


@pytest.mark.parametrize("order", ORDERS)
def test_every_thread_of_every_block_runs_once_with_its_indices(order):
    x, y = numbers(192), np.zeros(192, np.float32)
    run("int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] += 2 * x[i] + gridDim.x;", x, y, block=64, grid=3, order=order)
    np.testing.assert_array_equal(y, 2 * x + 3)


REVERSE = "__shared__ float s[64]; s[threadIdx.x] = x[threadIdx.x]; {barrier} y[threadIdx.x] = s[63 - threadIdx.x];"


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_written_before_a_barrier_can_be_read_after_it(order):
    x, y = numbers(64), np.zeros(64, np.float32)
    np.testing.assert_array_equal(run(REVERSE.format(barrier="__syncthreads();"), x, y, order=order), x[::-1])


@pytest.mark.parametrize("order", ORDERS)
def test_without_the_barrier_the_poison_value_is_read(order):
    x, y = numbers(64), np.zeros(64, np.float32)
    assert np.isnan(run(REVERSE.format(barrier=""), x, y, order=order)).any()


def test_shared_memory_is_not_kept_from_block_to_block():
    x, y = numbers(64), np.zeros(64, np.float32)
    run("__shared__ float s[64]; if (blockIdx.x == 0) s[threadIdx.x] = 1; else y[threadIdx.x] = s[threadIdx.x];", x, y, grid=2)
    assert np.isnan(y).all()


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_of_a_warp_are_not_in_lockstep_between_exchanges(order):
    x, y = numbers(32), np.zeros(32, np.float32)
    body = "__shared__ float s[32]; s[threadIdx.x] = x[threadIdx.x]; y[threadIdx.x] = s[(threadIdx.x + 16) % 32];"
    assert np.isnan(run(body, x, y, block=32, order=order)).any()
    np.testing.assert_array_equal(run(body.replace("; y[", "; __syncwarp(); y["), x, y, block=32, order=order), np.roll(x, 16))


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_read_from_the_given_lanes(order):
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    got = {
        name: run(f"y[threadIdx.x] = {call};", x, y.copy(), order=order)
        for name, call in {
            "xor": "__shfl_xor_sync(ALL_LANES, x[threadIdx.x], 5)",
            "down": "__shfl_down_sync(ALL_LANES, x[threadIdx.x], 3)",
            "up": "__shfl_up_sync(ALL_LANES, x[threadIdx.x], 3)",
            "broadcast": "__shfl_sync(ALL_LANES, x[threadIdx.x], 7)",
            "ballot": "float(__popc(__ballot_sync(ALL_LANES, x[threadIdx.x] > 40)))",
        }.items()
    }
    lanes, warps = np.arange(64) % 32, np.arange(64) // 32 * 32
    np.testing.assert_array_equal(got["xor"], warps + (lanes ^ 5))
    np.testing.assert_array_equal(got["down"], np.where(lanes < 29, x + 3, x))
    np.testing.assert_array_equal(got["up"], np.where(lanes >= 3, x - 3, x))
    np.testing.assert_array_equal(got["broadcast"], warps + 7)
    np.testing.assert_array_equal(got["ballot"], np.where(x < 32, 0, 23))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block", [32, 64, 256, 1024])
def test_all_threads_get_the_sums_over_warps_and_blocks(block, order):
    x, y = numbers(block), np.zeros(block, np.float32)
    body = "__shared__ float scratch[WARP]; y[threadIdx.x] = block_sum(x[threadIdx.x], scratch) + block_max(x[threadIdx.x], scratch);"
    run(body, x, y, block=block, order=order)
    assert len(set(y.tolist())) == 1, "not all threads have the same bits"
    np.testing.assert_allclose(y[0], x.sum(dtype=np.float64) + x.max(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_atomics_lose_no_addition(order):
    x, y = np.ones(256, np.float32), np.zeros(1, np.float32)
    assert run("atomicAdd(y, x[blockIdx.x * blockDim.x + threadIdx.x]);", x, y, grid=4, order=order)[0] == 256


@pytest.mark.parametrize("order", ORDERS)
def test_a_warp_reads_the_registers_of_all_its_lanes(order):
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    body = """struct Held { float a, b, c; };
    float here = x[threadIdx.x], sum = 0;
    for (int i = 0; i < 3; i++) {
        const Held* lanes = cuda_on_cpu::gather(Held{here, here + i, -here}, "a meeting");
        for (int lane = 0; lane < 32; lane++) sum += lanes[lane].a + lanes[lane].b + lanes[lane].c;
    }
    y[threadIdx.x] = sum;"""
    warps = x.reshape(2, 32).sum(axis=1)
    np.testing.assert_array_equal(run(body, x, y, order=order), np.repeat(3 * warps + 32 * 3, 32))


LATE = """__shared__ float s[64];
    if (threadIdx.x < 16) cuda_on_cpu::copy_later(s + 4 * threadIdx.x, x + 4 * threadIdx.x, 16, 8);
    {wait} y[threadIdx.x] = s[63 - threadIdx.x];"""


@pytest.mark.parametrize("order", ORDERS)
def test_an_asynchronous_copy_is_readable_after_wait_and_barrier(order):
    x, y = numbers(64), np.zeros(64, np.float32)
    got = run(LATE.replace("{wait}", "cuda_on_cpu::finish_copies(); __syncthreads();"), x, y.copy(), order=order)
    np.testing.assert_array_equal(got, np.where(np.arange(64) % 4 < 2, x, 0)[::-1])
    assert np.isnan(run(LATE.replace("{wait}", "__syncthreads();"), x, y.copy(), order=order)).all()
    assert np.isnan(run(LATE.replace("{wait}", "cuda_on_cpu::finish_copies();"), x, y.copy(), order=order)).any()


@pytest.mark.parametrize(
    "body, words",
    [
        ("if (threadIdx.x < 32) __syncthreads();", r"thread 0 waits at __syncthreads, thread 32 has left the kernel"),
        ("if (threadIdx.x < 7) __syncwarp(); else __syncthreads();", "thread 0 waits at __syncwarp, thread 7 waits at __syncthreads"),
        ("if (threadIdx.x % 32 < 16) __shfl_xor_sync(ALL_LANES, 1, 1);", "thread 0 waits at __shfl_xor_sync, thread 16 has left"),
        ("__shfl_xor_sync(0xffff, 1, 1);", "must name all 32 lanes"),
        ("DYNAMIC_SHARED(float, s); s[8 + threadIdx.x] = 0;", "wrote past the 32 bytes of dynamic shared memory"),
    ],
    ids=["a barrier that some never reach", "two meeting points", "half a warp", "half a mask", "past shared memory"],
)
def test_a_kernel_that_would_hang_or_overwrite_is_stopped(body, words):
    x = numbers(64)
    with pytest.raises(KernelError, match=words):
        run(body, x, x.copy(), shared_mem=32)


@pytest.mark.parametrize(
    "args, words",
    [
        ((1, 1), "takes 3 arguments, got 2"),
        ((1, 1, 3), "argument 2 must be a numpy.int32, got 3 of type int"),
        ((1, 1, np.int64(3)), "argument 2 must be a numpy.int32"),
        ((1, np.float32(1), np.int32(3)), "argument 1 is a pointer"),
    ],
)
def test_arguments_of_another_type_than_the_kernels_are_refused(args, words):
    module = load('extern "C" __global__ void test(float* x, float* y, int n) {}')
    with pytest.raises(KernelError, match=words):
        module.launch("test", (1,), (32,), args)


def test_impossible_launch_sizes_are_refused():
    module = load('extern "C" __global__ void test() {}')
    for block in (0, 33, 2048):
        with pytest.raises(KernelError, match="a multiple of 32, at most 1024"):
            module.launch("test", (1,), (block,), ())
    with pytest.raises(KernelError, match="there is no kernel 'other'"):
        module.launch("other", (1,), (32,), ())


def test_a_compile_error_shows_the_compilers_message():
    with pytest.raises(CompileError, match="undeclared_name"):
        load('extern "C" __global__ void test(float* x) { x[0] = undeclared_name; }')


def test_an_uninitialised_number_is_not_zero():
    x, y = numbers(32), np.zeros(32, np.float32)
    with pytest.raises(CompileError, match="uninitialized"):
        run("float sum; for (int i = 0; i < n; i++) sum += x[i]; y[threadIdx.x] = sum;", x, y, block=32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precisions_are_stored_and_loaded_as_numpy_rounds_them(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes") if dtype == "bfloat16" else None
    half = np.dtype(ml_dtypes.bfloat16 if ml_dtypes else "float16")
    x = np.concatenate([numbers(2000) * 10.0 ** np.arange(-20, 20).repeat(50), [0, -0.0, np.inf, -np.inf, np.nan, 65519, 65520, 1e-8]])
    x = np.resize(x, 2048).astype(np.float32)
    stored, loaded = np.zeros(2048, half), np.zeros(2048, np.float32)
    body = "int i = blockIdx.x * blockDim.x + threadIdx.x; store(stored[i], x[i]); loaded[i] = load(stored[i]);"
    module = load(f'{HEADER}\nextern "C" __global__ void test(const float* x, {dtype}* stored, float* loaded) {{ {body} }}')
    module.launch("test", (32,), (64,), (x.ctypes.data, stored.ctypes.data, loaded.ctypes.data))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(stored.astype(np.float32), x.astype(half).astype(np.float32))
    np.testing.assert_array_equal(loaded, stored.astype(np.float32))


def test_philox_gives_the_published_test_vectors():
    """Known answers of Random123 (file kat_vectors, philox4x32 with 10 rounds)."""
    answers = {
        (0, 0, 0, 0, 0, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        (0xFFFFFFFF,) * 6: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0): (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    }
    body = "uint4 r = philox(make_uint2(x[4], x[5]), make_uint4(x[0], x[1], x[2], x[3])); y[0] = r.x; y[1] = r.y; y[2] = r.z; y[3] = r.w;"
    for given, expected in answers.items():
        x, y = np.array(given, np.uint32), np.zeros(4, np.uint32)
        run(body, x, y, block=32, parameters="unsigned* x, unsigned* y, int n")
        assert tuple(y.tolist()) == expected


# --- what the hardware does not forgive -------------------------------------------------------------------

WIDE = {  # reads of 16 and of 8 bytes, and a write
    "load4, float32": ("y[threadIdx.x] = load4(x + {by}).x;", 4),
    "load4, bfloat16": ("y[threadIdx.x] = load4(reinterpret_cast<const bfloat16*>(x) + {by}).x;", 4),
    "load_chunk": ("y[threadIdx.x] = load(load_chunk(reinterpret_cast<const float16*>(x) + {by}).numbers[0]);", 8),
    "store4": ("store4(y + 4 * threadIdx.x + {by}, make_float4(1, 2, 3, 4));", 4),
    "store2": ("store2(reinterpret_cast<float16*>(y) + 2 * threadIdx.x + {by}, 1, 2);", 2),
    "uint4": ("y[threadIdx.x] = reinterpret_cast<const uint4*>(x + {by})->w;", 4),
}


@pytest.mark.parametrize("name", WIDE)
def test_a_wide_access_that_is_not_aligned_is_stopped(name):
    body, numbers_at_once = WIDE[name]
    for by in range(2 * numbers_at_once + 1):
        x, y = np.zeros(256, np.float32), np.zeros(256, np.float32)
        if by % numbers_at_once == 0:
            run(body.replace("{by}", str(by)), x, y, block=32)
        else:
            with pytest.raises(KernelError, match="at an address that is not a multiple of their size"):
                run(body.replace("{by}", str(by)), x, y, block=32)


def test_rows_for_the_tensor_cores_begin_at_multiples_of_16_bytes():
    body = """unsigned words[4];
    load_matrices(words, reinterpret_cast<const char*>(x) + {by});
    y[threadIdx.x] = words[0];"""
    text = source("mma.cuh") + 'extern "C" __global__ void test(float* x, float* y, int n) {' + body + "}"
    x, y = np.zeros(256, np.float32), np.zeros(32, np.float32)
    arguments = x.ctypes.data, y.ctypes.data, np.int32(0)
    load(text.replace("{by}", "16")).launch("test", (1,), (32,), arguments)
    with pytest.raises(KernelError, match="rows that begin at multiples of 16 bytes"):
        load(text.replace("{by}", "8")).launch("test", (1,), (32,), arguments)


@pytest.mark.parametrize("order", ORDERS)
def test_denormal_numbers_are_flushed_to_0(order):
    """In every thread, and after each of its meetings; and the host's own arithmetic keeps them."""
    x, y = np.full(64, 1e-40, np.float32), np.full(64, np.nan, np.float32)
    body = (
        "float s = x[threadIdx.x] * {f}; __syncthreads(); y[threadIdx.x] = s + x[threadIdx.x] * {f}; __syncwarp(); y[threadIdx.x] *= 1e30f;"
    )
    for factor in ("1e9f", "1.0f"):
        np.testing.assert_array_equal(run(body.replace("{f}", factor), x, y, order=order), np.zeros(64))
    tiny = np.full(64, 1e-20, np.float32)
    np.testing.assert_array_equal(run("y[threadIdx.x] = x[threadIdx.x] * 1e-20f * 1e20f;", tiny, y, order=order), np.zeros(64))
    assert (x * np.float32(1) > 0).all()


def test_small_numbers_of_half_precision_are_kept():
    """They are normal numbers in float32; a conversion does not flush them, on a GPU neither."""
    x, y = np.full(32, 6e-8, np.float32), np.zeros(32, np.float32)
    run("float16 h; store(h, x[threadIdx.x]); y[threadIdx.x] = load(h);", x, y, block=32)
    np.testing.assert_array_equal(y, x.astype(np.float16).astype(np.float32))


# --- memory of others --------------------------------------------------------------------------------------

SHIFT = 'extern "C" __global__ void shift(const float* x, float* y, int by) { y[threadIdx.x] = x[int(threadIdx.x) + by]; }'


@pytest.mark.parametrize("at_end", [True, False])
def test_a_kernel_gives_the_same_result_on_fenced_copies(at_end):
    x, y = np.arange(32, dtype=np.float32), np.zeros(40, np.float32)
    with fenced([(x.ctypes.data, x.nbytes), (y.ctypes.data, y.nbytes)], at_end) as there:
        load(SHIFT).launch("shift", (1,), (32,), (there(x.ctypes.data), there(y[4:].ctypes.data), np.int32(0)))
    np.testing.assert_array_equal(y, np.concatenate([np.zeros(4), x, np.zeros(4)]))


@pytest.mark.parametrize("by, thread", [(1, 31), (32, 0), (-1, 0)])
def test_an_access_outside_an_array_is_reported_with_its_thread(by, thread):
    x, y = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    module = load(SHIFT)
    with fenced([(x.ctypes.data, x.nbytes), (y.ctypes.data, y.nbytes)], at_end=by > 0) as there:
        arguments = there(x.ctypes.data), there(y.ctypes.data)
        with pytest.raises(KernelError, match=rf"thread \({thread}, 0, 0\): touches address 0x\w+, which is in none of its arrays"):
            module.launch("shift", (1,), (32,), (*arguments, np.int32(by)))
        module.launch("shift", (1,), (32,), (*arguments, np.int32(0)))  # and the next launch is none the worse for it
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("at_end", [True, False])
def test_a_write_between_an_array_and_its_fence_is_seen(at_end):
    """A fence stands at a multiple of 16 bytes, because kernels may read, but not write, up to there."""
    x, module = np.arange(32, dtype=np.float32), load(SHIFT)

    def write_to(y):
        with fenced([(x.ctypes.data, x.nbytes), (y.ctypes.data, y.nbytes)], at_end) as there:
            module.launch("shift", (1,), (32,), (there(x.ctypes.data), there(y.ctypes.data), np.int32(0)))

    write_to(np.zeros(32, np.float32))
    with pytest.raises(KernelError, match="8 bytes behind an array of 120 bytes were written to"):
        write_to(np.zeros(30, np.float32))


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_the_stand_in_fences_the_arrays_of_every_launch(standin, order):
    kernel = standin.RawModule(code=SHIFT, options=()).get_function("shift")
    x, y = standin.arange(32, dtype="float32"), standin.zeros(32, "float32")
    machine.machine.order = order
    with pytest.raises(KernelError, match="touches address"):
        kernel((1,), (32,), (x, y, np.int32(1 if order == "ascending" else -1)))
    kernel((1,), (32,), (x, y, np.int32(0)))
    np.testing.assert_array_equal(y.get(), x.get())


def test_a_grid_that_is_too_high_is_refused(standin):
    kernel = standin.RawModule(code=SHIFT, options=()).get_function("shift")
    with pytest.raises(RuntimeError, match="invalid"):
        kernel((1, 65536), (32,), (standin.zeros(32, "float32"), standin.zeros(32, "float32"), np.int32(0)))
