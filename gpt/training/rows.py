"""Batches of examples that have lengths of their own: padded on the right, and never trained on the pad.

    x    S a y _ h i . H i ! ·      ·  any id at all
    y    - - - - - - - H i ! -      -  IGNORE: no target, so no loss and no gradient

Where the padding is on the right no attention mask is needed: in a causal model no token sees a later one, so what stands
in the pads reaches no position before them; and at the pads themselves nothing is asked. A target of IGNORE contributes exactly 0.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.loader import BatchError
from data.shuffle import shuffled

IGNORE = -100  # the ignore_index of cross_entropy
PAD = 0


@dataclass(frozen=True)
class Row:
    """One example: ids and what is asked after each of them, both (T,)."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    @property
    def asked(self) -> int:
        """How many targets count."""
        return int((self.y != IGNORE).sum())


def padded(rows: Sequence[Row], pad: int = PAD) -> tuple[np.ndarray, np.ndarray]:
    """``x`` and ``y``, (B, T) with T the length of the longest row."""
    shape = (len(rows), max(map(len, rows)))
    x, y = np.full(shape, pad, np.int64), np.full(shape, IGNORE, np.int64)
    for i, row in enumerate(rows):
        x[i, : len(row)], y[i, : len(row)] = row.x, row.y
    return x, y


def packed(rows: Sequence[Row], length: int) -> list[Row]:
    """The same examples in fewer rows of at most ``length``: several short ones, one after the other, share a row.

        x    S a y _ h i . H i ! G o _ o n . O k
        y    - - - - - - H i ! - - - - - - O k -

    Every target stays with its own example, and no position is asked for anything beyond it. But nothing hides the first example
    from the second: it is read as if it had come before in the same text, as several documents in a context are when GPT-3 is trained.
    The longest rows are placed first, each where it leaves the least room.

    Source: Brown et al. 2020, "Language Models are Few-Shot Learners", appendix B, for packing without a mask; "best fit decreasing" is
    the textbook's heuristic for bin packing.
    """
    bins: list[list[Row]] = []
    room: list[tuple[int, int]] = []  # what is left in each, smallest first, and its number
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
    """Batches of rows, in an order shuffled anew for each epoch: each comes once before any comes again.

    Args:
        seed: decides the order.

    Attributes:
        position: how many rows have been drawn.

    Raises:
        BatchError: if there are no rows.
    """

    def __init__(self, rows: Sequence[Row], batch_size: int, seed: int, name: str = "data") -> None:
        if not len(rows):
            raise BatchError(f"the {name} has no examples.")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.position = 0

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The next ``x`` and ``y``, see `padded`."""
        rows = self.drawn(self.position, self.batch_size)
        self.position += self.batch_size
        return padded(rows)

    def drawn(self, start: int, count: int) -> list[Row]:
        """``count`` rows in the order in which they are drawn, from place ``start`` on."""
        epochs, places = np.divmod(start + np.arange(count), len(self.rows))
        chosen = [shuffled(place, len(self.rows), self.seed, int(epoch)) for epoch, place in zip(epochs, places, strict=True)]
        return [self.rows[int(i)] for i in chosen]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream of batches stands, fit for JSON."""
        return {"position": self.position, "seed": self.seed, "rows": len(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state`` was taken.

        Raises:
            BatchError: if it was taken from other rows, or another order of them.
        """
        for name, own in (("seed", self.seed), ("rows", len(self.rows))):
            if state[name] != own:
                raise BatchError(f"this position is one in another order of examples: its {name} is {state[name]}, here it is {own}.")
        self.position = state["position"]
