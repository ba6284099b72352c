"""What all tokenizers have in common whose tokens are strings of bytes.

Every single byte is a token of its own, so there is nothing that cannot be encoded, and ``decode(encode(text)) == text`` for
every text. The other way round is another matter: a token may be half a character, and ids that a model has made up may
not be UTF-8 at all. `decode` puts � where bytes mean nothing; `decode_bytes` gives them as they are.
"""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from data.tokenizer.base import TokenizerError, checked_ids

PIECE = 2**18  # characters
_CUT = re.compile(r"(?<=\w)(?=[ \t\n\r])|(?<=[ \t\n\r])(?=[ \t\n\r]\w)")


class ByteLevelTokenizer(ABC):
    """Tokens are strings of bytes."""

    @property
    @abstractmethod
    def tokens(self) -> list[bytes]:
        """Id -> bytes."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return len(self.tokens)

    @property
    def unknown_id(self) -> int | None:
        """There is none: whatever has no token is spelt in bytes."""
        return None

    def decode(self, ids: ArrayLike) -> str:
        """The text of ``ids``, with � for bytes that are not UTF-8.

        Raises:
            TokenizerError: if an id is not one of this tokenizer's.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def encode_bytes(self, raw: bytes) -> np.ndarray:
        """The ids of any bytes: those that are UTF-8 as `encode` has them, each other byte as itself."""
        text = raw.decode("utf-8", "surrogateescape")  # a byte that does not fit becomes U+DC80 to U+DCFF
        parts = re.split(r"([\udc80-\udcff]+)", text)  # text, bytes, text, bytes, …, text
        ids = [self._byte_id[np.frombuffer(part.encode("utf-8", "surrogateescape"), np.uint8)] if i % 2 else self.encode(part)
               for i, part in enumerate(parts)]  # fmt: skip
        return np.concatenate(ids)

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """The bytes of ``ids``: ``decode_bytes(encode_bytes(raw)) == raw``.

        Raises:
            TokenizerError: if an id is not one of this tokenizer's.
        """
        tokens = self.tokens
        return b"".join([tokens[i] for i in checked_ids(ids, len(tokens)).tolist()])

    @functools.cached_property
    def _byte_id(self) -> np.ndarray:
        """Byte -> the id of the token that is this one byte."""
        id_of = {token: i for i, token in enumerate(self.tokens)}
        return np.array([id_of[bytes([byte])] for byte in range(256)], self.encode("").dtype)


def pieces(text: str, length: int = PIECE) -> Iterator[str]:
    """``text`` cut into pieces of at least ``length`` characters, which give the same ids as the whole would.

    GPT-2, and we, cut a text into words first, each with the one space before it; what more space there is makes a word of its own. So
    a cut between a letter and a space changes nothing, nor does one before the last of several spaces. Thanks to it a book need not
    be in memory a second time with all that a library notes about each of its words.
    """
    start = 0
    while start < len(text):
        end = _CUT.search(text, min(start + length, len(text)))
        cut = end.start() if end else len(text)
        yield text[start:cut]
        start = cut


def check_unicode(text: str) -> str:
    """``text``, if it is Unicode.

    Raises:
        TokenizerError: if there is half a surrogate pair in it, which Python allows, but which is no character and has no bytes.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise TokenizerError(f"the text is not Unicode: at position {error.start:,} it has {half}, half a surrogate pair.") from error
    return text
