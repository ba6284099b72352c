"""Find the tokenizer in a file from its content, never from its name."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from data.paths import expand_path
from data.tokenizer.base import Tokenizer, TokenizerError
from data.tokenizer.bpe import tokenizer_from_json, tokenizer_from_merges
from data.tokenizer.char import CharTokenizer
from data.tokenizer.gpt2 import Gpt2Tokenizer
from data.tokenizer.ids import IdsTokenizer

_RANKS = re.compile(rb"[A-Za-z0-9+/]+=* 0\r?\n")  # the first line of a file of tiktoken's


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer in ``path``: one that ``save`` wrote, any tokenizer.json of Hugging Face's, or a file of tiktoken's ranks.

    Raises:
        TokenizerError: if there is no such file, or it holds no tokenizer.
        MissingExtraError: if the tokenizer needs a package that is not installed.
    """
    path = expand_path(path)
    try:
        raw = path.read_bytes()
        if _RANKS.match(raw):
            return Gpt2Tokenizer.from_file(path)
        content = json.loads(raw)
    except OSError as error:
        raise TokenizerError(f"the tokenizer {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path} is not a tokenizer: it does not hold JSON ({error}).") from error
    return tokenizer_from_dict(content)


def tokenizer_in_folder(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer in a folder: its tokenizer.json, or else the pair vocab.json and merges.txt, in which GPT-2's was published.

    Raises:
        TokenizerError: if there is none, or it cannot be read.
        MissingExtraError: if it needs a package that is not installed.
    """
    folder = expand_path(folder)
    if (folder / "tokenizer.json").exists() or not ((folder / "vocab.json").exists() and (folder / "merges.txt").exists()):
        return load_tokenizer(folder / "tokenizer.json")
    try:
        vocab, merges = json.loads((folder / "vocab.json").read_bytes()), (folder / "merges.txt").read_text(encoding="utf-8")
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"vocab.json and merges.txt in {folder} cannot be read: {error}.") from error
    if not isinstance(vocab, dict) or not all(type(id) is int for id in vocab.values()):
        raise TokenizerError(f"{folder / 'vocab.json'} should hold an object with an id for each token.")
    return tokenizer_from_merges(vocab, merges)


def tokenizer_from_dict(content: Any) -> Tokenizer:
    """The tokenizer whose ``to_dict`` is ``content``.

    Raises:
        TokenizerError: if that is no tokenizer.
        MissingExtraError: if it needs a package that is not installed.
    """
    match content:
        case {"type": "char"}:
            return CharTokenizer.from_dict(content)
        case {"type": "gpt2"}:
            return Gpt2Tokenizer.from_dict(content)
        case {"type": "ids"}:
            return IdsTokenizer.from_dict(content)
        case {"model": {}}:
            return tokenizer_from_json(content)
    kind = content.get("type") if isinstance(content, dict) else None
    raise TokenizerError(
        f"this is not a tokenizer: its type should be 'char' or 'gpt2', got {kind!r}; nor is it a tokenizer.json of Hugging Face's."
    )


def named_tokenizer(name: str | os.PathLike[str]) -> Tokenizer:
    """What a user means by ``name``: "gpt2", or else the path of a file for `load_tokenizer`, or of a folder for `tokenizer_in_folder`.

    Raises:
        TokenizerError: if there is no such tokenizer.
        MissingExtraError: if it needs a package that is not installed.
    """
    if name == "gpt2":
        return Gpt2Tokenizer.find()
    path = expand_path(name)
    return tokenizer_in_folder(path) if path.is_dir() else load_tokenizer(path)
