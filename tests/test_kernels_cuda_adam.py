"""AdamW and clipping as CUDA kernels, run on the CPU and held against the book's rules."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda.compile import source
from tensorlite.optim.adam import adamw_update
from tensorlite.optim.clip import clip_update
from tests.cuda_on_cpu import load

ORDERS = ("ascending", "descending", "shuffled")
BETAS, EPS, DECAY = (0.9, 0.999), 1e-8, 0.1
SIZES = (4, 128, 1024, 4 * 256 * 3 + 16)


def numbers(n, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def module_of(file, order, half="bfloat16"):
    module = load(source(file), (f"-DHalf={half}",) if file == "adam.cu" else ())
    module.order = order
    return module


def address(x):
    return 0 if x is None else x.ctypes.data


def adamw(
    p, g, m, v, step, lr, v_max=None, order="ascending", weight_decay=DECAY, in_device_memory=False, factor=None, rounded=None
):  # fmt: skip
    """The two launches of tensorlite/kernels/cuda/adam.py."""
    half = "bfloat16" if rounded is None else rounded.dtype.name
    module, rates = module_of("adam.cu", order, half), np.full(4, np.nan, np.float32)
    held_lr, held_step = np.array(lr, np.float32), np.array(step, np.int32)
    given = (address(held_lr), np.float32(np.nan), address(held_step), np.int32(-1))
    if not in_device_memory:
        given = (0, np.float32(lr), 0, np.int32(step))
    clear_cache = np.float32(1 - BETAS[0]), np.float32(1 - BETAS[1])
    module.launch("adamw_rates", (1,), (32,), (*given, *clear_cache, np.float32(weight_decay), address(rates)))
    arrays = [address(x) for x in (p, g, m, v, v_max, factor, rounded, rates)]
    module.launch("adamw", (-(-p.size // 1024),), (256,), (*arrays, *clear_cache, np.float32(EPS), np.int64(p.size)))


def clip(g, max_norm, order="ascending", blocks=3):
    """The three launches of tensorlite/kernels/cuda/clip.py."""
    module, partial, norm, coefficient = module_of("clip.cu", order), np.full(blocks, np.nan), np.zeros((), "f4"), np.zeros((), "f4")
    module.launch("sum_squares", (blocks,), (256,), (address(g), address(partial), np.int64(g.size)))
    given = (address(partial), np.int32(blocks), np.float32(max_norm), address(norm), address(coefficient))
    module.launch("clip_coefficient", (1,), (256,), given)
    module.launch("scale", (-(-g.size // 1024),), (256,), (address(g), address(coefficient), np.int64(g.size)))
    return norm


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_follows_the_books_rule_over_many_steps(n, amsgrad, order):
    p, m, v = numbers(n), np.zeros(n, np.float32), np.zeros(n, np.float32)
    ours = [p.copy(), m.copy(), v.copy()] + ([v.copy()] if amsgrad else [])
    book = [p.copy(), m.copy(), v.copy()] + ([v.copy()] if amsgrad else [])
    for step in range(1, 8):
        g, lr = numbers(n, seed=step, scale=10.0**-step), 1e-2 / step
        adamw(ours[0], g, *ours[1:3], step, lr, *ours[3:], order=order)
        adamw_update.book(book[0], g, *book[1:3], step, lr, BETAS, EPS, DECAY, *book[3:])
    for mine, theirs in zip(ours, book, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-8)  # what was added up was of the size of lr


def test_adamw_reads_rate_and_step_from_memory_and_gives_the_same_bits():
    by_value, from_memory = ([numbers(64, 1), numbers(64, 2), abs(numbers(64, 3))] for _ in range(2))
    for step, lr in ((1, 3e-4), (1000, 1e-5), (123_457, 0.0)):
        adamw(by_value[0], numbers(64, step), *by_value[1:], step, lr)
        adamw(from_memory[0], numbers(64, step), *from_memory[1:], step, lr, in_device_memory=True)
    for one, other in zip(by_value, from_memory, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_adamw_clips_and_rounds_in_the_same_pass(half, order):
    """As the book's rule, and what is rounded is the p that was stored, to the last bit."""
    dtype = bfloat16_dtype() if half == "bfloat16" else np.dtype(half)
    p, g, m, v, factor = numbers(1040, 1), numbers(1040, 2), numbers(1040, 3), abs(numbers(1040, 4)), np.array(0.3, np.float32)
    book, rounded = [x.copy() for x in (p, m, v)], np.full(1040, np.nan, dtype)
    adamw(p, g, m, v, 5, 1e-2, order=order, factor=factor, rounded=rounded)
    adamw_update.book(book[0], g, *book[1:], 5, 1e-2, BETAS, EPS, DECAY, None, factor, expected := np.empty(1040, dtype))
    for mine, theirs in zip((p, m, v), book, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(rounded, p.astype(dtype))
    np.testing.assert_allclose(rounded.astype("f4"), expected.astype("f4"), rtol=2.0**-7)
    before = rounded.copy()
    adamw(p, np.full(1040, np.nan, np.float32), m, v, 0, 1e-2, order=order, factor=factor, rounded=rounded)
    np.testing.assert_array_equal(rounded, before)  # a step 0 is none


@pytest.mark.parametrize("step", [1, 2, 3, 100, 99_999, 3_000_000])
def test_adamws_corrections_keep_their_digits_at_any_step(step):
    """1 - 0.999 in float32 would be wrong in the fifth digit, and the first updates by as much."""
    rates = np.zeros(4, np.float32)
    clear_cache = np.float32(1 - BETAS[0]), np.float32(1 - BETAS[1])
    given = (0, np.float32(1e-3), 0, np.int32(step), *clear_cache, np.float32(DECAY), address(rates))
    module_of("adam.cu", "ascending").launch("adamw_rates", (1,), (32,), given)
    expected = [1 - 1e-3 * DECAY, 1e-3 / (1 - BETAS[0] ** step), math.sqrt(1 - BETAS[1] ** step), 1]
    np.testing.assert_allclose(rates, expected, rtol=2e-7)


@pytest.mark.parametrize("in_device_memory", [False, True])
def test_a_step_0_changes_nothing_for_any_gradient(in_device_memory):
    arrays = [numbers(64, 1), numbers(64, 2), abs(numbers(64, 3)), abs(numbers(64, 4))]
    before = [x.copy() for x in arrays]
    g = np.array([np.nan, np.inf, -np.inf, 1] * 16, np.float32)
    p, m, v, v_max = arrays
    adamw(p, g, m, v, 0, 1e-2, v_max, in_device_memory=in_device_memory)
    for x, was in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(x, was)


def test_adamw_writes_nothing_after_its_part():
    arrays = [numbers(256, seed) for seed in range(3)] + [abs(numbers(256, 3))]
    before = [x.copy() for x in arrays]
    module, rates = module_of("adam.cu", "ascending"), np.ones(4, np.float32)
    given = [address(x) for x in (*arrays, None, None, None, rates)]
    module.launch("adamw", (1,), (256,), (*given, np.float32(0.1), np.float32(0.1), np.float32(EPS), np.int64(100)))
    for x, was in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(x[100:], was[100:])
    assert (arrays[0][:100] != before[0][:100]).all() and (arrays[1] == before[1]).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30], ids=str)
