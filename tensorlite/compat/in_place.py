"""More methods that write in place. Each uses `tensorlite.ops.in_place.change`, which follows torch's rules and counts the write."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from tensorlite import random
from tensorlite.backend import device_of
from tensorlite.compat import composed, questions
from tensorlite.ops import activation, arithmetic, comparison, elementary, indexing, rounding, scatter
from tensorlite.ops.in_place import assign, change
from tensorlite.tensor import Tensor

Stream = np.random.Generator | None


# --- random numbers -------------------------------------------------------------------------------------


def normal_(x: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Stream = None) -> Tensor:
    """x ← normal numbers. The old values get the gradient 0, as in all functions of this group."""
    return _drawn("normal_", x, mean + std * _stream(generator).standard_normal(x.shape))


def uniform_(x: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Stream = None) -> Tensor:
    """x ← uniform numbers on [a, b)."""
    return _drawn("uniform_", x, _stream(generator).uniform(a, b, x.shape))


def bernoulli_(x: Tensor, p: float = 0.5, *, generator: Stream = None) -> Tensor:
    """x ← 1 with probability p, else 0."""
    return _drawn("bernoulli_", x, _stream(generator).random(x.shape) < p)


def exponential_(x: Tensor, lambd: float = 1.0, *, generator: Stream = None) -> Tensor:
    """x ← exponential numbers with mean 1/lambd."""
    return _drawn("exponential_", x, _stream(generator).standard_exponential(x.shape) / lambd)


def random_(x: Tensor, low: int = 0, high: int | None = None, *, generator: Stream = None) -> Tensor:
    """x ← integers from ``low`` up to but without ``high``; ``random_(n)`` counts from 0."""
    if high is None:
        low, high = (0, low) if low else (0, 2 ** (np.finfo(x.dtype).nmant + 1) if x.is_floating_point() else np.iinfo(x.dtype).max)
    return _drawn("random_", x, _stream(generator).integers(low, high, x.shape))


def _stream(generator: Stream) -> np.random.Generator:
    return generator or random.default_generator()


def _drawn(name: str, x: Tensor, values: np.ndarray) -> Tensor:
    return assign(name, x, device_of(x.array).asarray(values, x.dtype))


# --- functions of x --------------------------------------------------------------------------------------


def _written(name: str, op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def write(x: Tensor, *args: Any, **options: Any) -> Tensor:
        try:
            return change(name, op, x, *args, **options)
        except TypeError:
            _check_arguments(name, op, x, *args, **options)
            raise

    write.__name__ = write.__qualname__ = name
    write.__doc__ = f"x ← {name[:-1]}(x, …)"
    return write


def _check_arguments(name: str, op: Callable[..., Tensor], *args: Any, **options: Any) -> None:
    """If the arguments do not fit, raise an error whose message names the method that was called."""
    try:
        inspect.signature(op).bind(*args, **options)
    except TypeError as error:
        raise TypeError(f"{name}(): {error}.") from None


abs_ = _written("abs_", elementary.abs)
neg_ = _written("neg_", arithmetic.neg)
exp_ = _written("exp_", elementary.exp)
log_ = _written("log_", elementary.log)
sqrt_ = _written("sqrt_", elementary.sqrt)
rsqrt_ = _written("rsqrt_", elementary.rsqrt)
square_ = _written("square_", elementary.square)
reciprocal_ = _written("reciprocal_", elementary.reciprocal)
floor_ = _written("floor_", rounding.floor)
ceil_ = _written("ceil_", rounding.ceil)
round_ = _written("round_", rounding.round)
trunc_ = _written("trunc_", rounding.trunc)
remainder_ = _written("remainder_", rounding.remainder)
clip_ = _written("clip_", comparison.clamp)
relu_ = _written("relu_", activation.relu)
sigmoid_ = _written("sigmoid_", activation.sigmoid)
tanh_ = _written("tanh_", activation.tanh)
tril_ = _written("tril_", indexing.tril)
triu_ = _written("triu_", indexing.triu)
lerp_ = _written("lerp_", composed.lerp)
addcmul_ = _written("addcmul_", composed.addcmul)
addcdiv_ = _written("addcdiv_", composed.addcdiv)
scatter_ = _written("scatter_", scatter.scatter)
scatter_add_ = _written("scatter_add_", scatter.scatter_add)
index_add_ = _written("index_add_", scatter.index_add)


def _operator(write: Callable[..., Tensor]) -> Callable[[Tensor, Any], Any]:
    return lambda x, y: write(x, y) if isinstance(y, Tensor | int | float) or hasattr(y, "dtype") else NotImplemented


mod_operator = _operator(remainder_)
and_operator = _operator(_written("&=", questions.bitwise_and))
or_operator = _operator(_written("|=", questions.bitwise_or))
xor_operator = _operator(_written("^=", questions.bitwise_xor))
