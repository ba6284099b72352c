"""One id for each character: the simplest tokenizer.

A string is an array of code points. Encoded as UTF-32, with four bytes for each character, it becomes a NumPy array of
code points, so encoding and decoding are one table look-up for the whole text.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data.tokenizer.base import TokenizerError, checked_ids, hash_of, token_dtype, write_json

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
POLICIES = ("error", "replace", "skip")
_STRETCH = 1 << 16  # characters at a time, so that their code points and ids fit into the cache


class UnknownCharacterError(TokenizerError):
    """The text has characters that the tokenizer never saw.

    Attributes:
        characters: each unseen character, with the position where it first occurs.
    """

    def __init__(self, characters: Mapping[str, int], vocab_size: int, shown: int = 8) -> None:
        self.characters = dict(characters)
        named = [f"{char!r} (U+{ord(char):04X}) at position {at:,}" for char, at in self.characters.items()]
        if len(named) > shown:
            named[shown:] = [f"and {len(named) - shown:,} more"]
        what = "this character" if len(named) == 1 else "these characters"
        super().__init__(
            f"the tokenizer never saw {what}: {', '.join(named)}; it knows the {vocab_size:,} different characters of its training text."
        )


class CharTokenizer:
    """One id for each character, in the order given: ``decode(encode(text)) == text``.

    Args:
        characters: each exactly once; its position is its id.
        unknown: for a character without an id: "error" raises, "replace" gives it the id of � (U+FFFD), which must be
            among the characters, and "skip" leaves it out.

    Raises:
        TokenizerError: if there are no characters, or something is not a single character, or comes twice.
    """

    def __init__(self, characters: str | list[str], unknown: str = "error") -> None:
        characters = list(characters)
        if not characters:
            raise TokenizerError("a character tokenizer needs at least one character: its training text is empty.")
        for char in characters:
            if not isinstance(char, str) or len(char) != 1:
                raise TokenizerError(f"a character tokenizer's entries are single characters, got {char!r}.")
        if len(set(characters)) != len(characters):
            twice = next(char for i, char in enumerate(characters) if char in characters[:i])
            raise TokenizerError(f"a character tokenizer needs each character once, but {twice!r} is there twice.")
        if unknown not in POLICIES:
            raise TokenizerError(f"unknown characters can be treated as {', '.join(POLICIES[:-1])} or {POLICIES[-1]}, not as {unknown!r}.")
        if unknown == "replace" and REPLACEMENT not in characters:
            raise TokenizerError(f"unknown characters can be replaced by {REPLACEMENT} (U+FFFD) only if the tokenizer knows it.")
        self.characters = characters
        self.unknown = unknown

    @classmethod
    def train(cls, text: Iterable[str], unknown: str = "error") -> CharTokenizer:
        """The tokenizer of all characters in ``text``, sorted by code point; for "replace", � is added.

        Raises:
            TokenizerError: if ``text`` is empty.
        """
        characters = set(text)
        return cls(sorted(characters | {REPLACEMENT} if characters and unknown == "replace" else characters), unknown)

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return len(self.characters)

    @property
    def end_of_text(self) -> None:
        """None, because every id is a character."""
        return

    @functools.cached_property
    def unknown_id(self) -> int | None:
        """The id of �, if unknown characters are replaced by it."""
        return self.characters.index(REPLACEMENT) if self.unknown == "replace" else None

    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``, one a character.

        Raises:
            UnknownCharacterError: for "error", naming every character of ``text`` that has no id.
        """
        ids = np.empty(len(text), self._id_of.dtype)
        start = 0
        for points in code_points(text):
            end = start + len(points)
            self._id_of.take(points, out=ids[start:end], mode="clip")  # a code point beyond the table gets its last entry, "unknown"
            start = end
        if ids.size and ids.max() == self.vocab_size:
            ids = self._without_unknown(ids, text)
        return ids.astype(token_dtype(self.vocab_size), copy=False)

    def decode(self, ids: ArrayLike) -> str:
        """The text of ``ids``, a sequence or an array of any shape.

        Raises:
            TokenizerError: if an id is not one of this tokenizer's.
        """
        return self._point_of[checked_ids(ids, self.vocab_size)].tobytes().decode("utf-32-le", "surrogatepass")

    def _without_unknown(self, ids: np.ndarray, text: str) -> np.ndarray:
        """``ids`` without unknown characters, which have the value vocab_size here."""
        unknown = ids == self.vocab_size
        match self.unknown:
            case "replace":
                return np.where(unknown, ids.dtype.type(self.unknown_id), ids)
            case "skip":
                return ids[~unknown]
        positions = np.flatnonzero(unknown)
        characters, first = np.unique(np.concatenate(list(code_points(text)))[positions], return_index=True)
        in_order = np.argsort(first)
        raise UnknownCharacterError({chr(characters[i]): int(positions[first[i]]) for i in in_order}, self.vocab_size)

    @functools.cached_property
    def _point_of(self) -> np.ndarray:
        """Id -> code point."""
        return np.array([ord(char) for char in self.characters], "<u4")

    @functools.cached_property
    def _id_of(self) -> np.ndarray:
        """Code point -> id, or vocab_size for a character without one; up to the highest code point of a known character."""
        table = np.full(int(self._point_of.max()) + 2, self.vocab_size, token_dtype(self.vocab_size + 1))
        table[self._point_of] = np.arange(self.vocab_size)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Everything there is to know, fit for JSON."""
        # A list: joined into one string, two halves of a surrogate pair would come back from JSON as one character.
        content = {"type": "char", "characters": self.characters}
        return content if self.unknown == "error" else {**content, "unknown": self.unknown}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CharTokenizer:
        """The tokenizer whose `to_dict` is ``content``.

        Raises:
            TokenizerError: if that is no character tokenizer.
        """
        characters = content.get("characters")
        if not isinstance(characters, list):
            raise TokenizerError("this is not a character tokenizer: it has no list of characters.")
        return cls(characters, content.get("unknown", "error"))

    @property
    def hash(self) -> str:
        """A hash of this mapping: it is equal for two tokenizers exactly if their characters have the same ids."""
        return hash_of({"type": "char", "characters": self.characters})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON."""
        write_json(path, self.to_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharTokenizer) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"CharTokenizer({''.join(self.characters)!r}{'' if self.unknown == 'error' else f', unknown={self.unknown!r}'})"


def code_points(text: str) -> Iterator[np.ndarray]:
    """The code points of ``text``, in blocks. A lone surrogate is treated as a character, as in Python's strings."""
    for start in range(0, len(text), _STRETCH):
        yield np.frombuffer(text[start : start + _STRETCH].encode("utf-32-le", "surrogatepass"), "<u4")
