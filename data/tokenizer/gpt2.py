"""GPT-2's own tokenizer, as it was published: 50,256 strings of bytes in the order in which they were learnt, and ``<|endoftext|>``.

Their order, the *ranks*, defines the tokenizer: of the pairs in a word, the one whose union has the lowest rank is merged first. The
library `tiktoken` does the merging. It downloads the ranks at their first use; without a network, a file of them can be used.
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.paths import cache_folder
from data.tokenizer.base import END_OF_TEXT, TokenizerError, hash_of, require, token_dtype, write_json
from data.tokenizer.byte_level import ByteLevelTokenizer, check_unicode, pieces

RANKS = "r50k_base.tiktoken"
WHERE_TO_GET_IT = f"https://openaipublic.blob.core.windows.net/encodings/{RANKS}"

# How GPT-2 splits a text into words, each with the space before it. The possessive quantifier ++ avoids a search that cannot succeed. It
# changes no word.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class Gpt2Tokenizer(ByteLevelTokenizer):
    """GPT-2's byte pair encoding: ``decode(encode(text)) == text``, whatever the text.

    Args:
        ranks: strings of bytes, in the order in which they were learnt; `Gpt2Tokenizer.find` and `Gpt2Tokenizer.from_file` get them.

    Raises:
        TokenizerError: if a byte is missing, or something comes twice.
        MissingExtraError: without tiktoken.
    """

    def __init__(self, ranks: Sequence[bytes]) -> None:
        rank_of = {token: rank for rank, token in enumerate(ranks)}
        if len(rank_of) != len(ranks):
            twice = next(token for rank, token in enumerate(ranks) if rank_of[token] != rank)
            raise TokenizerError(f"these are no ranks of a byte-level tokenizer: {twice!r} is there twice.")
        missing = [byte for byte in range(256) if bytes([byte]) not in rank_of]
        if missing:
            raise TokenizerError(f"these are no ranks of a byte-level tokenizer: byte 0x{missing[0]:02x} has none.")
        self._ranks = list(ranks)
        self._encoding = _tiktoken().Encoding(
            "gpt2", pat_str=WORDS, mergeable_ranks=rank_of, special_tokens={END_OF_TEXT: len(rank_of)}, explicit_n_vocab=len(rank_of) + 1
        )

    @classmethod
    def find(cls) -> Gpt2Tokenizer:
        """GPT-2's tokenizer from the cache, or from the network.

        Raises:
            TokenizerError: if it is in neither; the message says which file to put where.
            MissingExtraError: without tiktoken.
        """
        tiktoken = _tiktoken()
        cached = cached_ranks()
        if cached is not None and cached.is_file():
            return cls.from_file(cached)
        try:
            encoding = tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:  # no network; a proxy's page in place of the file
            place = "" if cached is None else f"put it at {cached}, or "
            raise TokenizerError(
                f"GPT-2's tokenizer is not on this machine and cannot be downloaded; get {WHERE_TO_GET_IT} "
                f"(800 KB) where there is a network and {place}give the path of the file in place of gpt2."
            ) from error
        ranks = encoding._mergeable_ranks
        return cls(sorted(ranks, key=ranks.__getitem__))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Gpt2Tokenizer:
        """The tokenizer of a file of ranks, such as r50k_base.tiktoken: on each line a string of bytes in base64 and its rank.

        Raises:
            TokenizerError: if there is no such file, or it is something else.
            MissingExtraError: without tiktoken.
        """
        try:
            lines = Path(path).read_bytes().splitlines()
        except OSError as error:
            raise TokenizerError(f"the ranks {path} cannot be read: {error.strerror}.") from error
        ranks = []
        for number, line in enumerate(filter(None, lines)):
            try:
                token, rank = line.split()
                ranks.append(base64.b64decode(token, validate=True))
                if int(rank) != number:
                    raise ValueError(f"the rank {number} is missing")
            except ValueError as error:
                raise TokenizerError(f"{path} is not a file of ranks: in line {number + 1:,}, {_reason(error)}.") from error
        return cls(ranks)

    @functools.cached_property
    def tokens(self) -> list[bytes]:
        """Id -> bytes."""
        return [*self._ranks, END_OF_TEXT.encode()]

    @property
    def end_of_text(self) -> int:
        """The last id."""
        return len(self._ranks)

    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``; ``<|endoftext|>`` in it is text like any other.

        Raises:
            TokenizerError: if there is half a surrogate pair in ``text``.
        """
        dtype = token_dtype(self.vocab_size)
        found = [np.array(self._encoding.encode_ordinary(check_unicode(piece)), dtype) for piece in pieces(text)]
        return np.concatenate(found) if found else np.zeros(0, dtype)

    def to_dict(self) -> dict[str, Any]:
        """The ranks in base64, so that a model's file is enough to decode its output."""
        return {"type": "gpt2", "ranks": [base64.b64encode(token).decode() for token in self._ranks]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Gpt2Tokenizer:
        """The tokenizer whose `to_dict` is ``content``.

        Raises:
            TokenizerError: if that is no such tokenizer.
            MissingExtraError: without tiktoken.
        """
        try:
            return cls([base64.b64decode(token, validate=True) for token in content["ranks"]])
        except (KeyError, TypeError, binascii.Error) as error:
            raise TokenizerError("this is not a GPT-2 tokenizer: it has no list of ranks in base64.") from error

    @functools.cached_property
    def hash(self) -> str:
        """A name for these ranks."""
        return hash_of(self.to_dict())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON."""
        write_json(path, self.to_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gpt2Tokenizer) and self._ranks == other._ranks

    def __hash__(self) -> int:
        return hash(self.hash)

    def __reduce__(self) -> tuple[type, tuple[list[bytes]]]:
        return Gpt2Tokenizer, (self._ranks,)

    def __repr__(self) -> str:
        return f"Gpt2Tokenizer({self.vocab_size:,} tokens)"


def cached_ranks() -> Path | None:
    """Where a user can put the ranks; None if there is no home folder."""
    try:
        return cache_folder() / RANKS
    except DataError:
        return None


def _tiktoken() -> Any:
    return require("tiktoken", extra="gpt2", what="GPT-2's tokenizer")


def _reason(error: ValueError) -> str:
    return str(error) if "rank" in str(error) else "there should be a string of bytes in base64 and its rank"
