"""Cross-entropy, softmax and the embedding's gradient on the GPU, beyond the table of cases."""

from __future__ import annotations

import numpy as np
import pytest

from tensorlite.backend import to_numpy
from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda import compile as compiling
from tensorlite.kernels.cuda import cross_entropy as ce
from tensorlite.kernels.cuda import embedding as em
from tensorlite.kernels.cuda import softmax as sm
from tensorlite.ops.cross_entropy import cross_entropy
from tensorlite.ops.embedding import embedding
from tensorlite.ops.softmax import softmax
from tests.compare import relative_error
from tests.cuda_on_cpu import KernelError
from tests.standin import machine

ORDERS = ("ascending", "descending", "shuffled")
ERRORS = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.5e-2}


def stored(x, dtype):
    return x.astype(bfloat16_dtype() if dtype == "bfloat16" else dtype)


def logits(rows, V, dtype="float32", scale=3.0):
    rng = np.random.default_rng([rows, V])
    target = rng.integers(0, V, rows)
    if rows > 2:
        target[1] = -100
    return stored((scale * rng.standard_normal((rows, V))).astype(np.float32), dtype), target


def losses(xp, x, target, **options):
    """(found, right) of the loss and of dx."""
    loss, saved = ce.cross_entropy_forward(xp.asarray(x), xp.asarray(target), **options)
    dy = np.random.default_rng(0).standard_normal(loss.shape).astype(np.float32)
    dx, nothing = ce.cross_entropy_backward(xp.asarray(dy), saved)
    assert nothing is None and loss.dtype == np.float32 and dx.dtype == x.dtype
    right, right_saved = cross_entropy.book.forward(x.astype(np.float64), target, **options)
    return (to_numpy(loss), right), (to_numpy(dx).astype(np.float64), cross_entropy.book.backward(dy.astype(np.float64), right_saved)[0])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("rows, V", [(1, 2), (7, 65), (5, 1000), (3, 4099)])
def test_cross_entropy(rows, V, dtype, order, any_cupy):
    machine.machine.order = order
    for options in ({}, {"reduction": "sum", "label_smoothing": 0.1}, {"reduction": "none"}):
        (loss, right_loss), (dx, right_dx) = losses(any_cupy, *logits(rows, V, dtype), **options)
        np.testing.assert_allclose(loss, right_loss, rtol=2e-6, atol=1e-5)
        assert relative_error(dx, right_dx) <= ERRORS[dtype]


@pytest.mark.parametrize("values", [(1e4, -1e4, 0.0), (-np.inf, 1.0, 2.0), (-np.inf, -np.inf, 3.0), (88.0, 89.0, 90.0)])
def test_large_and_infinite_logits(values, any_cupy):
    x = np.tile(np.array([*values, 0.5], np.float32), (2, 1))
    (loss, right), (dx, right_dx) = losses(any_cupy, x, np.array([2, 3]))
    np.testing.assert_allclose(loss, right, rtol=1e-6)
    np.testing.assert_allclose(dx, right_dx, atol=1e-6)


def test_rows_that_are_all_ignored_have_no_mean(any_cupy):
    x, _ = logits(3, 5)
    loss, _ = ce.cross_entropy_forward(any_cupy.asarray(x), any_cupy.asarray(np.full(3, -100)))
    assert np.isnan(loss.get())


@pytest.mark.parametrize("target", [-1, 5, 10**9])
def test_a_target_that_is_no_class_is_loud(target, any_cupy):
    x, _ = logits(3, 5)
    loss, _ = ce.cross_entropy_forward(any_cupy.asarray(x), any_cupy.asarray(np.array([0, target, 1])))
    assert np.isnan(loss.get())


def test_no_array_of_the_size_of_the_logits_is_kept(any_cupy):
    x, target = logits(64, 1000)
    x, target = any_cupy.asarray(x), any_cupy.asarray(target)
    before = any_cupy.get_default_memory_pool().used_bytes()
    _loss, _saved = ce.cross_entropy_forward(x, target)
    assert any_cupy.get_default_memory_pool().used_bytes() - before < x.nbytes / 20


