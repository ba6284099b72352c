"""Clipping a gradient that lies in one flat buffer, on the GPU: its norm is computed, compared and applied without a host read.

A training step leaves the last of the three kernels out: AdamW multiplies by the coefficient as it reads the gradient (adam.cu).
"""

from __future__ import annotations

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import kernel, on_gpu
from tensorlite.optim.clip import clip_update, measure_gradients

THREADS = 256  # in a block; each reads four numbers at a time
BLOCKS = 1024  # for the norm; the number is fixed, so the order of the sum is fixed, too


def clip(gradients: list[Array], max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Array:
    """`clip_update`, in place; returns the norm, a 0-d float32 array."""
    (g,) = gradients
    norm, coefficient = measure(gradients, max_norm)
    kernel("clip.cu", "scale")(-(-g.size // (4 * THREADS)), THREADS, (g, coefficient, np.int64(g.size)))
    return norm


def measure(gradients: list[Array], max_norm: float) -> tuple[Array, Array]:
    """`measure_gradients`: the norm and the coefficient, 0-d float32 arrays."""
    (g,) = gradients
    xp, blocks = array_module(g), min(-(-g.size // (4 * THREADS)), BLOCKS)
    partial, norm, coefficient = xp.empty(blocks, "float64"), xp.empty((), "float32"), xp.empty((), "float32")
    kernel("clip.cu", "sum_squares")(blocks, THREADS, (g, partial, np.int64(g.size)))
    kernel("clip.cu", "clip_coefficient")(1, THREADS, (partial, blocks, float(max_norm), norm, coefficient))
    return norm, coefficient


def supports(gradients: list[Array], max_norm: float, norm_type: float, error_if_nonfinite: bool) -> bool:
    """What `supports_measuring` takes; the 2-norm; no check for nonfinite values, which would read the norm."""
    return supports_measuring(gradients, max_norm) and norm_type == 2 and not error_if_nonfinite


def supports_measuring(gradients: list[Array], max_norm: float) -> bool:
    """One aligned float32 buffer of a multiple of four numbers."""
    return (
        len(gradients) == 1
        and on_gpu(gradients[0], types=("float32",))
        and gradients[0].size > 0
        and gradients[0].size % 4 == 0
        and gradients[0].data.ptr % 16 == 0
    )


clip_update.register(clip, supports)
measure_gradients.register(measure, supports_measuring)
