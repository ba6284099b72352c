"""Find the tokenizer in a file from its content, never from its name."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from data.paths import expand_path
from data.tokenizer.base import Tokenizer, TokenizerError
from data.tokenizer.bpe import tokenizer_from_json
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
    """What a user means by ``name``: "gpt2", or else the path of a file for `load_tokenizer`, or of a folder with a tokenizer.json.

    Raises:
        TokenizerError: if there is no such tokenizer.
        MissingExtraError: if it needs a package that is not installed.
    """
    if name == "gpt2":
        return Gpt2Tokenizer.find()
    path = expand_path(name)
    return load_tokenizer(path / "tokenizer.json" if path.is_dir() else path)
