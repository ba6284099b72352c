"""Pieces of documents to token ids: the work of the worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.sources.streams import Budget, TooLargeError, printable
from data.sources.text import Policy, clean
from data.sources.walk import PackedArchive, Piece, Tally, Walk
from data.spans import Alphabet, SpanWriter, TextSpan
from data.splits import SPLITS, Split, Splitter
from data.tokenizer import Tokenizer

PACK = 8 << 20  # bytes of an archive that a worker opens
_UNPACKED = 32 << 20  # what it may expand to there; the main process reads a larger one in pieces
SEPARATOR = "\n"  # between documents of characters
BATCH = 1 << 20  # bytes of pieces that go to a worker together

Text = tuple[Piece, bytes]  # a piece and its clean text


@dataclass(frozen=True)
class EncodingTask:
    """The settings that every worker gets once.

    Attributes:
        tokenizer: None for characters whose alphabet is not known yet.
        splitter: None for a single text, which is split in order at the end.
        place: a folder for the text, if there is no tokenizer yet.
    """

    tokenizer: Tokenizer | None
    splitter: Splitter | None
    encoding_errors: Policy
    text_field: str
    place: Path


@dataclass
class SplitIds:
    """The ids of one split in a batch.

    Attributes:
        ids: token ids, with a separator between two documents; without a tokenizer, the place of the text.
        continues: whether it begins with the rest of a document from an earlier batch.
        documents, characters: their numbers; separators are not counted.
    """

    ids: np.ndarray | TextSpan
    continues: bool
    documents: int
    characters: int


@dataclass
class Batch:
    """The result of a worker.

    Attributes:
        rows: the ids of each split that has text.
        alphabet: characters that are new to this worker, if there is no tokenizer.
        expanded: bytes that were decompressed from archives.
        size: bytes of all documents.
    """

    rows: dict[Split, SplitIds] = field(default_factory=dict)
    alphabet: str = ""
    tally: Tally = field(default_factory=Tally)
    expanded: int = 0
    size: int = 0


class Encoder:
    """Encodes pieces of documents; there is one in each process."""

    def __init__(self, task: EncodingTask) -> None:
        self._task = task
        if task.tokenizer is None:
            self._alphabet = Alphabet()
            self._text = SpanWriter(task.place)

    def __call__(self, work: PackedArchive | list[Piece]) -> Batch | None:
        """The ids of the content of ``work``; None if it is an archive that is too large for one batch.

        Raises:
            DataError: if something in it is damaged.
        """
        if not isinstance(work, PackedArchive):
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

    def batch(self, pieces: Iterable[Piece | PackedArchive]) -> Batch:
        """The ids of ``pieces`` as one batch."""
        batch = Batch()
        splitter, policy = self._task.splitter, self._task.encoding_errors
        texts: dict[Split, list[Text]] = {split: [] for split in SPLITS}
        for piece in pieces:
            assert isinstance(piece, Piece)
            batch.size += len(piece.raw)
            split = splitter(piece.name) if splitter else "train"
            if split is not None and (text := clean(piece, policy, batch.tally)):
                texts[split].append((piece, text))
        for split, found in texts.items():
            if not found:
                continue
            documents, continues = sum(not piece.part for piece, _ in found), found[0][0].part > 0
            if self._task.tokenizer is None:
                span = self._span(found, batch)
                characters = span.characters - len(SEPARATOR) * (documents - (not continues))
                batch.rows[split] = SplitIds(span, continues, documents, characters)
            else:
                ids, characters = self._ids(found, self._task.tokenizer)
                batch.rows[split] = SplitIds(ids, continues, documents, characters)
        return batch

    def _span(self, found: list[Text], batch: Batch) -> TextSpan:
        text = b"".join(_separated(found, SEPARATOR.encode()))
        batch.alphabet += self._alphabet.add(text)
        return self._text.write(text)

    def _ids(self, found: list[Text], tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
        """The ids, and the number of characters of their text."""
        texts = [text.decode() for _, text in found]
        characters = sum(map(len, texts))
        if tokenizer.end_of_text is None:
            texts = [text.decode() for text in _separated(found, separator(tokenizer).encode())]
        end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
        rows = []
        for i, (text, (piece, _)) in enumerate(zip(texts, found, strict=True)):
            try:
                ids = tokenizer.encode(text)
            except DataError as error:
                remedy = "" if end else " Choose --unknown replace or skip, or another tokenizer."
                raise DataError(f"in {printable(piece.name)}: {error}{remedy}") from error
            if i and not piece.part:
                rows.append(np.array(end, ids.dtype))
            rows.append(ids)
        return np.concatenate(rows), characters


def separator(tokenizer: Tokenizer) -> str:
    """The text between two documents for a tokenizer without an end-of-text token: a line end, or nothing if it has no id."""
    known: Any = getattr(tokenizer, "characters", SEPARATOR)
    return SEPARATOR if SEPARATOR in known else ""


def _separated(found: list[Text], between: bytes) -> Iterator[bytes]:
    """The texts, with ``between`` before each one that begins a document, except the first."""
    for i, (piece, text) in enumerate(found):
        yield between + text if i and not piece.part else text
