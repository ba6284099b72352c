"""How GPT-2 splits a text into words, and a cache of their ids.

Byte pair encoding merges nothing across the boundary of a word. So the ids of a text are those of its words in sequence. Nearly every
word has occurred before, and to look it up is several times as fast as to encode it again.

A word here is a match of GPT-2's pattern: letters, digits or signs, with the one space before them, or the ending of "it's"; further
space is a word of its own. In GPT-2's pattern Unicode decides what a letter is, and adds letters every year. This page only handles
characters whose category has never changed: those of English and its neighbours, and punctuation. A line with any other character is
not split here; the library encodes it as a whole.

Source of the pattern: `encoder.py` of GPT-2.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

_SPACE = "\t\n\v\f\r \N{NO-BREAK SPACE}"
_LETTER = "A-Za-zÀ-ÖØ-öø-ſ"
_SIGN = r"!-/:-@\[-`{-~‐-‧"
_WORD = re.compile(rf" ?[{_LETTER}]+|'(?:[sdmt]|ll|ve|re)| ?[{_SIGN}]+| ?[0-9]+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+")
_UNKNOWN = re.compile(f"[^0-9{_SPACE}{_LETTER}{_SIGN}]")
_LINE = re.compile(r"(?<=\S)(?=\n)")  # at a line end a word ends, too, for any characters

_MEMORY = 1 << 17  # words in the cache, about 25 MB
_LONGEST = 64  # characters of a word in the cache


def words(text: str) -> list[str] | None:
    """The words of ``text``, whose concatenation is ``text``; None if it has characters that are not handled here."""
    return None if _UNKNOWN.search(text) else _WORD.findall(text)


class WordCache:
    """Computes the ids of texts from cached ids of their words.

    Args:
        encode: texts to ids, each separately. It must split words as GPT-2 does.
        dtype: of the ids.
    """

    def __init__(self, encode: Callable[[list[str]], list[list[int]]], dtype: type) -> None:
        self._encode = encode
        self.dtype = dtype
        self._known: dict[str, bytes] = {}  # a word and its ids, as the bytes of an array

    def ids(self, text: str) -> np.ndarray:
        """The ids of ``text``."""
        lines = _LINE.split(text) if _UNKNOWN.search(text) else [text]
        cut = [words(line) for line in lines]
        whole = iter(self._encoded([line for line, found in zip(lines, cut, strict=True) if found is None]))
        return np.frombuffer(b"".join([next(whole) if found is None else self._remembered(found) for found in cut]), self.dtype)

    def _remembered(self, found: list[str]) -> bytes:
        known = self._known
        try:
            return b"".join([known[word] for word in found])
        except KeyError:
            pass
        new = list(dict.fromkeys(word for word in found if word not in known))
        if len(known) + len(new) > _MEMORY:
            known.clear()
            new = list(dict.fromkeys(found))
        known.update(zip(new, self._encoded(new), strict=True))
        row = b"".join([known[word] for word in found])
        for word in new:
            if len(word) > _LONGEST:
                del known[word]
        return row

    def _encoded(self, texts: list[str]) -> list[bytes]:
        return [np.array(ids, self.dtype).tobytes() for ids in self._encode(texts)]
