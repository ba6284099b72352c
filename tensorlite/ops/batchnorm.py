"""Batch normalisation: each channel gets mean 0 and variance 1 over the batch.

Layer normalisation with the axes exchanged: there the numbers of one token are compared with each other, here the numbers that one
channel has in the whole batch. So what comes out for one row depends on the other rows, and when there are none, at inference, running
means of earlier batches stand in for them.
"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import require_floating
from tensorlite.ops.summation import mean_of, sum_of


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and variance (biased, Σ (x - μ)²/n) of each channel.

    Shapes: x (B, C, …); both (C,).
    """
    over = _others(x)
    mean = mean_of(x, over, keepdims=True)
    centred = x - mean
    return mean.reshape(-1), mean_of(centred * centred, over)


def batchnorm_forward(x: Array, weight: Array | None, bias: Array | None, eps: float = 1e-5) -> tuple[Array, Any]:
    """y = weight · x̂ + bias,   x̂ = (x - μ) / √(σ² + eps),   μ and σ² of each channel over all else

    Shapes: x, y (B, C, …); weight, bias (C,), or None for 1 and 0.
    Saves: x̂, 1/√(σ² + eps), weight.
    Raises: ValueError if a channel has one number only: less its mean it is 0, whatever it was; RuntimeError for integers.
    Source: Ioffe, Szegedy 2015; equals torch.nn.functional.batch_norm in training.
    """
    require_floating("batch_norm", x)
    if x.size <= x.shape[1]:
        raise ValueError(f"batch_norm: while training each channel needs more than one number, got an input of shape {x.shape}.")
    mean, variance = (_along_channels(s, x) for s in batch_statistics(x))
    inverse_std = 1 / array_module(x).sqrt(variance + eps)
    x_hat = (x - mean) * inverse_std
    y = x_hat if weight is None else x_hat * _along_channels(weight, x)
    return y if bias is None else y + _along_channels(bias, x), (x_hat, inverse_std, weight, bias is not None)


def batchnorm_backward(dy: Array, saved: Any) -> tuple[Array, Array | None, Array | None]:
    """dx = (g - mean(g) - x̂ · mean(g · x̂)) / √(σ² + eps),   g = dy · weight, means of a channel over all else

    weight and bias are used for every number of their channel: dweight = Σ dy · x̂, dbias = Σ dy.
    For dx, x̂ is seen as a function of its whole channel. Moving all x of a channel by the same amount moves μ along and changes
    nothing, so dx must sum to 0: that is the first mean. Stretching the channel about μ stretches σ along and changes nothing (but for
    eps), so dx must be orthogonal to x̂: that is the second. What is left of g once both directions are taken out is dx.
    It is the derivation of layernorm, with a channel in the place of a token.
    """
    x_hat, inverse_std, weight, has_bias = saved
    over = _others(dy)
    dweight = None if weight is None else sum_of(dy * x_hat, over)
    dbias = sum_of(dy, over) if has_bias else None
    g = dy if weight is None else dy * _along_channels(weight, dy)
    dx = inverse_std * (g - mean_of(g, over, keepdims=True) - x_hat * mean_of(g * x_hat, over, keepdims=True))
    return dx, dweight, dbias


batchnorm = Op(batchnorm_forward, batchnorm_backward, in_float32=True)


def _others(x: Array) -> tuple[int, ...]:
    """All axes but that of the channels."""
    return (0, *range(2, x.ndim))


def _along_channels(values: Array, x: Array) -> Array:
    return values.reshape(-1, *(1,) * (x.ndim - 2))
