"""Gradient clipping: limit the norm or the values of gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.optim.flat import whole_buffer
from tensorlite.optim.rule import Rule
from tensorlite.tensor import Tensor

BLOCK = 2**20  # numbers whose squares BLAS adds in their own precision; blocks are added in float64


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale the vector of all gradients down to length ``max_norm`` if it is longer; its direction does not change.

        g ← g · min(1, max_norm / (|g| + 1e-6))

    Gradients whose squares overflow, such as 1e30 in float32, are clipped correctly, too. A norm that is nan makes nan of every gradient
    that is not 0.
    On a GPU this waits for the device only with ``error_if_nonfinite``.

    Args:
        parameters: those without a gradient are ignored.
        norm_type: 2 for the length, ``inf`` for the largest magnitude, p for (Σ |g|ᵖ)^(1/p).
        error_if_nonfinite: raise if the norm is infinite or not a number, before anything is changed.

    Returns:
        The norm before clipping, a tensor of no axes.

    Raises:
        RuntimeError: see ``error_if_nonfinite``.
        ValueError: if max_norm is negative or norm_type is not positive.

    Source: Pascanu, Mikolov, Bengio 2013; equals torch.nn.utils.clip_grad_norm_.
    """
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm_: max_norm must not be negative, got {max_norm}.")
    if not norm_type > 0:
        raise ValueError(f"clip_grad_norm_: norm_type is a positive number or inf, got {norm_type}.")
    gradients = gradients_of(parameters)
    if not gradients:
        return Tensor.wrap(np.zeros((), np.float32))
    return Tensor.wrap(clip_update(gradients, max_norm, norm_type, error_if_nonfinite))


def clip_factor(parameters: Tensor | Iterable[Tensor], max_norm: float) -> tuple[Tensor, Array]:
    """The length of the vector of all gradients, and what `clip_grad_norm_` multiplies them with. The gradients stay as they are.

    An optimizer that is given the factor (``step(gradient_factor=…)``) reads each gradient once, where `clip_grad_norm_` would have read
    and written it before. Nothing here waits for the device.

    Args:
        parameters: at least one of them has a gradient.
    """
    norm, factor = measure_gradients(gradients_of(parameters), max_norm)
    return Tensor.wrap(norm), factor


@Rule
def measure_gradients(gradients: list[Array], max_norm: float) -> tuple[Array, Array]:
    """The 2-norm of all arrays together, and min(1, max_norm / (norm + 1e-6)), both arrays of no axes in their dtype."""
    xp, dtype = array_module(gradients[0]), gradients[0].dtype
    norms = [_norm(g, 2.0) for g in gradients]
    norm = norms[0] if len(norms) == 1 else _norm(xp.stack(norms), 2.0)
    return xp.asarray(norm, dtype), xp.asarray(xp.minimum(max_norm / (norm + 1e-6), 1.0), dtype)


@Rule
def clip_update(gradients: list[Array], max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Array:
    """g ← g · min(1, max_norm / (norm + 1e-6)) for all arrays together, in place; returns the norm. See `clip_grad_norm_`."""
    xp = array_module(gradients[0])
    norms = [_norm(g, norm_type) for g in gradients]
    norm = norms[0] if len(norms) == 1 else _norm(xp.stack(norms), norm_type)  # the norm of all is the norm of the norms
    if error_if_nonfinite and not math.isfinite(float(norm)):
        raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {float(norm)}, so they cannot be clipped.")
    coefficient = xp.minimum(max_norm / (norm + 1e-6), 1.0)
    if xp is not np or coefficient != 1:  # on the CPU the comparison costs nothing, and most steps need no clipping
        for g in gradients:
            # 0 · nan would be nan, and stay so for ever in the gaps of a flat buffer, where no gradient is written
            factor = coefficient if xp is np and coefficient == coefficient else xp.where(g == 0, 1, coefficient)
            g *= factor.astype(g.dtype)
    return xp.asarray(norm, gradients[0].dtype)


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Clip every number of every gradient to [-clip_value, clip_value].

    Raises:
        ValueError: if clip_value is negative.
    """
    if not clip_value >= 0:
        raise ValueError(f"clip_grad_value_: clip_value must not be negative, got {clip_value}.")
    for g in gradients_of(parameters):
        array_module(g).clip(g, -clip_value, clip_value, out=g)


def gradients_of(parameters: Tensor | Iterable[Tensor]) -> list[Array]:
    """The gradients in as few arrays as possible: one, if they fill a flat buffer."""
    listed = [parameters] if isinstance(parameters, Tensor) else list({id(p): p for p in parameters}.values())
    listed = [p for p in listed if p.grad is not None]
    whole = whole_buffer(listed)
    return [p.grad.array for p in listed if p.grad is not None] if whole is None else [whole]


def _norm(g: Array, p: float) -> Any:
    """The p-norm of all numbers in ``g``, as a float64 of no axes on g's device.

    |g| = s · |g / s| for any s > 0. If s is the largest magnitude, the powers of g/s lie between 0 and 1: none
    overflows, and one that underflows is too small to matter. On the CPU, where the result can be
    checked, the plain sum of squares is tried first.
    """
    xp = array_module(g)
    g = g.reshape(-1)
    if g.size == 0:
        return xp.zeros((), np.float64)
    if p == 2 and xp is np and g.dtype.itemsize >= 4:
        with np.errstate(over="ignore"):
            limits, square = np.finfo(g.dtype), sum(float(np.dot(g[i : i + BLOCK], g[i : i + BLOCK])) for i in range(0, g.size, BLOCK))
        if float(limits.tiny) / float(limits.eps) ** 2 < square < float(limits.max):
            return np.float64(math.sqrt(square))
    largest = xp.maximum(g.max(), -g.min())
    if math.isinf(p):
        return largest.astype(np.float64)
    s = xp.where(xp.isfinite(largest) & (largest > 0), largest, 1)  # the sum keeps inf and nan
    scaled = g / s.astype(g.dtype)
    total = xp.dot(scaled, scaled) if p == 2 and g.dtype.itemsize >= 4 else (xp.abs(scaled) ** p).sum(dtype=np.float64)
    return s.astype(np.float64) * total.astype(np.float64) ** (1 / p)
