"""Text that waits on the disk until its alphabet is known.

Characters are a special case. Their ids are their places in the sorted alphabet, which is known only when all of the text has been
read, and reading a source twice would cost as much as everything else together. So each process puts the clean text into a file of
its own and hands on where it lies, a `TextSpan`. When the last one is there, `tokenize` makes ids of them, all cores at once.
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
    """Where a text lies: ``size`` bytes from ``start`` on in the file ``path``. In UTF-8 they are ``characters`` characters."""

    path: str
    start: int
    size: int
    characters: int


class SpanWriter:
    """One process's file of spans, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        descriptor, self._path = tempfile.mkstemp(".txt", dir=folder)
        os.close(descriptor)

    def write(self, text: bytes) -> TextSpan:
        """Put ``text``, which is UTF-8, at the end of the file."""
        with open(self._path, "ab") as file:
            start = file.tell()
            file.write(text)
        return TextSpan(self._path, start, len(text), _length(text))


class Alphabet:
    """All characters that one process has met."""

    def __init__(self) -> None:
        self._ascii = b""
        self._met = np.zeros(_CODE_POINTS, bool)

    def add(self, text: bytes) -> str:
        """The characters in ``text``, which is UTF-8, that were not met before."""
        rest = text.translate(None, self._ascii)  # before long, nothing is left of plain English
        new = ""
        for points in code_points(rest.decode()):
            found = np.unique(points[~self._met[points]])
            self._met[found] = True
            self._ascii += bytes(found[found < 0x80].tolist())
            new += "".join(map(chr, found))
        return new


def _length(text: bytes) -> int:
    """How many characters there are in UTF-8."""
    return len(text) - int(np.count_nonzero(np.frombuffer(text, np.int8) < -64))  # 10xxxxxx goes on with a character


def tokenize(spans: list[TextSpan], tokenizer: CharTokenizer, file: TokenWriter, threads: int) -> Iterator[int]:
    """Write the ids of ``spans``, one after the other, into an empty ``file``; yields how many there were in each.

    Threads will do: looking up, reading and writing do not need Python's lock.
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
