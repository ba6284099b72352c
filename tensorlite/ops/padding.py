"""Padding: a number all around, or a border cut away."""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op


def pad_forward(x: Array, pad: tuple[int, ...], value: float = 0.0) -> tuple[Array, Any]:
    """y = x with ``pad[0]`` numbers in front of the last axis and ``pad[1]`` behind it, then the same for the axis before, and so on

    A negative count cuts numbers away.

    Shapes: x any; pad: two counts for each of the last axes.
    Saves: where x is in y, and the other way round.
    Raises: ValueError for an odd number of counts, for more than there are axes, or for cutting away more than there is.
    Source: equals torch.nn.functional.pad with mode "constant".
    """
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ValueError(f"pad: {tuple(pad)} must have two counts for each of the last axes of {x.shape}.")
    counts = [(0, 0)] * (x.ndim - len(pad) // 2) + [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    shape = tuple(n + before + after for n, (before, after) in zip(x.shape, counts, strict=True))
    if any(n < 0 for n in shape):
        raise ValueError(f"pad: {tuple(pad)} cuts away more than there is in {x.shape}.")
    there = tuple(slice(max(before, 0), n - max(after, 0)) for n, (before, after) in zip(shape, counts, strict=True))
    here = tuple(slice(max(-before, 0), n - max(-after, 0)) for n, (before, after) in zip(x.shape, counts, strict=True))
    y = array_module(x).full(shape, value, x.dtype)
    y[there] = x[here]
    return y, (x.shape, there, here)


def pad_backward(dy: Array, saved: Any) -> Array:
    """Reading y where x is in it. The numbers around are constants, and what was cut away has no influence: 0."""
    shape, there, here = saved
    dx = array_module(dy).zeros(shape, dy.dtype)
    dx[here] = dy[there]
    return dx


pad = Op(pad_forward, pad_backward)
