"""Masks: a masked element has the gradient 0, whatever dy is.

An op that selects passes dy to what it selected, and 0 to the rest. ``dy * mask`` gives that for every number but three: ∞ · 0,
-∞ · 0 and nan · 0 are nan. These three do occur: √ has an infinite slope at 0, and relu returns zeros. In ``x.relu().sqrt()`` every
negative x would get nan, and after one step of training so would every weight that x depends on. So a mask selects; it does not
multiply.
"""

from __future__ import annotations

import numpy as np

from tensorlite.backend import Array, array_module


def apply_mask(x: Array, mask: Array) -> Array:
    """x where ``mask`` is True, and 0 elsewhere.

    On the GPU this is ``where``. NumPy's ``where`` is ten to twenty times as slow as a product, so on the CPU this is a product of
    *bits*: viewed as an integer, any number times 1 is itself, and any number times 0 is 0.

    Shapes: x and mask broadcast.
    """
    xp = array_module(x)
    if xp is not np:
        return xp.where(mask, x, 0)
    return (x.view(f"i{x.itemsize}") * mask).view(x.dtype)
