"""RMS normalisation: layer normalisation without the subtraction of the mean.

Applied to each head of the queries and of the keys it is called QK-norm. A score is then |q| |k| cos(angle) with lengths that the learned
weights fix, so it cannot grow until softmax is a hard choice with the gradient 0. In backward the length of a query gets no gradient
through its row: only its direction is learned there. Source: Henry et al. 2020, "Query-Key Normalization for Transformers"; Qwen3 has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array
from tensorlite.op import Op
from tensorlite.ops.broadcasting import require_floating
from tensorlite.ops.summation import mean_of, root_mean_square, sum_of


def rmsnorm_forward(x: Array, weight: Array | None = None, eps: float | None = None) -> tuple[Array, Any]:
    """y = x̂ · weight,   x̂ = x / r,   r = sqrt(mean(x²) + eps)

    Shapes: x, y (..., C); weight (C,) or None, which stands for 1.
    Saves: x̂ (..., C), 1/r (..., 1), weight. ``eps=None`` is the machine epsilon of the dtype of the computation (float32 for the
        half precisions), as in torch.
    Raises: ValueError if weight is not (C,), RuntimeError for integers.
    Source: Zhang, Sennrich 2019, "Root Mean Square Layer Normalization"; equals torch.nn.functional.rms_norm.
    """
    require_floating("rmsnorm", x)
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(f"rmsnorm: x {x.shape} needs a weight of shape {x.shape[-1:]}, got {weight.shape}.")
    eps = float(np.finfo(x.dtype).eps) if eps is None else eps
    inverse_rms = 1 / root_mean_square(x, -1, x.shape[-1], eps)  # (..., 1)
    x_hat = x * inverse_rms
    return (x_hat if weight is None else x_hat * weight), (x_hat, inverse_rms, weight)


def rmsnorm_backward(dy: Array, saved: Any) -> tuple[Array, Array | None]:
    """dweight = Σ dy · x̂   and, with g = dy · weight,   dx = (1/r) · (g - x̂ · mean(g · x̂)).

    As in layer normalisation, but without the term of the mean: ∂r/∂xⱼ = x̂ⱼ/C, so
        ∂x̂ᵢ/∂xⱼ = (1/r) (δᵢⱼ - x̂ᵢ x̂ⱼ / C).
    Normalisation fixes only the length of the row, so only the part of g along the row is removed.
    """
    x_hat, inverse_rms, weight = saved
    g = dy if weight is None else dy * weight
    dx = inverse_rms * (g - x_hat * mean_of(g * x_hat, -1, keepdims=True))
    dweight = None if weight is None else sum_of(dy * x_hat, tuple(range(dy.ndim - 1)))
    return dx, dweight


rmsnorm = Op(rmsnorm_forward, rmsnorm_backward, in_float32=True)
