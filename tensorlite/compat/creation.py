"""Creation of tensors by functions that only programs written for torch need. Random numbers are drawn on the CPU (`tensorlite.random`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tensorlite import creation, random
from tensorlite.backend import Device, device_of, to_numpy
from tensorlite.tensor import Tensor, is_floating

Place = Device | str | int | None


def linspace(start: float, end: float, steps: int, *, dtype: Any = None, device: Place = None, requires_grad: bool = False) -> Tensor:
    """``steps`` equally spaced numbers from ``start`` to ``end``, both included."""
    return _made(np.linspace(float(start), float(end), steps), dtype, device, requires_grad)


def logspace(
    start: float, end: float, steps: int, base: float = 10.0, *, dtype: Any = None, device: Place = None, requires_grad: bool = False
) -> Tensor:
    """``base`` to the powers of `linspace`."""
    return _made(np.logspace(float(start), float(end), steps, base=base), dtype, device, requires_grad)


def eye(n: int, m: int | None = None, *, dtype: Any = None, device: Place = None, requires_grad: bool = False) -> Tensor:
    """n rows and m columns, 1 on the diagonal and 0 elsewhere."""
    return _made(np.eye(n, m), dtype, device, requires_grad)


def empty(*size: Any, dtype: Any = None, device: Place = None, requires_grad: bool = False) -> Tensor:
    """Zeros, so a program that reads elements before it writes them gets the same result each time."""
    return creation.zeros(*size, dtype=dtype, device=Device(device), requires_grad=requires_grad)


def empty_like(x: Tensor, *, dtype: Any = None, device: Place = None, requires_grad: bool = False) -> Tensor:
    """`empty` of the shape of ``x``."""
    return full_like(x, 0, dtype=dtype, device=device, requires_grad=requires_grad)


def full_like(x: Tensor, fill_value: float, *, dtype: Any = None, device: Place = None, requires_grad: bool = False) -> Tensor:
    """A tensor of the shape, dtype and device of ``x`` in which every element is ``fill_value``."""
    return _like(x, np.full(x.shape, fill_value), dtype, device, requires_grad)


def rand_like(x: Tensor, *, dtype: Any = None, device: Place = None, requires_grad: bool = False) -> Tensor:
    """Uniform on [0, 1), with the shape, dtype and device of ``x``."""
    dtype = x.dtype if dtype is None else dtype
    return creation.rand(x.shape, dtype=dtype, device=x.device if device is None else Device(device), requires_grad=requires_grad)


def randn_like(x: Tensor, *, dtype: Any = None, device: Place = None, requires_grad: bool = False) -> Tensor:
    """Normal with mean 0 and standard deviation 1, with the shape, dtype and device of ``x``."""
    return _like(x, random.default_generator().standard_normal(x.shape), dtype, device, requires_grad)


def randperm(n: int, *, generator: np.random.Generator | None = None, dtype: Any = np.int64, device: Place = None) -> Tensor:
    """The integers from 0 to n - 1 in a random order."""
    return Tensor(Device(device).asarray((generator or random.default_generator()).permutation(n), dtype))


def normal(
    mean: Any, std: Any = 1.0, size: Any = None, *, generator: np.random.Generator | None = None, dtype: Any = None, device: Place = None
) -> Tensor:
    """Normal numbers: means and deviations from tensors, or from two numbers and a ``size``."""
    given = next((x for x in (mean, std) if isinstance(x, Tensor)), None)
    mean, std = (to_numpy(x.array) if isinstance(x, Tensor) else x for x in (mean, std))
    shape = np.broadcast_shapes(np.shape(mean), np.shape(std), size or ())
    values = mean + std * (generator or random.default_generator()).standard_normal(shape)
    return _made(values, dtype, device, False) if given is None else _like(given, values, dtype, device, False)


def bernoulli(x: Tensor, p: float | None = None, *, generator: np.random.Generator | None = None) -> Tensor:
    """1 with the probability in ``x``, or ``p`` everywhere, else 0; with the shape and dtype of ``x``.

    Raises:
        ValueError: if a probability is not between 0 and 1.
    """
    probability = to_numpy(x.array) if p is None else np.asarray(p)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("bernoulli: probabilities lie between 0 and 1.")
    return _like(x, (generator or random.default_generator()).random(x.shape) < probability, x.dtype, None, False)


def multinomial(x: Tensor, num_samples: int, replacement: bool = False, *, generator: np.random.Generator | None = None) -> Tensor:
    """Draw ``num_samples`` positions from each row, each with a probability in proportion to its weight; int64.

    With replacement, or for one sample, this uses the cumulative sum. Without replacement, each position gets an exponential random number
    divided by its weight. The positions with the smallest numbers, in order, are distributed like draws one after the other.

    Args:
        x: weights, (V,) or (B, V), at least 0; they need not sum to 1.

    Raises:
        RuntimeError: for weights that are negative, infinite, nan or all 0; for more samples without replacement than weights above 0.
        ValueError: for another number of axes, or no samples.

    Source: equals torch.multinomial; Efraimidis, Spirakis 2006.
    """
    weights = to_numpy(x.array).astype(np.float64)
    if weights.ndim not in (1, 2) or num_samples < 1:
        raise ValueError(f"multinomial: weights have one or two axes and at least 1 sample is drawn, got {x.shape} and {num_samples}.")
    if not is_floating(x.dtype):
        raise RuntimeError(f"multinomial: weights must be floating point, got {x.dtype}.")
    if not np.isfinite(weights).all() or (weights < 0).any() or (weights.sum(-1) <= 0).any():
        raise RuntimeError("multinomial: weights must be finite and at least 0, and one of each row above 0.")
    stream = generator or random.default_generator()
    if replacement or num_samples == 1:
        cumulative = weights.cumsum(-1)
        drawn = stream.random((*weights.shape[:-1], num_samples, 1)) * cumulative[..., None, -1:]
        last = weights.shape[-1] - 1 - np.flip(weights > 0, -1).argmax(-1)[..., None]  # rounding must not give a larger index
        picked = np.minimum((cumulative[..., None, :] <= drawn).sum(-1), last)
    else:
        possible = int((weights > 0).sum(-1).min())
        if num_samples > possible:
            raise RuntimeError(f"multinomial: {num_samples} samples without replacement from {possible} weights above 0.")
        with np.errstate(divide="ignore"):
            rings = stream.standard_exponential(weights.shape) / weights
        picked = np.argsort(rings, axis=-1, kind="stable")[..., :num_samples]
    return Tensor(device_of(x.array).asarray(picked, np.int64))


def as_tensor(data: Any, dtype: Any = None, device: Place = None) -> Tensor:
    """``data`` as a tensor, which shares its memory if dtype and device allow it; a tensor that fits is returned unchanged."""
    if isinstance(data, Tensor):
        return data.to(dtype=dtype, device=device)
    if device is None and hasattr(data, "dtype") and (dtype is None or data.dtype == dtype):
        return Tensor.wrap(data)
    return creation.tensor(data, dtype, None if device is None else Device(device))


def asarray(data: Any, dtype: Any = None, device: Place = None) -> Tensor:
    """The same as `as_tensor`."""
    return as_tensor(data, dtype, device)


def _typed(name: str, dtype: str) -> Callable[..., Tensor]:
    def make(*data: Any) -> Tensor:
        if all(isinstance(n, int) for n in data) and data:
            return creation.zeros(*data, dtype=np.dtype(dtype))
        return creation.tensor(data[0] if data else [], np.dtype(dtype))

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"{dtype} numbers from lists or an array; zeros for lengths, ``{name}(2, 3)``."
    return make


FloatTensor = _typed("FloatTensor", "float32")
DoubleTensor = _typed("DoubleTensor", "float64")
HalfTensor = _typed("HalfTensor", "float16")
LongTensor = _typed("LongTensor", "int64")
IntTensor = _typed("IntTensor", "int32")
ShortTensor = _typed("ShortTensor", "int16")
CharTensor = _typed("CharTensor", "int8")
ByteTensor = _typed("ByteTensor", "uint8")
BoolTensor = _typed("BoolTensor", "bool")


def _made(values: np.ndarray, dtype: Any, device: Place, requires_grad: bool) -> Tensor:
    return Tensor(Device(device).asarray(values, creation.float32 if dtype is None else dtype), requires_grad)


def _like(x: Tensor, values: np.ndarray, dtype: Any, device: Place, requires_grad: bool) -> Tensor:
    where = device_of(x.array) if device is None else Device(device)
    return Tensor(where.asarray(values, x.dtype if dtype is None else dtype), requires_grad)
