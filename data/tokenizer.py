"""Text to numbers and back.

A model knows no letters, only ids from 0 to vocab_size - 1. `CharTokenizer` is the simplest way from one to the other:
every character that occurs in the training text gets a number.

Python's strings are arrays of code points underneath, so both ways are one table look-up over the whole text:
encoded as UTF-32, four bytes a character, a string *is* a NumPy array of code points.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from data.errors import DataError


class TokenizerError(DataError):
    """A tokenizer that cannot be made or read."""


class UnknownCharacterError(DataError):
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


class Tokenizer(Protocol):
    """What everything else expects of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hash(self) -> str: ...
    def encode(self, text: str) -> np.ndarray: ...
    def decode(self, ids: ArrayLike) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...
    def save(self, path: str | os.PathLike[str]) -> None: ...


class CharTokenizer:
    """One id for each character, in the order given: ``decode(encode(text)) == text``.

    Args:
        characters: each exactly once; its place is its id.

    Raises:
        TokenizerError: if there are none, or something is not a single character, or comes twice.
    """

    def __init__(self, characters: str | list[str]) -> None:
        characters = list(characters)
        if not characters:
            raise TokenizerError("a character tokenizer needs at least one character: its training text is empty.")
        for char in characters:
            if not isinstance(char, str) or len(char) != 1:
                raise TokenizerError(f"a character tokenizer's entries are single characters, got {char!r}.")
        if len(set(characters)) != len(characters):
            twice = next(char for i, char in enumerate(characters) if char in characters[:i])
            raise TokenizerError(f"a character tokenizer needs each character once, but {twice!r} is there twice.")
        self.characters = characters

    @classmethod
    def train(cls, text: str) -> CharTokenizer:
        """The tokenizer of all characters in ``text``, sorted by code point.

        Raises:
            TokenizerError: if ``text`` is empty.
        """
        return cls(sorted(set(text)))

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return len(self.characters)

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest type that holds every id."""
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32

    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``, one a character.

        Raises:
            UnknownCharacterError: naming every character of ``text`` that has no id.
        """
        points = _code_points(text)
        ids = self._id_of.take(points, mode="clip")  # beyond the table's end is its last entry, which is "unknown"
        if ids.size and ids.max() == self.vocab_size:
            unknown, at = np.unique(points[ids == self.vocab_size], return_index=True)
            positions = np.flatnonzero(ids == self.vocab_size)[at]
            order = np.argsort(positions)
            raise UnknownCharacterError({chr(unknown[i]): int(positions[i]) for i in order}, self.vocab_size)
        return ids.astype(self.dtype)

    def decode(self, ids: ArrayLike) -> str:
        """The text of ``ids``, a sequence or an array of any shape.

        Raises:
            TokenizerError: if an id is below 0 or not below vocab_size.
        """
        ids = np.asarray(ids).ravel()
        if not ids.size:
            return ""
        if ids.dtype.kind not in "iu":
            raise TokenizerError(f"token ids are integers, got {ids.dtype}.")
        for extreme in (int(ids.min()), int(ids.max())):
            if not 0 <= extreme < self.vocab_size:
                raise TokenizerError(f"there is no token {extreme}: the ids of this tokenizer go from 0 to {self.vocab_size - 1}.")
        return self._point_of[ids].tobytes().decode("utf-32-le", "surrogatepass")

    @functools.cached_property
    def _point_of(self) -> np.ndarray:
        """Id -> code point."""
        return np.array([ord(char) for char in self.characters], "<u4")

    @functools.cached_property
    def _id_of(self) -> np.ndarray:
        """Code point -> id, or vocab_size for a character without one; as long as the highest code point needs."""
        table = np.full(int(self._point_of.max()) + 2, self.vocab_size, np.uint32)
        table[self._point_of] = np.arange(self.vocab_size)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Everything there is to know, fit for JSON; `tokenizer_from_dict` reads it."""
        # A list: joined into one string, two halves of a surrogate pair would come back from JSON as one character.
        return {"type": "char", "characters": self.characters}

    @property
    def hash(self) -> str:
        """A name for this mapping: two tokenizers have the same one exactly if they give the same ids."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict()) + "\n", encoding="ascii")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharTokenizer) and self.characters == other.characters

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"CharTokenizer({''.join(self.characters)!r})"


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer that ``save`` wrote to ``path``.

    Raises:
        TokenizerError: if there is no such file, or it holds no tokenizer.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenizerError(f"the tokenizer {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise TokenizerError(f"{path} is not a tokenizer: it does not hold JSON ({error}).") from error
    return tokenizer_from_dict(content)


def tokenizer_from_dict(content: Any) -> Tokenizer:
    """The tokenizer whose ``to_dict`` is ``content``.

    Raises:
        TokenizerError: if that is no tokenizer.
    """
    kind = content.get("type") if isinstance(content, dict) else None
    if kind != "char":
        raise TokenizerError(f"this is not a tokenizer: its type should be 'char', got {kind!r}.")
    characters = content.get("characters")
    if not isinstance(characters, list):
        raise TokenizerError("this is not a character tokenizer: it has no list of characters.")
    return CharTokenizer(characters)


def _code_points(text: str) -> np.ndarray:
    """The code points of ``text``; half a surrogate pair counts as a character, as it does in Python's strings."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
