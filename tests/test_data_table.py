"""Records of tables: one field for each column or an error, for any contents, with bounded memory for one record."""

import csv
import io
import itertools
import json
from pathlib import Path

import pytest

from data.errors import DataError
from data.sources import documents
from data.sources.rows import MOST_BESIDE_TEXT, row_texts
from data.sources.streams import Reader, SourceError
from data.sources.table import MOST_COMMAS, TableError, read_table
from gpt.finetuning.records import RecordError, read_records


def table(text: str, column: str | None = None) -> list[tuple[int, dict[str, str]]]:
    return list(read_table(io.StringIO(text, newline=""), column))


def written(*rows: tuple[str, ...]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    return file.getvalue()


ODD = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]  # where str.splitlines ends a line, and csv does not


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_only_line_ends_end_a_record(odd: str, tmp_path: Path) -> None:
    raw = f"id,text\n1,one{odd}two\n2,three\n"
    assert table(raw) == [(2, {"id": "1", "text": f"one{odd}two"}), (3, {"id": "2", "text": "three"})]
    (tmp_path / "t.csv").write_bytes(raw.encode())
    assert [(record.line, record.fields["text"]) for record in read_records(tmp_path / "t.csv")] == [(2, f"one{odd}two"), (3, "three")]
    assert [document.text for document in documents(tmp_path / "t.csv")] == [f"one{odd}two", "three"]
    (tmp_path / "t.jsonl").write_text(f'{{"text": "one{odd}two"}}\n{{"text": "three"}}\n' if odd >= " " else '{"text": "a"}\n' * 2, "utf-8")
    assert [record.line for record in read_records(tmp_path / "t.jsonl")] == [1, 2]


