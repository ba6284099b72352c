"""gelu and relu on the GPU beyond the table of cases: ragged sizes, views, far numbers, precisions, more than one round of the grid."""

from __future__ import annotations

import numpy as np
import pytest

from tensorlite.backend import to_numpy
from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda import activation as cuda_activation
from tensorlite.kernels.cuda import elementwise
from tensorlite.ops.activation import gelu, relu
from tests.compare import relative_error
from tests.standin import machine

ORDERS = ("ascending", "descending", "shuffled")
PAIRS = {
    "gelu": (gelu, cuda_activation.gelu_forward, cuda_activation.gelu_backward, {}),
    "gelu-tanh": (gelu, cuda_activation.gelu_forward, cuda_activation.gelu_backward, {"approximate": "tanh"}),
    "relu": (relu, cuda_activation.relu_forward, cuda_activation.relu_backward, {}),
}
ERRORS = {"float32": 5e-7, "float16": 1e-3, "bfloat16": 8e-3}  # a unit in the last place of the half precisions


def dtype_of(name):
    return bfloat16_dtype() if name == "bfloat16" else np.dtype(name)


def run(name, cupy, x, dy):
    op, forward, backward, options = PAIRS[name]
    y, saved = forward(cupy.asarray(x), **options)
    dx = backward(cupy.asarray(dy), saved)
    right_y, right_saved = op.book.forward(x.astype(np.float64), **options)
    right_dx = op.book.backward(dy.astype(np.float64), right_saved)
    assert y.dtype == dx.dtype == x.dtype
    return [("y", to_numpy(y), right_y), ("dx", to_numpy(dx), right_dx)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (5, 7), (1023,), (3, 700)])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", ERRORS)
def test_values_and_gradients_at_sizes_that_are_no_multiple_of_four(dtype, name, shape, order, any_cupy):
    machine.machine.order = order
    x, dy = (np.random.default_rng(0).standard_normal((2, *shape)) * 2).astype(dtype_of(dtype))
    for what, found, right in run(name, any_cupy, x, dy):
        assert relative_error(found.astype(np.float64), right) <= ERRORS[dtype], what


@pytest.mark.parametrize("name", PAIRS)
def test_every_number_is_computed_where_the_grid_loops(name, any_cupy, monkeypatch):
    monkeypatch.setattr(elementwise, "MOST_BLOCKS", 2)
    x, dy = np.random.default_rng(0).standard_normal((2, 4 * 256 * 5 + 3)).astype(np.float32)
    for what, found, right in run(name, any_cupy, x, dy):
        assert relative_error(found, right) <= ERRORS["float32"], what


@pytest.mark.parametrize("name", PAIRS)
def test_far_numbers_infinities_and_nan(name, any_cupy):
    """Relative to each number: the tail of gelu keeps its digits, as far as float32 goes; that of the book's tanh form rounds to 0."""
    x = np.array([-3e38, -1e20, -1e15, -100, -12, -9, -5, -1e-20, 0, 1e-20, 5, 9, 100, 1e18, 1e20, 3e38, np.nan], np.float32)
    for what, found, right in run(name, any_cupy, x, np.ones_like(x)):
        np.testing.assert_allclose(found, right, rtol=2e-5, atol=1e-14 if name == "gelu-tanh" else 1e-30, err_msg=what)


def test_a_view_that_is_not_aligned_to_four_numbers(any_cupy):
    x = any_cupy.asarray(np.random.default_rng(0).standard_normal(103).astype(np.float32))
    part = x[1:102]
    y, saved = cuda_activation.gelu_forward(part)
    dx = cuda_activation.gelu_backward(part, saved)
    aligned = part.copy()
    again, saved = cuda_activation.gelu_forward(aligned)
    np.testing.assert_array_equal(to_numpy(y), to_numpy(again))
    np.testing.assert_array_equal(to_numpy(dx), to_numpy(cuda_activation.gelu_backward(aligned, saved)))


def test_arrays_off_the_gpu_or_not_contiguous_are_left_to_the_book(any_cupy):
    assert cuda_activation.supports_gelu(any_cupy.zeros(3, "float16"))
    assert not cuda_activation.supports_gelu(any_cupy.zeros((3, 2), "float32").T)
    assert not cuda_activation.supports_gelu(any_cupy.zeros(3, "float64"))
    assert not cuda_activation.supports_gelu(np.zeros(3, "float32"))
    assert not cuda_activation.supports_gelu(any_cupy.zeros(3, "float32"), approximate="other")


def test_the_gradient_of_relu_is_0_where_x_is_negative_for_any_dy(any_cupy):
    """In fours and one by one."""
    x = np.array([-1, 2, 0, -3, -1, 2], np.float32)
    dy = np.array([np.inf, np.nan, np.nan, -np.inf, np.nan, 1], np.float32)
    _, saved = cuda_activation.relu_forward(any_cupy.asarray(x))
    np.testing.assert_array_equal(to_numpy(cuda_activation.relu_backward(any_cupy.asarray(dy), saved)), [0, np.nan, 0, 0, 0, 1])
