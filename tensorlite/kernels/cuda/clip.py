"""Clipping a gradient that lies in one flat buffer, on the GPU: its norm is computed, compared and applied without a host read."""

from __future__ import annotations

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import kernel, on_gpu
from tensorlite.optim.clip import clip_update

THREADS = 256  # in a block; each reads four numbers at a time
BLOCKS = 1024  # for the norm; the number is fixed, so the order of the sum is fixed, too


def clip(gradients: list[Array], max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Array:
    """`clip_update`, in place; returns the norm, a 0-d float32 array."""
    (g,) = gradients
    xp, count = array_module(g), np.int64(g.size)
    fours = -(-g.size // (4 * THREADS))
    blocks = min(fours, BLOCKS)
    partial, norm, coefficient = xp.empty(blocks, "float64"), xp.empty((), "float32"), xp.empty((), "float32")
    kernel("clip.cu", "sum_squares")(blocks, THREADS, (g, partial, count))
    kernel("clip.cu", "clip_coefficient")(1, THREADS, (partial, blocks, float(max_norm), norm, coefficient))
    kernel("clip.cu", "scale")(fours, THREADS, (g, coefficient, count))
    return norm


def supports(gradients: list[Array], max_norm: float, norm_type: float, error_if_nonfinite: bool) -> bool:
    """One aligned float32 buffer of a multiple of four numbers; the 2-norm; no check for nonfinite values, which would read the norm."""
    return (
        len(gradients) == 1
        and on_gpu(gradients[0], types=("float32",))
        and gradients[0].size > 0
        and gradients[0].size % 4 == 0
        and gradients[0].data.ptr % 16 == 0
        and norm_type == 2
        and not error_if_nonfinite
    )


clip_update.register(clip, supports)
