"""Batches of examples of different lengths: padded on the right, without targets at the padding.

    x    S a y _ h i . H i ! ·      ·  padding: any id
    y    - - - - - - - H i ! -      -  IGNORE: no target, so no loss and no gradient

Padding on the right needs no attention mask. In a causal model no token sees a later one, so the padding changes no position before it, and
the padded positions themselves have no target. A target of IGNORE contributes exactly 0.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.loader import BatchError
from data.shuffle import shuffled

IGNORE = -100  # the ignore_index of cross_entropy
PAD = 0
SEEN = 20  # batches whose width is looked at


@dataclass(frozen=True)
class Row:
    """One example: ids, and the target at each of them, both (T,)."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    @property
    def num_targets(self) -> int:
        """How many targets are not IGNORE."""
        return int((self.y != IGNORE).sum())


def pad_rows(rows: Sequence[Row], pad: int = PAD) -> tuple[np.ndarray, np.ndarray]:
    """``x`` and ``y`` of a batch: (B, T), where T is the length of the longest row."""
    shape = (len(rows), max(map(len, rows)))
    x, y = np.full(shape, pad, np.int64), np.full(shape, IGNORE, np.int64)
    for i, row in enumerate(rows):
        x[i, : len(row)], y[i, : len(row)] = row.x, row.y
    return x, y


def pack_rows(rows: Sequence[Row], length: int) -> list[Row]:
    """The same examples in fewer rows of at most ``length``: several short ones share a row, one after the other.

        x    S a y _ h i . H i ! G o _ o n . O k
        y    - - - - - - H i ! - - - - - - O k -

    No position has a target in the next example. But the second example sees the first, as if it came before in the same text, as
    several documents in one context do when GPT-3 is trained. The longest rows are placed first, each where it leaves the least room.

    Source: Brown et al. 2020, "Language Models are Few-Shot Learners", appendix B, for packing without a mask; the heuristic for bin
    packing is "best fit decreasing".
    """
    bins: list[list[Row]] = []
    room: list[tuple[int, int]] = []  # for each bin what is left in it, and its number; sorted
    for row in sorted(rows, key=len, reverse=True):
        place = bisect.bisect_left(room, (len(row), 0))
        if place < len(room):
            left, number = room.pop(place)
        else:
            left, number = length, len(bins)
            bins.append([])
        bins[number].append(row)
        bisect.insort(room, (left - len(row), number))
    return [Row(np.concatenate([row.x for row in several]), np.concatenate([row.y for row in several])) for several in bins]


class RowBatches:
    """Batches of rows in random order. Each epoch has every row once, in a new order.

    Args:
        seed: decides the order.
        name: of the data, for messages.

    Attributes:
        position: how many rows have been taken.

    Raises:
        BatchError: if there are no rows.
    """

    def __init__(self, rows: Sequence[Row], batch_size: int, seed: int, name: str = "data") -> None:
        if not len(rows):
            raise BatchError(f"the {name} has no examples.")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.position = 0

    @property
    def longest(self) -> int:
        """The length of the longest row."""
        return max(map(len, self.rows))

    @property
    def usual_width(self) -> int:
        """The length to which rows are padded in a batch, as the mean over the next ones, rounded up."""
        starts = range(self.position, self.position + SEEN * self.batch_size, self.batch_size)
        return math.ceil(np.mean([max(map(len, self.rows_from(start, self.batch_size))) for start in starts]))

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The next ``x`` and ``y``, see `pad_rows`."""
        rows = self.rows_from(self.position, self.batch_size)
        self.position += self.batch_size
        return pad_rows(rows)

    def rows_from(self, start: int, count: int) -> list[Row]:
        """``count`` rows in random order, from position ``start`` of the order on."""
        epochs, places = np.divmod(start + np.arange(count), len(self.rows))
        chosen = [shuffled(place, len(self.rows), self.seed, int(epoch)) for epoch, place in zip(epochs, places, strict=True)]
        return [self.rows[int(i)] for i in chosen]

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, fit for JSON."""
        return {"position": self.position, "seed": self.seed, "rows": len(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state`` was taken.

        Raises:
            BatchError: if it was taken from other rows, or from another order of them.
        """
        for name, own in (("seed", self.seed), ("rows", len(self.rows))):
            if state[name] != own:
                raise BatchError(f"this position belongs to another order of examples: its {name} is {state[name]}, here it is {own}.")
        self.position = state["position"]
