"""Accuracy: sums of many numbers, half precisions, numbers near the ends of float32, integers, compared with torch.

A result is compared with torch's in float64, and so is torch's own. Ours may be off by at most 4 times as much. Both add in blocks,
but not in the same ones: a sum of n numbers in blocks of b passes through at most b roundings a level on log(n)/log(b) levels, so with
b = 64 here and 16 to 32 in torch the worst cases differ by a factor of 2 to 4 (and of the averages, for roundings are up and
down, the root of that). The rounding of the exact result to its type alone is off by half a unit, ROUNDING: nobody is held to less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite.op import use_kernels
from tests.cases import Draw, integers, normal, uniform
from tests.compare import relative_error

TIMES_TORCH = 4
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.fixture(params=["book", "fast"], autouse=True)
def kernels(request):
    with use_kernels(request.param):
        yield


def run(t: Any, call: Callable[..., Any], arrays: list[np.ndarray], dtype: str, spread: float = 0.1) -> list[np.ndarray]:
    """The output in the computation's ``dtype``, and the gradients of all floating point inputs under cotangents around 1."""
    leaves = [t.tensor(x).to(getattr(t, dtype)).requires_grad_() if x.dtype.kind == "f" else t.tensor(x) for x in arrays]
    y = call(t, *leaves)
    dy = np.random.default_rng(1).normal(1, spread, tuple(y.shape)).astype(np.float16).astype(np.float32)
    y.backward(t.tensor(dy).to(y.dtype))
    return [as_float64(x) for x in (y.detach(), *(leaf.grad for leaf in leaves if leaf.requires_grad))]


def as_float64(x: Any) -> np.ndarray:
    return np.asarray(x.to(tl.float64 if isinstance(x, tl.Tensor) else torch.float64).numpy())


def check(call: Callable[..., Any], draws: list[Draw], dtype: str) -> list[float]:
    """The errors, in torch's or in roundings; every one must be small."""
    rng = np.random.default_rng(0)
    arrays = [draw(rng) for draw in draws]
    arrays = [as_float64(torch.tensor(x).to(getattr(torch, dtype))) if x.dtype.kind == "f" else x for x in arrays]  # exact in dtype
    truth = run(torch, call, arrays, "float64")
    ratios = []
    for ours, torchs, right in zip(run(tl, call, arrays, dtype), run(torch, call, arrays, dtype), truth, strict=True):
        error, torch_error = relative_error(ours, right), relative_error(torchs, right)
        assert error <= TIMES_TORCH * max(torch_error, ROUNDING[dtype]), f"off by {error:.2g}, torch by {torch_error:.2g}"
        ratios.append(error / max(torch_error, ROUNDING[dtype]))
    return ratios


# --- sums of many numbers ---------------------------------------------------------------------------------

TALL = normal(200_000, 8, mean=1000)
COLUMN = normal(8)

