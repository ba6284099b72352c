"""A random permutation without a list: position to item, for any number of items."""

from __future__ import annotations

import numpy as np

_ROUNDS = 6


def shuffled(positions: np.ndarray, length: int, seed: int, epoch: int = 0) -> np.ndarray:
    """The items at ``positions`` in a permutation of ``length`` items, which ``seed`` and ``epoch`` decide.

    Over the positions 0 … length - 1 every item occurs exactly once. For a corpus of nine billion tokens a list of the permutation
    would be larger than everything else that training keeps in memory.

    A Feistel network is a cipher on numbers of 2h bits: the halves (a, b) become (b, a ^ f(b)). This can be inverted for any f, so
    no two numbers get the same result. After a few rounds with different f, nothing of the order remains. A result of ``length`` or above
    goes through the network again until it is below, which keeps the map one to one.

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
    """Every bit of the result depends on every bit of ``x`` (the last step of SplitMix64). The products overflow on purpose."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
