"""Grouped queries: several heads of queries share one head of keys and values."""

from __future__ import annotations

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.summation import sum_of


def repeat_heads_forward(x: Array, times: int) -> tuple[Array, int]:
    """y_h = x_⌊h / g⌋,   g = times: each head of keys or values, once for each of the g heads of queries that use it

    With as many heads of keys as of queries, most of a text generator's memory is its cache of keys and values. In a group of g heads
    the queries differ, but they search the same keys. The cache is then smaller by the factor g, and so are two of the four matrices.

    Shapes: x (..., KV, S, D), y (..., KV · g, S, D); the heads of a group are neighbours.
    Saves: g.
    Raises: ValueError if x has fewer than three axes, or ``times`` is below 1.
    Source: Ainslie et al. 2023, "GQA"; equals torch.repeat_interleave along the third axis from the end.
    """
    if x.ndim < 3 or times < 1:
        raise ValueError(f"repeat_heads: x is (..., heads, S, D), and each head is there once or more; got {x.shape}, {times} times.")
    return array_module(x).repeat(x, times, axis=-3), times


def repeat_heads_backward(dy: Array, saved: int) -> Array:
    """dx_j = Σ dy_h over the g heads h of group j

    x_j is read by g heads, and affects the loss through each of them, so its derivative is the sum over these paths. In words: each head
    that reads a shared key sends it a gradient, and the g gradients add up. This is the rule of every number that is used more than once:
    of a token that occurs twice (`embedding`), of a bias that all rows share (`linear`).

    Shapes: dy (..., KV · g, S, D), dx (..., KV, S, D).
    """
    *lead, heads, S, D = dy.shape
    return sum_of(dy.reshape(*lead, heads // saved, saved, S, D), -3)


repeat_heads = Op(repeat_heads_forward, repeat_heads_backward)