@pytest.mark.parametrize("length", [131_072, 131_073, 5_000_000])
def test_a_field_may_be_as_long_as_a_document(length: int, tmp_path: Path) -> None:
    before = csv.field_size_limit()
    text = "ab, " * (length // 4) + "." * (length % 4)
    (tmp_path / "t.csv").write_text(written(("text", "label"), (text, "x")), "utf-8")
    assert [record.fields["text"] for record in read_records(tmp_path / "t.csv")] == [text]
    assert "".join(document.text for document in documents(tmp_path / "t.csv")) == text
    assert csv.field_size_limit() == before


def test_an_error_names_the_line_where_the_record_begins() -> None:
    assert table('\n\na,b\r\n\n1,"2\n\n3"\n\n\n4,5\n') == [(5, {"a": "1", "b": "2\n\n3"}), (10, {"a": "4", "b": "5"})]
    assert table("a,b\r1,2\r3,4") == [(2, {"a": "1", "b": "2"}), (3, {"a": "3", "b": "4"})]
    assert table("") == table("a,b\n") == []


@pytest.mark.parametrize(
    ("raw", "line", "reason"),
    [
        ("text,n\na,1\nb,2,3\n", 3, "has 3 fields, but the header names 2 fields."),
        ("text,n\na,1\n\nb\n", 4, "has 1 field, but the header names 2 fields."),
        ('text\n"a\nb",c\n', 2, "has 2 fields, but the header names 1 field."),
        ("text,n,text\na,1,b\n", 1, "names 2 columns 'text': rename all but one."),
        ('text\na\n"never closed\n', 3, "begins no record of a table (unexpected end of data)."),
        ('text\na\n"b"c\n', 3, "begins no record of a table (',' expected after '\"')."),
    ],
    ids=itertools.count(),
)
def test_both_programs_report_a_row_that_does_not_fit_the_header(raw: str, line: int, reason: str, tmp_path: Path) -> None:
    with pytest.raises(TableError) as told:
        table(raw)
    assert (told.value.line, told.value.reason) == (line, reason)
    path = tmp_path / "t.csv"
    path.write_text(raw, "utf-8")
    with pytest.raises(RecordError) as refused:
        read_records(path)
    assert str(refused.value) == f"line {line} of {path} {reason}"
    with pytest.raises(DataError) as left:
        list(documents(path))
    assert str(left.value) == f"line {line} of t.csv {reason}"


def test_only_the_column_that_is_used_must_be_named_once() -> None:
    raw = "n,text,n,,\n1,a,2,,\n"
    assert [fields["text"] for _, fields in table(raw, "text")] == ["a"]
    with pytest.raises(TableError, match="names 2 columns 'n'"):
        table(raw)
    with pytest.raises(TableError, match="names 2 columns ''"):
        table(raw, "")
    assert table("text,,\na,,\n") == [(2, {"text": "a", "": ""})]  # as spreadsheets pad their tables


# --- memory -------------------------------------------------------------------------------------------


class Endless:
    """What it is told to begin with, then the same again and again; nobody may ask for much more than ``limit`` bytes of it."""

    def __init__(self, beginning: bytes, again: bytes, limit: int) -> None:
        self.block, self.beginning = again * (1 + (1 << 18) // len(again)), beginning
        self.left = limit + (1 << 20)

    def __call__(self, size: int) -> bytes:
        self.left -= len(self.block)
        assert self.left > 0, "more was read than may be in memory"
        data, self.beginning = self.beginning + self.block, b""
        return data


@pytest.mark.parametrize(
    ("name", "beginning", "again", "words"),
    [
        ("t.csv", b"text\n", b",", "line 2 of t.csv begins a record of more than 262,144 commas"),
        ("t.csv", b"", b"text,", "line 1 of t.csv begins a record of more than 262,144 commas"),
        ("t.csv", b"text\n", b'"\n",', "line 2 of t.csv begins a record of more than 262,144 commas"),  # over many lines
        ("t.csv", b"text\na\n", b"b", "line 3 of t.csv begins a record of more than 4 Mi characters"),
        ("t.csv", b'text\n"', b"a line of a text that never ends\n", "line 2 of t.csv begins a record of more than 4 Mi characters"),
        ("t.jsonl", b'{"text": "', b"a", "has a line of more than 4 MiB"),
    ],
    ids=itertools.count(),
)
def test_an_endless_row_is_refused(name: str, beginning: bytes, again: bytes, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.table.LONGEST_RECORD", 4 << 20)
    monkeypatch.setattr("data.sources.table.MOST_COMMAS", 1 << 18)
    monkeypatch.setattr("data.sources.rows.LONGEST_ROW", 4 << 20)
    with pytest.raises(SourceError, match=words):
        list(row_texts(Reader(Endless(beginning, again, 4 << 20)), name, "text"))


@pytest.mark.parametrize("again", [b"[],", b'{"a":1},', b'"ab",', b"1.5,", b'"\\"",'], ids=itertools.count())
def test_only_the_text_of_a_json_row_may_be_long(again: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these takes many times its size as an object."""
    monkeypatch.setattr("data.sources.rows.MOST_BESIDE_TEXT", 1 << 20)
    rows = row_texts(Reader.of(b'{"text": "first"}\n{"text": "a", "more": [' + again * (1 << 20) + b"0]}\n"), "t.jsonl", "text")
    assert next(rows) == (1, b"first")
    with pytest.raises(SourceError, match=r"line 2 of t\.jsonl has more than 1 MiB of numbers, lists and objects beside its text"):
        next(rows)


def test_a_long_text_does_not_count_as_structure() -> None:
    text = 'She said: "[1, 2]", {and} \\\\ more. ' * 400_000
    row = '{"text": ' + json.dumps(text) + ', "n": [1, 2]}\n'
    assert len(row) > 3 * MOST_BESIDE_TEXT
    assert list(row_texts(Reader.of(row.encode()), "t.jsonl", "text")) == [(1, text.encode())]
    commas = "," * MOST_COMMAS
    assert [fields for _, fields in table(f'text\n"{commas}"\n')] == [{"text": commas}]


def test_the_bound_is_for_one_record_not_for_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.table.LONGEST_RECORD", 40)
    monkeypatch.setattr("data.sources.table.MOST_COMMAS", 3)
    assert len(table("a,b,c\n" + "one,two,three\n" * 100)) == 100
