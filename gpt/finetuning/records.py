"""Examples from a file: a JSON object on every line (.jsonl), or a table (.csv). Errors name the line."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.paths import expand_path
from data.sources.table import TableError, read_table
from data.tokenizer import Tokenizer, UnknownCharacterError
from gpt.errors import UserError

KINDS = (".jsonl", ".csv")
SURROGATE = re.compile(r"[\ud800-\udfff]")  # JSON can write one alone, by its number


class RecordError(UserError):
    """A file of examples that cannot be used; the message names the line."""


@dataclass(frozen=True)
class Record:
    """One example, and the line of the file where it begins."""

    line: int
    fields: dict[str, Any]


def read_records(source: str | os.PathLike[str]) -> list[Record]:
    """All examples in a .jsonl or .csv file.

    Raises:
        RecordError: if it cannot be read, is empty, or has a line that is no example.
    """
    path = expand_path(source)
    if path.suffix not in KINDS:
        raise RecordError(f"{path} is neither {' nor '.join(KINDS)}: examples are JSON objects, one a line, or a table with a header.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecordError(f"there is no file {path}.") from None
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {error.start:,}.") from error
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    records = _from_json_lines(text, path) if path.suffix == ".jsonl" else _from_table(text, path)
    if not records:
        raise RecordError(f"{path} has no examples.")
    return records


def text_field(record: Record, name: str, path: str | os.PathLike[str]) -> str:
    """The text in field ``name`` of a record; it must not be empty.

    Raises:
        RecordError: naming the line, and the fields that it has.
    """
    if name not in record.fields:
        fields = ", ".join(repr(key) for key in record.fields) or "nothing"
        raise RecordError(f"line {record.line} of {path} has no {name!r}, only {fields}.")
    value = record.fields[name]
    if not isinstance(value, str) or not value:
        raise RecordError(f"line {record.line} of {path}: {name!r} must be a text that is not empty, got {value!r}.")
    return value


def encode_texts(texts: Iterable[tuple[int, str]], tokenizer: Tokenizer, path: str | os.PathLike[str]) -> list[np.ndarray]:
    """The ids of each text.

    Args:
        texts: pairs of a line number and a text.

    Raises:
        RecordError: naming every character that the tokenizer does not know, each with the line where it first occurs.
    """
    encoded, unknown = [], {}
    for line, text in texts:
        try:
            encoded.append(np.asarray(tokenizer.encode(text), np.int64))
        except UnknownCharacterError as error:
            unknown.update({char: line for char in error.characters if char not in unknown})
    if unknown:
        named = [f"{char!r} (U+{ord(char):04X}, line {line})" for char, line in list(unknown.items())[:8]]
        named += [f"and {len(unknown) - 8} more"] if len(unknown) > 8 else []
        raise RecordError(
            f"{path} has characters that the checkpoint's tokenizer never saw: {', '.join(named)}; "
            "leave them out with --unknown skip, or use a checkpoint whose tokenizer knows them."
        )
    return encoded


def _from_json_lines(text: str, path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        if not line.strip():
            raise RecordError(f"line {number} of {path} is empty: every line must be a JSON object.")
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg.lower()} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "it cannot be parsed"
            raise RecordError(f"line {number} of {path} is no JSON object ({reason}): {_start(line)}") from error
        if "\\ud" in line.lower() and (half := SURROGATE.search(json.dumps(fields, ensure_ascii=False))):
            raise RecordError(f"line {number} of {path} has half a surrogate pair, U+{ord(half[0]):04X}, which is no character.")
        if not isinstance(fields, dict):
            raise RecordError(f"line {number} of {path} is no JSON object but {type(fields).__name__}: {_start(line)}")
        records.append(Record(number, fields))
    return records


def _from_table(text: str, path: Path) -> list[Record]:
    try:
        return [Record(line, fields) for line, fields in read_table(io.StringIO(text))]
    except TableError as error:
        raise RecordError(f"line {error.line} of {path} {error.reason}") from error


def _start(line: str) -> str:
    return repr(line[:60]) + ("…" if len(line) > 60 else "")
