"""Batches of examples that have lengths of their own: padded on the right, and never trained on the pad.

    x    S a y _ h i . H i ! ·      ·  any id at all
    y    - - - - - - - H i ! -      -  IGNORE: no target, so no loss and no gradient

Where the padding is on the right no attention mask is needed: in a causal model no token sees a later one, so what stands
in the pads reaches no position before them; and at the pads themselves nothing is asked. A target of IGNORE contributes exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.loader import BatchError

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


class RowBatches:
    """Batches of rows, in an order drawn anew for each epoch: each comes once before any comes again.

    Raises:
        BatchError: if there are no rows.
    """

    def __init__(self, rows: Sequence[Row], batch_size: int, generator: np.random.Generator, name: str = "data") -> None:
        if not len(rows):
            raise BatchError(f"the {name} has no examples.")
        self.rows, self.batch_size, self.generator = rows, batch_size, generator
        self._order: list[int] = []

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The next ``x`` and ``y``, see `padded`."""
        while len(self._order) < self.batch_size:
            self._order += self.generator.permutation(len(self.rows)).tolist()
        chosen, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        return padded([self.rows[i] for i in chosen])
