"""Split the rows of an array into tiles that stay in a core's cache.

A chain of NumPy functions over a whole array reads and writes main memory once for each function. In the same chain over
one tile after the other, each function finds its input in the level-2 cache. A tile must be small enough for that, and so large
that the time of a call, about half a microsecond, does not matter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

TILE_BYTES = 192 * 1024  # of the widest array in the chain; anything from 128 to 256 KiB is as fast
LONG_ROW = 256  # numbers
SMALLEST_BUFFER = 16  # numbers: the least that `numpy.setbufsize` takes


def row_tiles(rows: int, row_bytes: int, tile_bytes: int = TILE_BYTES) -> Iterator[slice]:
    """Slices that cover ``range(rows)`` in order, each of about ``tile_bytes`` and at least one row; the last may be shorter."""
    step = max(1, tile_bytes // max(1, row_bytes))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


@contextlib.contextmanager
def without_buffer(width: int) -> Iterator[None]:
    """Let NumPy's functions run row by row where an operand is repeated in every row of ``width`` numbers, or along it.

    NumPy copies such operands into a buffer of 8192 numbers, so that its innermost loop is as long as several rows. For short rows that is
    faster. For rows of more than `LONG_ROW` numbers the copy takes longer than it saves: of 2048 rows of 384 numbers a product with one
    number for each row takes half the time without it. Such rows do not fit in the smallest buffer, and are not copied.
    """
    before = np.setbufsize(SMALLEST_BUFFER) if width > LONG_ROW else None
    try:
        yield
    finally:
        if before is not None:
            np.setbufsize(before)
