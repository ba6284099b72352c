"""Split the rows of an array into tiles that stay in a core's cache.

A chain of NumPy functions over a whole array reads and writes main memory once for each function. In the same chain over
one tile after the other, each function finds its input in the level-2 cache. A tile must be small enough for that, and so large
that the time of a call, about half a microsecond, does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator

TILE_BYTES = 192 * 1024  # of the widest array in the chain; anything from 128 to 256 KiB is as fast


def row_tiles(rows: int, row_bytes: int, tile_bytes: int = TILE_BYTES) -> Iterator[slice]:
    """Slices that cover ``range(rows)`` in order, each of about ``tile_bytes`` and at least one row; the last may be shorter."""
    step = max(1, tile_bytes // max(1, row_bytes))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
