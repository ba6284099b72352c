"""Masks: what is hidden has no gradient, whatever comes back to it.

An op that chooses hands dy on to what it chose, and 0 to the rest. ``dy * mask`` says so for every number but three: ∞ · 0,
-∞ · 0 and nan · 0 are nan. They do come back: √ has an infinite slope at 0, and relu makes zeros. In ``x.relu().sqrt()`` every
negative x would get nan, and after one step of training so would all that x depends on. So a mask selects; it does not multiply.
"""

from __future__ import annotations

import numpy as np

from tensorlite.backend import Array, array_module


def apply_mask(x: Array, mask: Array) -> Array:
    """x where ``mask`` is True, and 0 elsewhere.

    On the GPU this is ``where``. NumPy's is slow, ten to twenty times as slow as a product; so there it is a product after all, but
    one of *bits*: seen as an integer, any number times 1 is itself, and any number times 0 is 0.

    Shapes: x and mask broadcast.
    """
    xp = array_module(x)
    if xp is not np:
        return xp.where(mask, x, 0)
    return (x.view(f"i{x.itemsize}") * mask).view(x.dtype)
