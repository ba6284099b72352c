"""The members of a .7z archive, decompressed by py7zr in small steps.

In a 7z archive many members are compressed together, as a *folder*. py7zr's own `extract` decompresses up to 128 MB at a time, and copies
them several times. Here its decompressors are asked for few bytes, and get few bytes, because some ignore the limit on the output.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from data.errors import DataError
from data.sources.streams import BLOCK, Budget, Reader, SourceError, printable, repair_hint
from data.sources.zips import ZipMember, sentence

# Compressed bytes at a time. Deflate, Deflate64 and Zstandard ignore the limit on the output; the last makes up to 8 MiB of 256 bytes.
_CHUNK, _SMALL_CHUNK = 1 << 20, 1 << 8
_IGNORES_LIMIT = (b"\x04\x01\x08", b"\x04\x01\x09", b"\x04\xf7\x11\x01")
_MEMORY = 256 << 20  # what 7-Zip's highest level needs


def seven_zip_members(file: BinaryIO, archive: str, budget: Budget) -> Iterator[ZipMember]:
    """The members in the archive's order. Each one's content is to be read before the next is asked for.

    Raises:
        SourceError: if py7zr is missing, or the archive is cut short, damaged, encrypted, or compressed in a way unknown to py7zr.
    """
    try:
        import py7zr
    except ImportError as error:
        raise SourceError(f"{printable(archive)} is a 7z archive, which takes py7zr to read: pip install 'tensorlite[data]'.") from error
    file.seek(0)
    folder, stream = None, Reader.of(b"")
    with _damage(archive):
        opened = py7zr.SevenZipFile(file)
        if opened.needs_password():
            raise SourceError(f"{printable(archive)} is encrypted; unpack it with its password and give the folder instead.")
        members = list(opened.files)
        starts = _starts(opened)
    for member in members:
        if member.is_directory:
            continue
        if member.emptystream:
            yield ZipMember(member.filename, member.is_file, False, Reader.of(b""))
            continue
        if member.folder is not folder:
            folder = member.folder
            stream = Reader(_stream(file, folder, *starts[id(folder)], archive, budget))
        content = _Member(stream, member.uncompressed, member.crc32, f"{archive}!{member.filename}")
        yield ZipMember(member.filename, member.is_file, False, Reader(content))
        while content(BLOCK):  # skip what was not read
            pass


def _starts(opened: Any) -> dict[int, tuple[int, int]]:
    """The position of each folder's bytes, and their number."""
    streams = opened.header.main_streams if opened.files else None
    if streams is None:
        return {}
    begin, sizes = opened.afterheader + streams.packinfo.packpos, streams.packinfo.packsizes
    return {
        id(folder): (begin + start, size)
        for folder, start, size in zip(streams.unpackinfo.folders, streams.packinfo.packpositions, sizes, strict=False)
    }


def _stream(file: BinaryIO, folder: Any, start: int, packed: int, archive: str, budget: Budget) -> Callable[[int], bytes]:
    """The decompressed bytes of a folder."""
    unpacked = max(folder.unpacksizes)
    for coder in folder.coders:
        if coder["numinstreams"] != 1 or coder["numoutstreams"] != 1:
            raise _unknown(archive, "a filter of several streams (BCJ2)")
        if min(_dictionary(coder["method"], coder.get("properties") or b""), unpacked) > _MEMORY:
            raise SourceError(f"{printable(archive)} asks for more than {_MEMORY >> 20} MiB of memory to be decompressed.")
    chunks = _ChunkedFile(file, start, _SMALL_CHUNK if any(coder["method"] in _IGNORES_LIMIT for coder in folder.coders) else _CHUNK)
    with _damage(archive):
        decompressor = folder.get_decompressor(packed)

    def more(size: int) -> bytes:
        with _damage(archive):
            while True:
                before = chunks.at
                out = bytes(decompressor.decompress(chunks, BLOCK))
                wants_input, chunks.wants_input = chunks.wants_input, len(out) < BLOCK
                budget.spend(len(out))
                if out or (wants_input and chunks.at == before):
                    return out

    return more


class _ChunkedFile:
    """The archive as a file that gives a decompressor new bytes only after it has used the old ones."""

    def __init__(self, file: BinaryIO, at: int, most: int) -> None:
        self._file = file
        self.at = at
        self._most = most
        self.wants_input = True

    def read(self, size: int) -> bytes:
        if not self.wants_input:
            return b""
        self._file.seek(self.at)
        data = self._file.read(min(size, self._most))
        self.at += len(data)
        return data


class _Member:
    """One member's bytes, read from those of its folder. Its checksum is compared at the end."""

    def __init__(self, stream: Reader, size: int, checksum: int | None, name: str) -> None:
        self._stream, self._left, self._expected, self._name = stream, size, checksum, name
        self._checksum = 0

    def __call__(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left))
        self._left -= len(data)
        self._checksum = zlib.crc32(data, self._checksum)
        if not data and (self._left or self._expected not in (None, self._checksum)):
            what = f"it ends {self._left:,} bytes early" if self._left else "its checksum is another"
            raise SourceError(f"{printable(self._name)} is damaged: {what}; {repair_hint(self._name)}.")
        return data


def _dictionary(method: bytes, properties: bytes) -> int:
    """The dictionary size of LZMA and LZMA2, and the model size of PPMd, in bytes."""
    if method in (b"\x03\x01\x01", b"\x03\x04\x01") and len(properties) >= 5:
        return int.from_bytes(properties[1:5], "little")
    if method == b"\x21" and properties:
        return (2 | properties[0] & 1) << (properties[0] // 2 + 11)
    return 0


def _unknown(archive: str, what: str) -> SourceError:
    return SourceError(f"{printable(archive)} cannot be read by py7zr: {what}; unpack it with 7z x and give the folder instead.")


@contextlib.contextmanager
def _damage(archive: str) -> Iterator[None]:
    """Turn py7zr's errors into sentences. For a damaged archive it raises its own errors, IndexError, struct.error, LZMAError, ….

    Errors of the disk pass unchanged.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if type(error).__name__ == "PasswordRequired":
            raise SourceError(f"{printable(archive)} is encrypted; unpack it with its password and give the folder instead.") from error
        if type(error).__name__ == "UnsupportedCompressionMethodError":
            raise _unknown(archive, sentence(error)) from error
        raise SourceError(f"{printable(archive)} is damaged: {sentence(error)}; {repair_hint(archive)}.") from error
