"""The residual connection under half precision: float32 + half in one pass."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda.arithmetic import supports


@pytest.mark.parametrize("half_first", [False, True])
@pytest.mark.parametrize("n", [1, 4, 1030])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_sum_is_float32_and_each_gradient_has_its_own_type(dtype, n, half_first, any_cupy):
    half = bfloat16_dtype() if dtype == "bfloat16" else np.dtype(dtype)
    rng = np.random.default_rng(n)
    stream, x, dy = (rng.standard_normal(n).astype(np.float32) for _ in range(3))
    a = tl.tensor(stream, device="cupy", requires_grad=True)
    b = tl.tensor(x.astype(half), device="cupy", requires_grad=True)
    y = b + a if half_first else a + b
    assert supports(a.array, b.array)
    y.backward(tl.tensor(dy, device="cupy"))
    np.testing.assert_array_equal(y.array.get(), stream + x.astype(half).astype(np.float32))
    assert (y.array.dtype, a.grad.array.dtype, b.grad.array.dtype) == (np.float32, np.float32, half)
    np.testing.assert_array_equal(a.grad.array.get(), dy)
    np.testing.assert_array_equal(b.grad.array.get(), dy.astype(half))


def test_other_arguments_are_left_to_the_book(any_cupy):
    wide, half = any_cupy.zeros((3, 4), "float32"), any_cupy.zeros((3, 4), "float16")
    assert supports(wide, half) and supports(half, wide)
    assert not supports(wide, wide) and not supports(half, half) and not supports(wide, half[:1]) and not supports(wide, 1.0)
    assert not supports(wide, any_cupy.zeros((4, 3), "float16").T)
    assert not supports(np.zeros(3, np.float32), np.zeros(3, np.float16))
