"""Documents from whatever people keep text in: files, folders, archives, and archives inside archives.

    kinds       what a stream of bytes is, told by its first bytes and never by its name
    streams     bytes to look ahead in, decompression in small steps, a budget for what comes out of it
    tar, zips, seven_zip   the members of an archive, one after the other; nothing is ever written to disk
    rows        .jsonl and .csv: a document in each row; `table` reads the latter
    walk        all of these together: a path in, pieces of documents out
    text        bytes to clean text, and what to do with bytes that are none
    named       corpora with a name, `download` fetches them

Each of `documents` comes with a full name, ``openwebtext.tar.xz!openwebtext/urlsf_subset00-1_data.xz!0000001.txt``, which
stays the same wherever the archive lies. Members of an archive are read and nothing else: a name such as ``../../etc/passwd``
is only a name, and links and devices are passed over and counted.
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
        name: the way to it, through every archive.
        text: clean: ``\\n`` ends a line, there is no byte order mark and no NUL.
        part: 0, or for a document of more than a few megabytes 0, 1, 2, … in turn, so that no document has to fit into memory.
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
        path: is only read.
        text_field: where the text is in the rows of .jsonl and .csv.
        encoding_errors: what happens to text that is not UTF-8, or has NULs: ``error`` stops, ``replace`` puts U+FFFD for what
            cannot be read, ``skip`` leaves out the document (of a long one, the part).
        max_expanded_size: in bytes, of all that comes out of archives; by default 1 GiB or 50 times the size of ``path``.
        tally: counts what was left out or mended.

    Raises:
        DataError: if something is broken; the message has the document's full name.
    """
    tally = Tally() if tally is None else tally
    limit = default_budget(Path(path)) if max_expanded_size is None else max_expanded_size
    budget = Budget(limit, Path(path).name)
    for piece in walk(path, tally, text_field=text_field, encoding_errors=encoding_errors, budget=budget):
        assert isinstance(piece, Piece)  # without ``pack`` archives come opened
        text = decode(piece, encoding_errors, tally)
        if text:
            yield Document(piece.name, text, piece.part)
