"""Dropout: set random elements to zero while training, so that no unit can rely on another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tensorlite import random
from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import require_floating
from tensorlite.ops.masking import apply_mask


class DropoutSaved(NamedTuple):
    """What backward needs of the forward."""

    keep: Array  # booleans, the shape of x
    scale: float  # 1 / (1 - p)


def dropout_forward(x: Array, p: float = 0.5, generator: np.random.Generator | None = None) -> tuple[Array, DropoutSaved]:
    """y = x · keep / (1 - p),   keep = 1 with probability 1 - p, else 0

    The division by 1 - p makes the expected value of y equal to x, so nothing has to change at inference.

    Shapes: x, y of any shape.
    Saves: keep (one byte an element) and the factor 1 / (1 - p).
    Raises: ValueError if p is not in [0, 1], RuntimeError for integers.
    Source: Srivastava et al. 2014; equals torch.nn.functional.dropout in training, with two differences made on purpose. The random
        numbers are others. And p is rounded to a multiple of 1/65536, because 16 bits decide about an element; the factor is that
        of the rounded p. ``generator`` defaults to the thread's (see `tensorlite.random.dropout_mask`).
    """
    require_floating("dropout", x)
    keep, scale = random.dropout_mask(x.shape, p, generator)
    keep = array_module(x).asarray(keep)
    return apply_mask(x, keep) * scale, DropoutSaved(keep, scale)


def dropout_backward(dy: Array, saved: DropoutSaved) -> Array:
    """dx = dy · keep / (1 - p)

    Once the mask is drawn, forward multiplies by constants, and backward multiplies by the same constants.
    A new mask here would give the gradient of another function.
    """
    return apply_mask(dy, saved.keep) * saved.scale


dropout = Op(dropout_forward, dropout_backward)
