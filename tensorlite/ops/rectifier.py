"""Relu's relatives: a slope below 0, a curve below 0, or no corner at all.

Relu is 0 for every negative number, and its gradient, too: a unit that is negative on all of the data never learns again. Leaky relu
and elu leave it a slope, softplus rounds the corner off. Logsigmoid is softplus, turned by half a turn.
"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import require_floating


def leaky_relu_forward(x: Array, negative_slope: float = 0.01) -> tuple[Array, Any]:
    """y = x where x > 0, else negative_slope · x

    Saves: the slope at each x.
    Source: Maas, Hannun, Ng 2013; equals torch.nn.functional.leaky_relu.
    """
    require_floating("leaky_relu", x)
    slope = array_module(x).where(x > 0, 1, negative_slope).astype(x.dtype)
    return x * slope, slope


def leaky_relu_backward(dy: Array, saved: Any) -> Array:
    """Two straight lines: dx = dy · the slope of the one that x is on. At the corner it is the lower one's, as in torch."""
    return dy * saved


leaky_relu = Op(leaky_relu_forward, leaky_relu_backward)


def elu_forward(x: Array, alpha: float = 1.0) -> tuple[Array, Any]:
    """y = x where x > 0, else alpha · (eˣ - 1), which falls to -alpha and no further

    Saves: x, alpha.
    Source: Clevert, Unterthiner, Hochreiter 2015; equals torch.nn.functional.elu.
    """
    require_floating("elu", x)
    xp = array_module(x)
    return xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0))), (x, alpha)


def elu_backward(dy: Array, saved: Any) -> Array:
    """dy/dx = 1 where x > 0, else alpha · eˣ. With alpha = 1 both are 1 at 0: the graph has no corner."""
    x, alpha = saved
    xp = array_module(x)
    return dy * xp.where(x > 0, 1, alpha * xp.exp(xp.minimum(x, 0)))


elu = Op(elu_forward, elu_backward, in_float32=True)


def softplus_forward(x: Array, beta: float = 1.0, threshold: float = 20.0) -> tuple[Array, Any]:
    """y = log(1 + exp(beta · x)) / beta, and x itself where beta · x > threshold

    Past the threshold the two differ by less than exp(-threshold)/beta, and exp would soon overflow. Below it, with u = beta · x:
    log(1 + eᵘ) = max(u, 0) + log(1 + exp(-|u|)), in which no exponent is positive.

    Saves: x, beta, threshold.
    Source: Dugas et al. 2001; equals torch.nn.functional.softplus.
    """
    require_floating("softplus", x)
    xp = array_module(x)
    u = beta * x
    return xp.where(u > threshold, x, (xp.maximum(u, 0) + xp.log1p(xp.exp(-xp.abs(u)))) / beta), (x, beta, threshold)


def softplus_backward(dy: Array, saved: Any) -> Array:
    """dy/dx = eᵘ / (1 + eᵘ) = σ(u),   u = beta · x, and 1 past the threshold

    The derivative of the logarithm is 1/(1 + eᵘ), that of what is in it beta · eᵘ, and beta cancels. In words: the slope rises from 0 to 1
    as relu's does, but along a sigmoid instead of in one step.
    """
    x, beta, threshold = saved
    xp = array_module(x)
    u = beta * x
    z = xp.exp(-xp.abs(u))
    return dy * xp.where(u > threshold, 1, xp.where(u < 0, z, 1) / (1 + z))


softplus = Op(softplus_forward, softplus_backward, in_float32=True)


def logsigmoid_forward(x: Array) -> tuple[Array, Any]:
    """y = log σ(x) = -log(1 + e⁻ˣ) = min(x, 0) - log(1 + exp(-|x|))

    Saves: x.
    Source: equals torch.nn.functional.logsigmoid.
    """
    require_floating("logsigmoid", x)
    xp = array_module(x)
    return xp.minimum(x, 0) - xp.log1p(xp.exp(-xp.abs(x))), x


def logsigmoid_backward(dy: Array, saved: Any) -> Array:
    """dy/dx = σ'(x)/σ(x) = 1 - σ(x) = σ(-x)"""
    x = saved
    xp = array_module(x)
    z = xp.exp(-xp.abs(x))
    return dy * (xp.where(x > 0, z, 1) / (1 + z))


logsigmoid = Op(logsigmoid_forward, logsigmoid_backward, in_float32=True)
