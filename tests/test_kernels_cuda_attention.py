"""Attention in CUDA, run on the CPU: the products of tiles by themselves, then every kind of number, head size and ragged length against
the book in float64; dropout against the same bits drawn here; and faults that must be seen."""

from __future__ import annotations

import functools
import itertools
from unittest import mock

import numpy as np
import pytest

from tensorlite import nn, random
from tensorlite.backend import to_numpy
from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda import attention as cuda_attention
from tensorlite.kernels.cuda import compile as compiling
from tensorlite.kernels.cuda import self_attention as cuda_self_attention
from tensorlite.ops import attention as book
from tensorlite.ops import self_attention as self_book
from tensorlite.precision import use_precision
from tests.compare import relative_error
from tests.cuda_on_cpu import KernelError, load
from tests.standin import machine

ORDERS = ("ascending", "descending", "shuffled")
ERRORS = {"float32": 3e-6, "tf32": 3e-3, "float16": 3e-3, "bfloat16": 2e-2}  # allowed, relative to the largest number
HEAD_SIZES = (8, 16, 24, 32, 64, 80, 128)
LENGTHS = (2, 17, 63, 64, 65, 130)


def dtype_of(kind):
    return {"float16": np.dtype("float16"), "bfloat16": bfloat16_dtype()}.get(kind, np.dtype("float32"))


def numbers(*shape, kind="float32", seed=0, std=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * std).astype(dtype_of(kind))


@pytest.fixture
def cupy(any_cupy):
    """CuPy, or the stand-in, whose threads then run in the order asked for."""
    yield any_cupy
    machine.machine.order = "ascending"


def self_attention(cupy, qkv, dy, n_head, kind="float32", order="ascending", **options):
    """y and dqkv by the CUDA pair."""
    machine.machine.order = order
    with use_precision(kind):
        given = cupy.asarray(qkv)
        assert cuda_self_attention.supports(given, n_head, **options)
        y, saved = cuda_self_attention.causal_self_attention_forward(given, n_head, **options)
        return to_numpy(y), to_numpy(cuda_self_attention.causal_self_attention_backward(cupy.asarray(dy), saved))


def self_attention_by_the_book(qkv, dy, n_head):
    y, saved = self_book.causal_self_attention_forward(qkv.astype(np.float64), n_head)
    return y, self_book.causal_self_attention_backward(dy.astype(np.float64), saved)


def attention(cupy, q, k, v, dy, kind="float32", order="ascending", **options):
    """y, dq, dk, dv by the CUDA pair."""
    machine.machine.order = order
    with use_precision(kind):
        given = [cupy.asarray(x) for x in (q, k, v)]
        assert cuda_attention.supports(*given, **options)
        y, saved = cuda_attention.attention_forward(*given, **options)
        return [to_numpy(x) for x in (y, *cuda_attention.attention_backward(cupy.asarray(dy), saved))]


def attention_by_the_book(q, k, v, dy, **options):
    y, saved = book.attention_forward(*(x.astype(np.float64) for x in (q, k, v)), **options)
    return [y, *book.attention_backward(dy.astype(np.float64), saved)[:3]]


def assert_close(found, right, kind):
    for name, x, exact in zip(("y", "dq or dqkv", "dk", "dv"), found, right, strict=False):
        assert x.dtype == dtype_of(kind) and x.shape == exact.shape
        error = relative_error(x.astype(np.float64), exact)
        assert error <= ERRORS[kind], f"{name} is off by {error:.2g} of its largest number"


# --- products of tiles -----------------------------------------------------------------------------------


def run_on_tiles(body, kind, order, arrays, M=1, N=2, width=32):
    """One warp with two tiles in shared memory: `a` of 16 M rows, `b` of 8 N rows, both of `width` numbers."""
    real = "float32" if kind in ("float32", "tf32") else kind
    text = f"""{compiling.source("tiles.cuh")}
    using Numbers = Tile<{real}, {width}, {str(kind != "float32").lower()}>;
    constexpr int M = {M}, N = {N}, STRIDE = Numbers::STRIDE;
    extern "C" __global__ void test(const {real}* left, const {real}* right, float* out) {{
        DYNAMIC_SHARED({real}, a);
        {real}* b = a + 16 * M * STRIDE;
        Numbers::copy<16 * M, 32>(a, left, {width}, 16 * M);
        Numbers::copy<8 * N, 32>(b, right, {width}, 8 * N);
        wait_for_copies();
        __syncthreads();
        {body}
    }}"""
    module = load(text)
    module.order = order
    size = (16 * M + 8 * N) * cuda_attention.row_bytes(dtype_of(kind).itemsize, width)
    module.launch("test", (1,), (32,), tuple(x.ctypes.data for x in arrays), shared_mem=size)
    return arrays[-1]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["tf32", "float16", "bfloat16"])
