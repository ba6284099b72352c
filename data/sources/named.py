"""Named corpora: `pydoc`, which every Python has, and three that are downloaded once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from data.corpus import Corpus, load_corpus
from data.paths import cache_folder
from data.sources.streams import SourceError


@dataclass(frozen=True)
class _Remote:
    url: str
    file: str
    size: str
    sha256: str | None


_REMOTE = {
    # Project Gutenberg corrects its books now and then, so there is no checksum; instead, the lines before and after the book are checked.
    "oz": _Remote("https://www.gutenberg.org/cache/epub/55/pg55.txt", "oz.txt", "230 KB", None),
    "shakespeare": _Remote(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "shakespeare.txt",
        "1.1 MB",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "openwebtext": _Remote(
        "https://zenodo.org/records/3834942/files/openwebtext.tar.xz",
        "openwebtext.tar.xz",
        "12.9 GB",
        "9fe39d154c5bc67da8c359415372b79510eb1e2edb0d035fe4f7fc3a732b9336",
    ),
}
NAMES = ("pydoc", *_REMOTE)


def named_source(name: str, folder: Path | None = None) -> Corpus | Path:
    """The corpus called ``name``, one of `NAMES`: a text, or the path of an archive. (A file of that name is ``./name``.)

    Args:
        folder: for downloads; by default `data.paths.cache_folder`.

    Raises:
        DataError: if it is not here and cannot be downloaded; the message says which file to get and where to put it.
    """
    if name == "pydoc":
        return load_corpus("pydoc")
    from data.sources.download import download  # imports much of the standard library, which takes time

    remote = _REMOTE[name]
    path = (cache_folder() if folder is None else folder) / remote.file
    by_hand = f"fetch it by hand ({remote.size}) where there is a network, and put it at {path}."
    download(remote.url, path, by_hand, remote.sha256)
    if name == "openwebtext":
        return path
    if name == "oz":
        title, text = book(path)
        return Corpus(name, text, f"“{title}”, Project Gutenberg, {path}")
    return Corpus(name, load_corpus(path).text, str(path))


def book(path: Path) -> tuple[str, str]:
    """Title and text of a book of Project Gutenberg's, without the text before and after it.

    Raises:
        SourceError: if the lines that mark the beginning and the end of the book are not there.
    """
    whole = load_corpus(path).text
    start = re.search(r"^\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG.*\*\*\* *$", whole, re.MULTILINE)
    end = re.search(r"^\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG", whole, re.MULTILINE)
    if not start or not end or end.start() <= start.end():
        raise SourceError(
            f"{path} is not a whole book of Project Gutenberg's: the lines that mark its beginning and its end are not there; "
            "remove it and try again."
        )
    title = re.search(r"^Title: *(.+?) *$", whole[: start.start()], re.MULTILINE)
    return (title[1] if title else "a book without a title"), whole[start.end() : end.start()].strip("\n") + "\n"