SUMS: dict[str, tuple[Callable[..., Any], list[Draw]]] = {
    "sum of a million rows": (lambda t, x: x.sum(0), [normal(1_000_000, 3, mean=1000)]),
    "sum of wide rows": (lambda t, x: x.sum(0), [normal(16384, 384, mean=1000)]),
    "sum of 65 rows": (lambda t, x: x.sum(0), [normal(65, 384, mean=1000)]),
    "sum of 256 rows": (lambda t, x: x.sum(0), [normal(256, 16, mean=1000)]),
    "sum of 257 rows": (lambda t, x: x.sum(0), [normal(257, 16, mean=1000)]),
    "sum, keepdim": (lambda t, x: x.sum(0, keepdim=True), [TALL]),
    "sum over two axes": (lambda t, x: x.sum((0, 1)), [normal(500, 300, 8, mean=1000)]),
    "sum over the outer axes": (lambda t, x: x.sum((0, 2)), [normal(3000, 8, 50, mean=1000)]),
    "sum over the middle": (lambda t, x: x.sum(1), [normal(3, 50_000, 7, mean=1000)]),
    "sum of columns that lie apart": (lambda t, x: x.mT.sum(-1), [TALL]),
    "sum of every second row": (lambda t, x: x[::2].sum(0), [TALL]),
    "sum of every second column": (lambda t, x: x[:, ::2].sum(0), [TALL]),
    "sum of all of a part": (lambda t, x: x[:, 1:3].sum(), [TALL]),
    "sum of heads": (lambda t, x: x.permute(0, 2, 1, 3).sum(2), [normal(2, 5000, 3, 16, mean=1000)]),
    "mean": (lambda t, x: x.mean(0), [TALL]),
    "mean of all": (lambda t, x: x.mean(), [TALL]),
    "var": (lambda t, x: x.var(0), [TALL]),
    "std": (lambda t, x: x.std(0), [TALL]),
    "var of all": (lambda t, x: x.var(), [TALL]),
    "logsumexp": (lambda t, x: x.logsumexp(0), [normal(200_000, 8)]),
    "softmax": (lambda t, x: x.softmax(0), [normal(200_000, 8)]),
    "log_softmax": (lambda t, x: x.log_softmax(0), [normal(200_000, 8)]),
    "cumsum": (lambda t, x: x.cumsum(0), [TALL]),
    "cumsum along rows": (lambda t, x: x.cumsum(1), [normal(3, 200_000, mean=1000)]),
    "cumsum of few": (lambda t, x: x.cumsum(0), [normal(50, 300, mean=1000)]),
    "einsum": (lambda t, x: t.einsum("ij->j", x), [TALL]),
    "prod": (lambda t, x: x.prod(0), [normal(1000, 8, mean=1.0, std=0.01)]),
    "a bias": (lambda t, x, b: x + b, [TALL, COLUMN]),
    "a factor": (lambda t, x, b: x * b, [TALL, COLUMN]),
    "a divisor": (lambda t, x, b: x / b, [TALL, uniform(8, low=1, high=2)]),
    "expand": (lambda t, b: b.expand(200_000, 8), [COLUMN]),
    "repeat": (lambda t, b: b.repeat(200_000, 1), [COLUMN]),
    "a gradient that is one number": (lambda t, x, b: (x + b).sum() * 0.1, [TALL, COLUMN]),
    "where": (lambda t, x, b: t.where(x > 1000, x, b), [TALL, COLUMN]),
    "linear": (lambda t, x, w, b: t.nn.functional.linear(x, w, b), [TALL, normal(4, 8), normal(4)]),
    "matmul": (lambda t, a, b: a.mT @ b, [TALL, TALL]),
    "a matrix in a batch": (lambda t, a, b: a @ b, [normal(2000, 16, 8, mean=10), normal(8, 4)]),
    "layer_norm": (lambda t, x, w, b: t.nn.functional.layer_norm(x, (8,), w, b), [normal(200_000, 8), COLUMN, COLUMN]),
    "layer_norm of wide rows": (lambda t, x, w, b: t.nn.functional.layer_norm(x, (3000,), w, b), [normal(100, 3000), *[normal(3000)] * 2]),
    "rms_norm": (lambda t, x, w: t.nn.functional.rms_norm(x, (8,), w), [normal(200_000, 8), COLUMN]),
    "embedding": (lambda t, ids, w: t.nn.functional.embedding(ids, w), [integers(200_000, high=3), normal(3, 8)]),
    "reading a row again and again": (lambda t, ids, w: w[ids], [integers(200_000, high=3), normal(3, 8)]),
    "index_select": (lambda t, ids, w: w.index_select(0, ids), [integers(200_000, high=3), normal(3, 8)]),
    "cross_entropy": (lambda t, x, y: t.nn.functional.cross_entropy(x, y), [normal(100_000, 5), integers(100_000, high=5)]),
    "cross_entropy, summed": (
        lambda t, x, y: t.nn.functional.cross_entropy(x, y, reduction="sum"),
        [normal(100_000, 5), integers(100_000, high=5)],
    ),
    "cross_entropy of many classes": (lambda t, x, y: t.nn.functional.cross_entropy(x, y), [normal(4, 50_000), integers(4, high=50_000)]),
    "mse_loss": (lambda t, x, y: t.nn.functional.mse_loss(x, y), [normal(200_000, 3), normal(200_000, 3)]),
    "attention over many keys": (
        lambda t, q, k, v: t.nn.functional.scaled_dot_product_attention(q, k, v),
        [normal(1, 1, 2, 8), normal(1, 1, 20_000, 8), normal(1, 1, 20_000, 8, mean=10)],
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_many_numbers(name, record_property):
    for ratio in check(*SUMS[name], "float32"):
        record_property("accuracy", ratio)


# --- half precisions --------------------------------------------------------------------------------------

X = normal(40, 30)
HALVES: dict[str, tuple[Callable[..., Any], list[Draw]]] = {
    "sum": (lambda t, x: x.sum(), [uniform(3000)]),
    "sum of rows": (lambda t, x: x.sum(0), [uniform(3000, 2)]),
    "mean": (lambda t, x: x.mean(), [uniform(3000)]),
    "mean of large numbers": (lambda t, x: x.mean(), [normal(1000, mean=100.0)]),
    "var": (lambda t, x: x.var(), [normal(3000, mean=5.0)]),
    "std": (lambda t, x: x.std(0), [normal(3000, 2, mean=5.0)]),
    "std of large numbers": (lambda t, x: x.std(), [normal(3000, std=1000.0)]),
    "prod": (lambda t, x: x.prod(), [normal(500, mean=1.0, std=0.01)]),
    "cumsum": (lambda t, x: x.cumsum(0), [uniform(3000)]),
    "logsumexp": (lambda t, x: x.logsumexp(0), [normal(3000)]),
    "softmax": (lambda t, x: x.softmax(-1), [normal(2, 3000)]),
    "softmax of equals": (lambda t, x: x.softmax(0) * 1000, [normal(1000, std=0.0)]),
    "log_softmax": (lambda t, x: x.log_softmax(0), [normal(3000, 2)]),
    "a bias": (lambda t, x, b: x + b, [uniform(3000, 2), normal(2)]),
    "expand": (lambda t, b: b.expand(3000, 2), [normal(2)]),
    "matmul": (lambda t, a, b: a @ b, [uniform(4, 3000), uniform(3000, 3)]),
    "dot": (lambda t, a, b: a @ b, [uniform(3000), uniform(3000)]),
    "batch": (lambda t, a, b: a @ b, [uniform(3, 4, 500), uniform(500, 2)]),
    "linear": (lambda t, x, w, b: t.nn.functional.linear(x, w, b), [uniform(3000, 4), normal(3, 4), normal(3)]),
    "einsum": (lambda t, a, b: t.einsum("ij,jk->ik", a, b), [uniform(4, 3000), uniform(3000, 3)]),
    "einsum of one": (lambda t, a: t.einsum("ij->j", a), [uniform(3000, 4)]),
    "layer_norm": (lambda t, x, w, b: t.nn.functional.layer_norm(x, (30,), w, b), [X, normal(30), normal(30)]),
    "layer_norm of large numbers": (lambda t, x: t.nn.functional.layer_norm(x, (30,)), [normal(40, 30, std=1000.0)]),
    "rms_norm": (lambda t, x, w: t.nn.functional.rms_norm(x, (30,), w), [X, normal(30)]),
    "rms_norm of 300s": (lambda t, x: t.nn.functional.rms_norm(x, (30,)), [normal(40, 30, mean=300.0)]),
    "rms_norm of small numbers": (lambda t, x: t.nn.functional.rms_norm(x, (30,)), [normal(40, 30, std=1e-3)]),
    "cross_entropy": (lambda t, x, y: t.nn.functional.cross_entropy(x, y), [normal(3000, 5), integers(3000, high=5)]),
    "nll_loss": (lambda t, x, y: t.nn.functional.nll_loss(x, y), [normal(3000, 5), integers(3000, high=5)]),
    "mse_loss": (lambda t, x, y: t.nn.functional.mse_loss(x, y), [normal(3000), normal(3000)]),
    "kl_div": (lambda t, x, y: t.nn.functional.kl_div(x, y, reduction="none"), [normal(3000), uniform(3000)]),
    "attention": (
        lambda t, q, k, v: t.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        [normal(2, 2, 50, 8), normal(2, 2, 50, 8), normal(2, 2, 50, 8)],
    ),
    "embedding": (lambda t, ids, w: t.nn.functional.embedding(ids, w), [integers(6000, high=2), normal(2, 3)]),
    "reading a row again and again": (lambda t, ids, w: w[ids], [integers(6000, high=2), normal(2, 3)]),
    "index_select": (lambda t, ids, w: w.index_select(0, ids), [integers(6000, high=2), normal(2, 3)]),
    "gather": (lambda t, ids, w: w.gather(0, ids), [integers(6000, 3, high=2), normal(2, 3)]),
    "sigmoid": (lambda t, x: x.sigmoid(), [X]),
    "tanh": (lambda t, x: x.tanh(), [X]),
    "silu": (lambda t, x: t.nn.functional.silu(x), [X]),
    "gelu": (lambda t, x: t.nn.functional.gelu(x), [X]),
    "gelu-tanh": (lambda t, x: t.nn.functional.gelu(x, approximate="tanh"), [X]),
    "exp": (lambda t, x: x.exp(), [X]),
    "log": (lambda t, x: x.log(), [uniform(40, 30, low=0.1, high=3.0)]),
    "rsqrt": (lambda t, x: x.rsqrt(), [uniform(40, 30, low=0.1, high=3.0)]),
    "division": (lambda t, x, y: x / y, [X, uniform(30, low=0.5, high=3.0)]),
    "power": (lambda t, x: x**3, [X]),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", HALVES)
def test_half_precisions_compute_in_float32(name, dtype, record_property):
    call, draws = HALVES[name]
    for ratio in check(call, draws, dtype):
        record_property("accuracy", ratio)
    x = [tl.tensor(draw(np.random.default_rng(0))) for draw in draws]
    assert call(tl, *(a.to(getattr(tl, dtype)) if a.is_floating_point() else a for a in x)).dtype == getattr(tl, dtype)


# exp and log are NumPy's own, in float16 too
ROUNDED_ONCE = ("sigmoid", "tanh", "silu", "gelu", "gelu-tanh", "kl_div")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ROUNDED_ONCE)
def test_what_is_computed_in_float32_is_rounded_once(name, dtype):
    """Half a unit in the last place, where a backward that rounds y and then 1 - y² is off by more."""
    call, draws = HALVES[name]
    arrays = [as_float64(torch.tensor(draw(np.random.default_rng(0)) * 2).to(getattr(torch, dtype))) for draw in draws]
    for ours, right in zip(run(tl, call, arrays, dtype, spread=0), run(torch, call, arrays, "float64", spread=0), strict=True):
        assert relative_error(ours, right) <= 1.01 * ROUNDING[dtype]  # 1 % for the error of float32


# --- numbers near the ends of float32 ---------------------------------------------------------------------

SCALES = [1e-30, 1e-20, 1.0, 1e10, 1e19, 1e20, 1e25, 1e36]
ANY_SCALE: dict[str, Callable[..., Any]] = {
    "std": lambda t, x: x.std(),
    "std of rows": lambda t, x: x.std(1),
    "layer_norm": lambda t, x: t.nn.functional.layer_norm(x, (8,)),
    "rms_norm": lambda t, x: t.nn.functional.rms_norm(x, (8,), eps=1e-5),
    "gelu": lambda t, x: t.nn.functional.gelu(x),
    "gelu-tanh": lambda t, x: t.nn.functional.gelu(x, approximate="tanh"),
    "silu": lambda t, x: t.nn.functional.silu(x),
    "sigmoid": lambda t, x: x.sigmoid(),
    "tanh": lambda t, x: x.tanh(),
    "relu": lambda t, x: x.relu(),
    "softmax": lambda t, x: x.softmax(-1),
    "log_softmax": lambda t, x: x.log_softmax(-1),
    "logsumexp": lambda t, x: x.logsumexp(1),
    "mean": lambda t, x: x.mean(1),
    "abs": lambda t, x: x.abs(),
    "sqrt": lambda t, x: x.abs().sqrt(),
    "cross_entropy": lambda t, x: t.nn.functional.cross_entropy(x, t.tensor([0, 1, 2])),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ANY_SCALE)
def test_numbers_near_the_ends_of_float32(name, scale):
    """Against torch in float64. In float32 its layer_norm of 1e25s is nan, its rms_norm 0, and its gelu's gradient at 1e20 nan."""
    call = ANY_SCALE[name]
    x = (np.random.default_rng(0).standard_normal((3, 8)) * scale).astype(np.float32)
    for ours, right in zip(run(tl, call, [x], "float32"), run(torch, call, [x], "float64"), strict=True):
        size = np.abs(right).max() or 1
        with np.errstate(over="ignore"):
            rounded = right.astype(np.float32)
        np.testing.assert_allclose(ours / size, rounded / size, rtol=0, atol=1e-5)


# --- integers ---------------------------------------------------------------------------------------------

WHOLE = ["uint8", "int8", "int16", "int32", "int64", "bool"]
ALONE = ["exp", "log", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "sigmoid", "tanh", "square", "sum", "prod", "mean", "var", "std"]
OF_INTEGERS: dict[str, Callable[..., Any]] = {
    **{name: lambda t, n, name=name: getattr(t, name)(n) for name in ALONE},
    "sum of rows": lambda t, n: n.sum(0),
    "cumsum": lambda t, n: n.cumsum(0),
    "logsumexp": lambda t, n: t.logsumexp(n, 0),
    "softmax": lambda t, n: t.softmax(n, 0),
    "log_softmax": lambda t, n: t.log_softmax(n, 0),
    "softmax with a dtype": lambda t, n: t.nn.functional.softmax(n, dim=0, dtype=t.float32),
    "gelu": lambda t, n: t.nn.functional.gelu(n),
    "silu": lambda t, n: t.nn.functional.silu(n),
    "layer_norm": lambda t, n: t.nn.functional.layer_norm(n, (3,)),
    "rms_norm": lambda t, n: t.nn.functional.rms_norm(n, (3,)),
    "mse_loss": lambda t, n: t.nn.functional.mse_loss(n, n),
    "mse_loss with floats": lambda t, n: t.nn.functional.mse_loss(n, t.ones(3)),
    "cross_entropy": lambda t, n: t.nn.functional.cross_entropy(n, t.tensor(1)),
    "nll_loss": lambda t, n: t.nn.functional.nll_loss(n, t.tensor(1)),
    "attention": lambda t, n: t.nn.functional.scaled_dot_product_attention(*(n.reshape(1, 3, 1),) * 3),
    "dropout": lambda t, n: t.nn.functional.dropout(n, 0.5),
    "matmul": lambda t, n: n @ n,
    "einsum of one": lambda t, n: t.einsum("i->", n),
}


@pytest.mark.parametrize("dtype", WHOLE)
@pytest.mark.parametrize("name", OF_INTEGERS)
def test_integers_give_torchs_result_or_a_clear_error(name, dtype):
    call, n = OF_INTEGERS[name], np.array([1, 0, 5]).astype(dtype)
    with np.errstate(divide="ignore"):
        try:
            right = call(torch, torch.tensor(n))
        except (RuntimeError, ValueError):  # RuntimeError has NotImplementedError below it
            with pytest.raises(RuntimeError, match=r"(floating point, got|are) (u?int\d+|bool).*\.to\((float32|int64)\)"):
                call(tl, tl.tensor(n))
            return
        ours = call(tl, tl.tensor(n))
    assert str(ours.dtype) == str(right.dtype).removeprefix("torch.")
    np.testing.assert_allclose(ours.numpy(), right.numpy(), rtol=1e-6)
