"""A document in each row: .jsonl and .csv. Both are text, so they are recognised by their names."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

from data.sources.streams import BLOCK, Reader, SourceError, printable
from data.sources.table import TableError, read_table

LONGEST_ROW = 64 << 20  # bytes; a row has to fit into memory
MOST_BESIDE_TEXT = (
    4 << 20
)  # bytes of a JSON row that are not in strings: a number or a bracket becomes an object of up to sixty times its size
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
SUFFIXES = (".jsonl", ".ndjson", ".csv")


def is_rows(name: str) -> bool:
    """Whether the suffix of a name is that of a file of rows."""
    return name.lower().endswith(SUFFIXES)


def row_texts(reader: Reader, name: str, field: str) -> Iterator[tuple[int, bytes]]:
    """The number of each row's first line, from 1, and its text as UTF-8. Bytes that are not UTF-8 stay, and `decode` finds them.

    Raises:
        SourceError: if a row is damaged or has no such field.
    """
    return _csv(reader, name, field) if name.lower().endswith(".csv") else _jsonl(reader, name, field)


def _jsonl(reader: Reader, name: str, field: str) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(_lines(reader, name), 1):
        if not line.strip():
            continue
        if len(line) > MOST_BESIDE_TEXT and len(line) - sum(len(string[0]) for string in _STRING.finditer(line)) > MOST_BESIDE_TEXT:
            raise SourceError(
                f"line {number:,} of {printable(name)} has more than {MOST_BESIDE_TEXT >> 20} MiB of numbers, lists and objects beside its "
                "text; leave such fields out."
            )
        try:
            row = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"line {number:,} of {printable(name)} is not JSON: {str(error) or type(error).__name__}.") from error
        if not isinstance(row, dict):
            raise SourceError(
                f"line {number:,} of {printable(name)} is not a JSON object but {type(row).__name__}; each line should be one."
            )
        yield number, _field(row, field, number, name)


def _lines(reader: Reader, name: str) -> Iterator[bytes]:
    rest: list[bytes] = []
    length = 0
    while block := reader.read(BLOCK):
        *lines, last = block.split(b"\n")
        for line in lines:
            whole = b"".join([*rest, line])
            rest, length = [], 0  # before the row is used, so that a long one is not in memory twice
            yield whole
        rest.append(last)
        length += len(last)
        if length > LONGEST_ROW:
            raise SourceError(f"{printable(name)} has a line of more than {LONGEST_ROW >> 20} MiB; is it one JSON object on each line?")
    yield b"".join(rest)


def _csv(reader: Reader, name: str, field: str) -> Iterator[tuple[int, bytes]]:
    lines = io.TextIOWrapper(io.BufferedReader(_Raw(reader)), "utf-8-sig", "surrogateescape", newline="")
    try:
        for number, row in read_table(lines, field):
            yield number, _field(row, field, number, name)
    except TableError as error:
        raise SourceError(f"line {error.line:,} of {printable(name)} {error.reason}") from error


def _field(row: dict[str, Any], field: str, number: int, name: str) -> bytes:
    if field not in row:
        there = ", ".join(printable(repr(key)) for key in list(row)[:10]) or "none"
        raise SourceError(f"line {number:,} of {printable(name)} has no field {field!r}; its fields are {there}: choose with --text-field.")
    text = row[field]
    if not isinstance(text, str):
        raise SourceError(f"the field {field!r} in line {number:,} of {printable(name)} is not text but {type(text).__name__}.")
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
