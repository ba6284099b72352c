"""AdamW on the GPU: one kernel over each group's part of the flat buffer, where the book makes a dozen passes.

The same kernel clips the gradient as it reads it, and writes the parameters in a half precision as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.cast import HALVES
from tensorlite.kernels.cuda.compile import kernel, on_gpu
from tensorlite.optim.adam import adamw_update

THREADS = 256  # in a block; each updates four numbers


def update(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    step: Any,
    lr: Any,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    v_max: Array | None = None,
    factor: Array | None = None,
    rounded: Array | None = None,
) -> None:
    """`adamw_update`, in place. ``step`` and ``lr`` are numbers, or int32 and float32 0-d arrays; with step 0 nothing changes."""
    rates = array_module(p).empty(4, "float32")
    forget1, forget2 = 1 - betas[0], 1 - betas[1]
    held_lr, held_step = (_is_array(x) for x in (lr, step))
    kernel("adam.cu", "adamw_rates", Half="bfloat16")(1, 32, (
        lr if held_lr else None, 0.0 if held_lr else float(lr),
        step if held_step else None, 0 if held_step else int(step),
        float(forget1), float(forget2), float(weight_decay), rates,
    ))  # fmt: skip
    blocks = -(-p.size // (4 * THREADS))
    half = "bfloat16" if rounded is None else rounded.dtype.name
    arguments = p, g, m, v, v_max, factor, rounded, rates, float(forget1), float(forget2), float(eps), np.int64(p.size)
    kernel("adam.cu", "adamw", Half=half)(blocks, THREADS, arguments)


def supports(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    step: Any,
    lr: Any,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    v_max: Array | None = None,
    factor: Array | None = None,
    rounded: Array | None = None,
) -> bool:
    """Float32 arrays of a multiple of four numbers, aligned to 16 bytes, as the parts of a flat buffer are; ``rounded`` in a half."""
    arrays = [x for x in (p, g, m, v, v_max) if x is not None]
    return (
        on_gpu(*arrays, factor, types=("float32",))
        and on_gpu(rounded, types=HALVES)
        and all(x.size == p.size and x.size % 4 == 0 and x.data.ptr % 16 == 0 for x in arrays)
        and (rounded is None or (rounded.size == p.size and rounded.data.ptr % 8 == 0))
    )


def _is_array(x: Any) -> bool:
    return hasattr(x, "dtype") and array_module(x) is not np


adamw_update.register(update, supports)
