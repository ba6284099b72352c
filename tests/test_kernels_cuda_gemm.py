"""What reaches cuBLAS: for every way in which a matrix can lie in memory, the flags, leading dimensions and strides; and the product."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.backend import to_numpy
from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda import cublas as ours
from tensorlite.kernels.cuda import cublaslt
from tensorlite.kernels.cuda.cast import cast
from tensorlite.kernels.cuda.gemm import bmm, gemm, gemm_with_bias, layout
from tensorlite.kernels.cuda.graph import CaptureError, Recorder
from tensorlite.kernels.cuda.linear import linear_backward, linear_forward
from tensorlite.kernels.cuda.matmul import matmul_backward, matmul_forward
from tensorlite.precision import use_precision
from tests.standin import cublas, machine

N, T = cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_T


def numbers(xp, *shape, dtype="float32", seed=0):
    return xp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32).astype(dtype))


def product_of(a, b):
    return a.get().astype(np.float64) @ b.get().astype(np.float64)


def last_call():
    return machine.machine.products[-1]


# A (4, 5) · B (5, 6), each laid out in some way. cuBLAS computes Yᵀ (6, 4) = Bᵀ (6, 5) · Aᵀ (5, 4): its "A" is our B.
WAYS = {
    "as it is": (lambda xp, n, m, seed: numbers(xp, n, m, seed=seed), N, lambda n, m: m),
    "transposed": (lambda xp, n, m, seed: numbers(xp, m, n, seed=seed).T, T, lambda n, m: n),
    "a slice of columns": (lambda xp, n, m, seed: numbers(xp, n, m + 7, seed=seed)[:, 3 : 3 + m], N, lambda n, m: m + 7),
    "a slice of columns, transposed": (lambda xp, n, m, seed: numbers(xp, m, n + 7, seed=seed)[:, 2 : 2 + n].T, T, lambda n, m: n + 7),
    "a slice of rows": (lambda xp, n, m, seed: numbers(xp, n + 3, m, seed=seed)[1 : 1 + n], N, lambda n, m: m),
    "every other row": (lambda xp, n, m, seed: numbers(xp, 2 * n, m, seed=seed)[::2], N, lambda n, m: 2 * m),
    "every other column, copied": (lambda xp, n, m, seed: numbers(xp, n, 2 * m, seed=seed)[:, ::2], N, lambda n, m: m),
    "backwards, copied": (lambda xp, n, m, seed: numbers(xp, n, m, seed=seed)[::-1], N, lambda n, m: m),
    "one row repeated, copied": (lambda xp, n, m, seed: xp.broadcast_to(numbers(xp, 1, m, seed=seed), (n, m)), N, lambda n, m: m),
}


@pytest.mark.parametrize("way_of_b", WAYS)
@pytest.mark.parametrize("way_of_a", WAYS)
def test_flags_and_leading_dimensions_of_two_matrices(way_of_a, way_of_b, standin):
    (make_a, flag_a, leading_a), (make_b, flag_b, leading_b) = WAYS[way_of_a], WAYS[way_of_b]
    a, b = make_a(standin, 4, 5, 1), make_b(standin, 5, 6, 2)
    y = gemm(a, b)
    call = last_call()
    assert call["name"] == "gemmEx"
    assert (call["m"], call["n"], call["k"]) == (6, 4, 5)
    assert (call["transa"], call["lda"]) == (flag_b, leading_b(5, 6))
    assert (call["transb"], call["ldb"]) == (flag_a, leading_a(4, 5))
    assert call["ldc"] == 6
    np.testing.assert_allclose(y.get(), product_of(a, b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way, copied", [(way, "copied" in way) for way in WAYS])
def test_nothing_is_copied_that_cublas_can_read(way, copied, standin):
    x = WAYS[way][0](standin, 4, 5, 1)
    assert (layout(x, ()).array is not x) == copied


# Stacks of matrices: (shape, how the view is made, the distance from one to the next, or None where it must be copied)
STACKS = {
    "3-D": (lambda xp: numbers(xp, 3, 4, 5), 20, N, 5),
    "3-D, transposed": (lambda xp: numbers(xp, 3, 5, 4).swapaxes(1, 2), 20, T, 4),
    "one for all": (lambda xp: numbers(xp, 4, 5), 0, N, 5),
    "one for all, with an axis": (lambda xp: numbers(xp, 1, 4, 5), 0, N, 5),
    "every other one": (lambda xp: numbers(xp, 6, 4, 5)[::2], 40, N, 5),
    "heads side by side": (lambda xp: numbers(xp, 4, 3, 5).swapaxes(0, 1), 5, N, 15),
    "heads of the keys": (lambda xp: numbers(xp, 5, 3, 4).transpose(1, 2, 0), 4, T, 12),
    "repeated by a stride of 0, copied": (lambda xp: xp.broadcast_to(numbers(xp, 4, 5), (3, 4, 5)), 20, N, 5),
}


@pytest.mark.parametrize("way", STACKS)
def test_strides_of_a_stack(way, standin):
    make, stride, flag, leading = STACKS[way]
    a, b = make(standin), numbers(standin, 3, 5, 6, seed=9)
    y = bmm(a, b)
    call = last_call()
    assert call["name"] == "gemmStridedBatchedEx" and call["batch"] == 3
    assert (call["transb"], call["ldb"], call["strideB"]) == (flag, leading, stride)
    assert (call["transa"], call["lda"], call["strideA"]) == (N, 6, 30)
    assert (call["ldc"], call["strideC"]) == (6, 24)
    np.testing.assert_allclose(y.get(), product_of(a, b), rtol=1e-5, atol=1e-5)


def test_four_axes_become_one_batch_if_one_stride_describes_them(standin):
    a, b = numbers(standin, 2, 3, 4, 5), numbers(standin, 2, 3, 5, 6, seed=1)
    np.testing.assert_allclose(bmm(a, b).get(), product_of(a, b), rtol=1e-5, atol=1e-5)
    assert (last_call()["batch"], last_call()["strideB"], last_call()["strideA"]) == (6, 20, 30)
    heads = numbers(standin, 2, 4, 3, 5).swapaxes(1, 2)  # (B, H, T, D) as it lies in (B, T, H, D): two strides, so it is copied
    np.testing.assert_allclose(bmm(heads, b).get(), product_of(heads, b), rtol=1e-5, atol=1e-5)
    assert last_call()["strideB"] == 20
    np.testing.assert_allclose(bmm(a[:, :1], b).get(), product_of(a[:, :1], b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n, m, p", [(1, 5, 6), (4, 1, 6), (4, 5, 1), (1, 1, 1), (1, 5, 1), (1, 1, 6), (4, 1, 1)])
@pytest.mark.parametrize("transposed", [False, True])
def test_axes_of_length_one(n, m, p, transposed, standin):
    a = numbers(standin, m, n).T if transposed else numbers(standin, n, m)
    b = numbers(standin, p, m, seed=1).T if transposed else numbers(standin, m, p, seed=1)
    np.testing.assert_allclose(gemm(a, b).get(), product_of(a, b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape_a, shape_b", [((0, 5), (5, 6)), ((4, 0), (0, 6)), ((4, 5), (5, 0)), ((0, 4, 5), (0, 5, 6))])
def test_empty_products(shape_a, shape_b, standin):
    y = bmm(standin.zeros(shape_a, "float32"), standin.zeros(shape_b, "float32"))
    np.testing.assert_array_equal(y.get(), np.zeros(shape_a, "float32") @ np.zeros(shape_b, "float32"))
    assert not machine.machine.products


def test_a_matmuls_backward_gives_both_gradients_unless_told_otherwise(standin):
    a, b = (standin.asarray(np.random.default_rng(0).standard_normal(shape).astype(np.float32)) for shape in [(4, 5), (5, 6)])
    y, saved = matmul_forward(a, b)
    for found, right in zip(matmul_backward(y, saved), (y.get() @ b.get().T, a.get().T @ y.get()), strict=True):
        np.testing.assert_allclose(found.get(), right, rtol=1e-5)
    da, db = matmul_backward(y, saved, needs_grad=(False, True))
    assert da is None
    assert db is not None


def test_a_product_can_be_added_to_an_array(standin):
    a, b, out = numbers(standin, 4, 5), numbers(standin, 5, 6), numbers(standin, 4, 6, seed=3)
    before = out.get()
    assert gemm(a, b, out=out, add=True) is out
    assert (last_call()["alpha"], last_call()["beta"]) == (1, 1)
    np.testing.assert_allclose(out.get(), before + product_of(a, b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "precision, dtype, kind, compute, error",
    [
        ("float32", "float32", cublas.R_32F, cublas.CUBLAS_COMPUTE_32F, 1e-6),
        ("tf32", "float32", cublas.R_32F, cublas.CUBLAS_COMPUTE_32F_FAST_TF32, 2e-3),
        ("bfloat16", "bfloat16", cublas.R_16BF, cublas.CUBLAS_COMPUTE_32F, 1e-2),
        ("float16", "float16", cublas.R_16F, cublas.CUBLAS_COMPUTE_32F, 1e-3),
        ("tf32", "float16", cublas.R_16F, cublas.CUBLAS_COMPUTE_32F, 1e-3),
    ],
)
def test_types_of_every_precision(precision, dtype, kind, compute, error, standin):
    stored = bfloat16_dtype() if dtype == "bfloat16" else dtype
    a, b = numbers(standin, 8, 64, dtype=stored), numbers(standin, 64, 8, dtype=stored, seed=1)
    with use_precision(precision):
        y, wide = gemm(a, b), gemm(a, b, dtype="float32")
    assert (last_call()["Atype"], last_call()["Btype"], last_call()["Ctype"], last_call()["compute"]) == (kind, kind, cublas.R_32F, compute)
    exact = product_of(a, b)
    assert y.dtype == a.dtype and wide.dtype == np.float32
    assert np.abs(y.get().astype(np.float64) - exact).max() <= error * np.abs(exact).max()
    if precision == "tf32" and dtype == "float32":
        assert np.abs(wide.get() - exact).max() > 1e-5, "the factors were not rounded"
    else:
        np.testing.assert_allclose(wide.get(), exact, rtol=1e-5, atol=1e-4)


def test_a_wrong_stride_is_detected(standin, monkeypatch):
    """A fault planted: the stack is walked in steps of one row too few."""
    from tensorlite.kernels.cuda import gemm as module

    right = module._batch_stride
    monkeypatch.setattr(module, "_batch_stride", lambda x, batch: max(0, right(x, batch) - x.shape[-1]))
    a, b = numbers(standin, 3, 4, 5), numbers(standin, 3, 5, 6, seed=1)
    assert not np.allclose(bmm(a, b).get(), product_of(a, b), rtol=1e-3)


def test_three_products_of_a_linear_layer_copy_nothing(standin):
    """Forward reads the weight transposed, backward as it is; dweight reads dy transposed and comes out in float32."""
    from tensorlite.kernels.cuda.linear import linear_backward, linear_forward

    x, weight, bias = numbers(standin, 2, 4, 5), numbers(standin, 6, 5), numbers(standin, 6)
    with use_precision("bfloat16"):
        y, saved = linear_forward(x, weight, bias)
        linear_backward(y, saved)
    calls = machine.machine.products
    assert [(c["transa"], c["transb"]) for c in calls] == [(T, N), (N, N), (N, T)]
    assert [(c["m"], c["n"], c["k"]) for c in calls] == [(6, 8, 5), (5, 8, 6), (5, 6, 8)]
    assert [c["Atype"] for c in calls] == [cublas.R_16BF] * 3
    assert [c["Ctype"] for c in calls] == [cublas.R_16BF, cublas.R_32F, cublas.R_32F]
    assert [c["beta"] for c in calls] == [0, 0, 0] and calls[0]["epilogue"] == cublas.EPILOGUE_BIAS


# --- epilogues ---------------------------------------------------------------------------------------------

DTYPES = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}  # two roundings to 2⁻²⁴, 2⁻¹¹, 2⁻⁸ of the largest number


@pytest.mark.parametrize("way_of_b", ["as it is", "transposed"])
@pytest.mark.parametrize("way_of_a", ["as it is", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_and_its_bias(dtype, way_of_a, way_of_b, any_cupy):
    stored = bfloat16_dtype() if dtype == "bfloat16" else np.dtype(dtype)
    make_a, make_b = WAYS[way_of_a][0], WAYS[way_of_b][0]
    a, b = make_a(any_cupy, 16, 24, 1).astype(stored, order="A"), make_b(any_cupy, 24, 32, 2).astype(stored, order="A")
    bias = numbers(any_cupy, 32, dtype=stored, seed=3)
    y = gemm_with_bias(a, b, bias, any_cupy.empty((16, 32), stored))
    exact = product_of(a, b) + bias.get().astype(np.float64)
    assert np.abs(y.get().astype(np.float64) - exact).max() <= DTYPES[dtype] * np.abs(exact).max()


def test_a_plan_is_made_once_for_a_shape(standin):
    a, b, bias = numbers(standin, 4, 5), numbers(standin, 5, 6, seed=1), numbers(standin, 6)
    for _ in range(3):
        gemm_with_bias(a, b, bias, standin.empty((4, 6), "float32"))
    assert [call["name"] for call in machine.machine.products] == ["ltMatmul"] * 3
    assert len(ours.get_handle(standin).cublaslt._plans) == 1


def test_without_an_algorithm_the_bias_is_written_first(standin, monkeypatch):
    monkeypatch.setattr(cublaslt.get_cublaslt(standin)._library, "knows", ())
    a, b, bias = numbers(standin, 4, 5), numbers(standin, 5, 6, seed=1), numbers(standin, 6)
    y = gemm_with_bias(a, b, bias, standin.empty((4, 6), "float32"))
    np.testing.assert_allclose(y.get(), product_of(a, b) + bias.get(), rtol=1e-5, atol=1e-5)
    assert [call["name"] for call in machine.machine.products] == ["gemmEx"] and last_call()["beta"] == 1


def test_an_algorithm_is_used_for_addresses_as_it_was_promised(standin, monkeypatch):
    """A fault planted: every address is said to be a multiple of 256 bytes."""
    a, b, bias = numbers(standin, 4, 8), numbers(standin, 8, 8, seed=1), numbers(standin, 8)
    shifted = standin.empty(33, "float32")[1:].reshape(4, 8)
    np.testing.assert_allclose(gemm_with_bias(a, b, bias, shifted).get(), product_of(a, b) + bias.get(), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(cublaslt, "alignment", lambda address: 256)
    with pytest.raises(AssertionError, match="is not a multiple of 256, as the algorithm was promised"):
        gemm_with_bias(a, b, bias, shifted)


def test_a_captured_product_with_a_bias_reads_its_own_bias(any_cupy):
    """The address of the bias is part of a description that is used again for the next product."""
    a, b = numbers(any_cupy, 16, 16), numbers(any_cupy, 16, 16, seed=1)
    biases = [numbers(any_cupy, 16, seed=seed) for seed in (2, 3)]

    def work():
        return [gemm_with_bias(a, b, bias, any_cupy.empty((16, 16), "float32")) for bias in biases]

    recorder = Recorder()
    recorder.run(work)
    recording = recorder.record(work)
    recording.launch()
    for y, bias in zip(recording.result, biases, strict=True):
        np.testing.assert_allclose(y.get(), product_of(a, b) + bias.get(), rtol=1e-5, atol=1e-5)


# --- the way into the library ------------------------------------------------------------------------------


def test_cupys_products_cannot_be_captured_and_ours_can(any_cupy):
    """CuPy 14 refuses cuBLAS on a stream that captures; a graph of a training step would not be possible with it."""
    a, b = numbers(any_cupy, 4, 5), numbers(any_cupy, 5, 6, seed=1)
    with pytest.raises(CaptureError, match="calling cuBLAS API during stream capture is currently unsupported"):
        Recorder().record(lambda: a @ b)
    recorder = Recorder()
    recorder.run(lambda: gemm(a, b))
    recording = recorder.record(lambda: gemm(a, b))
    a *= 2
    recording.launch()
    np.testing.assert_allclose(recording.result.get(), product_of(a, b), rtol=1e-5, atol=1e-5)


def test_every_product_runs_on_the_current_stream_and_in_our_workspace(standin):
    """The stand-in's library refuses another stream than the current one, and a stream whose workspace nobody has set since."""
    a, b = numbers(standin, 4, 5), numbers(standin, 5, 6, seed=1)
    for stream in (standin.cuda.Stream(non_blocking=True), standin.cuda.Stream(non_blocking=True)):
        gemm(a, b)
        with stream:
            gemm(a, b)
    assert len(machine.machine.products) == 4


