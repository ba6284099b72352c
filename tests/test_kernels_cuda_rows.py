"""Layer and RMS normalisation on the GPU beyond the table of cases: wide rows, ragged ones, precisions, repetition."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.backend import to_numpy
from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda import cast as rounding
from tensorlite.kernels.cuda import compile as compiling
from tensorlite.kernels.cuda import layernorm as cuda_layernorm
from tensorlite.kernels.cuda import rmsnorm as cuda_rmsnorm
from tensorlite.kernels.cuda.cast import cast
from tensorlite.kernels.cuda.columns import sum_rows
from tensorlite.kernels.cuda.rows import lanes
from tensorlite.ops.layernorm import layernorm
from tensorlite.ops.rmsnorm import rmsnorm
from tensorlite.precision import use_precision
from tensorlite.profile import Profile
from tests.compare import relative_error
from tests.cuda_on_cpu import KernelError
from tests.standin import machine

ORDERS = ("ascending", "descending", "shuffled")
FLOAT32 = 32 * 2.0**-24  # a number of the result goes through a dozen roundings, and sums through one for each doubling of the rows
ROUNDED = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # to the nearest, relative to the number itself


def run(op, module, xp, rows, C, mean=0.0, seed=0):
    """(name, found, right) of the output and of each gradient, in float32."""
    rng = np.random.default_rng([seed, rows, C])
    x, dy = (rng.standard_normal((2, rows, C)) + mean).astype(np.float32)
    parameters = [rng.standard_normal(C).astype(np.float32) for _ in range(2 if op is layernorm else 1)]
    name = op.name
    forward, backward = getattr(module, f"{name}_forward"), getattr(module, f"{name}_backward")
    y, saved = forward(*map(xp.asarray, (x, *parameters)), eps=1e-5)
    found = [y, *backward(xp.asarray(dy.astype(y.dtype)), saved)]
    right_y, right_saved = op.book.forward(*(a.astype(np.float64) for a in (x, *parameters)), eps=1e-5)
    right = [right_y, *op.book.backward(dy.astype(y.dtype).astype(np.float64), right_saved)]
    return [(part, to_numpy(a), b) for part, a, b in zip(("y", "dx", "dweight", "dbias"), found, right, strict=False)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rows, C", [(1, 5), (3, 31), (5, 33), (7, 128), (70, 200), (2200, 40), (2, 2048)])
@pytest.mark.parametrize("op, module", [(layernorm, cuda_layernorm), (rmsnorm, cuda_rmsnorm)], ids=["layernorm", "rmsnorm"])
def test_values_and_gradients(op, module, rows, C, order, any_cupy):
    machine.machine.order = order
    for what, found, right in run(op, module, any_cupy, rows, C):
        assert relative_error(found, right) <= FLOAT32, what


def test_four_neighbours_are_read_at_a_time_where_all_rows_are_aligned(any_cupy):
    x, wide = any_cupy.zeros(8 * 9 + 1, np.float32), {"Wide": 4, "PerLane": 4}
    aligned, shifted = x[:-1].reshape(9, 8), x[1:].reshape(9, 8)
    assert lanes(8, aligned, None) == wide
    assert lanes(132, x) == {"Wide": 4, "PerLane": 8}
    assert lanes(8, aligned, shifted) == {"Wide": 1, "PerLane": 1}
    assert lanes(9, aligned) == {"Wide": 1, "PerLane": 1}


def test_rows_far_from_zero(any_cupy):
    """The mean is kept as the sum of two floats, so what is left of a row is as exact as near zero."""
    for what, found, right in run(layernorm, cuda_layernorm, any_cupy, 6, 100, mean=1000.0):
        assert relative_error(found, right) <= FLOAT32, what


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("op, module", [(layernorm, cuda_layernorm), (rmsnorm, cuda_rmsnorm)], ids=["layernorm", "rmsnorm"])
def test_the_float32_residual_stream_gives_half_precision_outputs(op, module, dtype, any_cupy):
    with use_precision(dtype):
        results = run(op, module, any_cupy, 9, 96)
    assert [found.dtype.name for _, found, _ in results] == [dtype, *["float32"] * (len(results) - 1)]
    for what, found, right in results:
        assert relative_error(found.astype(np.float64), right) <= FLOAT32 + (ROUNDED[dtype] if what == "y" else 0), what


def test_the_same_bits_every_time(any_cupy):
    first, second = ([found for _, found, _ in run(layernorm, cuda_layernorm, any_cupy, 600, 64)] for _ in range(2))
    machine.machine.order = "shuffled"
    third = [found for _, found, _ in run(layernorm, cuda_layernorm, any_cupy, 600, 64)]
    for a, b, c in zip(first, second, third, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("fault", ["        __syncthreads();\n    }\n", "+ dweight[i]"])
@pytest.mark.parametrize("op, module", [(layernorm, cuda_layernorm), (rmsnorm, cuda_rmsnorm)], ids=["layernorm", "rmsnorm"])
def test_faults_in_the_sums_of_the_warps_are_detected(op, module, fault, standin, monkeypatch):
    """Faults planted where the warps of a block add up their sums: a missing barrier, and a warp that does not add its own sum."""
    right = compiling.source

    def planted(file):
        assert right(file).count(fault) == 1
        return right(file).replace(fault, fault.replace("__syncthreads();", "").replace("+ dweight[i]", ""))

    monkeypatch.setattr(compiling, "source", lambda file: planted(file) if file == f"{op.name}.cu" else right(file))
    compiling.clear_cache()
    errors = []
    for order in ORDERS:
        machine.machine.order = order
        errors += [relative_error(found, right) for what, found, right in run(op, module, standin, 40, 40) if what == "dweight"]
    assert not all(error < 1e-3 for error in errors)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("rows, C, wider", [(1, 1, 0), (3, 4, 0), (40, 130, 0), (1024, 5, 3), (1025, 8, 4), (2000, 129, 7), (300, 256, 8)])
def test_sums_down_columns(rows, C, wider, dtype, order, any_cupy):
    """Columns in fours and one by one; rows for one launch and for two; rows that are longer than C, with poison behind."""
    machine.machine.order = order
    x = np.full((rows, C + wider), np.nan, np.float32).astype(bfloat16_dtype() if dtype == "bfloat16" else dtype)
    x[:, :C] = np.random.default_rng([rows, C]).standard_normal((rows, C)).astype(np.float32)
    y = sum_rows(any_cupy.asarray(x)[:, :C])
    assert y.dtype == np.float32 and y.shape == (C,)
    right = x[:, :C].astype(np.float64)
    assert np.abs(to_numpy(y) - right.sum(axis=0)).max() <= 1e-6 * np.abs(right).sum(axis=0).max()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("op, module", [(layernorm, cuda_layernorm), (rmsnorm, cuda_rmsnorm)], ids=["layernorm", "rmsnorm"])
def test_the_gradient_of_the_residual_connection_is_added_to_dx(op, module, order, any_cupy):
    machine.machine.order = order
    x, dy, stream = np.random.default_rng(0).standard_normal((3, 5, 40)).astype(np.float32)
    forward, backward = getattr(module, f"{op.name}_forward"), getattr(module, f"{op.name}_backward")
    _, saved = forward(any_cupy.asarray(x), any_cupy.ones(40, "float32"))
    given = any_cupy.asarray(stream)
    dx, dweight = backward(any_cupy.asarray(dy), saved, accumulated=given)[:2]
    alone, right_dweight = backward(any_cupy.asarray(dy), saved)[:2]
    np.testing.assert_allclose(to_numpy(dx), to_numpy(alone) + stream, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(to_numpy(dweight), to_numpy(right_dweight))
    np.testing.assert_array_equal(to_numpy(given), stream)
    wide = any_cupy.asarray(np.repeat(stream, 2, axis=1))[:, ::2]  # as a view it may lie anyhow
    np.testing.assert_array_equal(to_numpy(backward(any_cupy.asarray(dy), saved, accumulated=wide)[0]), to_numpy(dx))


def test_the_gradient_of_a_residual_connection_needs_no_extra_pass(standin, monkeypatch):
    """x + f(layernorm(x)) under a half precision: the sum of both gradients of x is layernorm's work, also while it is watched."""
    x, weight = tl.tensor(standin.ones((4, 16), "float32"), requires_grad=True), tl.nn.Parameter(standin.ones(16, "float32"))
    done, compute = [], machine.machine.compute
    monkeypatch.setattr(machine.machine, "compute", lambda name, work, *operands: done.append(name) or compute(name, work, *operands))
    with use_precision("bfloat16"), Profile():
        h = x * 1.0
        y = h + tl.nn.functional.layer_norm(h, (16,), weight)
        done.clear()
        y.sum().backward()
    assert done and "add" not in done


