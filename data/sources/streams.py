"""Streams of bytes: look-ahead, decompression in small steps, and a limit on the decompressed size."""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from data.errors import DataError

BLOCK = 1 << 18  # bytes asked for at a time
_LEAST, _MOST = 1 << 9, 1 << 16  # compressed bytes for a decompressor at a time: few at first, because a stream may be short
MEMORY = 192 << 20  # the most memory for a decompressor; `xz -9` needs 65 MiB, a hostile stream asks for 4 GiB
_WINDOW = 27  # log2 of the largest window of Zstandard: 128 MiB, the default limit of its own program


class SourceError(DataError):
    """A source that cannot be read completely; the message names the place inside it."""


class TooLargeError(SourceError):
    """An archive expands to more than the limit."""


def printable(name: str) -> str:
    """A member's name for a message: one line without control characters."""
    name = name.encode("utf-8", "backslashreplace").decode()
    name = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
    return name if len(name) <= 300 else f"{name[:140]}…{name[-140:]}"


def repair_hint(name: str) -> str:
    """What to do about damage. A member of an archive may have been damaged before it was packed."""
    outer, inside, _ = name.partition("!")
    return f"fetch or copy {printable(outer)} again, or leave this out of it" if inside else "fetch or copy it again"


class Budget:
    """The limit on decompressed bytes, of all layers together. A decompression bomb is small until it is opened."""

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
                "if it really is as large as that, allow it with --max-expanded-size."
            )


class Reader:
    """A stream of bytes with look-ahead.

    Args:
        more: called with a number of bytes; returns at most about as many, and none only at the end.
    """

    __slots__ = ("_at", "_base", "_buffer", "_ended", "_more")

    def __init__(self, more: Callable[[int], bytes], buffer: bytes = b"", ended: bool = False) -> None:
        self._more = more
        self._buffer = buffer
        self._at = 0  # in the buffer
        self._base = 0  # bytes before the buffer
        self._ended = ended  # no bytes follow the buffer

    @classmethod
    def of(cls, data: bytes) -> Reader:
        """A stream of ``data``, which is in memory."""
        return cls(_no_more, data, True)

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._base + self._at

    def peek(self, size: int) -> bytes:
        """The next ``size`` bytes, without reading them; fewer only at the end."""
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
        """All remaining bytes; None if they are more than ``limit``, and then nothing is read."""
        data = self.peek(limit + 1)
        if len(data) > limit:
            return None
        self._at += len(data)
        return data

    def skip(self, size: int) -> int:
        """Skip ``size`` bytes; return how many there were."""
        left = size
        while left and (data := self.read(min(left, BLOCK))):
            left -= len(data)
        return size - left

    def drain(self) -> None:
        """Read to the end, so that a checksum after the last member is checked, too."""
        while self.read(BLOCK):
            pass

    def unread(self, size: int) -> None:
        """Go back by ``size`` bytes, at most those of the last `read`."""
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
    """A decompressor with the interface of bz2's and lzma's."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""
        ...

    @property
    def unused_data(self) -> bytes:
        """The bytes after the end of the stream."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether there is no more output without more input."""
        ...

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most ``max_length`` bytes of output; the rest is kept for the next call."""
        ...


class ZlibDecompressor:
    """zlib's object as a `Decompressor`."""

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
    """A frame of Zstandard as a `Decompressor`: Python's own from 3.14 on, before that a package of the same code."""

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


# A stream of Zstandard may begin with a skippable frame.
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
    """A decompressor for one stream.

    Raises:
        SourceError: if it needs a package that is not installed.
    """
    try:
        return _ENGINES[kind]()
    except ImportError as error:
        raise SourceError(
            f"{printable(name)} is compressed by Zstandard, which takes backports.zstd to read: pip install 'tensorlite[data]'."
        ) from error


def decompress_next(decompressor: Decompressor, feed: Callable[[int], bytes], size: int) -> bytes:
    """The next bytes out of ``decompressor``, at most ``size``; none only at the end of its stream, or of ``feed``."""
    chunk_size = _LEAST
    while not decompressor.eof:
        wants_input = decompressor.needs_input
        data = feed(chunk_size) if wants_input else b""
        if out := decompressor.decompress(data, size):
            return out
        if wants_input and not data:
            break
        chunk_size = _MOST
    return b""


def decompressed(compressed: Reader, kind: str, name: str, budget: Budget) -> Reader:
    """The decompressed bytes of ``compressed``. Several streams in sequence are one, as for xz, gzip, bzip2 and Zstandard.

    Raises (while reading):
        SourceError: if it is truncated or damaged, or something else follows it.
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
                raise  # an error of the file, not of its content
            if "memory" in str(error).lower():
                raise SourceError(f"{printable(name)} asks for more than {MEMORY >> 20} MiB of memory to be decompressed.") from error
            raise SourceError(f"{printable(name)} is damaged: its {kind} data cannot be decompressed ({error}).") from error

    return Reader(checked)
