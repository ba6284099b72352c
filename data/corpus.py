"""A corpus: one text to train on.

Any UTF-8 text file can be a corpus. Every machine has `pydoc`: the reference of the Python language, which is part of the
interpreter for its ``help()``, about 465,000 characters of English prose.

Bytes that are not text are refused here in one sentence, so that no NUL, no byte order mark and no partly decoded
character gets into a vocabulary unnoticed.
"""

from __future__ import annotations

import codecs
import difflib
import errno
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.paths import expand_path

_NAMED = ("pydoc",)


class CorpusError(DataError):
    """A corpus that cannot be loaded; the message says why, and what to do."""


@dataclass(frozen=True)
class Corpus:
    """A text and where it came from.

    Attributes:
        name: short, fit for the name of a folder.
        text: line ends are ``\\n``; there is no byte order mark.
        source: a description for people: the path, or what a named corpus is.
    """

    name: str
    text: str
    source: str

    def __len__(self) -> int:
        return len(self.text)

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {len(self.text):,} characters, from {self.source})"


def load_corpus(source: str | os.PathLike[str] = "pydoc") -> Corpus:
    """The corpus called ``source``: ``"pydoc"``, or the path of a UTF-8 text file (a file named pydoc is ``./pydoc``).

    A byte order mark is dropped, and Windows line ends become ``\\n``.

    Raises:
        CorpusError: if there is no such file, it cannot be read, or its content is not UTF-8 text.
    """
    if source == "pydoc":
        return _pydoc()
    path = expand_path(source)
    return Corpus(name=path.stem, text=_decode(_read(path), path), source=str(path))


def _pydoc() -> Corpus:
    """The language reference of the running interpreter. Its text differs a little between versions of Python."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise CorpusError(
            "this Python has no pydoc_data, the text of its language reference; give a text file of your own instead."
        ) from error
    text = "\n".join(topics[name] for name in sorted(topics))
    return Corpus("pydoc", text, f"the language reference in Python {platform.python_version()}'s pydoc_data.topics")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CorpusError(_missing(path)) from error
    except IsADirectoryError as error:
        raise CorpusError(_folder(path)) from error
    except PermissionError as error:
        # Windows reports a folder this way.
        raise CorpusError(_folder(path) if path.is_dir() else f"{path} may not be read (permission denied): chmod +r it.") from error
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise CorpusError(_missing(path)) from error
        raise CorpusError(f"{path} cannot be read: {error.strerror}.") from error


def clean_text(raw: bytes, name: str | os.PathLike[str]) -> str:
    """The text of ``raw``, which is UTF-8: without a byte order mark, and with ``\\n`` for Windows' line ends.

    Args:
        name: a name for messages.

    Raises:
        CorpusError: if it is not text.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CorpusError(f"{name} is UTF-16 text, not UTF-8: convert it with iconv -f UTF-16 -t UTF-8.")
    nul = raw.find(b"\0")
    if nul >= 0:
        raise CorpusError(f"{name} is a binary file, not text: it has a NUL at byte {nul:,}.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + (len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0)
        raise CorpusError(
            f"{name} is not UTF-8 text: byte 0x{raw[offset]:02x} at offset {offset:,} does not fit ({error.reason}); "
            "if you know its encoding, convert it with iconv -f ENCODING -t UTF-8."
        ) from error
    return text.replace("\r\n", "\n")


def _decode(raw: bytes, path: Path) -> str:
    if not raw:
        raise CorpusError(f"{path} is empty; a corpus needs some text to learn from.")
    text = clean_text(raw, path)
    if not text.strip():
        raise CorpusError(f"{path} is empty but for white space; a corpus needs some text to learn from.")
    return text


def _missing(path: Path) -> str:
    """The message for a missing file. It names the most similar file, because most missing files are misspelt."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no file {path}: its folder {folder} does not exist."
    try:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    except OSError:
        names = []
    if folder == Path():
        names += _NAMED
    nearest = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if nearest:
        return f"there is no file {path}; did you mean {folder / nearest[0]}?"
    return f"there is no file {path}, and nothing of a similar name in its folder."


def _folder(path: Path) -> str:
    example = next((entry for entry in sorted(path.iterdir()) if entry.is_file()), None) if os.access(path, os.R_OK) else None
    return f"{path} is a folder, not a text file; name a file in it" + (f", such as {example}." if example else ".")
