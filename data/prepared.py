"""A prepared folder, written by `python -m data.prepare` or by nanoGPT's prepare.py, and how to open it.

    DIR/
        train.bin, val.bin     the tokens, see `data.token_file`
        tokenizer.json         the tokenizer
        meta.json              the number of tokens, their dtype, and their source; written last

The files of a folder have to fit together, or a model would train for a day on wrong data. So opening a folder compares them.
A folder of nanoGPT's has neither JSON file, only the tokens and sometimes a meta.pkl. That is a pickle, which can run any code when it is
opened, so it is never opened here.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.paths import expand_path
from data.staging import is_incomplete
from data.token_file import CHUNK, TokenFile
from data.tokenizer import IdsTokenizer, Tokenizer, load_tokenizer

TRAIN, VAL, TOKENIZER, META = "train.bin", "val.bin", "tokenizer.json", "meta.json"
PICKLE = "meta.pkl"
RUN = "model.safetensors"  # what the folder of a training run has
PREPARE_AGAIN = "prepare the text again, for another folder: python -m data.prepare SOURCE --out DIR"

_HEADERS = {
    b"\x93NUMPY": "a file of numpy.save's, which begins with a header: write its array with tofile instead.",
    b"PK\x03\x04": "a zip archive, as numpy.savez and torch.save write them: write its array with tofile instead.",
    struct.pack("<2i", 20240520, 1): "a file of llm.c's: take off its header of 1,024 bytes, tail -c +1025 OLD > NEW.",
    struct.pack("<2i", 20240801, 7): "a file of llm.c's for Llama 3: take off its header of 1,024 bytes, tail -c +1025 OLD > NEW.",
}
_ENOUGH = 64  # tokens that tell which type they have

MAX_TOKENS_CHECKED = 2**28  # tokens; of longer files, that many in stretches spread evenly


class PreparedError(DataError):
    """A folder that is not prepared, not complete, or whose files do not fit together."""


@dataclass(frozen=True)
class Prepared:
    """Training and validation tokens, with their tokenizer.

    Attributes:
        folder: the folder that was opened.
        tokenizer: an `IdsTokenizer` if the folder has none.
        vocab_size: every id is below it; at least the tokenizer's.
        meta: the content of meta.json; empty for a folder of nanoGPT's.
        notes: what the user should know, one sentence each.
    """

    folder: Path
    train: TokenFile
    val: TokenFile
    tokenizer: Tokenizer
    vocab_size: int
    meta: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_prepared(folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None, vocab_size: int | None = None) -> Prepared:
    """The tokens in ``folder``, after a check that its files belong together.

    Args:
        tokenizer: the tokenizer of a folder without one. If the folder has one, it must be the same.
        vocab_size: the number of ids of the model, if more than the tokenizer has. Without a tokenizer, the number of ids (the default
            is the highest id in the files plus 1).

    Raises:
        PreparedError: if there is no such folder, a file is missing, or they do not fit together.
        TokenFileError, TokenizerError: if one of the files is damaged.
    """
    folder = expand_path(folder)
    _require_files(folder)
    ours = (folder / META).exists()
    meta = _read_meta(folder / META) if ours else {}
    notes = []
    dtype = meta.get("dtype", "uint16")
    if not ours:
        _require_no_header(folder)
        if _is_uint32(folder):
            dtype = "uint32"
            notes.append(f"Every second number of two bytes in {folder / TRAIN} is nearly 0, so its tokens are read as uint32.")
    train, val = (TokenFile(folder / name, dtype) for name in (TRAIN, VAL))
    if ours:
        own = load_tokenizer(folder / TOKENIZER)
        _compare(folder, meta, train, val, own)
        if tokenizer is not None:
            require_same_tokenizer(tokenizer, own, folder)
        tokenizer = own
    elif (folder / PICKLE).exists():
        notes.append(f"{folder / PICKLE} is a pickle, which can run any code when it is opened, so it is not read.")
    for file, part in ((train, "training"), (val, "validation")):
        if not len(file):
            raise PreparedError(
                f"{file.path} is empty: there is no {part} text; prepare it from more text, or with another --val-fraction."
            )
    if tokenizer is None:
        tokenizer = IdsTokenizer(vocab_size or max(train.max(), val.max()) + 1)
        notes.append("These tokens have no tokenizer, so they are shown as numbers; name it with --tokenizer gpt2 or FILE.")
    if vocab_size is not None and vocab_size < tokenizer.vocab_size:
        raise PreparedError(f"vocab_size {vocab_size:,} is too small: the tokenizer of {folder} has {tokenizer.vocab_size:,} ids.")
    prepared = Prepared(folder, train, val, tokenizer, vocab_size or tokenizer.vocab_size, meta, tuple(notes))
    _require_known_ids(prepared)
    return prepared


def require_same_tokenizer(expected: Tokenizer, found: Tokenizer, folder: str | os.PathLike[str]) -> None:
    """Refuse a folder whose tokens were made with another tokenizer.

    Args:
        expected: the tokenizer of the model, or the one that the user named.
        found: the tokenizer of the folder.

    Raises:
        PreparedError: naming both hashes, if they differ.
    """
    if expected.hash != found.hash:
        raise PreparedError(
            f"{folder} was prepared with another tokenizer: its hash is {found.hash}, and that of the one to be used is {expected.hash}; "
            "prepare the text again with --tokenizer FILE, naming the tokenizer.json to be used."
        )


def _require_files(folder: Path) -> None:
    """Check that all files are there."""
    if not folder.is_dir():
        raise PreparedError(f"there is no folder {folder}." if not folder.exists() else f"{folder} is not a folder.")
    there = [name for name in (TRAIN, VAL) if (folder / name).exists()]
    if not there and (folder / RUN).exists():
        raise PreparedError(
            f"{folder} is a run, not a prepared folder: python -m gpt.plot {folder} draws its training, "
            f"and python -m gpt.generate --checkpoint {folder} generates text with its model."
        )
    if not there:
        raise PreparedError(
            f"{folder} is not a prepared folder: it has no {TRAIN}; prepare it first: python -m data.prepare {folder} --out DIR."
        )
    if len(there) < 2:
        missing = VAL if there == [TRAIN] else TRAIN
        raise PreparedError(f"{folder} is not complete: it has a {there[0]} but no {missing}; {PREPARE_AGAIN}.")
    has_meta, has_tokenizer = (folder / META).exists(), (folder / TOKENIZER).exists()
    if is_incomplete(folder) or (has_tokenizer and not has_meta):
        raise PreparedError(f"{folder} is not complete: it has no {META}; {PREPARE_AGAIN}.")
    if has_meta and not has_tokenizer:
        raise PreparedError(f"{folder} is not complete: it has a {META} but no {TOKENIZER}; {PREPARE_AGAIN}.")


def _require_no_header(folder: Path) -> None:
    """Refuse files of other programs in which a header comes before the tokens."""
    for name in (TRAIN, VAL):
        beginning = _beginning(folder / name, 8)
        for magic, what in _HEADERS.items():
            if beginning.startswith(magic):
                raise PreparedError(f"{folder / name} is {what}")


def _is_uint32(folder: Path) -> bool:
    """Whether the tokens are uint32: then every second uint16 is 0 or small. In uint16 tokens, all have the same range."""
    found = [_beginning(folder / name, 4 * CHUNK) for name in (TRAIN, VAL)]
    halves = np.concatenate([np.frombuffer(raw, "<u2", len(raw) // 4 * 2) for raw in found])
    return len(halves) >= 2 * _ENOUGH and int(halves[::2].max()) > 32 * int(halves[1::2].max())


def _beginning(path: Path, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        raise PreparedError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_bytes())
    except OSError as error:
        raise PreparedError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    except (ValueError, RecursionError) as error:
        raise PreparedError(f"{path} is damaged: it does not hold JSON ({error}); {PREPARE_AGAIN}.") from error
    if not isinstance(meta, dict) or meta.get("dtype") not in ("uint16", "uint32"):
        found = meta.get("dtype") if isinstance(meta, dict) else meta
        raise PreparedError(f"{path} is not one that this version knows: its dtype should be uint16 or uint32, got {found!r}.")
    for what in ("documents", "characters"):
        counts = meta.get(what, {})
        if not isinstance(counts, dict) or not all(type(count) is int and count >= 0 for count in counts.values()):
            raise PreparedError(f"{path} is damaged: {what} should be a number for each file of tokens, got {counts!r}; {PREPARE_AGAIN}.")
    return meta


def _compare(folder: Path, meta: Mapping[str, Any], train: TokenFile, val: TokenFile, tokenizer: Tokenizer) -> None:
    """Compare meta.json with the other files."""
    counts = meta.get("tokens")
    for file in (train, val):
        expected = counts.get(file.path.stem) if isinstance(counts, dict) else None
        if expected != len(file):
            raise PreparedError(
                f"{file.path} and {META} do not belong together: the file has {len(file):,} tokens of {file.dtype.name}, "
                f"but {META} says {format(expected, ',') if type(expected) is int else repr(expected)}; {PREPARE_AGAIN}."
            )
    if meta.get("tokenizer_hash") != tokenizer.hash:
        raise PreparedError(
            f"{folder / TOKENIZER} and {META} do not belong together: its hash is {tokenizer.hash}, but {META} says "
            f"{meta.get('tokenizer_hash')}; {PREPARE_AGAIN}."
        )


def _require_known_ids(prepared: Prepared) -> None:
    """Check that every id is below vocab_size."""
    for file in (prepared.train, prepared.val):
        # In a long file, only some chunks are checked: to read all of it would delay the first step too much.
        stride = max(1, len(file) // MAX_TOKENS_CHECKED)
        for start in range(0, len(file), CHUNK * stride):
            chunk = file[start : start + CHUNK]
            if (highest := int(chunk.max())) >= prepared.vocab_size:
                at = start + int(chunk.argmax())
                raise PreparedError(
                    f"{file.path} has the token {highest:,} at position {at:,}, but the highest id is {prepared.vocab_size - 1:,}: "
                    f"these are not the tokens of this tokenizer, or not of type {file.dtype.name}."
                )
