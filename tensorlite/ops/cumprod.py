"""The running product."""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.axes import normalize_axis
from tensorlite.tensor import is_floating


def cumprod_forward(x: Array, dim: int) -> tuple[Array, Any]:
    """yᵢ = x₀ · … · xᵢ,   along the axis ``dim``. Integers and bools multiply to int64.

    Shapes: x, y of one shape.
    Saves: x, the axis.
    Raises: IndexError if the axis does not exist.
    Source: equals torch.cumprod.
    """
    along = normalize_axis("cumprod", dim, x.ndim)
    line = x if x.ndim else x.reshape(1)
    return array_module(x).cumprod(line, axis=along, dtype=x.dtype if is_floating(x.dtype) else "int64").reshape(x.shape), (x, along)


def cumprod_backward(dy: Array, saved: Any) -> Array:
    """dxₖ = (x₀ … xₖ₋₁) · sₖ,   sₖ = dyₖ + xₖ₊₁ · sₖ₊₁

    xₖ is a factor of every yᵢ from its own on: dxₖ = Σ_{i ≥ k} dyᵢ · (all factors of yᵢ but xₖ). The factors before k are in each of
    these terms and stand in front. What is left, dyₖ + dyₖ₊₁ xₖ₊₁ + dyₖ₊₂ xₖ₊₁ xₖ₊₂ + …, is Horner's scheme from the back. It divides by
    nothing: dy·y/x, which is shorter, is 0/0 where an x is 0.
    """
    x, along = saved
    xp = array_module(dy)
    rows, d = (xp.moveaxis(z.reshape(z.shape or (1,)), along, -1) for z in (x, dy))
    before = xp.concatenate((xp.ones((*rows.shape[:-1], 1), rows.dtype), rows[..., :-1]), axis=-1)[..., : rows.shape[-1]]
    s = d.copy()
    for k in range(rows.shape[-1] - 2, -1, -1):
        s[..., k] += rows[..., k + 1] * s[..., k + 1]
    return xp.moveaxis(xp.cumprod(before, axis=-1) * s, -1, along).reshape(x.shape)


cumprod = Op(cumprod_forward, cumprod_backward, in_float32=True)
