"""Ids without a tokenizer, written as numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data.tokenizer.base import TokenizerError, checked_ids, hash_of, token_dtype, write_json


class IdsTokenizer:
    """Writes ids as numbers, and reads such numbers: " 464 2068 7586". It is used for tokens that came without a tokenizer.

    Args:
        vocab_size: how many ids there are.
    """

    end_of_text = None
    unknown_id = None

    def __init__(self, vocab_size: int) -> None:
        if not isinstance(vocab_size, int) or vocab_size < 1:
            raise TokenizerError(f"a vocabulary has at least one id, got vocab_size {vocab_size!r}.")
        self.vocab_size = vocab_size

    def encode(self, text: str) -> np.ndarray:
        """The ids that ``text`` lists.

        Raises:
            TokenizerError: if there is anything but numbers in it, or one that is no id.
        """
        words = text.split()
        if wrong := next((word for word in words if not re.fullmatch(r"[0-9]{1,10}", word)), None):
            raise TokenizerError(f"these tokens came without a tokenizer, so text must be a list of ids such as '464 2068', got {wrong!r}.")
        return checked_ids([int(word) for word in words], self.vocab_size).astype(token_dtype(self.vocab_size))

    def decode(self, ids: ArrayLike) -> str:
        """``ids`` as a list of numbers, a space before each.

        Raises:
            TokenizerError: if an id is not one of this tokenizer's.
        """
        return "".join(f" {i}" for i in checked_ids(ids, self.vocab_size).tolist())

    def to_dict(self) -> dict[str, Any]:
        """Everything there is to know, fit for JSON."""
        return {"type": "ids", "vocab_size": self.vocab_size}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> IdsTokenizer:
        """The tokenizer whose `to_dict` is ``content``.

        Raises:
            TokenizerError: if it has no vocab_size.
        """
        return cls(content.get("vocab_size", 0))

    @property
    def hash(self) -> str:
        """A name for this many ids."""
        return hash_of(self.to_dict())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON."""
        write_json(path, self.to_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdsTokenizer) and self.vocab_size == other.vocab_size

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"IdsTokenizer({self.vocab_size})"
