"""Initial values, written into a tensor in place.

The numbers are drawn on the CPU, from the calling thread's generator (`tensorlite.manual_seed`) unless another one
is given, and then copied to the device. So one seed gives the same model on both devices.

Which variance is right? A layer sums ``fan_in`` products, so the variance of its output is fan_in times that of a
weight, times that of its input. With a variance of 1/fan_in, activations keep the same size from layer to layer.
In backward the sum has ``fan_out`` terms instead. Xavier uses the mean of fan_in and fan_out. Kaiming uses fan_in and a
``gain`` that compensates for what the activation sets to zero (relu: half, so √2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from tensorlite import random
from tensorlite.backend import device_of
from tensorlite.lazy import on_demand
from tensorlite.tensor import Tensor

__getattr__ = on_demand("tensorlite.nn.init", {})

_draws = ContextVar("draws", default=True)
_GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2)}


@contextmanager
def without_drawing() -> Iterator[None]:
    """Inside the ``with`` block `normal_` and `uniform_` leave tensors as they are: for a module whose weights are then loaded."""
    token = _draws.set(False)
    try:
        yield
    finally:
        _draws.reset(token)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: np.random.Generator | None = None) -> Tensor:
    """Normal numbers. Returns the tensor itself, as all functions here do."""
    if not _draws.get():
        return tensor
    return _write(tensor, mean + std * (generator or random.default_generator()).standard_normal(tensor.shape))


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: np.random.Generator | None = None) -> Tensor:
    """Uniform numbers on [a, b)."""
    if not _draws.get():
        return tensor
    return _write(tensor, (generator or random.default_generator()).uniform(a, b, tensor.shape))


def zeros_(tensor: Tensor) -> Tensor:
    """All 0."""
    return _write(tensor, np.zeros(()))


def ones_(tensor: Tensor) -> Tensor:
    """All 1."""
    return _write(tensor, np.ones(()))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """All ``val``."""
    return _write(tensor, np.full((), val))


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", generator: np.random.Generator | None = None
) -> Tensor:
    """Uniform on ±gain · √(3 / fan): the variance is gain² / fan.

    Args:
        a: the slope of a leaky relu below zero; only used with that nonlinearity.
        mode: ``fan_in`` keeps the size of the activations, ``fan_out`` that of the gradients.

    Source: He et al. 2015, "Delving Deep into Rectifiers"; torch.nn.init.kaiming_uniform_.
    """
    fan_in, fan_out = _fans(tensor)
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"kaiming_uniform_: unknown mode {mode!r}: it is 'fan_in' or 'fan_out'.")
    bound = calculate_gain(nonlinearity, a) * math.sqrt(3 / (fan_in if mode == "fan_in" else fan_out))
    return uniform_(tensor, -bound, bound, generator)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: np.random.Generator | None = None) -> Tensor:
    """Uniform on ±gain · √(6 / (fan_in + fan_out)).

    Source: Glorot, Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
    """
    bound = gain * math.sqrt(6 / sum(_fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", generator: np.random.Generator | None = None
) -> Tensor:
    """Normal with the standard deviation gain / √fan; see `kaiming_uniform_`."""
    fan_in, fan_out = _fans(tensor)
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"kaiming_normal_: unknown mode {mode!r}: it is 'fan_in' or 'fan_out'.")
    std = calculate_gain(nonlinearity, a) / math.sqrt(fan_in if mode == "fan_in" else fan_out)
    return normal_(tensor, 0.0, std, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: np.random.Generator | None = None) -> Tensor:
    """Normal with the standard deviation gain · √(2 / (fan_in + fan_out)); see `xavier_uniform_`."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(_fans(tensor))), generator)


def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0, generator: np.random.Generator | None = None
) -> Tensor:
    """Normal numbers, each drawn again until it lies in [a, b]."""
    if not a < b:
        raise ValueError(f"trunc_normal_: a must be below b, got {a} and {b}.")
    stream = generator or random.default_generator()
    values = np.asarray(mean + std * stream.standard_normal(tensor.shape))
    for _ in range(1000):
        outside = (values < a) | (values > b)
        if not outside.any():
            return _write(tensor, values)
        values[outside] = mean + std * stream.standard_normal(int(outside.sum()))
    raise ValueError(f"trunc_normal_: of 1000 draws from N({mean}, {std}²) some never lay between {a} and {b}.")


def eye_(tensor: Tensor) -> Tensor:
    """1 on the diagonal of a matrix, and 0 elsewhere."""
    if tensor.ndim != 2:
        raise ValueError(f"eye_: a tensor of shape {tensor.shape} is no matrix.")
    return _write(tensor, np.eye(tensor.shape[0], tensor.shape[1]))


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: np.random.Generator | None = None) -> Tensor:
    """Orthogonal rows (or columns, whichever are fewer) of length ``gain``. With a gain of 1, the product keeps the length of a vector.

    Source: Saxe, McClelland, Ganguli 2013, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks".
    """
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_: it takes a tensor of at least 2 axes, got shape {tensor.shape}.")
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    drawn = (generator or random.default_generator()).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(drawn)
    q = q * np.sign(np.diagonal(r))  # so that every orthogonal matrix is as likely as any other
    return _write(tensor, gain * (q if rows >= columns else q.T).reshape(tensor.shape))


def calculate_gain(nonlinearity: str, param: float = 0.01) -> float:
    """The factor for the weights that compensates for the activation that follows."""
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + param**2))
    if nonlinearity not in _GAINS:
        raise ValueError(f"unknown nonlinearity {nonlinearity!r}: it is 'leaky_relu' or one of {', '.join(map(repr, _GAINS))}.")
    return _GAINS[nonlinearity]


def _fans(tensor: Tensor) -> tuple[int, int]:
    """fan_in and fan_out of a weight (out, in, ...)."""
    if tensor.ndim < 2:
        raise ValueError(f"fan_in and fan_out need a weight of at least 2 axes, got shape {tensor.shape}.")
    area = math.prod(tensor.shape[2:])
    return tensor.shape[1] * area, tensor.shape[0] * area


def _write(tensor: Tensor, values: np.ndarray) -> Tensor:
    tensor.array[...] = device_of(tensor.array).asarray(values, tensor.dtype)
    tensor.version.increment(tensor.array)
    return tensor
