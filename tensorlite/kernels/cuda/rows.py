"""Shared code of the kernels in which one warp processes one row."""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.precision import half_dtype

WARP = 32
BLOCK = 128  # threads: four rows in a block
ROWS_A_BLOCK = BLOCK // WARP
WIDEST = 2048  # numbers in a row: each lane then holds 64 of them, and as many sums for each of two parameters
BACKWARD_BLOCKS = 528  # four for each multiprocessor of the largest GPUs, so that every warp adds many rows before it writes


def matrix_shape(x: Array) -> tuple[int, int]:
    """(rows, C) of an array (..., C)."""
    return x.size // x.shape[-1], x.shape[-1]


def lanes(C: int, *arrays: Array | None) -> dict[str, int]:
    """The macros of a kernel: how many neighbours a lane reads at a time, four if the rows are aligned, and how many numbers it holds."""
    aligned = C % 4 == 0 and all(x is None or x.data.ptr % (4 * x.itemsize) == 0 for x in arrays)
    wide = 4 if aligned else 1
    return {"Wide": wide, "PerLane": -(-C // (WARP * wide)) * wide}


def blocks_for(rows: int, most: int | None = None) -> int:
    """How many blocks the rows need, at most ``most``."""
    blocks = -(-rows // ROWS_A_BLOCK)
    return blocks if most is None else min(blocks, most)


def out_dtype(x: Array) -> Any:
    """The dtype that a normalisation returns: the half precision that is in use, or the dtype of x."""
    return half_dtype() or x.dtype


def can_normalise(x: Array, *parameters: Array | None) -> bool:
    """Contiguous rows that fit in registers, in float32 or the half precision that is in use, and parameters (C,) in float32."""
    half = half_dtype()
    return (
        on_gpu(x, types=("float32",) if half is None else ("float32", half.name))
        and on_gpu(*parameters, types=("float32",))
        and x.ndim > 0
        and 0 < x.shape[-1] <= WIDEST
        and x.size > 0
        and all(p is None or p.shape == x.shape[-1:] for p in parameters)
    )
