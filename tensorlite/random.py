"""Random numbers, drawn on the CPU so that both backends see the same ones.

Every thread has a stream of its own: a worker that trains on a share of the batch draws its dropout
masks without asking the others, and the numbers do not depend on who runs first.

One exception: dropout on a GPU would wait for its masks to arrive. There a kernel works them out (Philox, see
`tensorlite.kernels.cuda.dropout`) from a key of 64 bits and the number of the call, and only the key comes from
the CPU. The masks are then others than NumPy's, and as good.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from tensorlite.backend import Array
from tensorlite.context import contextmanager

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


def default_generator() -> np.random.Generator:
    """The calling thread's stream; one that was never seeded starts from the operating system's entropy."""
    if not hasattr(_thread, "generator"):
        _thread.generator = np.random.Generator(np.random.SFC64())
    return _thread.generator


@contextmanager
def use_generator(generator: np.random.Generator) -> Iterator[np.random.Generator]:
    """Draw from ``generator`` inside the ``with`` block, and from the old one again afterwards."""
    previous = default_generator()
    _thread.generator = generator
    try:
        yield generator
    finally:
        _thread.generator = previous


def dropout_mask(shape: tuple[int, ...], p: float, generator: np.random.Generator | None = None) -> tuple[np.ndarray, float]:
    """What dropout keeps: booleans that are False with probability ``p``, and the factor for those kept.

    Sixteen raw random bits decide about an element: four elements from each 64-bit draw, several times
    faster than one floating point number each. ``p`` is thereby rounded to a multiple of 1/65536, and the
    factor is the inverse of the probability that results, so the expected value is exactly kept.

    Raises:
        ValueError: if ``p`` is not in [0, 1].
    """
    reader = DropoutMaskReader(p, generator)
    return reader.read(shape), reader.factor


def dropout_threshold(p: float) -> tuple[int, float]:
    """Below which of 65536 values an element is dropped, and the factor for those kept; see `dropout_mask`.

    Raises:
        ValueError: if ``p`` is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"a dropout probability is between 0 and 1, got {p}.")
    threshold = round(p * 65536)
    return threshold, 0.0 if threshold == 65536 else 65536 / (65536 - threshold)


class DropoutMaskReader:
    """`dropout_mask` in pieces, for code that works on a tile at a time: read in order, they are the mask of the whole.

    A piece whose size is no multiple of four leaves some bits of its last draw to the next one.

    Attributes:
        factor: the factor for what is kept.
    """

    def __init__(self, p: float, generator: np.random.Generator | None = None) -> None:
        self._threshold, self.factor = dropout_threshold(p)
        self._stream = generator or default_generator()
        self._left = np.empty(0, "<u2")

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


def draw_dropout_key(generator: np.random.Generator | None = None) -> np.ndarray:
    """64 random bits from ``generator``, by default the thread's: two uint32 numbers, a key for `use_dropout_key`."""
    return (generator or default_generator()).integers(0, 2**32, size=2, dtype=np.uint32)


def use_dropout_key(key: Array) -> Any:
    """Inside the ``with`` block, dropout on a GPU draws its masks from ``key`` and the number of the call: 0, 1, 2, ….

        key = cupy.empty(2, "uint32")                # stays where it is
        for _ in range(steps):
            key.set(random.draw_dropout_key(stream))         # what is drawn changes with what lies there
            with random.use_dropout_key(key):
                loss(model(x)).backward()

    The kernels read the key when they run. So a CUDA graph that was captured inside such a block, and is launched again after the
    key was changed, draws new masks. Backward reads it again: leave it alone between a forward and its backward. Holds for the
    calling thread; where a ``generator`` is given to an op, or without such a block, each call draws a key of its own on the CPU and sends
    it to the device, which a graph cannot capture.

    Args:
        key: two uint32 numbers on the device.

    Raises:
        ValueError: for another array.
    """
    if key.shape != (2,) or key.dtype != np.uint32:
        raise ValueError(f"a dropout key is an array of two uint32 numbers, got {key.dtype} {key.shape}.")
    return _using_dropout_key(key, itertools.count())


@contextmanager
def _using_dropout_key(key: Array, calls: Iterator[int]) -> Iterator[None]:
    previous = getattr(_thread, "dropout", None)
    _thread.dropout = (key, calls)
    try:
        yield
    finally:
        _thread.dropout = previous


def next_dropout_key(xp: Any, generator: np.random.Generator | None = None) -> tuple[Array, int]:
    """For the next call of dropout on a GPU: the key, two uint32 numbers on the device, and the number of the call.

    Args:
        xp: the module of the arrays.
        stream: draw a key from this one, instead of taking the one in use (see `use_dropout_key`).
    """
    in_use: tuple[Array, Iterator[int]] | None = getattr(_thread, "dropout", None)
    if generator is not None or in_use is None:
        return xp.asarray(draw_dropout_key(generator)), 0
    key, calls = in_use
    return key, next(calls)
