"""The members of a .7z archive, decompressed by py7zr in small steps.

In a 7z archive many members are compressed as one, a *folder*. py7zr's own `extract` takes up to 128 MB out of it at a time, and copies
them several times. Here its decompressors are asked for little, and given little: some of them do not heed what they are asked for.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from data.errors import DataError
from data.sources.streams import BLOCK, Budget, Reader, SourceError, printable, repair_hint
from data.sources.zips import ZipMember, sentence

# Compressed bytes at a time. Deflate, Deflate64 and Zstandard do not heed what they are asked for; the last makes up to 8 MiB of 256 bytes.
_SIP, _HEEDLESS_SIP = 1 << 20, 1 << 8
_HEEDLESS = (b"\x04\x01\x08", b"\x04\x01\x09", b"\x04\xf7\x11\x01")
_MEMORY = 256 << 20  # what 7-Zip's highest level takes


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
        while content(BLOCK):  # what nobody wanted
            pass


def _starts(opened: Any) -> dict[int, tuple[int, int]]:
    """Where each folder's bytes begin, and how many there are."""
    streams = opened.header.main_streams if opened.files else None
    if streams is None:
        return {}
    begin, sizes = opened.afterheader + streams.packinfo.packpos, streams.packinfo.packsizes
    return {
        id(folder): (begin + start, size)
        for folder, start, size in zip(streams.unpackinfo.folders, streams.packinfo.packpositions, sizes, strict=False)
    }


def _stream(file: BinaryIO, folder: Any, start: int, packed: int, archive: str, budget: Budget) -> Callable[[int], bytes]:
    """What a folder expands to."""
    unpacked = max(folder.unpacksizes)
    for coder in folder.coders:
        if coder["numinstreams"] != 1 or coder["numoutstreams"] != 1:
            raise _unknown(archive, "a filter of several streams (BCJ2)")
        if min(_dictionary(coder["method"], coder.get("properties") or b""), unpacked) > _MEMORY:
            raise SourceError(f"{printable(archive)} asks for more than {_MEMORY >> 20} MiB of memory to be decompressed.")
    sips = _Sips(file, start, _HEEDLESS_SIP if any(coder["method"] in _HEEDLESS for coder in folder.coders) else _SIP)
    with _damage(archive):
        decompressor = folder.get_decompressor(packed)

    def more(size: int) -> bytes:
        with _damage(archive):
            while True:
                before = sips.at
                out = bytes(decompressor.decompress(sips, BLOCK))
                hungry, sips.hungry = sips.hungry, len(out) < BLOCK
                budget.spend(len(out))
                if out or (hungry and sips.at == before):
                    return out

    return more


class _Sips:
    """The archive as a file for a decompressor that is to be given no more before it has used up what it has."""

    def __init__(self, file: BinaryIO, at: int, most: int) -> None:
        self._file = file
        self.at = at
        self._most = most
        self.hungry = True

    def read(self, size: int) -> bytes:
        if not self.hungry:
            return b""
        self._file.seek(self.at)
        data = self._file.read(min(size, self._most))
        self.at += len(data)
        return data


class _Member:
    """One member's bytes out of those of its folder, whose checksum is looked at at the end."""

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
    """How many bytes a method keeps of what it has decompressed: LZMA, LZMA2, and PPMd for its model."""
    if method in (b"\x03\x01\x01", b"\x03\x04\x01") and len(properties) >= 5:
        return int.from_bytes(properties[1:5], "little")
    if method == b"\x21" and properties:
        return (2 | properties[0] & 1) << (properties[0] // 2 + 11)
    return 0


def _unknown(archive: str, what: str) -> SourceError:
    return SourceError(f"{printable(archive)} cannot be read by py7zr: {what}; unpack it with 7z x and give the folder instead.")


@contextlib.contextmanager
def _damage(archive: str) -> Iterator[None]:
    """Whatever py7zr says, as a sentence: it meets damage with errors of its own, IndexError, struct.error, LZMAError, …

    What the disk says goes on as it is.
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
