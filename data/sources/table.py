"""The records of a .csv table: a header that names the columns, then records with a field for each column.

Python's csv reads a whole record before it returns it, and within quotes a record may extend over any number of lines. So the size of a
record is limited while its lines are read, before it fills the memory.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from typing import TextIO

from data.errors import DataError

LONGEST_RECORD = 64 << 20  # characters; a record has to fit into memory
MOST_COMMAS = 4 << 20  # in a record: each may end a field, and every field is an object


class TableError(DataError):
    """A table that cannot be read completely.

    Attributes:
        line: the first line of the wrong record.
        reason: what is wrong with it; the message continues "line 7 of table.csv".
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line:,} {reason}")
        self.line = line
        self.reason = reason


def read_table(file: TextIO, column: str | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """The number of each record's first line, from 1, and its fields by the names of their columns.

    Args:
        file: opened with ``newline=""``, because line ends within quotes are text.
        column: the column that will be used, whose name must be unique; without it, every name must be unique.

    Raises:
        TableError: if a record has more or fewer fields than the header, is too long, or its quotation marks do not match.
    """
    size = commas = 0

    def lines() -> Iterator[str]:
        nonlocal size, commas
        while line := file.readline(LONGEST_RECORD + 1):
            size += len(line)
            commas += line.count(",")
            if commas > MOST_COMMAS:
                raise TableError(begins, f"begins a record of more than {MOST_COMMAS:,} commas; is it a table?")
            if size > LONGEST_RECORD:
                raise TableError(begins, f"begins a record of more than {LONGEST_RECORD >> 20} Mi characters; is a quotation mark missing?")
            yield line

    begins = 1
    names: list[str] = []
    limit = csv.field_size_limit(LONGEST_RECORD)  # csv's own is 131,072 characters in a field
    try:
        records = csv.reader(lines(), strict=True)
        for fields in records:
            if not names:
                names = fields
                _require_clear_names(names, begins, column)
            elif len(fields) == len(names):
                yield begins, dict(zip(names, fields, strict=True))
            elif fields:  # an empty line is no record
                raise TableError(begins, f"has {_counted(len(fields))}, but the header names {_counted(len(names))}.")
            begins = records.line_num + 1
            size = commas = 0
    except csv.Error as error:
        raise TableError(begins, f"begins no record of a table ({error}).") from error
    finally:
        csv.field_size_limit(limit)


def _require_clear_names(names: list[str], line: int, column: str | None) -> None:
    for name, times in Counter(names).items():
        if times > 1 and (name if column is None else name == column):
            raise TableError(line, f"names {times} columns {name!r}: rename all but one.")


def _counted(fields: int) -> str:
    return f"{fields:,} field" + "s" * (fields != 1)
