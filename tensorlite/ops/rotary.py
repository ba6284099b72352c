"""Rotary positions: a query and a key are rotated by angles that grow with their positions, so their product depends on the distance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import require_floating


class RotarySaved(NamedTuple):
    """What backward needs of the forward."""

    cos: Array  # (T, D/2)
    sin: Array  # (T, D/2)


def rotary_embedding_forward(x: Array, base: float = 10000.0, start: int = 0) -> tuple[Array, RotarySaved]:
    """y_t = R(t) x_t,   where R(t) rotates the pair (xᵢ, xᵢ₊D/2) by the angle t ωᵢ,   ωᵢ = base^(-2i/D),   i < D/2

        yᵢ      = xᵢ cos(t ωᵢ) - xᵢ₊D/2 sin(t ωᵢ)
        yᵢ₊D/2  = xᵢ₊D/2 cos(t ωᵢ) + xᵢ sin(t ωᵢ)

    A query at position t meets a key at position s as (R(t) q) · (R(s) k) = q · R(s - t) k: the angles subtract, and only the distance of
    the two positions is left. No table of positions is learned, and none is added to x. The first pairs turn by one radian a token
    and see small distances; the last turn by about 1/base and see large ones.

    Shapes: x, y (..., T, D) with D even. Position ``start`` is that of the first row.
    Saves: the cosines and sines, computed in float64 and rounded to the dtype of x.
    Raises: ValueError for an odd D, fewer than two axes, or a base that is not above 0; RuntimeError for integers.
    Source: Su et al. 2021, "RoFormer"; the pairs are those of Llama in transformers (``rotate_half``). GGUF files of Llama store
        neighbours as pairs instead.
    """
    require_floating("rotary_embedding", x)
    if x.ndim < 2 or x.shape[-1] % 2:
        raise ValueError(f"rotary_embedding: x is (..., T, D) with an even D, so that its numbers form pairs; got {x.shape}.")
    if not base > 0:
        raise ValueError(f"rotary_embedding: base must be above 0, got {base}.")
    cos, sin = rotation(x, base, start)
    return rotate(x, cos, sin), RotarySaved(cos, sin)


def rotary_embedding_backward(dy: Array, saved: RotarySaved) -> Array:
    """dx_t = R(t)ᵀ dy_t = R(-t) dy_t: the rotation back.

    y_t is a linear function of x_t, so its gradient passes through the transposed matrix. In one pair
        R = [cos  -sin]        Rᵀ = [ cos  sin]
            [sin   cos]             [-sin  cos]
    which is R with -sin in the place of sin. In words: a rotation changes no length, so it makes no gradient longer or shorter; its
    transpose is its inverse, and the gradient arrives turned back by the angle by which x was turned.

    Shapes: dy, dx (..., T, D).
    """
    return rotate(dy, saved.cos, -saved.sin)


rotary_embedding = Op(rotary_embedding_forward, rotary_embedding_backward, in_float32=True)


def rotation(x: Array, base: float, start: int) -> tuple[Array, Array]:
    """cos(t ωᵢ) and sin(t ωᵢ) for the rows of x (..., T, D), in its dtype: two arrays (T, D/2)."""
    xp, (T, D) = array_module(x), x.shape[-2:]
    frequencies = float(base) ** (-xp.arange(0, D, 2, dtype=np.float64) / (D or 1))  # (D/2,)
    angles = xp.arange(start, start + T, dtype=np.float64)[:, None] * frequencies  # (T, D/2)
    return xp.cos(angles).astype(x.dtype), xp.sin(angles).astype(x.dtype)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate each pair (xᵢ, xᵢ₊D/2) of x (..., T, D); cos and sin (T, D/2)."""
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return array_module(x).concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
