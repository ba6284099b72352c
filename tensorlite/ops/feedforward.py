"""The feed-forward network of a transformer's block: a linear layer, gelu, and a linear layer back to the width of the input.

This page has no mathematics of its own: it calls the pages `linear` and `activation`. As one op it lets a faster pair apply gelu, and the
slope of gelu in backward, to a product before that is written to memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tensorlite.backend import Array
from tensorlite.op import Op
from tensorlite.ops.activation import gelu_backward, gelu_forward
from tensorlite.ops.linear import LinearSaved, linear_backward, linear_forward


class FeedForwardSaved(NamedTuple):
    """What backward needs of the forward: what each of the three steps saved."""

    hidden: LinearSaved
    gelu: Any
    output: LinearSaved


def feedforward_forward(
    x: Array,
    hidden_weight: Array,
    hidden_bias: Array | None,
    weight: Array,
    bias: Array | None,
    approximate: str = "none",
) -> tuple[Array, FeedForwardSaved]:
    """h = x · hidden_weightᵀ + hidden_bias,   y = gelu(h) · weightᵀ + bias

    Shapes: x (..., in), hidden_weight (hidden, in), hidden_bias (hidden,), weight (out, hidden), bias (out,), y (..., out).
    Saves: what the three steps save.
    Raises: ValueError if the shapes do not fit.
    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.3, with gelu for relu as in GPT-2.
    """
    h, hidden = linear_forward(x, hidden_weight, hidden_bias)
    activated, slope = gelu_forward(h, approximate)
    y, output = linear_forward(activated, weight, bias)
    return y, FeedForwardSaved(hidden, slope, output)


def feedforward_backward(dy: Array, saved: FeedForwardSaved, needs_grad: tuple[bool, ...] = (True,) * 5) -> tuple[Array | None, ...]:
    """dh = (dy · weight) · gelu'(h), and from there as in `linear_backward`: the three steps in reverse.

    Shapes: dy (..., out); returns dx and the gradients of the four parameters.
    """
    dactivated, dweight, dbias = linear_backward(dy, saved.output, (True, *needs_grad[3:5]))
    assert dactivated is not None
    dh = gelu_backward(dactivated, saved.gelu)
    return (*linear_backward(dh, saved.hidden, needs_grad[:3]), dweight, dbias)


feedforward = Op(feedforward_forward, feedforward_backward, in_float32=True)