def test_a_barrier_left_out_of_cross_entropy_is_seen(standin, monkeypatch):
    """A fault planted: the warps' results are read before all have written them."""
    right = compiling.source
    monkeypatch.setattr(compiling, "source", lambda file: without_barrier(right(file)))
    compiling.forget()
    seen = 0
    for order in ORDERS:
        machine.machine.order = order
        try:
            (loss, expected), _ = losses(standin, *logits(7, 1000))
            seen += not np.allclose(loss, expected, rtol=1e-4)
        except KernelError:
            seen += 1
    assert seen, "the race changed nothing in any order"


def without_barrier(source):
    place = source.index("    __syncthreads();\n    mine = {-infinity(), 0.0f};")
    return source[:place] + source[place:].replace("    __syncthreads();\n", "", 1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("rows, C", [(3, 1), (4, 33), (2, 1500)])
def test_softmax(rows, C, dtype, order, any_cupy):
    machine.machine.order = order
    rng = np.random.default_rng([rows, C])
    x, dy = (stored(rng.standard_normal((rows, C)).astype(np.float32), dtype) for _ in range(2))
    x[0, C // 2 :] = -np.inf if C > 1 else 1
    y, saved = sm.softmax_forward(any_cupy.asarray(x))
    dx = sm.softmax_backward(any_cupy.asarray(dy), saved)
    right, _ = softmax.book.forward(x.astype(np.float64))
    assert relative_error(to_numpy(y).astype(np.float64), right) <= ERRORS[dtype]
    rounded = to_numpy(y).astype(np.float64)  # backward sees the rounded y
    right_dx = softmax.book.backward(dy.astype(np.float64), (rounded, -1))
    assert relative_error(to_numpy(dx).astype(np.float64), right_dx) <= ERRORS[dtype]


def table_gradient(xp, ids, V, C, dtype="float32", padding_idx=None):
    dy = stored(np.random.default_rng(1).standard_normal((*ids.shape, C)).astype(np.float32), dtype)
    _, dweight = em.embedding_backward(xp.asarray(dy), (xp.asarray(ids), (V, C), padding_idx))
    _, right = embedding.book.backward(dy.astype(np.float64), (ids, (V, C), padding_idx))
    return to_numpy(dweight), right


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("V, C, n", [(5, 3, 1), (3, 40, 700), (65, 100, 1000), (5000, 33, 300)])
def test_every_occurrence_of_a_token_counts(V, C, n, order, any_cupy):
    """3 tokens for 700 places: 233 gradients each, in several stretches; and a vocabulary larger than the batch."""
    machine.machine.order = order
    ids = np.random.default_rng([V, n]).integers(0, V, n)
    found, right = table_gradient(any_cupy, ids, V, C)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5 * max(1.0, np.sqrt(n / V)))
    assert (found[np.setdiff1d(np.arange(V), ids)] == 0).all()


def test_one_token_everywhere_and_a_row_that_is_skipped(any_cupy):
    found, right = table_gradient(any_cupy, np.full((4, 300), 2), 7, 5)
    np.testing.assert_allclose(found, right, rtol=1e-5)
    found, right = table_gradient(any_cupy, np.array([0, 1, 1, 2]), 3, 5, padding_idx=-2)
    np.testing.assert_allclose(found, right, rtol=1e-6)
    assert (found[1] == 0).all()


def test_the_embeddings_gradient_has_the_same_bits_every_time(any_cupy):
    ids = np.random.default_rng(0).integers(0, 9, 2000)
    first = table_gradient(any_cupy, ids, 9, 20)[0]
    machine.machine.order = "shuffled"
    np.testing.assert_array_equal(first, table_gradient(any_cupy, ids, 9, 20)[0])
