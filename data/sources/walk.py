"""From a path to pieces of documents, through any archives and compression."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data.paths import expand_path
from data.sources.kinds import APPLE_DOUBLE, ARCHIVES, COMPRESSED, HEAD, archive_suffix, is_apple_double, kind_of
from data.sources.rows import is_rows, row_texts
from data.sources.seven_zip import seven_zip_members
from data.sources.streams import Budget, Reader, SourceError, decompressed, printable, repair_hint
from data.sources.tar import TarMember, tar_members
from data.sources.zips import ZipMember, zip_members
from data.staging import STAGING

PART = 4 << 20  # bytes of a part of a long document
_DEEPEST = 8  # levels of archives inside archives; some contain themselves
_TAR_INSIDE = re.compile(r"\.(tar\.\w+|tgz|txz|tbz2|tzst)$", re.IGNORECASE)
_NESTED_IN_MEMORY = 128 << 20  # bytes of a zip or 7z inside another archive


class Piece(NamedTuple):
    """A document, or a part of a long one, as the bytes it has in its source."""

    name: str
    raw: bytes
    part: int = 0
    last: bool = True


class PackedArchive(NamedTuple):
    """An archive inside an archive or a folder, not opened yet."""

    name: str
    raw: bytes
    depth: int


@dataclass
class Tally:
    """Counts what was left out or repaired, with the name of the first, so that nothing is lost without a message."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, name: str) -> None:
        """Count one."""
        self.counts[what] += 1
        self.examples.setdefault(what, printable(name))

    def merge(self, other: Tally) -> None:
        """Add the counts of another tally."""
        self.counts.update(other.counts)
        for what, name in other.examples.items():
            self.examples.setdefault(what, name)