@pytest.mark.parametrize("capability, bytes_", [((9, 0), 32 << 20), ((8, 6), 4 << 20)])
def test_the_workspace_has_nvidias_recommended_size_in_its_own_pool(capability, bytes_, standin):
    machine.machine.compute_capability = capability
    a, b = numbers(standin, 4, 5), numbers(standin, 5, 6, seed=1)
    before = machine.machine.default_pool.used_bytes()
    recorder = Recorder()
    recorder.run(lambda: gemm(a, b))
    assert ours.get_handle(standin).workspace.nbytes == bytes_ > recorder.memory + machine.machine.default_pool.used_bytes() - before


def test_an_error_of_cublas_has_its_status_number(standin, monkeypatch):
    a, b = numbers(standin, 4, 5), numbers(standin, 5, 6, seed=1)
    gemm(a, b)
    monkeypatch.setattr(ours.get_handle(standin)._library.cublasGemmEx, "_run", lambda *arguments: 15)
    with pytest.raises(ours.CublasError, match="cublasGemmEx failed with status 15"):
        gemm(a, b)


@pytest.mark.parametrize("rows", [3, 1100])
def test_gradients_of_a_linear_layer_are_written_directly_into_the_flat_buffer(rows, standin):
    """One launch sums few rows, two sum many: each returns the very array it was given, which the tape then need not copy."""
    x, dy, weight, bias = (numbers(standin, *shape) for shape in ((rows, 4), (rows, 6), (6, 4), (6,)))
    _, saved = linear_forward(x, weight, bias)
    out = None, standin.empty((6, 4), "float32"), standin.empty(6, "float32")
    found, right = linear_backward(dy, saved, out=out), linear_backward(dy, saved)
    assert found[1] is out[1] and found[2] is out[2]
    for a, b in zip(found, right, strict=True):
        np.testing.assert_array_equal(a.get(), b.get())


