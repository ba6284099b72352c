"""The common base of all tokenizers whose tokens are strings of bytes.

Every single byte is a token, so every text can be encoded, and ``decode(encode(text)) == text``. The converse does not
hold: a token may be a part of a character, and ids from a model may not be UTF-8. `decode` puts � in place of invalid
bytes; `decode_bytes` returns the bytes.
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
        """None, because every byte has a token."""
        return None

    def decode(self, ids: ArrayLike) -> str:
        """The text of ``ids``, with � for bytes that are not UTF-8.

        Raises:
            TokenizerError: if an id is not one of this tokenizer's.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def encode_bytes(self, raw: bytes) -> np.ndarray:
        """The ids of any bytes. UTF-8 is encoded as in `encode`, and each other byte as itself."""
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
    """``text`` split into pieces of at least ``length`` characters, which give the same ids as the whole text.

    As in GPT-2, a text is first split into words, each with the one space before it; further space is a word of its own. So a split
    between a letter and a space changes no id, and neither does one before the last of several spaces. With pieces, the library's data
    about each word of a book need not be in memory all at once.
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
        TokenizerError: if it has a lone surrogate, which Python allows, but which is not a character and has no bytes.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise TokenizerError(f"the text is not Unicode: at position {error.start:,} it has {half}, half a surrogate pair.") from error
    return text
