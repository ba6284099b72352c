"""Layer normalisation: every row to mean 0 and variance 1, then a learned scale and shift."""

from __future__ import annotations

from typing import NamedTuple

from tensorlite.backend import Array
from tensorlite.op import Op
from tensorlite.ops.broadcasting import require_floating
from tensorlite.ops.summation import mean_of, root_mean_square, sum_of


class LayerNormSaved(NamedTuple):
    """What backward needs of the forward."""

    x_hat: Array  # (..., C)
    inverse_std: Array  # 1/σ, (..., 1)
    weight: Array | None  # (C,)
    has_bias: bool


def layernorm_forward(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> tuple[Array, LayerNormSaved]:
    """y = x̂ · weight + bias,   x̂ = (x - μ) / σ,   σ = sqrt(var + eps)

    μ and var are the mean and the variance (divided by C, not C - 1) of each row of C numbers.

    Shapes: x, y (..., C); weight, bias (C,) or None, which stand for 1 and 0.
    Saves: x̂, 1/σ, weight. With x̂ instead of x, backward needs one subtraction and one product less.
    Raises: ValueError if weight or bias is not (C,), RuntimeError for integers.
    Source: Ba, Kiros, Hinton 2016, "Layer Normalization"; equals torch.nn.functional.layer_norm over the last axis.
    """
    require_floating("layernorm", x)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != x.shape[-1:]:
            raise ValueError(f"layernorm: x {x.shape} needs a {name} of shape {x.shape[-1:]}, got {parameter.shape}.")
    # Two passes: first the mean, then the mean of squared distances from it. The one-pass formula
    # E[x²] - E[x]² subtracts two large, nearly equal numbers and is 22% off in float32 for rows around 1000.
    centred = x - mean_of(x, -1, keepdims=True)
    centred -= mean_of(centred, -1, keepdims=True)  # the first mean was rounded; this removes the remainder
    inverse_std = 1 / root_mean_square(centred, -1, x.shape[-1], eps)  # (..., 1)
    x_hat = centred * inverse_std
    y = x_hat if weight is None else x_hat * weight
    if bias is not None:
        y = y + bias
    return y, LayerNormSaved(x_hat, inverse_std, weight, bias is not None)


def layernorm_backward(dy: Array, saved: LayerNormSaved) -> tuple[Array, Array | None, Array | None]:
    """Three gradients, the third in three terms.

    All rows share weight and bias, so their gradients are sums over rows:
        dbias = Σ dy        dweight = Σ dy · x̂

    x reaches y through x̂. Write g = dy · weight for the gradient of x̂. In one row,
        x̂ᵢ = (xᵢ - μ) / σ,     ∂μ/∂xⱼ = 1/C,     ∂σ/∂xⱼ = x̂ⱼ/C
    (the last because σ² = (1/C) Σ (xᵢ - μ)² + eps, so 2σ ∂σ/∂xⱼ = 2 (xⱼ - μ)/C). Hence
        ∂x̂ᵢ/∂xⱼ = (1/σ) · (δᵢⱼ - 1/C - x̂ᵢ x̂ⱼ / C)
    and, summing over i,
        dx = (1/σ) · (g - mean(g) - x̂ · mean(g · x̂)).

    In words: xⱼ moves its own x̂ⱼ (first term), but it also drags the mean of its row (second term) and
    stretches the spread of its row (third term). Normalisation takes those two degrees of freedom away
    from the row, so the gradient may not point along them: dx is g with its part along the constant
    vector and its part along x̂ removed. Leave one out and training still runs, only worse: that is why
    this op is so often wrong.

    Shapes: dy, dx (..., C); dweight, dbias (C,).
    """
    x_hat, inverse_std, weight = saved.x_hat, saved.inverse_std, saved.weight
    g = dy if weight is None else dy * weight
    dx = inverse_std * (g - mean_of(g, -1, keepdims=True) - x_hat * mean_of(g * x_hat, -1, keepdims=True))
    rows = tuple(range(dy.ndim - 1))
    dweight = None if weight is None else sum_of(dy * x_hat, rows)
    dbias = sum_of(dy, rows) if saved.has_bias else None
    return dx, dweight, dbias


layernorm = Op(layernorm_forward, layernorm_backward, in_float32=True)