def test_a_gradient_is_not_written_over_the_factors_of_its_product(standin):
    """x or dy may be an old gradient of the weight, and then it lies in its home."""
    weight, given = numbers(standin, 4, 4), numbers(standin, 4, 4, seed=1)
    for old in ("x", "dy"):
        home = given.copy()
        x, dy = (home, weight) if old == "x" else (weight, home)
        _, saved = linear_forward(x, weight)
        dweight = linear_backward(dy, saved, out=(None, home, None))[1]
        assert dweight is not home
        np.testing.assert_allclose(dweight.get(), product_of(dy.T, x), rtol=1e-5, atol=1e-5)
    half = home.astype("float16")
    assert linear_backward(half, linear_forward(half, half)[1], out=(None, home, None))[1] is home


def test_a_weight_of_another_shape_does_not_use_its_old_buffer(standin):
    x, weight, bias = (tl.tensor(standin.ones(shape, "float32"), requires_grad=True) for shape in ((2, 4), (3, 4), (3,)))
    weight.grad_buffer, bias.grad_buffer = standin.empty((3, 4), "float32"), standin.empty(3, "float32")
    weight.data, bias.data = standin.ones((5, 4), "float32"), standin.ones(5, "float32")
    tl.nn.functional.linear(x, weight, bias).sum().backward()
    assert to_numpy(weight.grad.array).tolist() == [[2] * 4] * 5 and to_numpy(bias.grad.array).tolist() == [2] * 5


def test_a_weight_of_another_dtype_gets_a_gradient_of_that_dtype(standin):
    weight = tl.tensor(standin.ones(3, "float32"), requires_grad=True)
    weight.grad_buffer = standin.empty(3, "float32")
    weight.data = tl.tensor(standin.ones(3, "float16"))
    (weight * 2).sum().backward()
    assert weight.grad.dtype == np.float16 and to_numpy(weight.grad.array).tolist() == [2] * 3


@pytest.mark.parametrize("first, where", [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cast_works_for_unaligned_arrays(dtype, first, where, standin):
    x = numbers(standin, 10)[first:][:8]
    out = standin.empty(10, dtype)[where:][:8]
    found = cast(x, np.dtype(bfloat16_dtype() if dtype == "bfloat16" else dtype), out=out)
    assert found is out
    np.testing.assert_array_equal(found.get(), x.get().astype(found.dtype))
