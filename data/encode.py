"""Pieces of documents to ids: the work that worker processes share.

Characters are a special case. Their vocabulary is known only when all of the text has been read, and reading it twice would
cost as much as everything else together. So each worker has an alphabet of its own, the characters in the order in which it met them,
and a batch comes with it; `data.prepare` translates, first to the order in which itself met them, at the end to sorted order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.errors import DataError
from data.sources.streams import Budget, TooLargeError, shown
from data.sources.text import Policy, decode
from data.sources.walk import Packed, Piece, Tally, Walk
from data.splits import SPLITS, Split, Splitter
from data.tokenizer import Tokenizer

PACK = 8 << 20  # bytes of an archive that a worker opens
_UNPACKED = 32 << 20  # what it may expand to there; a larger one goes back to be read in pieces
BATCH = 1 << 20  # bytes of pieces that go to a worker together
_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Task:
    """What every worker is told once.

    Attributes:
        tokenizer: or None, to count characters in alphabets of their own.
        splitter: or None for a single text, which is cut in order when all of it is there.
    """

    tokenizer: Tokenizer | None
    splitter: Splitter | None
    encoding_errors: Policy
    text_field: str


@dataclass
class Row:
    """The ids of one split in a batch.

    Attributes:
        ids: ids of the tokenizer's, or places in ``alphabet``.
        alphabet: code points, or None with a tokenizer.
        continues: whether the first id goes on with a document begun in an earlier batch.
        documents, characters: how many; separators are not counted.
    """

    ids: np.ndarray
    alphabet: np.ndarray | None
    continues: bool
    documents: int
    characters: int


@dataclass
class Batch:
    """What a worker gives back: a `Row` for each split that has any text, and how many bytes came out of archives."""

    rows: dict[Split, Row] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    expanded: int = 0
    size: int = 0


class Encoder:
    """Does the work; one in each process."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._separator = separator(task.tokenizer)
        self._alphabet = GrowingAlphabet()

    def __call__(self, work: Packed | list[Piece]) -> Batch | None:
        """The ids of what is in ``work``; None if that is an archive too large to be done in one batch.

        Raises:
            DataError: if something in it is broken.
        """
        if not isinstance(work, Packed):
            return self.batch(work)
        tally, budget = Tally(), Budget(_UNPACKED, work.name)
        walk = Walk(tally, budget, self._task.text_field, self._task.encoding_errors == "error")
        try:
            batch = self.batch(walk.packed(work))
        except TooLargeError:
            return None
        tally.merge(batch.tally)
        batch.tally, batch.expanded = tally, budget.spent
        return batch

    def batch(self, pieces: Iterable[Piece | Packed]) -> Batch:
        """The ids of ``pieces``, all at once."""
        batch = Batch()
        texts: dict[Split, list[tuple[str, Piece]]] = {split: [] for split in SPLITS}
        for piece in pieces:
            assert isinstance(piece, Piece)
            batch.size += len(piece.raw)
            split = self._task.splitter(piece.name) if self._task.splitter else "train"
            if split is not None and (text := decode(piece, self._task.encoding_errors, batch.tally)):
                texts[split].append((text, piece))
        for split, found in texts.items():
            if found:
                batch.rows[split] = self._row(found)
        return batch

    def _row(self, found: list[tuple[str, Piece]]) -> Row:
        tokenizer = self._task.tokenizer
        alphabet = None
        if tokenizer is None or tokenizer.end_of_text is None:
            parts = [self._separator * (not piece.part and i > 0) + text for i, (text, piece) in enumerate(found)]
            if tokenizer is None:
                ids = self._alphabet.encode("".join(parts))
                alphabet = self._alphabet.points
            else:
                ids = np.concatenate(list(self._encoded(tokenizer, zip(parts, found, strict=True))))
        else:
            end = np.array([tokenizer.end_of_text])
            rows = []
            for i, encoded in enumerate(self._encoded(tokenizer, ((text, (text, piece)) for text, piece in found))):
                if i and not found[i][1].part:
                    rows.append(end.astype(encoded.dtype))
                rows.append(encoded)
            ids = np.concatenate(rows)
        return Row(
            ids,
            alphabet,
            continues=found[0][1].part > 0,
            documents=sum(not piece.part for _, piece in found),
            characters=sum(len(text) for text, _ in found),
        )

    @staticmethod
    def _encoded(tokenizer: Tokenizer, texts: Iterable[tuple[str, tuple[str, Piece]]]) -> Iterator[np.ndarray]:
        for text, (_, piece) in texts:
            try:
                yield tokenizer.encode(text)
            except DataError as error:
                remedy = "" if tokenizer.end_of_text is not None else " Choose --unknown replace or skip, or another tokenizer."
                raise DataError(f"in {shown(piece.name)}: {error}{remedy}") from error


def separator(tokenizer: Tokenizer | None) -> str:
    """What stands between two documents where no token of its own does: a line end, or nothing if the tokenizer does not know it."""
    if tokenizer is None:
        return "\n"
    if tokenizer.end_of_text is not None:
        return ""
    known: Any = getattr(tokenizer, "characters", "\n")
    return "\n" if "\n" in known else ""


class GrowingAlphabet:
    """Characters in the order in which they turn up, each with the next free id. It belongs to one process and never forgets."""

    def __init__(self) -> None:
        self.points = np.zeros(0, np.uint32)
        self._id_of = np.full(_CODE_POINTS, -1, np.int32)

    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``, one a character."""
        raw, dtype = text.encode("utf-16-le", "surrogatepass"), "<u2"
        if len(raw) != 2 * len(text):  # beyond U+FFFF
            raw, dtype = text.encode("utf-32-le", "surrogatepass"), "<u4"
        return self.ids(np.frombuffer(raw, dtype))

    def ids(self, points: np.ndarray) -> np.ndarray:
        """The ids of code points, in the smallest type that holds all ids so far."""
        ids = self._id_of.take(points)
        if ids.size and ids.min() < 0:
            new = np.unique(points[ids < 0])
            self._id_of[new] = np.arange(len(self.points), len(self.points) + len(new))
            self.points = np.concatenate([self.points, new])
            ids = self._id_of.take(points)
        return ids.astype(np.uint8 if len(self.points) <= 1 << 8 else np.uint16 if len(self.points) <= 1 << 16 else np.uint32)