def test_mma_uses_the_documented_layout(kind, order):
    per_word = 4 // dtype_of(kind).itemsize
    a, b, c = numbers(16, 8 * per_word, kind=kind), numbers(8, 8 * per_word, kind=kind, seed=1), np.zeros((16, 8), np.float32)
    real = "float32" if kind == "tf32" else kind
    module = load(f"""{compiling.source("mma.cuh")}
    extern "C" __global__ void test(const unsigned* left, const unsigned* right, float* out) {{
        int row = threadIdx.x / 4, word = threadIdx.x % 4;
        unsigned a[4], b[2];
        for (int i = 0; i < 4; i++) a[i] = left[(row + i % 2 * 8) * 8 + word + i / 2 * 4];
        for (int i = 0; i < 2; i++) b[i] = right[row * 8 + word + i * 4];
        float c[4] = {{1, 2, 3, 4}};
        mma(c, a, b, {real}());
        for (int i = 0; i < 4; i++) out[(row + i / 2 * 8) * 8 + 2 * word + i % 2] = c[i];
    }}""")
    module.order = order
    module.launch("test", (1,), (32,), tuple(x.ctypes.data for x in (a, b, c)))
    start = np.tile([[1.0, 2.0]], (16, 4)) + np.repeat([0, 2], 8)[:, None]
    cut = [(x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) if kind == "tf32" else x for x in (a, b)]  # what tensor cores read
    np.testing.assert_allclose(c, start + cut[0].astype(np.float64) @ cut[1].astype(np.float64).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_load_matrices_gives_the_layout_of_mma(transposed):
    x, words = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8), np.zeros((32, 4), np.uint32)
    module = load(f"""{compiling.source("mma.cuh")}
    extern "C" __global__ void test(const unsigned short* x, unsigned* out) {{
        unsigned words[4];
        load_matrices<{str(transposed).lower()}>(words, x + 8 * threadIdx.x);
        for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = words[i];
    }}""")
    module.launch("test", (1,), (32,), (x.ctypes.data, words.ctypes.data))
    matrices = (x.swapaxes(1, 2) if transposed else x).copy()
    np.testing.assert_array_equal(words, matrices.view(np.uint32).reshape(4, 32).T)


