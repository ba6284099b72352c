"""The protocol of tokenizers, and their errors."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from data.errors import DataError

END_OF_TEXT = "<|endoftext|>"  # GPT-2's name for the token between two documents


class TokenizerError(DataError):
    """A tokenizer that cannot be made or read, or a text that cannot be tokenized."""


class MissingExtraError(TokenizerError):
    """An optional package is missing; the message has the command that installs it."""


class Tokenizer(Protocol):
    """The interface of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """The number of ids, which are 0 to vocab_size - 1."""
        ...

    @property
    def hash(self) -> str:
        """A hash of this mapping, the same on every machine."""
        ...

    @property
    def end_of_text(self) -> int | None:
        """The id of the token between two documents, or None. No text encodes to it."""
        ...

    @property
    def unknown_id(self) -> int | None:
        """The id for everything without an id of its own, or None."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``, of type `token_dtype`."""
        ...

    def decode(self, ids: ArrayLike) -> str:
        """The text of ``ids``."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The whole tokenizer as JSON data; `data.tokenizer.tokenizer_from_dict` reads it."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON; `data.tokenizer.load_tokenizer` reads it."""
        ...


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The dtype for ids: uint16 for up to 65,535 of them, uint32 for more."""
    return np.uint16 if vocab_size <= 65_535 else np.uint32


def checked_ids(ids: ArrayLike, vocab_size: int) -> np.ndarray:
    """``ids`` as one row of integers.

    Raises:
        TokenizerError: if they are not integers from 0 to vocab_size - 1.
    """
    ids = np.asarray(ids).reshape(-1)
    if not ids.size:
        return np.zeros(0, np.int64)
    if ids.dtype.kind not in "iu":
        raise TokenizerError(f"token ids are integers, got {ids.dtype}.")
    for extreme in (int(ids.min()), int(ids.max())):
        if not 0 <= extreme < vocab_size:
            raise TokenizerError(f"there is no token {extreme}: the ids of this tokenizer go from 0 to {vocab_size - 1}.")
    return ids


def hash_of(content: Any) -> str:
    """SHA-256 of ``content`` as JSON, with the keys in order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """``content`` as one line of ASCII."""
    Path(path).write_bytes(json.dumps(content).encode("ascii") + b"\n")


def require(package: str, extra: str, what: str) -> ModuleType:
    """An optional package, imported when it is first needed.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(f"{what} needs {package}: pip install 'tensorlite[{extra}]'.") from error