@dataclass
class Walk:
    """The settings of a walk, and its methods: one for each kind of thing that is met.

    Attributes:
        pack: archives inside archives up to this many bytes come as `PackedArchive`, for somebody else to open; 0 opens them all.
        advanced: told the number of bytes read of the path itself, for a progress bar.
    """

    tally: Tally
    budget: Budget
    text_field: str
    strict: bool
    pack: int = 0
    on_read: Callable[[int], object] = lambda size: None

    def folder(self, root: Path, exclude: Path | None = None) -> Iterator[Piece | PackedArchive]:
        """The .txt, .jsonl and .csv files of a folder and the archives in it, sorted by name, without those in ``exclude``.

        Links are not followed, because their targets may be anywhere, even in this folder.
        """

        def unreadable(error: OSError) -> None:
            raise error

        found = []
        for where, folders, files in os.walk(root, onerror=unreadable):
            paths = [Path(where, name) for name in folders]
            found += [path for path in paths if path.is_symlink()] + [Path(where, name) for name in files]
            for path in paths:
                if path.name == STAGING and (exclude is None or not _same(path, exclude / STAGING)):
                    self.tally.add("left out, what a preparation that was ended left behind", path.relative_to(root).as_posix())
            folders[:] = [path.name for path in paths if path.name != STAGING and (exclude is None or not _same(path, exclude))]
        for path in sorted(found, key=lambda path: path.relative_to(root).parts):
            name = path.relative_to(root).as_posix()
            if not stat.S_ISREG(path.lstat().st_mode):
                self.tally.add("left out, a link or device", name)
                continue
            with _opened(path) as file:
                head = file.read(HEAD)
                file.seek(0)
                kind = kind_of(head)
                if kind in (*COMPRESSED, *ARCHIVES) or name.lower().endswith(".txt") or is_rows(name) or archive_suffix(name):
                    yield from self.member(name, self._reader(file), 1, file)
                else:
                    self.tally.add("left out, neither .txt, .jsonl or .csv nor an archive", name)

    def file(self, path: Path) -> Iterator[Piece | PackedArchive]:
        """One file of any type."""
        with _opened(path) as file:
            yield from self.stream(path.name, self._reader(file), 0, file)

    def packed(self, archive: PackedArchive) -> Iterable[Piece | PackedArchive]:
        """The content of an archive that came unopened."""
        file = io.BytesIO(archive.raw)
        return self.stream(archive.name, Reader(file.read), archive.depth, file)

    def member(self, name: str, content: Reader, depth: int, file: BinaryIO | None = None) -> Iterable[Piece | PackedArchive]:
        """A file in a folder or an archive, which may be an archive itself."""
        if self.pack and kind_of(content.peek(HEAD)) in (*COMPRESSED, *ARCHIVES):
            raw = content.peek(self.pack + 1)
            if len(raw) <= self.pack:
                content.read(len(raw))
                return (PackedArchive(name, raw, depth),)
        return self.stream(name, content, depth, file)

    def stream(
        self, name: str, reader: Reader, depth: int, file: BinaryIO | None = None, wrapped: bool = False
    ) -> Iterable[Piece | PackedArchive]:
        """A stream of any type. ``file`` has the same bytes, if they are seekable. ``wrapped``: ``name`` is that of the compressed file."""
        if depth > _DEEPEST:
            raise SourceError(f"{printable(name)} lies more than {_DEEPEST} archives deep, which may be a bomb; unpack it by hand.")
        head = reader.peek(HEAD)
        kind = kind_of(head)
        if depth and is_apple_double(name, kind):
            self.tally.add(f"left out, {APPLE_DOUBLE}", name)
            return ()
        if kind in COMPRESSED:
            return self._compressed(name, reader, depth, kind)
        if kind in ARCHIVES:
            return self._archive(name, reader, depth, kind, file)
        if not head:
            if depth == 0:
                raise SourceError(f"{printable(name)} is empty; a corpus needs some text to learn from.")
            self.tally.add("left out, empty", name)
        elif (promised := archive_suffix(name)) and (not wrapped or _TAR_INSIDE.search(name)):
            raise SourceError(
                f"{printable(name)} is named like a {promised} archive, but is {_described(kind)}: if a download went wrong, "
                f"{repair_hint(name)}; if that is what it should be, give it the name of such a file."
            )
        elif kind == "text":
            return self._text(name, reader, wrapped)
        elif depth == 0 or (depth == 1 and wrapped):
            raise SourceError(f"{printable(name)} is {_described(kind)}, which cannot be read here.")
        elif kind == "utf-16":
            if self.strict:
                raise SourceError(
                    f"{printable(name)} is UTF-16 text, not UTF-8: convert it with iconv -f UTF-16 -t UTF-8, "
                    "or choose --encoding-errors skip."
                )
            self.tally.add("left out, not UTF-8", name)
        elif kind.startswith("unreadable"):
            self.tally.add(f"left out, {kind.removeprefix('unreadable: ')}", name)
        else:
            self.tally.add("left out, not text", name)
        return ()

    def _compressed(self, name: str, reader: Reader, depth: int, kind: str) -> Iterator[Piece | PackedArchive]:
        inside = decompressed(reader, kind, name, self.budget)
        yield from self.stream(name, inside, depth + 1, wrapped=True)
        inside.drain()

    def _archive(self, name: str, reader: Reader, depth: int, kind: str, file: BinaryIO | None) -> Iterator[Piece | PackedArchive]:
        if kind == "tar":
            yield from self._members(name, tar_members(reader, name), depth)
            reader.drain()
            return
        members = zip_members if kind == "zip" else seven_zip_members
        yield from self._members(name, members(file or _in_memory(reader, name, kind), name, self.budget), depth)

    def _members(self, name: str, members: Iterator[TarMember] | Iterator[ZipMember], depth: int) -> Iterator[Piece | PackedArchive]:
        for member in members:
            full = f"{name}!{member.name}"
            if member.regular:
                yield from self.member(full, member.content, depth + 1)
            elif not member.folder:
                self.tally.add("left out, a link or device", full)

    def _text(self, name: str, reader: Reader, wrapped: bool) -> Iterable[Piece]:
        bare = re.sub(r"\.(xz|gz|bz2|zst)$", "", name, flags=re.IGNORECASE) if wrapped else name
        if is_rows(bare):
            return (Piece(f"{name}:{number}", raw) for number, raw in row_texts(reader, bare, self.text_field))
        whole = reader.rest(PART)
        return self._parts(name, reader) if whole is None else (Piece(name, whole),)

    def _parts(self, name: str, reader: Reader) -> Iterator[Piece]:
        part = 0
        while len(raw := reader.peek(PART + 1)) > PART:
            yield Piece(name, reader.read(_cut(raw)), part, last=False)
            part += 1
        yield Piece(name, reader.read(len(raw)), part)

    def _reader(self, file: BinaryIO) -> Reader:
        def more(size: int) -> bytes:
            data = file.read(size)
            self.on_read(len(data))
            return data

        return Reader(more)


