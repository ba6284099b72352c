"""GPT-2's way to cut a text into words, and a memory for their ids.

Byte pair encoding joins nothing across the border of a word. So the ids of a text are those of its words, end to end, and nearly every
word has been there before: looking it up is several times faster than encoding it again.

A word here is what GPT-2's pattern finds: letters, digits or signs, each with the one space before them, or the ending of "it's"; more
space is a word of its own. What is a letter is left to Unicode there, which adds some every year. Here only characters are spoken for
whose kind has never changed: those of English and its neighbours, and the signs of typography. A line with any other is not cut here,
and goes to the library whole.

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
_LINE = re.compile(r"(?<=\S)(?=\n)")  # where a line ends, one word does, too, whatever the characters

_MEMORY = 1 << 17  # words, some 25 MB
_LONGEST = 64  # characters of a word that is kept


def words(text: str) -> list[str] | None:
    """The words of ``text``, which end to end are ``text``; None if it has characters that are not spoken for."""
    return None if _UNKNOWN.search(text) else _WORD.findall(text)


class WordCache:
    """The ids of texts, by way of those of their words.

    Args:
        encode: texts to ids, each on its own. It must cut words as GPT-2 does.
        dtype: of the ids.
    """

    def __init__(self, encode: Callable[[list[str]], list[list[int]]], dtype: type) -> None:
        self._encode = encode
        self.dtype = dtype
        self._known: dict[str, bytes] = {}  # a word and its ids, as they lie in an array

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
