"""Cross-entropy, softmax and the embedding's gradient on the GPU, beyond the table of cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tensorlite.backend import to_numpy
from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda import compile as compiling
from tensorlite.kernels.cuda import cross_entropy as ce
from tensorlite.kernels.cuda import embedding as em
from tensorlite.kernels.cuda import softmax as sm
from tensorlite.ops.cross_entropy import cross_entropy
from tensorlite.ops.embedding import EmbeddingSaved, embedding
from tensorlite.ops.softmax import SoftmaxSaved, softmax
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
def test_the_loss_of_an_invalid_target_is_nan(target, any_cupy):
    x, _ = logits(3, 5)
    loss, _ = ce.cross_entropy_forward(any_cupy.asarray(x), any_cupy.asarray(np.array([0, target, 1])))
    assert np.isnan(loss.get())


def test_no_array_of_the_size_of_the_logits_is_kept(any_cupy):
    x, target = logits(64, 1000)
    x, target = any_cupy.asarray(x), any_cupy.asarray(target)
    before = any_cupy.get_default_memory_pool().used_bytes()
    _loss, _saved = ce.cross_entropy_forward(x, target)
    assert any_cupy.get_default_memory_pool().used_bytes() - before < x.nbytes / 20


@pytest.mark.parametrize("begins", range(9))
@pytest.mark.parametrize("V, threads", [(3, 32), (40, 32), (4099, 160)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_may_begin_at_any_address(dtype, V, threads, begins, standin):
    """Rows of a wider array, whose other numbers are not; with several chunks of 16 bytes a thread, and with none."""
    assert ce.threads_for(V) == threads
    x, target = logits(3, V, dtype)
    wide = standin.asarray(stored(np.full((3, V + 9), np.nan, np.float32), dtype))
    wide[:, begins : begins + V] = standin.asarray(x)
    loss, saved = ce.cross_entropy_forward(wide[:, begins : begins + V], standin.asarray(target), label_smoothing=0.1)
    dx, _ = ce.cross_entropy_backward(standin.ones((), "float32"), saved)
    right, right_saved = cross_entropy.book.forward(x.astype(np.float64), target, label_smoothing=0.1)
    np.testing.assert_allclose(loss.get(), right, rtol=2e-6)
    right_dx, _ = cross_entropy.book.backward(np.ones(()), right_saved)
    assert dx.flags.c_contiguous and relative_error(dx.get().astype(np.float64), right_dx) <= ERRORS[dtype]


def test_rows_of_other_layouts_are_left_to_the_book(any_cupy):
    x, target = any_cupy.zeros((3, 8), "float32"), any_cupy.zeros(3, "int64")
    assert ce.supports(x, target) and ce.supports(x[:, :5], target) and ce.supports(x[:, :1], target)
    for other in (x[:, ::2], x[:, ::-1], x[::-1], any_cupy.broadcast_to(x[0], (3, 8))):
        assert not ce.supports(other, target)


def test_a_nan_anywhere_in_a_row_makes_its_loss_nan(any_cupy):
    """As torch has it: nan for nan, for +inf, and for a row of nothing but -inf."""
    x = np.zeros((4, 4099), np.float32)
    x[0, 4098], x[1, 2000], x[2], x[3, 0] = np.nan, np.inf, -np.inf, -np.inf
    loss, saved = ce.cross_entropy_forward(any_cupy.asarray(x), any_cupy.asarray(np.full(4, 7)), reduction="none")
    dx, _ = ce.cross_entropy_backward(any_cupy.ones(4, "float32"), saved)
    right = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(right, torch.full((4,), 7), reduction="none")
    expected.sum().backward()
    np.testing.assert_allclose(loss.get(), expected.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(dx.get(), right.grad.numpy(), rtol=1e-5, atol=1e-9)
    assert np.isnan(loss.get()).tolist() == [True, True, True, False]


def test_an_ignored_row_has_gradient_0_whatever_it_holds(any_cupy):
    x = np.array([[np.nan, np.inf, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], np.float32)
    loss, saved = ce.cross_entropy_forward(any_cupy.asarray(x), any_cupy.asarray(np.array([-100, 2])))
    dx, _ = ce.cross_entropy_backward(any_cupy.ones((), "float32"), saved)
    assert np.isfinite(loss.get()) and (dx.get()[0] == 0).all() and np.isfinite(dx.get()[1]).all()


PLANTED = {
    "the warps' results are read before all have written them": "    __syncthreads();\n    mine = {-infinity(), 0.0f};",
    "the target's number is written before the others": "    __syncthreads();  // the number of the target is written again",
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_missing_barrier_in_cross_entropy_is_detected(fault, standin, monkeypatch):
    right = compiling.source
    monkeypatch.setattr(compiling, "source", lambda file: without_barrier(right(file), PLANTED[fault]))
    compiling.clear_cache()
    seen = 0
    for order in ORDERS:
        machine.machine.order = order
        try:
            (loss, expected), (dx, right_dx) = losses(standin, *logits(7, 4099))
            seen += not np.allclose(loss, expected, rtol=1e-4) or relative_error(dx, right_dx) > 1e-3
        except KernelError:
            seen += 1
    assert seen, "the race changed nothing in any order"


def without_barrier(source, place):
    assert source.count(place) == 1
    return source.replace(place, place.replace("__syncthreads();", ""))


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
    right_dx = softmax.book.backward(dy.astype(np.float64), SoftmaxSaved(rounded, -1))
    assert relative_error(to_numpy(dx).astype(np.float64), right_dx) <= ERRORS[dtype]


def table_gradient(xp, ids, V, C, dtype="float32", padding_idx=None):
    dy = stored(np.random.default_rng(1).standard_normal((*ids.shape, C)).astype(np.float32), dtype)
    _, dweight = em.embedding_backward(xp.asarray(dy), EmbeddingSaved(xp.asarray(ids), (V, C), padding_idx))
    _, right = embedding.book.backward(dy.astype(np.float64), EmbeddingSaved(ids, (V, C), padding_idx))
    return to_numpy(dweight), right


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("V, C, n", [(5, 3, 1), (3, 40, 700), (65, 100, 1000), (5000, 33, 300)])
def test_every_occurrence_of_a_token_adds_its_gradient(V, C, n, order, any_cupy):
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


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_row_that_is_ignored_may_hold_anything(reduction, any_cupy):
    x, _ = logits(4, 65)
    x[1], x[2, 3] = np.nan, np.inf
    loss, saved = ce.cross_entropy_forward(any_cupy.asarray(x), any_cupy.asarray(np.array([3, -100, -100, 4])), reduction=reduction)
    dx = to_numpy(ce.cross_entropy_backward(any_cupy.ones(loss.shape, "float32"), saved)[0])
    assert np.isfinite(to_numpy(loss)).all() and np.isfinite(dx).all()
    assert (dx[1:3] == 0).all() and (dx[[0, 3]] != 0).any()


def test_a_batch_that_is_ignored_has_the_gradient_0(any_cupy):
    x, _ = logits(3, 5)
    loss, saved = ce.cross_entropy_forward(any_cupy.asarray(x), any_cupy.asarray(np.full(3, -100)))
    assert (to_numpy(ce.cross_entropy_backward(any_cupy.ones(loss.shape, "float32"), saved)[0]) == 0).all()
