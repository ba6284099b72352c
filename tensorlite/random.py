"""Random numbers, drawn on the CPU so that both backends see the same ones.

Every thread has a stream of its own: a worker that trains on a share of the batch draws its dropout
masks without asking the others, and the numbers do not depend on who runs first.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

import numpy as np

_thread = threading.local()


def manual_seed(seed: int) -> np.random.Generator:
    """Start the calling thread's stream afresh from ``seed`` and return it.

    The same seed gives the same numbers on every platform and on both backends.

    Raises:
        ValueError: if ``seed`` is negative.
    """
    _thread.generator = make_generator(seed)
    return _thread.generator


def make_generator(seed: int, *key: int) -> np.random.Generator:
    """An independent stream named by ``seed`` and ``key``, for instance ``(seed, step, shard)``.

    SFC64 is the fastest of NumPy's bit generators; SeedSequence mixes the key so that neighbouring
    keys give unrelated streams.
    """
    if seed < 0:
        raise ValueError(f"a seed must not be negative, got {seed}.")
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=key)))


def generator() -> np.random.Generator:
    """The calling thread's stream; one that was never seeded starts from the operating system's entropy."""
    if not hasattr(_thread, "generator"):
        _thread.generator = np.random.Generator(np.random.SFC64())
    return _thread.generator


@contextlib.contextmanager
def use_generator(stream: np.random.Generator) -> Iterator[np.random.Generator]:
    """Draw from ``stream`` inside the ``with`` block, and from the old one again afterwards."""
    previous = generator()
    _thread.generator = stream
    try:
        yield stream
    finally:
        _thread.generator = previous


def keep_mask(shape: tuple[int, ...], p: float, stream: np.random.Generator | None = None) -> tuple[np.ndarray, float]:
    """What dropout keeps: booleans that are False with probability ``p``, and the factor for those kept.

    Sixteen raw random bits decide about an element: four elements from each 64-bit draw, several times
    faster than one floating point number each. ``p`` is thereby rounded to a multiple of 1/65536, and the
    factor is the inverse of the probability that results, so the expected value is exactly kept.

    Raises:
        ValueError: if ``p`` is not in [0, 1].
    """
    reader = KeepReader(p, stream)
    return reader.read(shape), reader.factor


class KeepReader:
    """`keep_mask` in pieces, for code that works on a tile at a time: read in order, they are the mask of the whole.

    A piece whose size is no multiple of four leaves some bits of its last draw to the next one.

    Attributes:
        factor: the factor for what is kept.
    """

    def __init__(self, p: float, stream: np.random.Generator | None = None) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"a dropout probability is between 0 and 1, got {p}.")
        self._threshold = round(p * 65536)
        self._stream = stream or generator()
        self._left = np.empty(0, "<u2")
        self.factor = 0.0 if self._threshold == 65536 else 65536 / (65536 - self._threshold)

    def read(self, shape: tuple[int, ...]) -> np.ndarray:
        """The next booleans."""
        if self._threshold == 65536:
            return np.zeros(shape, bool)
        size = math.prod(shape)
        missing = max(0, size - self._left.size)
        # all 64 bits of each draw; unlike the bit generator's random_raw, this lets other threads run meanwhile
        words = self._stream.integers(0, 2**64 - 1, -(-missing // 4), dtype=np.uint64, endpoint=True)
        bits = words.astype("<u8", copy=False).view("<u2")
        if self._left.size:
            bits = np.concatenate((self._left, bits))
        self._left = bits[size:].copy()
        return (bits[:size] >= self._threshold).reshape(shape)
