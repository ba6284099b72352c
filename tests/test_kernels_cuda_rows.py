"""Layer and RMS normalisation on the GPU beyond the table of cases: wide rows, ragged ones, precisions, repetition."""

from __future__ import annotations

import numpy as np
import pytest

from tensorlite.backend import to_numpy
from tensorlite.kernels.cuda import layernorm as cuda_layernorm
from tensorlite.kernels.cuda import rmsnorm as cuda_rmsnorm
from tensorlite.ops.layernorm import layernorm
from tensorlite.ops.rmsnorm import rmsnorm
from tensorlite.precision import use_precision
from tests.compare import relative_error
from tests.standin import machine

ORDERS = ("ascending", "descending", "shuffled")


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
        assert relative_error(found, right) <= 5e-6, what


def test_rows_far_from_zero(any_cupy):
    for what, found, right in run(layernorm, cuda_layernorm, any_cupy, 6, 100, mean=1000.0):
        assert relative_error(found, right) <= (2e-4 if what == "y" else 2e-3), what


@pytest.mark.parametrize("dtype, error", [("float16", 2e-3), ("bfloat16", 1.5e-2)])
@pytest.mark.parametrize("op, module", [(layernorm, cuda_layernorm), (rmsnorm, cuda_rmsnorm)], ids=["layernorm", "rmsnorm"])
def test_half_precision_comes_out_of_the_float32_stream(op, module, dtype, error, any_cupy):
    with use_precision(dtype):
        results = run(op, module, any_cupy, 9, 96)
    assert [found.dtype.name for _, found, _ in results] == [dtype, *["float32"] * (len(results) - 1)]
    for what, found, right in results:
        assert relative_error(found.astype(np.float64), right) <= error, what


def test_the_same_bits_every_time(any_cupy):
    first, second = ([found for _, found, _ in run(layernorm, cuda_layernorm, any_cupy, 600, 64)] for _ in range(2))
    machine.machine.order = "shuffled"
    third = [found for _, found, _ in run(layernorm, cuda_layernorm, any_cupy, 600, 64)]
    for a, b, c in zip(first, second, third, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_wider_rows_are_left_to_the_book(any_cupy):
    assert cuda_layernorm.supports(any_cupy.zeros((2, 2048), "float32"))
    assert not cuda_layernorm.supports(any_cupy.zeros((2, 2049), "float32"))
    assert not cuda_layernorm.supports(any_cupy.zeros((2, 8), "float64"))
    assert not cuda_layernorm.supports(np.zeros((2, 8), "float32"))
