"""From tokens to text as it appears: no half characters, and nothing of a stop string."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from data.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"  # what decoding makes of bytes that are no character, or not yet


class Pieces:
    """``push(id)`` gives the text that can be shown now, ``finish()`` what was held back.

    A token of a byte-level tokenizer may end inside a character; its bytes wait for those that complete it. What a token of another kind
    is as a text depends on the one before it: "one", "two" are "one two", and "▁two" alone is "two". So tokens are decoded together
    with those before them, and the text of these is taken away. What could be the beginning of a stop string waits until it is clear
    that it is not. When a stop string is complete, the text ends before it; so it does at the tokenizer's end of text, if it has one.

    Args:
        before: the ids of what the text goes on from.

    Attributes:
        stopped: whether the text has ended; nothing comes any more.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: ArrayLike = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = [text for text in stop if text]
        self.stopped = False
        self._alone = functools.lru_cache(maxsize=4096)(tokenizer.decode)
        self._before = tuple(np.ravel(before).tolist())  # tokens whose text is out
        self._ids: tuple[int, ...] = ()  # those that followed, since the last end of a token that was the end of a character
        self._decoded = 0  # how many characters of them are in _held or were shown
        self._held = ""

    def push(self, token: int) -> str:
        """The text that ``token`` makes certain."""
        if self.stopped:
            return ""
        if token == self.tokenizer.end_of_text:
            rest = self.finish()
            self.stopped = True
            return rest
        self._ids += (int(token),)
        before, text = self._alone(self._before), self.tokenizer.decode(self._before + self._ids)
        if text.startswith(before):  # not so for a moment where bytes are tokens: the first of a character breaks the one before
            added = text[len(before) :]
            whole = added.rstrip(_REPLACEMENT)
            self._held += whole[self._decoded :]
            self._decoded = len(whole)
            if len(whole) == len(added):
                self._before, self._ids, self._decoded = self._ids, (), 0
        return self._release()

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        self._held += self.tokenizer.decode(self._before + self._ids)[len(self._alone(self._before)) + self._decoded :]
        self._before, self._ids, self._decoded = self._ids, (), 0
        text, rest = self._release(), self._held
        self._held = ""
        return text + ("" if self.stopped else rest)

    def _release(self) -> str:
        found = [at for text in self.stop if (at := self._held.find(text)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        waiting = max((_overlap(self._held, text) for text in self.stop), default=0)
        cut = len(self._held) - waiting
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
