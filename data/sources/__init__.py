"""Documents from files, folders, archives, and archives inside archives.

    kinds       the type of a stream of bytes, recognised by its first bytes and never by its name
    streams     streams with look-ahead, decompression in small steps, a budget for decompressed bytes
    tar, zips, seven_zip   the members of an archive, one after the other; nothing is written to disk
    rows        .jsonl and .csv: a document in each row; `table` reads the latter
    walk        all of these together: from a path to pieces of documents
    text        bytes to clean text, and what to do with bytes that are not text
    named       named corpora, which `download` fetches

Each of `documents` comes with a full name, ``openwebtext.tar.xz!openwebtext/urlsf_subset00-1_data.xz!0000001.txt``, which
does not depend on the folder of the archive. Members of an archive are only read: a name such as ``../../etc/passwd`` is only
a name, and links and devices are skipped and counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.sources.streams import Budget
from data.sources.text import Policy, decode
from data.sources.walk import Piece, Tally, default_budget, walk


@dataclass(frozen=True)
class Document:
    """A document, or a part of a long one.

    Attributes:
        name: its path, through every archive.
        text: clean text: ``\\n`` ends a line, there is no byte order mark and no NUL.
        part: 0; a document of more than a few megabytes comes in parts 0, 1, 2, …, so that it need not fit into memory.
    """

    name: str
    text: str
    part: int = 0


def documents(
    path: str | os.PathLike[str],
    text_field: str = "text",
    encoding_errors: Policy = "error",
    max_expanded_size: int | None = None,
    tally: Tally | None = None,
) -> Iterator[Document]:
    """Every document in ``path``: a text file, a folder, a .jsonl, a .csv, or an archive of any of these.

    Args:
        path: the source, which is only read.
        text_field: the field with the text in the rows of .jsonl and .csv.
        encoding_errors: for text that is not UTF-8, or has NULs: ``error`` raises, ``replace`` puts U+FFFD for bytes that
            cannot be decoded, ``skip`` leaves out the document (of a long one, the part).
        max_expanded_size: the limit for decompressed bytes; by default 1 GiB or 50 times the size of ``path``.
        tally: counts what was left out or repaired.

    Raises:
        DataError: if something is damaged; the message has the document's full name.
    """
    tally = Tally() if tally is None else tally
    limit = default_budget(Path(path)) if max_expanded_size is None else max_expanded_size
    budget = Budget(limit, Path(path).name)
    for piece in walk(path, tally, text_field=text_field, encoding_errors=encoding_errors, budget=budget):
        assert isinstance(piece, Piece)  # without ``pack`` archives come opened
        text = decode(piece, encoding_errors, tally)
        if text:
            yield Document(piece.name, text, piece.part)
