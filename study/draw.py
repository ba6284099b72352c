"""Numbers that look random and are the same on every engine, machine and day: the lessons fill weights with them."""

from __future__ import annotations

import random
from typing import Any


def numbers(*shape: int, std: float = 1.0, seed: int = 0) -> Any:
    """Nested lists of ``shape``, uniform around 0 with the standard deviation ``std``; the same for the same ``seed``.

    Python promises that `random.Random(seed).random()` never changes, which no library promises of its normal distribution.
    """
    rng = random.Random(seed)
    reach = std * 3**0.5  # a uniform number between -reach and reach has the standard deviation reach / √3

    def draw(shape: tuple[int, ...]) -> Any:
        return [draw(shape[1:]) for _ in range(shape[0])] if shape else reach * (2 * rng.random() - 1)

    return draw(shape)