STORE = """for (int i = 0; i < M * COLUMNS * 4; i++) {
    int m = i / (4 * COLUMNS), n = i / 4 % COLUMNS;
    out[row_of(m, i / 2 % 2) * 8 * COLUMNS + column_of(n, i % 2)] = c[m][n][i % 4];
}"""


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("M, N", [(1, 2), (2, 4)])
@pytest.mark.parametrize("kind", ERRORS)
def test_a_warp_multiplies_two_tiles(kind, M, N, order):
    a, b, c = numbers(16 * M, 32, kind=kind), numbers(8 * N, 32, kind=kind, seed=1), np.zeros((16 * M, 8 * N), np.float32)
    body = "constexpr int COLUMNS = N; float c[M][N][4] = {}; Numbers::multiply_abt(c, a, b);" + STORE
    run_on_tiles(body, kind, order, (a, b, c), M, N)
    assert relative_error(c, a.astype(np.float64) @ b.astype(np.float64).T) <= (1e-3 if kind == "tf32" else 1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("M, N", [(1, 2), (2, 4)])
@pytest.mark.parametrize("kind", ERRORS)
def test_a_warp_multiplies_a_product_in_its_registers_with_a_tile(kind, M, N, order):
    a, b = numbers(16 * M, 32, kind=kind), numbers(8 * N, 32, kind=kind, seed=1)
    c = np.zeros((16 * M, 32), np.float32)
    body = "constexpr int COLUMNS = 4; float p[M][N][4] = {}, c[M][4][4] = {};"
    body += "Numbers::multiply_abt(p, a, b); Numbers::multiply_ab(c, p, b);" + STORE
    run_on_tiles(body, kind, order, (a, b, c), M, N)
    a, b = a.astype(np.float64), b.astype(np.float64)
    assert relative_error(c, a @ b.T @ b) <= ERRORS[kind] / 3


# --- against the book ------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", HEAD_SIZES)
@pytest.mark.parametrize("kind", ERRORS)
def test_self_attention_agrees_with_the_book_for_heads_of(kind, D, cupy):
    qkv, dy = numbers(1, 70, 3 * 2 * D, kind=kind), numbers(1, 70, 2 * D, kind=kind, seed=1)
    assert_close(self_attention(cupy, qkv, dy, 2, kind), self_attention_by_the_book(qkv, dy, 2), kind)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("kind", ERRORS)
def test_self_attention_agrees_with_the_book_on_a_text_of(kind, T, cupy):
    qkv, dy = numbers(2, T, 3 * 2 * 32, kind=kind), numbers(2, T, 2 * 32, kind=kind, seed=1)
    right = self_attention_by_the_book(qkv, dy, 2)
    for order in ORDERS:
        assert_close(self_attention(cupy, qkv, dy, 2, kind, order), right, kind)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("T, S", [(2, 70), (70, 2), (65, 64), (33, 140), (140, 33), (64, 192)])
@pytest.mark.parametrize("kind", ERRORS)
def test_queries_and_keys_may_be_of_different_number(kind, T, S, is_causal, cupy):
    q, k, v = (numbers(2, 1, length, 16, kind=kind, seed=i) for i, length in enumerate((T, S, S)))
    dy = numbers(2, 1, T, 16, kind=kind, seed=3)
    right = attention_by_the_book(q, k, v, dy, is_causal=is_causal, scale=0.4)
    assert_close(attention(cupy, q, k, v, dy, kind, is_causal=is_causal, scale=0.4), right, kind)


@pytest.mark.parametrize(
    "kind, group, T, S, is_causal",
    [
        *((kind, 3, 70, 33, True) for kind in ERRORS),
        ("float32", 2, 65, 70, False),
        ("float32", 9, 20, 20, True),
        ("bfloat16", 2, 17, 70, False),
    ],
)
def test_heads_of_queries_share_a_head_of_keys(kind, group, T, S, is_causal, cupy):
    q, dy = (numbers(2, 2, group, T, 16, kind=kind, seed=seed) for seed in (0, 3))
    k, v = (numbers(2, 2, 1, S, 16, kind=kind, seed=seed) for seed in (1, 2))
    right = attention_by_the_book(q, k, v, dy, is_causal=is_causal)
    assert_close(attention(cupy, q, k, v, dy, kind, "shuffled", is_causal=is_causal), right, kind)


@pytest.mark.parametrize("D, dtype", [(16, "float32"), (12, "float32"), (16, "float64")], ids=["kernel", "book", "book in float64"])
def test_grouped_queries_are_those_of_the_cpu(D, dtype, cupy):
    """Also where the kernel leaves them to the book, which lets keys broadcast."""
    drawn = [np.random.default_rng(0).standard_normal(shape).astype(dtype) for shape in ((2, 6, 20, D), (2, 2, 20, D), (2, 2, 20, D))]
    results = []
    for asarray in (np.asarray, cupy.asarray):
        q, k, v = (nn.Parameter(asarray(x)) for x in drawn)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        (y * y).sum().backward()
        results.append([to_numpy(x) for x in (y.array, *(tensor.grad.array for tensor in (q, k, v)))])
    for found, right in zip(results[1], results[0], strict=True):
        assert relative_error(found, right) <= ERRORS["float32"]


def test_each_head_of_a_group_has_a_dropout_mask_of_its_own(cupy):
    group, T, S, p, key = 3, 40, 70, 0.3, (12345, 678)
    q, dy = numbers(1, 2, group, T, 16), numbers(1, 2, group, T, 16, seed=3)
    k, v = numbers(1, 2, 1, S, 16, seed=1), numbers(1, 2, 1, S, 16, seed=2)
    mask = np.stack([kept(key, 0, head, T, S, p) for head in range(2 * group)]).reshape(1, 2, group, T, S)
    with random.use_dropout_key(cupy.asarray(np.array(key, np.uint32))):
        found = attention(cupy, q, k, v, dy, dropout_p=p)
    with mock.patch.object(random, "dropout_mask", lambda shape, p, stream: (mask, random.dropout_threshold(p)[1])):
        right = attention_by_the_book(q, k, v, dy, dropout_p=p)
    assert_close(found, right, "float32")


def test_heads_that_are_views_of_another_array_are_read_correctly(cupy):
    x, dy = numbers(2, 20, 3, 2, 16), numbers(2, 2, 20, 16)
    q, k, v = cupy.asarray(x).transpose(2, 0, 3, 1, 4)
    y, saved = cuda_attention.attention_forward(q, k, v, is_causal=True)
    found = [to_numpy(a) for a in (y, *cuda_attention.attention_backward(cupy.asarray(dy), saved))]
    assert_close(found, attention_by_the_book(*x.transpose(2, 0, 3, 1, 4), dy, is_causal=True), "float32")


@pytest.mark.parametrize("std", [30.0, 1e-3])
@pytest.mark.parametrize("kind", ERRORS)
def test_scores_of_thousands_overflow_nothing(kind, std, cupy):
    q, k, v = (numbers(1, 1, 70, 16, kind=kind, seed=i, std=std if i < 2 else 1) for i in range(3))
    dy = numbers(1, 1, 70, 16, kind=kind, seed=3)
    found = attention(cupy, q, k, v, dy, kind, is_causal=True)
    assert all(np.isfinite(x.astype(np.float32)).all() for x in found)
    if kind == "tf32" and std > 1:  # a score of 4000 is known up to 2: softmax of that is another one
        return
    right = attention_by_the_book(q, k, v, dy, is_causal=True)
    for x, exact in zip(found, right, strict=True):
        assert relative_error(x.astype(np.float64), exact) <= (max(2 * ERRORS[kind], 2e-3) if std > 1 else ERRORS[kind])


@pytest.mark.parametrize("kind", ERRORS)
def test_the_bits_do_not_depend_on_the_order_of_threads_and_blocks(kind, cupy):
    qkv, dy = numbers(2, 130, 3 * 2 * 16, kind=kind), numbers(2, 130, 2 * 16, kind=kind, seed=1)
    first = self_attention(cupy, qkv, dy, 2, kind)
    for order in (*ORDERS, "ascending"):
        for x, y in zip(first, self_attention(cupy, qkv, dy, 2, kind, order), strict=True):
            np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))


