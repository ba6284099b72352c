"""The corpus: what it gives, and one clear sentence for whatever cannot be text."""

import os
from pathlib import Path

import pytest

from data.corpus import Corpus, load_corpus
from data.errors import DataError


def complaint(source: str | Path) -> str:
    with pytest.raises(DataError) as raised:
        load_corpus(source)
    message = str(raised.value)
    assert isinstance(raised.value, ValueError)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def test_pydoc_is_the_language_reference() -> None:
    corpus = load_corpus("pydoc")
    assert corpus == load_corpus()
    assert corpus.name == "pydoc"
    assert len(corpus) == len(corpus.text) > 300_000
    assert corpus.text.startswith('The "assert" statement\n')
    assert "\0" not in corpus.text
    assert "\r" not in corpus.text


def test_pydoc_is_joined_in_sorted_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydoc_data.topics.topics", {"while": "last\n", "assert": "first\n", "pass": "then\n"})
    assert load_corpus("pydoc").text == "first\n\nthen\n\nlast\n"


def test_a_python_without_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    assert "give a text file" in complaint("pydoc")


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    text = "To be, or not to be\n— that is the question 😀\n"
    (tmp_path / "play.txt").write_text(text, encoding="utf-8")
    assert load_corpus(tmp_path / "play.txt") == Corpus("play", text, str(tmp_path / "play.txt"))
    assert load_corpus(str(tmp_path / "play.txt")).text == text


def test_a_file_called_pydoc_needs_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pydoc").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert load_corpus("./pydoc").text == "mine"
    assert load_corpus("pydoc").text != "mine"


def test_byte_order_mark_and_windows_line_ends_are_removed(tmp_path: Path) -> None:
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\rthree")
    assert load_corpus(tmp_path / "windows.txt").text == "one\ntwo\n\rthree"


def test_a_missing_file_gets_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_text("text")
    (tmp_path / "other.txt").write_text("text")
    assert complaint(tmp_path / "tinyshakespear.txt").endswith(f"did you mean {tmp_path / 'tinyshakespeare.txt'}?")


def test_a_missing_file_with_nothing_near(tmp_path: Path) -> None:
    (tmp_path / "zzz").write_text("text")
    message = complaint(tmp_path / "shakespeare.txt")
    assert str(tmp_path / "shakespeare.txt") in message
    assert "did you mean" not in message


def test_a_missing_folder(tmp_path: Path) -> None:
    assert f"its folder {tmp_path / 'no'} does not exist" in complaint(tmp_path / "no" / "text.txt")
    (tmp_path / "file").write_text("text")
    assert "does not exist" in complaint(tmp_path / "file" / "text.txt")


def test_a_misspelt_name_of_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint("pydocs").endswith("did you mean pydoc?")


def test_a_folder(tmp_path: Path) -> None:
    assert "is a folder" in complaint(tmp_path)
    (tmp_path / "text.txt").write_text("text")
    assert complaint(tmp_path).endswith(f"such as {tmp_path / 'text.txt'}.")


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n\r\n\t "])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "empty.txt").write_bytes(content)
    assert "is empty" in complaint(tmp_path / "empty.txt")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.out").write_bytes(b"\x7fELF" + bytes(10))
    assert "is a binary file" in complaint(tmp_path / "a.out")
    assert "NUL at byte 4." in complaint(tmp_path / "a.out")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_utf16_file_is_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "text.txt").write_bytes("hello".encode(encoding))
    assert ("UTF-16" if encoding == "utf-16" else "NUL") in complaint(tmp_path / "text.txt")


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_not_utf8_gives_the_offset(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "latin.txt").write_bytes(start + "café".encode("latin-1"))
    message = complaint(tmp_path / "latin.txt")
    assert "not UTF-8" in message
    assert f"byte 0xe9 at offset {3 + len(start)}" in message
    assert "iconv" in message


def test_a_file_cut_in_a_character_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.txt").write_bytes("abc😀".encode()[:-1])
    assert "offset 3" in complaint(tmp_path / "cut.txt")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("text")

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)  # root may read everything, so no chmod would show it
    assert "permission denied" in complaint(path)
    assert "chmod +r" in complaint(path)


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Path) -> bytes:
        raise OSError(5, "Input/output error", str(self))

    monkeypatch.setattr(Path, "read_bytes", broken)
    assert "cannot be read: Input/output error" in complaint(tmp_path / "text.txt")


def test_impossible_file_names_are_refused() -> None:
    assert "is no name that a file can have" in complaint("a\0b")
    assert "is longer than the name of a file can be" in complaint("x" * 5000)


@pytest.mark.skipif(os.name == "nt", reason="needs a home folder in $HOME")
def test_a_tilde_becomes_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("text")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_corpus("~/text.txt").text == "text"
