"""SwiGLU: one half of the numbers opens and closes a gate for the other half."""

from __future__ import annotations

from typing import Any, NamedTuple

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.activation import silu_backward, silu_forward
from tensorlite.ops.broadcasting import require_floating


class SwigluSaved(NamedTuple):
    """What backward needs of the forward."""

    silu: Any  # what `silu_forward` saved
    open: Array  # silu(gate), (..., F)
    up: Array  # (..., F)


def swiglu_forward(x: Array) -> tuple[Array, SwigluSaved]:
    """y = silu(gate) · up,   gate, up = the two halves of x,   silu(g) = g σ(g)

    A fusion of three ops: split, silu and the product. An activation maps each number by itself. Here the layer before has computed two
    numbers for each unit: a value (up), and a gate that scales this value.

    Shapes: x (..., 2F), y (..., F).
    Saves: what silu saves, silu(gate) and up.
    Raises: ValueError if the last axis has no two halves; RuntimeError for integers.
    Source: Shazeer 2020, "GLU Variants Improve Transformer"; the feed-forward layer of Llama.
    """
    require_floating("swiglu", x)
    if x.ndim < 1 or x.shape[-1] % 2:
        raise ValueError(f"swiglu: x is (..., 2F), the gates and what passes through them; got {x.shape}.")
    gate, up = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    opened, saved = silu_forward(gate)
    return opened * up, SwigluSaved(saved, opened, up)


def swiglu_backward(dy: Array, saved: SwigluSaved) -> Array:
    """dup = dy · silu(gate)        dgate = dy · up · silu'(gate),   silu'(g) = σ(g) + g σ(g) (1 - σ(g))

    The product rule: each factor gets dy times the other one, and the gate's goes through silu's backward. In words: where
    silu(gate) is 0, up has no effect on y, so its gradient is 0. The gate's gradient is proportional to up: a larger gate changes y only
    where up is not 0. With up constant, this is silu as an ordinary activation.

    Shapes: dy (..., F); returns dx (..., 2F), dgate and dup side by side.
    """
    dgate = silu_backward(dy * saved.up, saved.silu)
    return array_module(dy).concatenate([dgate, dy * saved.open], axis=-1)


swiglu = Op(swiglu_forward, swiglu_backward, in_float32=True)
