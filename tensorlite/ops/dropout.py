"""Dropout: zeros at random while training, so that no unit can rely on another."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite import random
from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import require_floating
from tensorlite.ops.masking import apply_mask


def dropout_forward(x: Array, p: float = 0.5, generator: np.random.Generator | None = None) -> tuple[Array, Any]:
    """y = x · keep / (1 - p),   keep = 1 with probability 1 - p, else 0

    Dividing by 1 - p keeps the expected value of y at x, so that nothing has to change at inference.

    Shapes: x, y of any shape.
    Saves: keep (one byte an element) and the factor.
    Raises: ValueError if p is not in [0, 1], RuntimeError for integers.
    Source: Srivastava et al. 2014; equals torch.nn.functional.dropout in training, other random bits aside.
        ``generator`` defaults to the thread's stream (see `tensorlite.random.dropout_mask` for how the bits are drawn).
    """
    require_floating("dropout", x)
    keep, scale = random.dropout_mask(x.shape, p, generator)
    keep = array_module(x).asarray(keep)
    return apply_mask(x, keep) * scale, (keep, scale)


def dropout_backward(dy: Array, saved: Any) -> Array:
    """dx = dy · keep / (1 - p): forward multiplied by fixed numbers, and so does backward, by the same ones.

    A fresh mask here would be a different function's gradient.
    """
    keep, scale = saved
    return apply_mask(dy, keep) * scale


dropout = Op(dropout_forward, dropout_backward)
