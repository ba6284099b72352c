"""Random numbers, drawn on the CPU so that they are the same on both backends.

Every thread has its own generator. A worker that trains on a part of the batch draws its dropout masks
independently of the others, so the numbers do not depend on the order in which threads run.

There is one exception. Dropout on a GPU would have to wait for masks from the CPU. Instead a kernel computes them
(Philox, see `tensorlite.kernels.cuda.dropout`) from a key of 64 bits and the number of the call, and only the key comes
from the CPU. These masks differ from NumPy's and are equally random.
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
    """Seed the calling thread's generator with ``seed``, and return it.

    The same seed gives the same numbers on every platform and on both backends.

    Raises:
        ValueError: if ``seed`` is negative.
    """
    _thread.generator = make_generator(seed)
    return _thread.generator


def make_generator(seed: int, *key: int) -> np.random.Generator:
    """An independent generator for ``seed`` and ``key``, for instance ``(seed, step, shard)``.

    SFC64 is the fastest of NumPy's bit generators. SeedSequence mixes the key, so similar keys give
    unrelated numbers.
    """
    if seed < 0:
        raise ValueError(f"a seed must not be negative, got {seed}.")
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=key)))


def default_generator() -> np.random.Generator:
    """The calling thread's generator. Without a seed it starts from the operating system's entropy."""
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
    """The mask of dropout, booleans that are False with probability ``p``, and the factor for the elements that are kept.

    Sixteen random bits decide about an element, so a 64-bit draw gives four elements. This is several times as
    fast as one floating point number for each. ``p`` is thereby rounded to a multiple of 1/65536. The factor is the
    inverse of the resulting probability of True, so the expected value is exact.

    Raises:
        ValueError: if ``p`` is not in [0, 1].
    """
    reader = DropoutMaskReader(p, generator)
    return reader.read(shape), reader.factor


def dropout_threshold(p: float) -> tuple[int, float]:
    """The threshold t, where an element is dropped if its 16 random bits are below t, and the factor for kept elements; see `dropout_mask`.

    Raises:
        ValueError: if ``p`` is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"a dropout probability is between 0 and 1, got {p}.")
    threshold = round(p * 65536)
    return threshold, 0.0 if threshold == 65536 else 65536 / (65536 - threshold)


class DropoutMaskReader:
    """`dropout_mask` in pieces, for code that works tile by tile. Read in order, the pieces are the mask of the whole.

    If the size of a piece is not a multiple of four, the next piece uses the remaining bits of its last draw.

    Attributes:
        factor: the factor for the elements that are kept.
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
        # all 64 bits of each draw; unlike the bit generator's random_raw, this releases Python's lock
        words = self._stream.integers(0, 2**64 - 1, -(-missing // 4), dtype=np.uint64, endpoint=True)
        bits = words.astype("<u8", copy=False).view("<u2")
        if self._left.size:
            bits = np.concatenate((self._left, bits))
        self._left = bits[size:].copy()
        return (bits[:size] >= self._threshold).reshape(shape)


def draw_dropout_key(generator: np.random.Generator | None = None) -> np.ndarray:
    """64 random bits from ``generator``, by default the thread's, as two uint32 numbers: a key for `use_dropout_key`."""
    return (generator or default_generator()).integers(0, 2**32, size=2, dtype=np.uint32)


def use_dropout_key(key: Array) -> Any:
    """Inside the ``with`` block, dropout on a GPU draws its masks from ``key`` and the number of the call: 0, 1, 2, ….

        key = cupy.empty(2, "uint32")                # its address stays the same
        for _ in range(steps):
            key.set(random.draw_dropout_key(stream))         # another value, other masks
            with random.use_dropout_key(key):
                loss(model(x)).backward()

    The kernels read the key when they run. So a CUDA graph that was captured inside such a block draws new masks when it is launched
    again after the key was changed. Backward reads the key again: do not change it between a forward and its backward. This holds for
    the calling thread. Outside such a block, or if an op gets a ``generator``, each call draws its own key on the CPU and copies it to
    the device, which a graph cannot capture.

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
        generator: draw a key from this generator, instead of the key in use (see `use_dropout_key`).
    """
    in_use: tuple[Array, Iterator[int]] | None = getattr(_thread, "dropout", None)
    if generator is not None or in_use is None:
        return xp.asarray(draw_dropout_key(generator)), 0
    key, calls = in_use
    return key, next(calls)