@pytest.mark.parametrize("max_norm", [0.0, 0.5, math.inf])
def test_clipping_agrees_with_the_book(n, scale, max_norm, order):
    g = numbers(n, scale=scale)
    ours, book = g.copy(), g.copy()
    norm, expected = clip(ours, max_norm, order), clip_update.book([book], max_norm, 2.0, False)
    np.testing.assert_allclose(norm, expected, rtol=3e-7)
    np.testing.assert_allclose(ours, book, rtol=1e-6)


@pytest.mark.parametrize("blocks", [1, 2, 7, 300])
def test_the_norm_is_bitwise_the_same_for_any_number_of_blocks(blocks):
    g = numbers(4096)
    assert clip(g.copy(), math.inf, blocks=blocks) == clip(g.copy(), math.inf, blocks=3) == np.float32(np.linalg.norm(g.astype(np.float64)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("max_norm", [1.0, math.inf])
def test_nonfinite_gradients_give_the_books_result(bad, max_norm):
    g = numbers(64)
    g[7] = bad
    ours, book = g.copy(), g.copy()
    with np.errstate(invalid="ignore"):
        norm, expected = clip(ours, max_norm), clip_update.book([book], max_norm, 2.0, False)
    np.testing.assert_array_equal(norm, expected)
    np.testing.assert_array_equal(ours, book)


def test_a_gradient_that_is_short_enough_is_not_written_to():
    g = numbers(64)
    clipped = g.copy()
    clip(clipped, 1e3)
    np.testing.assert_array_equal(clipped, g)


@pytest.mark.parametrize("order", ORDERS)
def test_amsgrad_keeps_a_nan_of_the_second_moment(order):
    """The larger of a number and nan is nan, as in the book; the instruction for the maximum would forget the nan."""
    p, g, m = numbers(64), numbers(64, seed=1), numbers(64, seed=2)
    v, v_max = np.full(64, np.nan, np.float32), np.ones(64, np.float32)
    adamw(p, g, m, v, 3, 1e-3, v_max, order)
    assert np.isnan(v_max).all() and np.isnan(p).all()
