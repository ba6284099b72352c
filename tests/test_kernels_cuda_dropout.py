"""Dropout on the GPU: the mask follows from a key and a place, so backward has the same one, and what was published comes out."""

from __future__ import annotations

import numpy as np
import pytest

from tensorlite import random
from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda.dropout import dropout_backward, dropout_forward, supports

ORDERS = ("ascending", "descending", "shuffled")


def philox(key, counters):
    """Philox-4x32 with ten rounds, as Salmon et al. 2011 define it, on (n, 4) counters."""
    c = [counters[:, i].astype(np.uint64) for i in range(4)]
    k = [int(key[0]), int(key[1])]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]), b & low, (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]), a & low]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return np.stack(c, axis=1)


def mask(key, call, n, p):
    """What the kernel should keep."""
    groups = -(-n // 4)
    counters = np.zeros((groups, 4), np.uint64)
    counters[:, 0], counters[:, 2] = np.arange(groups), call
    return (philox(key, counters).reshape(-1)[:n] >> np.uint64(16)) >= round(p * 65536)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1, 3, 4, 1023, 3000])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_mask_is_philoxs_and_the_same_in_backward(dtype, n, order, any_cupy):
    from tests.standin import machine

    machine.machine.order = order
    stored = bfloat16_dtype() if dtype == "bfloat16" else dtype
    key = np.array([12345, 678], np.uint32)
    x, dy = (any_cupy.asarray(np.random.default_rng(seed).standard_normal(n).astype(stored)) for seed in (0, 1))
    with random.use_dropout_key(any_cupy.asarray(key)):
        dropout_forward(x, 0.2)
        y, saved = dropout_forward(x, 0.2)  # the second call of the step: number 1
        dx = dropout_backward(dy, saved)
    kept, factor = mask(key, 1, n, 0.2), np.float32(random.dropout_threshold(0.2)[1])
    for found, given in ((y, x), (dx, dy)):
        right = np.where(kept, given.get().astype(np.float32) * factor, 0).astype(stored)
        np.testing.assert_array_equal(found.get(), right)


def test_a_share_p_is_dropped_and_the_mean_is_kept(any_cupy):
    x = any_cupy.ones(100_000, "float32")
    with random.use_generator(random.make_generator(3)):
        y, _ = dropout_forward(x, 0.3)
    found = y.get()
    assert abs((found == 0).mean() - 0.3) < 0.005
    assert abs(found.mean() - 1) < 0.01


def test_other_calls_and_other_keys_draw_other_masks(any_cupy):
    x, key = any_cupy.ones(256, "float32"), any_cupy.asarray(np.array([1, 2], np.uint32))
    with random.use_dropout_key(key):
        first, second = (dropout_forward(x, 0.5)[0].get() for _ in range(2))
    with random.use_dropout_key(key):
        again = dropout_forward(x, 0.5)[0].get()
    key.set(np.array([1, 3], np.uint32))
    with random.use_dropout_key(key):
        other = dropout_forward(x, 0.5)[0].get()
    np.testing.assert_array_equal(first, again)
    assert (first != second).any() and (first != other).any()


def test_an_unaligned_view_and_the_ends_of_p(any_cupy):
    x = any_cupy.ones(257, "float32")[1:]
    assert (dropout_forward(x, 1.0)[0].get() == 0).all()
    assert (dropout_forward(x, 0.0)[0].get() == 1).all()
    assert not supports(x, 1.5) and not supports(np.ones(3, np.float32))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_dropped_elements_are_0_even_for_nan(value, any_cupy):
    with random.use_generator(random.make_generator(3)):
        y = dropout_forward(any_cupy.full(1003, value, "float32"), 0.5)[0].get()
    assert 0 < (y == 0).sum() < y.size
    assert np.array_equal(y[y != 0], np.full((y != 0).sum(), value, np.float32), equal_nan=True)
