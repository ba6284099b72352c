"""The members of a .zip archive. Its table of contents is at its end, so it needs a seekable file.

Python's zipfile reads the table. For LZMA and bzip2 it decompresses every block completely, and a block of 64 KiB may become gigabytes.
So this page decompresses the members, in small steps.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from data.errors import DataError
from data.sources.streams import (
    MEMORY,
    Budget,
    Decompressor,
    Reader,
    SourceError,
    ZlibDecompressor,
    decompress_next,
    make_decompressor,
    printable,
    repair_hint,
)

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # the lengths of the name and of what else there is
_END = struct.Struct("<4s6xH8x2x")  # how many entries the table has
_END_64 = struct.Struct("<4s28xQ16x20x")  # of more than 65,534; with the locator behind it
_LONGEST_COMMENT = 0xFFFF  # behind the end record
_ENCRYPTED, _PATCHED = 0x41, 0x20  # flags


@dataclass(frozen=True)
class ZipMember:
    """A member: its name, whether it is a regular file, and its bytes."""

    name: str
    regular: bool
    folder: bool
    content: Reader


def zip_members(file: BinaryIO, archive: str, budget: Budget) -> Iterator[ZipMember]:
    """The members in the order of the table of contents.

    Raises:
        SourceError: if the archive is cut short, damaged, encrypted, or compressed in a way unknown here.
    """
    file.seek(0)
    with _damage(archive), zipfile.ZipFile(file) as opened:
        entries = opened.infolist()
        _require_all(file, len(entries), archive)
    for info in entries:
        mode = info.external_attr >> 16
        folder = info.filename.endswith("/")
        if folder or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
            yield ZipMember(info.filename, False, folder, Reader.of(b""))
        else:
            yield ZipMember(info.filename, True, False, _content(file, info, f"{archive}!{info.filename}", budget))


def _require_all(file: BinaryIO, found: int, archive: str) -> None:
    """Compare the number of entries with the number at the end of the archive; zipfile only uses the size of the table."""
    size = file.seek(0, 2)
    start = file.seek(max(0, size - _END.size - _LONGEST_COMMENT - _END_64.size))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    (_, promised), modulus = _END.unpack_from(tail, at), 1 << 16  # old programs count no further
    if promised == 0xFFFF and at >= _END_64.size:
        (_, promised), modulus = _END_64.unpack_from(tail, at - _END_64.size), 1 << 64
    if found % modulus != promised:
        raise SourceError(
            f"{printable(archive)} is damaged: its end, at byte {start + at:,}, counts {promised:,} members, its table has {found:,}."
        )


def _content(file: BinaryIO, info: zipfile.ZipInfo, name: str, budget: Budget) -> Reader:
    """A member's bytes. Their number and checksum have to equal those in the table."""
    if info.flag_bits & _ENCRYPTED:
        raise SourceError(f"{printable(name)} is encrypted; unpack the archive with its password and give the folder instead.")
    if info.flag_bits & _PATCHED or info.compress_type not in _ENGINES:
        raise SourceError(
            f"{printable(name)} cannot be read: its compression, number {info.compress_type}, is not known here; unpack it by hand "
            "and give the folder instead."
        )
    with _damage(name):
        file.seek(info.header_offset)
        magic, *lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if magic != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"there is no header at byte {info.header_offset:,}")
    at, packed = info.header_offset + _LOCAL_HEADER.size + sum(lengths), info.compress_size
    left, checksum = info.file_size, 0
    decompressor: Decompressor | None = None

    def feed(size: int) -> bytes:
        nonlocal at, packed
        file.seek(at)  # another member may have been read in the meantime
        data = file.read(min(size, packed))
        at, packed = at + len(data), packed - len(data)
        return data

    def more(size: int) -> bytes:
        nonlocal decompressor, left, checksum
        with _damage(name):
            decompressor = decompressor or _ENGINES[info.compress_type](feed, name)
            out = decompress_next(decompressor, feed, min(size, left)) if left else b""
            left, checksum = left - len(out), zlib.crc32(out, checksum)
            if not out and (left or checksum != info.CRC):
                raise zipfile.BadZipFile(f"it ends {left:,} bytes early" if left else "its checksum is another")
        budget.spend(len(out))
        return out

    return Reader(more)


class _Stored:
    """The `Decompressor` of a member that is not compressed."""

    eof = False
    unused_data = b""
    needs_input = True

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return data[:max_length]  # bytes beyond max_length are after the member's end


def _lzma(feed: Callable[[int], bytes], name: str) -> Decompressor:
    """Before the data are the library's version, the length of the properties, and the five bytes of the properties."""
    code, dictionary = struct.unpack("<4xBI", feed(9))
    if dictionary > MEMORY:
        raise SourceError(f"{printable(name)} asks for more than {MEMORY >> 20} MiB of memory to be decompressed.")
    options = {"lc": code % 9, "lp": code // 9 % 5, "pb": code // 45}
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, "dict_size": dictionary, **options}])


_ENGINES: dict[int, Callable[[Callable[[int], bytes], str], Decompressor]] = {
    0: lambda feed, name: _Stored(),
    8: lambda feed, name: ZlibDecompressor(-15),  # without a header
    12: lambda feed, name: bz2.BZ2Decompressor(),
    14: _lzma,
    93: lambda feed, name: make_decompressor("zst", name),
    95: lambda feed, name: make_decompressor("xz", name),
}


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    """Turn the errors of zipfile and the decompressors into sentences. Errors of the disk pass unchanged."""
    try:
        yield
    except DataError:
        raise
    except NotImplementedError as error:
        raise SourceError(f"{printable(name)} cannot be read: {sentence(error)}; unpack it by hand and give the folder instead.") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, struct.error) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a place before the file's beginning
            raise
        raise SourceError(f"{printable(name)} is damaged or cut short: {sentence(error)}; {repair_hint(name)}.") from error


def sentence(error: BaseException) -> str:
    """The message of an error on one line, without the full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