def walk(
    path: str | os.PathLike[str],
    tally: Tally,
    *,
    text_field: str = "text",
    encoding_errors: str = "error",
    budget: Budget | None = None,
    pack: int = 0,
    exclude: Path | None = None,
    on_read: Callable[[int], object] = lambda size: None,
) -> Iterator[Piece | PackedArchive]:
    """Every piece of every document in ``path``, always in the same order.

    Raises:
        SourceError: if there is no such path, or something in it is damaged.
    """
    path = expand_path(path)
    self = Walk(tally, budget or Budget(default_budget(path), path.name), text_field, encoding_errors == "error", pack, on_read)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            yield from self.folder(path, exclude)
        elif stat.S_ISREG(mode):
            yield from self.file(path)
        else:
            raise SourceError(f"{path} is neither a file nor a folder, but a device or a pipe.")
    except FileNotFoundError as error:
        raise SourceError(f"there is no file or folder {error.filename or path}.") from error
    except OSError as error:
        raise SourceError(f"{error.filename or path} cannot be read: {(error.strerror or str(error)).lower()}.") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """``path``, opened for reading. Later errors have its name, too."""
    with open(path, "rb") as file:
        try:
            yield file
        except OSError as error:
            error.filename = error.filename or str(path)
            raise


def size_of(path: Path) -> int:
    """The size on disk of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(size_of(Path(where, name)) for where, _, files in os.walk(path) for name in files)
    try:
        return path.lstat().st_size if path.is_symlink() and not path.exists() else path.stat().st_size
    except OSError:
        return 0


def default_budget(path: Path) -> int:
    """The default limit for decompressed bytes. Text compresses to a third, or to a tenth, hardly ever to a fiftieth."""
    return max(1 << 30, 50 * size_of(path))


def _in_memory(reader: Reader, name: str, kind: str) -> BinaryIO:
    raw = reader.read(_NESTED_IN_MEMORY + 1)
    if len(raw) > _NESTED_IN_MEMORY:
        raise SourceError(
            f"{printable(name)} is a {kind} archive of more than {_NESTED_IN_MEMORY >> 20} MiB inside another archive, "
            "and can only be read whole; unpack the outer archive and give the folder instead."
        )
    return io.BytesIO(raw)


def _cut(raw: bytes) -> int:
    """Where to split a long text: before white space after a word, where no token crosses, or otherwise between characters."""
    tail = max(0, len(raw) - 65_536)
    word = re.compile(rb".*\S(?=\s)", re.DOTALL).match(raw, tail)
    if word:
        return word.end()
    cut = len(raw) - 1
    while cut > len(raw) - 5 and raw[cut] & 0xC0 == 0x80:  # a byte 10xxxxxx continues a character
        cut -= 1
    return cut - (raw[cut - 1 : cut + 1] == b"\r\n")  # do not split a line end


def _described(kind: str) -> str:
    if kind.startswith("unreadable"):
        return f"a {kind.removeprefix('unreadable: ')} file"
    return {"text": "text", "binary": "neither text nor an archive that is known here"}.get(kind, f"{kind.upper()} text")


def _same(path: Path, other: Path) -> bool:
    return path.resolve() == other.resolve()
