"""A document in each row: .jsonl and .csv. Both are text, so these two are told by their names."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from data.sources.streams import BLOCK, Reader, SourceError, shown

LONGEST_ROW = 64 << 20  # bytes; a row has to fit into memory
SUFFIXES = (".jsonl", ".ndjson", ".csv")


def is_rows(name: str) -> bool:
    """Whether a name promises rows."""
    return name.lower().endswith(SUFFIXES)


def row_texts(reader: Reader, name: str, field: str) -> Iterator[tuple[int, bytes]]:
    """The number of each row's first line, from 1, and its text as UTF-8; what is no UTF-8 stays none, for `decode` to see.

    Raises:
        SourceError: if a row is broken or has no such field.
    """
    return _csv(reader, name, field) if name.lower().endswith(".csv") else _jsonl(reader, name, field)


def _jsonl(reader: Reader, name: str, field: str) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(_lines(reader, name), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"line {number:,} of {shown(name)} is not JSON: {str(error) or type(error).__name__}.") from error
        if not isinstance(row, dict):
            raise SourceError(f"line {number:,} of {shown(name)} is not a JSON object but {type(row).__name__}; each line should be one.")
        yield number, _field(row, field, number, name)


def _lines(reader: Reader, name: str) -> Iterator[bytes]:
    rest: list[bytes] = []
    length = 0
    while block := reader.read(BLOCK):
        *lines, last = block.split(b"\n")
        for line in lines:
            yield b"".join([*rest, line])
            rest, length = [], 0
        rest.append(last)
        length += len(last)
        if length > LONGEST_ROW:
            raise SourceError(f"{shown(name)} has a line of more than {LONGEST_ROW >> 20} MiB; is it one JSON object on each line?")
    yield b"".join(rest)


def _csv(reader: Reader, name: str, field: str) -> Iterator[tuple[int, bytes]]:
    lines = io.TextIOWrapper(io.BufferedReader(_Raw(reader)), "utf-8-sig", "surrogateescape", newline="")
    previous_limit = csv.field_size_limit(LONGEST_ROW)
    try:
        rows = csv.DictReader(lines, strict=True)
        start = 2  # the first line has the names
        for row in rows:
            yield start, _field(row, field, start, name)
            start = rows.line_num + 1
    except csv.Error as error:
        raise SourceError(f"{shown(name)} is not a whole CSV file: near line {rows.line_num + 1:,}, {error}.") from error
    finally:
        csv.field_size_limit(previous_limit)


def _field(row: dict[str, Any], field: str, number: int, name: str) -> bytes:
    if field not in row:
        there = ", ".join(shown(repr(key)) for key in list(row)[:10]) or "none"
        raise SourceError(f"line {number:,} of {shown(name)} has no field {field!r}; its fields are {there}: choose with --text-field.")
    text = row[field]
    if not isinstance(text, str):
        raise SourceError(f"the field {field!r} in line {number:,} of {shown(name)} is not text but {type(text).__name__}.")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return text.encode("utf-8", "surrogatepass")


class _Raw(io.RawIOBase):
    """A `Reader` as a file."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._reader.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