def test_later_positions_do_not_change_the_result(cupy):
    qkv, dy = numbers(1, 100, 3 * 16), numbers(1, 100, 16, seed=1)
    changed = qkv.copy()
    changed[:, 50:] = numbers(1, 50, 3 * 16, seed=2)
    np.testing.assert_array_equal(self_attention(cupy, qkv, dy, 1)[0][:, :50], self_attention(cupy, changed, dy, 1)[0][:, :50])


def test_no_array_of_the_size_of_the_weights_is_kept_and_no_value_is_read(cupy):
    T = 256
    qkv = cupy.asarray(numbers(1, T, 3 * 8))
    with machine.forbid_host_reads():
        _, saved = cuda_self_attention.causal_self_attention_forward(qkv, 1)
        cuda_self_attention.causal_self_attention_backward(cupy.asarray(numbers(1, T, 8)), saved)
    assert sum(x.size for x in saved[1:]) == qkv.size + T * 8 + T


# --- dropout ---------------------------------------------------------------------------------------------


@functools.cache
def kept(key, call, head, T, S, p):
    """Which weights of a head stay: the mask that attention.cu describes, drawn in plain Python."""

    def philox(counter):
        (k0, k1), c, bits = key, counter, 0xFFFFFFFF
        for _ in range(10):
            a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = ((b >> 32) ^ c[1] ^ k0, b & bits, (a >> 32) ^ c[3] ^ k1, a & bits)
            k0, k1 = (k0 + 0x9E3779B9) & bits, (k1 + 0xBB67AE85) & bits
        return c

    mask = np.empty((T, S), bool)
    for t in range(T):
        for s in range(S):
            i = t // 8 % 2 * 4 + s // 8 % 4
            word = philox((t // 16 * 8 + t % 8, s // 32 * 8 + s % 8, call, head))[i // 2]
            mask[t, s] = (word >> (i % 2 * 16) & 0xFFFF) >= round(p * 65536)
    return mask


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("D", [16, 128])
@pytest.mark.parametrize("kind", ERRORS)
def test_dropout_uses_the_same_mask_in_forward_and_backward(kind, D, order, cupy):
    T, S, p, key = 40, 70, 0.3, (12345, 678)
    q, k, v = (numbers(1, 2, length, D, kind=kind, seed=i) for i, length in enumerate((T, S, S)))
    dy = numbers(1, 2, T, D, kind=kind, seed=3)
    mask = np.stack([kept(key, 1, head, T, S, p) for head in range(2)])[None]
    with random.use_dropout_key(cupy.asarray(np.array(key, np.uint32))):
        random.next_dropout_key(cupy)  # call number 0 is somebody else's
        found = attention(cupy, q, k, v, dy, kind, order, dropout_p=p)
    with mock.patch.object(random, "dropout_mask", lambda shape, p, stream: (mask, random.dropout_threshold(p)[1])):
        right = attention_by_the_book(q, k, v, dy, dropout_p=p)
    assert_close(found, right, kind)


def test_a_gradient_that_begins_between_two_chunks_of_16_bytes(cupy):
    q, k, v, dy = (numbers(1, 1, 20, 8, seed=seed) for seed in range(4))
    longer = cupy.zeros(dy.size + 1, "float32")
    longer[1:] = cupy.asarray(dy).reshape(-1)
    _, saved = cuda_attention.attention_forward(*map(cupy.asarray, (q, k, v)))
    found = cuda_attention.attention_backward(longer[1:].reshape(dy.shape), saved)
    for one, right in zip(found, cuda_attention.attention_backward(cupy.asarray(dy), saved), strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(right))


def test_dropout_keeps_a_share_1_minus_p_and_each_head_and_call_has_its_own_mask():
    masks = [kept((1, 2), call, head, 64, 64, 0.25) for call in range(2) for head in range(2)]
    assert all(abs(mask.mean() - 0.75) < 0.04 for mask in masks)
    for i, one in enumerate(masks):
        assert all(abs((one == other).mean() - (0.75**2 + 0.25**2)) < 0.04 for other in masks[:i])


def test_all_is_dropped_with_probability_1(cupy):
    y, dqkv = self_attention(cupy, numbers(1, 20, 3 * 16), numbers(1, 20, 16), 1, dropout_p=1.0)
    assert not y.any() and not dqkv.any()


def test_without_a_key_in_use_dropout_draws_one_from_the_stream(cupy):
    qkv, dy = numbers(1, 20, 3 * 16), numbers(1, 20, 16)
    runs = [self_attention(cupy, qkv, dy, 1, dropout_p=0.5, generator=random.make_generator(seed))[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


# --- what is refused, and what must be seen --------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: ((q, k, v), {"mask": np.ones((9, 9), bool)}),
        lambda q, k, v: ((q, k, v), {"scale": -1.0}),
        lambda q, k, v: ((q, k, v), {"dropout_p": 1.5}),
        lambda q, k, v: ((q[:1], k, v), {}),
        lambda q, k, v: ((q, k, v[..., :8]), {}),
        lambda q, k, v: ((q[..., :12], k[..., :12], v[..., :12]), {}),
        lambda q, k, v: ((q, k, v.astype("float16")), {}),
        lambda q, k, v: (tuple(x.astype("float64") for x in (q, k, v)), {}),
        lambda q, k, v: ((q[..., :0, :], k, v), {}),
    ],
    ids=["mask", "scale", "p", "broadcast", "values", "twelve", "mixed", "float64", "empty"],
)
def test_unsupported_arguments_are_left_to_the_book(change, cupy):
    q, k, v = (cupy.asarray(numbers(2, 9, 16, seed=i)) for i in range(3))
    assert cuda_attention.supports(q, k, v)
    arrays, options = change(q, k, v)
    assert not cuda_attention.supports(*arrays, **options)


def test_other_devices_and_odd_addresses_are_left_to_the_book(cupy):
    x = numbers(1, 9, 48)
    flat = cupy.asarray(numbers(9 * 48 + 4))
    assert not cuda_self_attention.supports(x, 1)
    assert not cuda_attention.supports(x, x, x)
    assert not cuda_self_attention.supports(flat[1:-3].reshape(1, 9, 48), 1)
    assert not cuda_self_attention.supports(cupy.asarray(x)[:, ::2], 1)
    assert not cuda_self_attention.supports(cupy.asarray(x), 5)
    assert cuda_self_attention.supports(cupy.asarray(x), 1)


def test_gpus_older_than_their_instructions_are_left_to_the_book(standin):
    x = standin.asarray(numbers(1, 9, 48))
    assert cuda_self_attention.supports(x, 1)
    machine.machine.compute_capability = (7, 5)
    assert not cuda_self_attention.supports(x, 1)


@pytest.mark.parametrize("dtype, itemsize", [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("D", range(8, 129, 8))
def test_no_block_needs_more_shared_memory_than_small_gpus_have(dtype, itemsize, D):
    for dropout, little in itertools.product((False, True), repeat=2):
        sizes = cuda_attention.variant(dtype, D, dropout=dropout, small_shared=little)
        for name, owned in (("FORWARD", 1), ("Q", 2), ("KV", 2)):
            rows = owned * 64 * sizes[f"{name}_M"] + 4 * 8 * sizes[f"{name}_N"]
            assert rows * cuda_attention.row_bytes(itemsize, D) <= 99 * 1024


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind, D, T", [("bfloat16", 64, 130), ("float16", 32, 65), ("bfloat16", 80, 33)])
def test_the_tiles_of_gpus_with_little_shared_memory(kind, D, T, order, standin):
    machine.machine.compute_capability = (8, 9)
    qkv, dy = numbers(1, T, 3 * 2 * D, kind=kind, seed=1), numbers(1, T, 2 * D, kind=kind, seed=2)
    launches = []
    with mock.patch.object(cuda_attention, "variant", side_effect=cuda_attention.variant) as asked:
        found = self_attention(standin, qkv, dy, 2, kind, order)
        launches += asked.mock_calls
    assert all(call.args[-1] is True for call in launches) and launches
    assert_close(found, self_attention_by_the_book(qkv, dy, 2), kind)


def with_fault(name, old, new, which):
    """The source with the first occurrence of ``old`` behind the beginning of a kernel replaced; ``which`` counts from there."""
    text = compiling.source("attention.cu")
    place = text.index(f"{name}(")
    for _ in range(which + 1):
        place = text.index(old, place + 1)
    return text[:place] + new + text[place + len(old) :]


FAULTS = {
    "forward: no barrier": ("attention_forward", "__syncthreads();", "", 1),
    "dq: no barrier": ("attention_backward_q", "__syncthreads();", "", 1),
    "dk, dv: no barrier": ("attention_backward_kv", "__syncthreads();", "", 1),
    "forward: copies are not waited for": ("attention_forward", "wait_for_copies();", "", 1),
    "dk, dv: copies are not waited for": ("attention_backward_kv", "wait_for_copies();", "", 1),
    "forward: the next tile into the buffer that is read": ("attention_forward", "(buffer ^ 1)", "buffer", 0),
    "forward: a stride of values": ("attention_forward", "v + (long long)next * row, row", "v + (long long)next * row, H * D", 0),
    "dq: a stride of dy": ("attention_backward_q", "(long long)first * y_row, y_row", "(long long)first * y_row, row", 0),
    "dk, dv: a stride of queries": ("attention_backward_kv", "(long long)t0 * row, row", "(long long)t0 * row, y_row", 0),
}


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_planted_race_or_wrong_stride_is_detected(fault, kind, standin):
    text = with_fault(*fault)
    qkv, dy = numbers(1, 200, 3 * 2 * 16, kind=kind), numbers(1, 200, 2 * 16, kind=kind, seed=1)
    right = self_attention_by_the_book(qkv, dy, 2)

    def seen(order):
        try:
            assert_close(self_attention(standin, qkv, dy, 2, kind, order), right, kind)
        except (AssertionError, KernelError):
            return True
        return False

    assert not any(map(seen, ORDERS))
    compiling.clear_cache()
    with mock.patch.object(compiling, "source", return_value=text):
        assert any(map(seen, ORDERS))
    compiling.clear_cache()


def test_a_tile_past_the_last_query_reads_nothing_there(standin):
    """Tiles of 128 queries, and log-sums for 192: it went unnoticed until arrays had fences."""
    text = compiling.source("attention.cu")
    planted = text.replace("t < T ? lse[t] : infinity()", "lse[t]")
    assert planted != text
    qkv, dy = numbers(1, 130, 3 * 16, kind="bfloat16"), numbers(1, 130, 16, kind="bfloat16", seed=1)
    compiling.clear_cache()
    sizes = cuda_attention.variant
    with mock.patch.object(cuda_attention, "variant", lambda *given, **more: {**sizes(*given, **more), "Q_M": 2, "Q_N": 2}):
        with mock.patch.object(compiling, "source", return_value=planted), pytest.raises(KernelError, match="in none of its arrays"):
            self_attention(standin, qkv, dy, 1, "bfloat16")
        compiling.clear_cache()
        self_attention(standin, qkv, dy, 1, "bfloat16")
