"""Text that is stored on disk until its alphabet is known.

A character tokenizer is a special case. The ids are positions in the sorted alphabet, which is known only after all of the text was
read, and to read a source twice would take as long as everything else together. So each process writes the clean text to its own
file, and passes on its place there, a `TextSpan`. At the end `tokenize` converts all spans to ids, on all cores.
"""

from __future__ import annotations

import codecs
import itertools
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.staging import TokenWriter
from data.tokenizer.char import CharTokenizer, code_points

_BLOCK = 1 << 18  # bytes of text at a time, so that they and their ids stay in the cache
_CODE_POINTS = 0x110000


class TextSpan(NamedTuple):
    """The place of a text: ``size`` bytes from ``start`` on in the file ``path``, which are ``characters`` characters in UTF-8."""

    path: str
    start: int
    size: int
    characters: int


class SpanWriter:
    """Writes the text of one process to one file in ``folder``."""

    def __init__(self, folder: Path) -> None:
        descriptor, self._path = tempfile.mkstemp(".txt", dir=folder)
        os.close(descriptor)

    def write(self, text: bytes) -> TextSpan:
        """Append ``text``, which is UTF-8, to the file."""
        with open(self._path, "ab") as file:
            start = file.tell()
            file.write(text)
        return TextSpan(self._path, start, len(text), _length(text))


class Alphabet:
    """The set of characters that one process has seen."""

    def __init__(self) -> None:
        self._ascii = b""
        self._seen = np.zeros(_CODE_POINTS, bool)

    def add(self, text: bytes) -> str:
        """Add the characters of ``text``, which is UTF-8; return those that are new."""
        rest = text.translate(None, self._ascii)  # usually nothing remains of English text
        new = ""
        for points in code_points(rest.decode()):
            found = np.unique(points[~self._seen[points]])
            self._seen[found] = True
            self._ascii += bytes(found[found < 0x80].tolist())
            new += "".join(map(chr, found))
        return new


def _length(text: bytes) -> int:
    """The number of characters in UTF-8 text."""
    return len(text) - int(np.count_nonzero(np.frombuffer(text, np.int8) < -64))  # a byte 10xxxxxx continues a character


def tokenize(spans: list[TextSpan], tokenizer: CharTokenizer, file: TokenWriter, threads: int) -> Iterator[int]:
    """Write the ids of ``spans``, one after the other, into an empty ``file``; yields the number of ids of each.

    Threads are enough, because table look-ups, reads and writes release Python's lock.
    """
    starts = itertools.accumulate((span.characters for span in spans), initial=0)

    def encode(span: TextSpan, start: int) -> int:
        decoder = codecs.getincrementaldecoder("utf-8")()  # a block may end within a character
        at, left = start, span.size
        with open(span.path, "rb", buffering=0) as text:
            text.seek(span.start)
            while block := text.read(min(_BLOCK, left)):
                left -= len(block)
                ids = tokenizer.encode(decoder.decode(block))
                file.write(ids, at)
                at += len(ids)
        return at - start

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(encode, spans, starts)
