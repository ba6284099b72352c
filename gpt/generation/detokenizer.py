"""From tokens to text while it is generated: no half characters, and no part of a stop string."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from data.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"  # decoding gives it for bytes that are not a whole character


class StreamDetokenizer:
    """``push(id)`` gives the text that can be shown now, ``finish()`` what was held back.

    A token of a byte-level tokenizer may end inside a character; its bytes wait for those that complete it. The text of another tokenizer's
    token can depend on the one before it: "one", "two" are "one two", and "▁two" alone is "two". So tokens are decoded together
    with those before them, and the text of these is removed. Text that could be the beginning of a stop string waits until it is clear
    that it is not. The text ends before a complete stop string, and at the tokenizer's end-of-text token, if it has one.

    Args:
        before: the ids of the text before.

    Attributes:
        stopped: whether the text has ended.
        held: the text that waits: it could be the beginning of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: ArrayLike = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = [text for text in stop if text]
        self.stopped = False
        self._alone = functools.lru_cache(maxsize=4096)(tokenizer.decode)
        self._before = tuple(np.ravel(before).tolist())  # tokens whose text has been returned
        self._ids: tuple[int, ...] = ()  # the tokens after those
        self._decoded = 0  # how many characters of these are in _held or were returned
        self.held = ""

    def push(self, token: int) -> str:
        """The text that is certain after ``token``."""
        if self.stopped:
            return ""
        if token == self.tokenizer.end_of_text:
            rest = self.finish()
            self.stopped = True
            return rest
        self._ids += (int(token),)
        before, text = self._alone(self._before), self.tokenizer.decode(self._before + self._ids)
        if text.startswith(before):  # false for a moment where tokens are bytes: the first one of a character changes the text before
            added = text[len(before) :]
            whole = added.rstrip(_REPLACEMENT)
            self.held += whole[self._decoded :]
            self._decoded = len(whole)
            if len(whole) == len(added):
                self._before, self._ids, self._decoded = self._ids, (), 0
        return self._release_text()

    def finish(self) -> str:
        """The text that was held back, after the last token."""
        if self.stopped:
            return ""
        self.held += self.tokenizer.decode(self._before + self._ids)[len(self._alone(self._before)) + self._decoded :]
        self._before, self._ids = self._ids, ()
        text, rest = self._release_text(), self.held
        self.held = ""
        return text + ("" if self.stopped else rest)

    def _release_text(self) -> str:
        found = [at for text in self.stop if (at := self.held.find(text)) >= 0]
        if found:
            self.stopped = True
            text, self.held = self.held[: min(found)], ""
            return text
        waiting = max((_overlap_length(self.held, text) for text in self.stop), default=0)
        cut = len(self.held) - waiting
        text, self.held = self.held[:cut], self.held[cut:]
        return text


def _overlap_length(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