FAULTS = {  # what is planted in columns.cu, in the place of what
    "the first barrier is missing": ("store4(&parts[warp][4 * lane], sum);\n    __syncthreads();", "store4(&parts[warp][4 * lane], sum);"),
    "a wrong stride": ("written[(long long)i * C + column]", "written[(long long)i * (C + 1) + column]"),
    "any block adds up": ("== gridDim.y - 1", "== 1"),
    "the counter is not reset": ("if (threadIdx.x == 0) arrived[blockIdx.x] = 0;", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_planted_in_the_sums_are_seen(fault, standin, monkeypatch):
    """The sums of nine parts of the rows, twice: the second time the counters are those that the first has left."""
    right, wrong = FAULTS[fault]
    text = compiling.source("columns.cu")
    assert text.count(right) == 1
    monkeypatch.setattr(compiling, "source", lambda file: text.replace(right, wrong))
    compiling.clear_cache()
    x = np.random.default_rng(0).standard_normal((2100, 130)).astype(np.float32)
    try:
        sums = [to_numpy(sum_rows(standin.asarray(x))) for _ in range(2)]
    except KernelError:
        return
    assert not np.allclose(sums, x.sum(axis=0, dtype=np.float64), rtol=1e-3, atol=1e-3)


def test_the_sums_of_no_rows_are_0(any_cupy):
    np.testing.assert_array_equal(to_numpy(sum_rows(any_cupy.zeros((0, 5), "float16"))), np.zeros(5))


@pytest.mark.parametrize("op, module", [(layernorm, cuda_layernorm), (rmsnorm, cuda_rmsnorm)], ids=["layernorm", "rmsnorm"])
def test_all_parameter_gradients_take_one_launch_after_that_of_dx(op, module, standin):
    machine.machine.launches = []
    run(op, module, standin, 3000, 8)
    assert machine.machine.launches == [f"{op.name}_forward", f"{op.name}_backward", "sum_rows"]


def test_wider_rows_are_left_to_the_book(any_cupy):
    assert cuda_layernorm.supports(any_cupy.zeros((2, 2048), "float32"))
    assert not cuda_layernorm.supports(any_cupy.zeros((2, 2049), "float32"))
    assert not cuda_layernorm.supports(any_cupy.zeros((2, 8), "float64"))
    assert not cuda_layernorm.supports(np.zeros((2, 8), "float32"))


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_a_computed_weight_that_two_layers_share_gets_both_gradients(norm, standin):
    """What has arrived for the weight is none of the residual stream: it is added like any other gradient."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 8)), rng.standard_normal(8)

    def gradient(put):
        half = put(w)
        half.requires_grad_()
        weight = half * 2.0
        h = getattr(tl.nn.functional, norm)(put(x), (8,), weight)
        (getattr(tl.nn.functional, norm)(h, (8,), weight) * put(x)).sum().backward()
        return to_numpy(half.grad.array)

    found = gradient(lambda a: tl.tensor(standin.asarray(a.astype(np.float32))))
    assert relative_error(found, gradient(lambda a: tl.tensor(a, dtype=tl.float64))) <= FLOAT32


@pytest.mark.parametrize("moved", ["x", "weight", "bias", "dy", "stream"])
def test_views_that_are_not_aligned_to_four_numbers(moved, any_cupy):
    """Each operand in turn begins one number after a multiple of 16 bytes, as a parameter in a buffer may."""
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in {"x": (5, 128), "weight": 128, "bias": 128}.items()}
    given |= {name: rng.standard_normal((5, 128)).astype(np.float32) for name in ("dy", "stream")}
    on_gpu = {name: any_cupy.asarray(a) for name, a in given.items()}
    longer = any_cupy.empty(given[moved].size + 1, "float32")
    longer[1:] = on_gpu[moved].reshape(-1)
    on_gpu[moved] = longer[1:].reshape(given[moved].shape)
    assert on_gpu[moved].data.ptr % 16 == 4
    y, saved = cuda_layernorm.layernorm_forward(*(on_gpu[name] for name in ("x", "weight", "bias")))
    found = [y, *cuda_layernorm.layernorm_backward(on_gpu["dy"], saved, accumulated=on_gpu["stream"])]
    wide = {name: a.astype(np.float64) for name, a in given.items()}
    right_y, right_saved = layernorm.book.forward(*(wide[name] for name in ("x", "weight", "bias")))
    dx, dweight, dbias = layernorm.book.backward(wide["dy"], right_saved)
    for a, b in zip(found, (right_y, dx + wide["stream"], dweight, dbias), strict=True):
        assert relative_error(to_numpy(a), b) <= FLOAT32


@pytest.mark.parametrize("half", ROUNDED)
@pytest.mark.parametrize("norm, C", [("layernorm", 128), ("layernorm", 33), ("rmsnorm", 40)])
def test_the_streams_gradient_is_rounded_where_it_is_written(norm, C, half, any_cupy):
    """In x + f(norm(x)) the next to use the sum rounds it: that is done already, to the bits that a cast would give."""
    rng = np.random.default_rng(0)
    kernels = {"layernorm": cuda_layernorm, "rmsnorm": cuda_rmsnorm}[norm]
    forward, backward = getattr(kernels, f"{norm}_forward"), getattr(kernels, f"{norm}_backward")
    x, stream = (any_cupy.asarray(rng.standard_normal((5, C)).astype(np.float32)) for _ in range(2))
    with use_precision(half):
        y, saved = forward(x)
        dx = backward(any_cupy.asarray(rng.standard_normal((5, C))).astype(y.dtype), saved, accumulated=stream)[0]
        alone = backward(y, saved)[0]
    rounded = cast(dx, y.dtype)
    assert cast(dx, y.dtype) is rounded, "it is there"
    np.testing.assert_array_equal(to_numpy(rounded), to_numpy(dx.astype(y.dtype)))
    other = "float16" if half == "bfloat16" else bfloat16_dtype()
    assert cast(dx, other).dtype == other
    assert cast(alone, y.dtype) is not cast(alone, y.dtype), "without a stream nobody rounds it"
    kept = len(rounding._rounded)
    del dx
    assert len(rounding._rounded) == kept - 1, "both are freed together"
