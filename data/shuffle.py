"""A shuffled order that needs no list: position to item, for any number of items."""

from __future__ import annotations

import numpy as np

_ROUNDS = 6


def shuffled(positions: np.ndarray, length: int, seed: int, epoch: int = 0) -> np.ndarray:
    """Which of ``length`` items comes at each of ``positions``, in an order that ``seed`` and ``epoch`` decide.

    Over the positions 0 … length - 1 every item comes exactly once. A list would do the same, but for a corpus of nine billion tokens
    it would be larger than all that training keeps in memory otherwise.

    A Feistel network is a cipher on numbers of 2h bits: their halves (a, b) become (b, a ^ f(b)), and whatever f is, that can be undone, so
    no two numbers become the same one. A few rounds with different f, and nothing is left of the order. Some numbers come out at
    ``length`` or above; they go through once more until they are below, which keeps the map one to one.

    Shapes: positions (...) of integers in 0 … length - 1 -> the same shape, int64.
    Source: Luby and Rackoff, "How to construct pseudorandom permutations from pseudorandom functions" (1988).
    """
    half = np.uint64(max(1, ((length - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)

    def encipher(numbers: np.ndarray) -> np.ndarray:
        a, b = numbers >> half, numbers & mask
        for key in keys:
            a, b = b, a ^ (_mix(b ^ key) & mask)
        return (a << half) | b

    items = encipher(np.atleast_1d(positions).astype(np.uint64))
    while (outside := items >= length).any():
        items[outside] = encipher(items[outside])
    return items.astype(np.int64).reshape(np.shape(positions))


def _mix(x: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of ``x`` (the last step of SplitMix64); the products wrap around, as they should."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
