"""Wide outputs of an odd width under a half precision: their rows are padded, all products aligned, and the padding is never read."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from gpt.config import GPTConfig
from gpt.generation.sampling import sample
from gpt.model import build_model
from tensorlite.backend import to_numpy
from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda import cross_entropy as ce
from tensorlite.kernels.cuda import linear as li
from tensorlite.kernels.cuda.padding import WORTH_IT, padded_rows, padded_width
from tensorlite.nn import functional as F
from tensorlite.ops.linear import linear
from tensorlite.precision import use_precision
from tensorlite.random import make_generator, use_generator
from tests.compare import relative_error
from tests.standin import machine

V, WIDE = 1029, 1088  # five more than whole chunks of 16 bytes; and the next multiple of 64
HALVES = {"float16": 2e-3, "bfloat16": 1.5e-2}


def half(dtype):
    return bfloat16_dtype() if dtype == "bfloat16" else np.dtype(dtype)


def draw(*shape, dtype="float32", seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32).astype(dtype)


def head(xp, dtype, bias=True):
    """Forward on numbers that the half precision has, so that what is rounded is the result alone."""
    x, weight = draw(2, 3, 16, dtype=half(dtype)), draw(V, 16, seed=1).astype(half(dtype)).astype(np.float32)
    b = draw(V, seed=2) if bias else None
    with use_precision(dtype):
        y, saved = li.linear_forward(xp.asarray(x), xp.asarray(weight), None if b is None else xp.asarray(b))
    exact = linear.book.forward(*(None if a is None else a.astype(np.float64) for a in (x, weight, b)))
    return y, saved, exact


def in_padding(xp, x, poison):
    """``x`` as the left part of rows of WIDE numbers, with ``poison`` behind."""
    wide = xp.empty((x.size // V, WIDE), x.dtype)
    wide[:, V:] = poison
    wide[:, :V] = xp.asarray(x.reshape(-1, V))
    return wide[:, :V].reshape(x.shape)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_logits_have_padded_rows_and_equal_the_books(dtype, bias, any_cupy):
    y, _, (right, _) = head(any_cupy, dtype, bias)
    assert y.shape == (2, 3, V) and y.strides == (3 * 2 * WIDE, 2 * WIDE, 2)
    assert relative_error(to_numpy(y).astype(np.float64), right) <= HALVES[dtype]


@pytest.mark.parametrize("poison", [np.nan, np.inf, 7.0])
@pytest.mark.parametrize("dtype", HALVES)
def test_the_padding_does_not_affect_any_gradient(dtype, poison, any_cupy):
    _, saved, (_, right_saved) = head(any_cupy, dtype)
    dy = draw(2, 3, V, dtype=half(dtype), seed=3)
    found = li.linear_backward(in_padding(any_cupy, dy, poison), saved)
    assert [x.shape for x in found] == [(2, 3, 16), (V, 16), (V,)]
    assert [x.dtype.name for x in found] == [dtype, "float32", "float32"]
    for x, right in zip(found, linear.book.backward(dy.astype(np.float64), right_saved), strict=True):
        assert relative_error(to_numpy(x).astype(np.float64), right) <= HALVES[dtype]
    plain = li.linear_backward(any_cupy.asarray(dy), saved)  # a gradient that comes without padding is brought into it
    for x, other in zip(found, plain, strict=True):
        np.testing.assert_array_equal(to_numpy(x), to_numpy(other))


def test_an_infinite_activation_stays_in_its_row(any_cupy):
    """0 · inf in the padding is nan; the padding is not read."""
    x, weight = draw(4, 16, dtype="float16"), draw(V, 16, seed=1)
    x[1, 3] = np.inf
    with use_precision("float16"):
        y, saved = li.linear_forward(any_cupy.asarray(x), any_cupy.asarray(weight))
    dx, dweight, _ = li.linear_backward(in_padding(any_cupy, draw(4, V, dtype="float16"), np.nan), saved)
    assert np.isfinite(to_numpy(y)[[0, 2, 3]]).all() and np.isfinite(to_numpy(dx)).all()
    assert np.isfinite(to_numpy(dweight)[:, np.arange(16) != 3]).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_every_large_product_is_aligned(dtype, standin):
    _, saved, _ = head(standin, dtype)
    machine.machine.products.clear()
    with use_precision(dtype):
        head(standin, dtype)
    li.linear_backward(in_padding(standin, draw(2, 3, V, dtype=half(dtype)), np.nan), saved)
    large = [call for call in machine.machine.products if max(call["m"], call["n"], call["k"]) > 1000]
    assert len(large) == 3
    for call in large:
        assert all(call[size] % 8 == 0 for size in ("lda", "ldb", "ldc")), call
        contiguous = (call["k"] if call["transa"] else call["m"], call["n"] if call["transb"] else call["k"], call["m"])
        assert all(length % 8 == 0 for length in contiguous), call


def test_only_wide_odd_rows_of_halves_are_padded():
    assert padded_width(50257, half("bfloat16")) == 50304
    assert padded_width(50257, np.dtype("float32")) == 50257  # there tensor cores have no part
    assert padded_width(50304, half("float16")) == 50304 and padded_width(50264, half("float16")) == 50264
    assert padded_width(WORTH_IT - 1, half("float16")) == WORTH_IT - 1 and padded_width(WORTH_IT + 1, half("float16")) == WORTH_IT + 64


def test_a_gradient_is_copied_into_padded_rows_only_if_necessary(any_cupy):
    wide = any_cupy.zeros((4, WIDE), "float16")
    as_it_lies = padded_rows(wide[:, :V])
    assert as_it_lies.data.ptr == wide.data.ptr
    others = {
        "contiguous": any_cupy.asarray(draw(4, V, dtype="float16")),
        "at an odd place": any_cupy.asarray(draw(4, WIDE, dtype="float16"))[:, 1 : V + 1],
        "backwards": any_cupy.asarray(draw(4, V, dtype="float16"))[:, ::-1],
        "one row repeated": any_cupy.broadcast_to(any_cupy.asarray(draw(V, dtype="float16")), (4, V)),
        "one number repeated": any_cupy.broadcast_to(any_cupy.asarray(draw(1, dtype="float16")), (4, V)),
    }
    for name, x in others.items():
        copy = padded_rows(x)
        assert copy.strides == (2 * WIDE, 2), name
        np.testing.assert_array_equal(to_numpy(copy), to_numpy(x), err_msg=name)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", HALVES)
def test_cross_entropy_reads_and_returns_padded_rows(dtype, reduction, any_cupy):
    x, target = draw(5, V, dtype=half(dtype)), np.array([0, V - 1, -100, 5, 700])
    results = []
    for logits in (any_cupy.asarray(x), in_padding(any_cupy, x, np.nan)):
        loss, saved = ce.cross_entropy_forward(logits, any_cupy.asarray(target), reduction=reduction)
        dx, _ = ce.cross_entropy_backward(any_cupy.ones(loss.shape, "float32"), saved)
        assert dx.strides == logits.strides
        results.append((to_numpy(loss), to_numpy(dx)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)  # rows begin elsewhere, so sums are taken in another order
    np.testing.assert_allclose(results[0][1].astype(np.float32), results[1][1].astype(np.float32), rtol=1e-2, atol=1e-6)


def test_no_op_reads_the_padding_of_logits(any_cupy):
    with use_precision("bfloat16"):
        y, _, _ = head(any_cupy, "bfloat16")
        logits, plain = tl.Tensor.wrap(y), tl.Tensor.wrap(any_cupy.ascontiguousarray(y))
        readers = {
            "reshape": lambda x: x.reshape(6, V),
            "softmax": lambda x: F.softmax(x.float(), -1),
            "softmax in half": lambda x: F.softmax(x, -1),
            "log_softmax": lambda x: F.log_softmax(x.float(), -1),
            "argmax": lambda x: x.argmax(-1),
            "max": lambda x: x.max(-1)[0],
            "the last row": lambda x: x[:, -1],
            "a sum": lambda x: x.float().sum(),
            "a product": lambda x: x * 2,
            "transposed": lambda x: x.transpose(1, 2),
            "contiguous": lambda x: x.contiguous(),
            "joined": lambda x: tl.cat([x, x], dim=1),
            "float": lambda x: x.float(),
        }
        for name, read in readers.items():
            np.testing.assert_array_equal(to_numpy(read(logits).array), to_numpy(read(plain).array), err_msg=name)
        np.testing.assert_array_equal(sample(y[:, -1], 0.0, None, None, None), to_numpy(y[:, -1].argmax(-1)))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_model_with_a_padded_head_learns_and_generates(dtype, any_cupy):
    """Loss and gradients beside the book's, in float32 on the CPU; and greedy text."""
    config = GPTConfig(vocab_size=V, block_size=8, n_layer=1, n_head=2, n_embd=16, bias=True, tied_head=True)
    ids = np.random.default_rng(0).integers(V, size=(2, 9))
    results = []
    for device, precision in (("numpy", "float32"), ("cupy", dtype)):
        with use_generator(make_generator(1)):
            model = build_model(config).to(device=device).eval()
        with use_precision(precision):
            logits, loss = model(tl.tensor(ids[:, :-1], device=device), tl.tensor(ids[:, 1:], device=device))
            loss.backward()
            written = model.generate(tl.tensor(ids[:, :4], device=device), 2, temperature=0.0)
        results.append((loss.item(), [to_numpy(p.grad.array) for p in model.parameters()], to_numpy(logits.array), written))
    (right, gradients, exact, _), (loss, found, logits, written) = results
    assert abs(loss - right) <= 2e-3
    assert relative_error(logits.astype(np.float64), exact) <= 4 * HALVES[dtype]
    for gradient, other in zip(found, gradients, strict=True):
        assert relative_error(gradient.astype(np.float64), other) <= 5 * HALVES[dtype]
    assert written.shape == (2, 6) and (to_numpy(written.array) < V).all()
