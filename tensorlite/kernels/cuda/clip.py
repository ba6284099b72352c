"""Clipping the gradient on the GPU, where it lies in one flat buffer: measured, compared and shortened without the CPU looking on."""

from __future__ import annotations

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import kernel, on_gpu
from tensorlite.optim.clip import clip_update

THREADS = 256  # of a block, four numbers each at a time
BLOCKS = 1024  # that share the gradient between them when it is measured; fixed, so that the order of the sum is


def clip(gradients: list[Array], max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Array:
    """`clip_update`, in place; returns the norm, float32 of no axes."""
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
    """One buffer of float32 numbers, at least one and in fours; the length, and nobody who wants to look at it."""
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
