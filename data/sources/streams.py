"""Bytes that come in turn: looking ahead in them, decompressing them in small steps, and an end to how much may come out."""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from data.errors import DataError

BLOCK = 1 << 18  # bytes asked for at a time
_LEAST, _MOST = 1 << 9, 1 << 16  # compressed bytes handed to a decompressor at a time: few at first, for a stream may be short
MEMORY = 192 << 20  # what a stream may ask for; `xz -9` takes 65 MiB, a hostile one 4 GiB
_WINDOW = 27  # of Zstandard, as a power of two: 128 MiB, what its own program takes without being asked


class SourceError(DataError):
    """A source that cannot be read to its end; the message names the place inside it."""


class TooLargeError(SourceError):
    """More came out of an archive than may."""


def printable(name: str) -> str:
    """A member's name fit for a message: whatever is in it, one line and no control characters."""
    name = name.encode("utf-8", "backslashreplace").decode()
    name = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
    return name if len(name) <= 300 else f"{name[:140]}…{name[-140:]}"


def repair_hint(name: str) -> str:
    """What to do about damage. Whatever lies in an archive came with that, and may have been broken before it was packed."""
    outer, inside, _ = name.partition("!")
    return f"fetch or copy {printable(outer)} again, or leave this out of it" if inside else "fetch or copy it again"


class Budget:
    """How many bytes may still come out of archives, all layers together. A bomb is small until it is opened."""

    def __init__(self, limit: int, source: str) -> None:
        self.limit = limit
        self.spent = 0
        self._source = source

    def spend(self, size: int) -> None:
        """
        Raises:
            TooLargeError: if that is more than there was left.
        """
        self.spent += size
        if self.spent > self.limit:
            raise TooLargeError(
                f"{printable(self._source)} expands to more than {self.limit:,} bytes, which may be a bomb; "
                "if it is as large as that in truth, allow it with --max-expanded-size."
            )


class Reader:
    """A stream of bytes whose next ones can be looked at first.

    Args:
        more: called with a number of bytes, returns some, at most about as many, and none only at the end.
    """

    __slots__ = ("_at", "_base", "_buffer", "_ended", "_more")

    def __init__(self, more: Callable[[int], bytes], buffer: bytes = b"", ended: bool = False) -> None:
        self._more = more
        self._buffer = buffer
        self._at = 0  # in the buffer
        self._base = 0  # bytes that lie before the buffer
        self._ended = ended  # there is nothing behind the buffer

    @classmethod
    def of(cls, data: bytes) -> Reader:
        """A stream of ``data``, which is in memory."""
        return cls(_no_more, data, True)

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._base + self._at

    def peek(self, size: int) -> bytes:
        """The next ``size`` bytes, which stay; fewer only at the end."""
        if len(self._buffer) - self._at < size and not self._ended:
            self._fill(size)
        return self._buffer[self._at : self._at + size]

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only at the end."""
        end = self._at + size
        if end <= len(self._buffer):
            data = self._buffer[self._at : end]
        else:
            data = self.peek(size)
            end = self._at + len(data)
        self._at = end
        return data

    def rest(self, limit: int) -> bytes | None:
        """All that is left, read to the end; None, and nothing is read, if that is more than ``limit`` bytes."""
        data = self.peek(limit + 1)
        if len(data) > limit:
            return None
        self._at += len(data)
        return data

    def skip(self, size: int) -> int:
        """Pass over ``size`` bytes; how many there were."""
        left = size
        while left and (data := self.read(min(left, BLOCK))):
            left -= len(data)
        return size - left

    def drain(self) -> None:
        """Read to the end: a checksum behind the last member is looked at, too."""
        while self.read(BLOCK):
            pass

    def unread(self, size: int) -> None:
        """Go back by ``size`` bytes of those that the last `read` returned."""
        self._at -= size

    def _fill(self, size: int) -> None:
        parts = [self._buffer[self._at :]]
        have = len(parts[0])
        while have < size and (more := self._more(max(size - have, BLOCK))):
            parts.append(more)
            have += len(more)
        self._ended = have < size
        self._base = self.position
        self._buffer = b"".join(parts)
        self._at = 0


def _no_more(size: int) -> bytes:
    return b""


class Decompressor(Protocol):
    """A decompressor with the manners of bz2's and lzma's."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What was behind its end."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes out before more is put in."""
        ...

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most ``max_length`` bytes; the rest stays inside."""
        ...


class ZlibDecompressor:
    """zlib's object as an `Decompressor`."""

    def __init__(self, wbits: int) -> None:
        self._zlib = zlib.decompressobj(wbits)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail


class _Zstandard:
    """A frame of Zstandard as an `Decompressor`: Python's own from 3.14 on, before that a package of the same code."""

    def __init__(self) -> None:
        library: Any
        if sys.version_info >= (3, 14):
            from compression import zstd as library
        else:
            from backports import zstd as library
        self._error = library.ZstdError
        self._frame = library.ZstdDecompressor(options={library.DecompressionParameter.window_log_max: _WINDOW})

    def decompress(self, data: bytes, max_length: int) -> bytes:
        try:
            return self._frame.decompress(data, max_length)
        except self._error as error:
            raise ValueError(str(error)) from error

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data

    @property
    def needs_input(self) -> bool:
        return self._frame.needs_input


# A stream of Zstandard may begin with a frame to be skipped.
MAGIC: dict[str, tuple[bytes, ...]] = {
    "xz": (b"\xfd7zXZ\0",),
    "gz": (b"\x1f\x8b",),
    "bz2": (b"BZh",),
    "zst": (b"\x28\xb5\x2f\xfd", *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))),
}
_ENGINES: dict[str, Callable[[], Decompressor]] = {
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY),
    "gz": lambda: ZlibDecompressor(31),  # a gzip header and 32 KiB of window
    "bz2": bz2.BZ2Decompressor,
    "zst": _Zstandard,
}


def make_decompressor(kind: str, name: str) -> Decompressor:
    """What decompresses one stream.

    Raises:
        SourceError: if that takes a package that is not installed.
    """
    try:
        return _ENGINES[kind]()
    except ImportError as error:
        raise SourceError(
            f"{printable(name)} is compressed by Zstandard, which takes backports.zstd to read: pip install 'tensorlite[data]'."
        ) from error


def decompress_next(decompressor: Decompressor, feed: Callable[[int], bytes], size: int) -> bytes:
    """The next bytes out of ``decompressor``, at most ``size``; none only where its stream ends, or ``feed`` before it."""
    portion = _LEAST
    while not decompressor.eof:
        hungry = decompressor.needs_input
        data = feed(portion) if hungry else b""
        if out := decompressor.decompress(data, size):
            return out
        if hungry and not data:
            break
        portion = _MOST
    return b""


def decompressed(compressed: Reader, kind: str, name: str, budget: Budget) -> Reader:
    """What ``compressed`` expands to; several streams end to end are one, as they are for xz, gzip, bzip2 and Zstandard.

    Raises (while reading):
        SourceError: if it is cut short or damaged, or something else follows it.
        TooLargeError: if it expands beyond the budget.
    """
    decompressor: Decompressor | None = make_decompressor(kind, name)

    def more(size: int) -> bytes:
        nonlocal decompressor
        while decompressor is not None:
            if out := decompress_next(decompressor, compressed.read, size):
                budget.spend(len(out))
                return out
            if not decompressor.eof:
                raise SourceError(f"{printable(name)} is cut short: its {kind} data ends in the middle; {repair_hint(name)}.")
            compressed.unread(len(decompressor.unused_data))
            while (following := compressed.peek(1)) == b"\0":
                padding = compressed.peek(BLOCK)
                compressed.read(len(padding) - len(padding.lstrip(b"\0")))
            if following and not compressed.peek(8).startswith(MAGIC[kind]):
                raise SourceError(f"{printable(name)} is damaged: there is something else behind its {kind} data.")
            decompressor = make_decompressor(kind, name) if following else None
        return b""

    def checked(size: int) -> bytes:
        try:
            return more(size)
        except (lzma.LZMAError, zlib.error, OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the file below, not of what is in it
            if "memory" in str(error).lower():
                raise SourceError(f"{printable(name)} asks for more than {MEMORY >> 20} MiB of memory to be decompressed.") from error
            raise SourceError(f"{printable(name)} is damaged: its {kind} data cannot be decompressed ({error}).") from error

    return Reader(checked)
