"""Bytes that come in turn: looking ahead in them, decompressing them in small steps, and an end to how much may come out."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

from data.errors import DataError

BLOCK = 1 << 18  # bytes asked for at a time
_MEMORY = 192 << 20  # what an xz stream may ask for; `xz -9` takes 65 MiB, a hostile one 4 GiB


class SourceError(DataError):
    """A source that cannot be read to its end; the message names the place inside it."""


class TooLargeError(SourceError):
    """More came out of an archive than may."""


def shown(name: str) -> str:
    """A member's name fit for a message: whatever is in it, one line and no control characters."""
    name = name.encode("utf-8", "backslashreplace").decode()
    name = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
    return name if len(name) <= 300 else f"{name[:140]}…{name[-140:]}"


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
                f"{shown(self._source)} expands to more than {self.limit:,} bytes, which may be a bomb; "
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

    def unread(self, data: bytes) -> None:
        """Put bytes back that were read too many."""
        self._base = self.position - len(data)
        self._buffer = data + self._buffer[self._at :]
        self._at = 0

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


class _Engine(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's object with the manners of bz2's and lzma's."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(31)  # 31: a gzip header and 32 KiB of window

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


_MAGIC = {"xz": b"\xfd7zXZ\0", "gz": b"\x1f\x8b", "bz2": b"BZh"}
_ENGINES: dict[str, Callable[[], _Engine]] = {
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY),
    "gz": _Gzip,
    "bz2": bz2.BZ2Decompressor,
}


def decompressed(compressed: Reader, kind: str, name: str, budget: Budget) -> Reader:
    """What ``compressed`` expands to; several streams end to end are one, as they are for xz, gzip and bzip2.

    Raises (while reading):
        SourceError: if it is cut short or damaged, or something else follows it.
        TooLargeError: if it expands beyond the budget.
    """
    engine = _ENGINES[kind]()

    def more(size: int) -> bytes:
        nonlocal engine
        while True:
            if engine.eof:
                compressed.unread(engine.unused_data)
                while (padding := compressed.peek(BLOCK)) and not padding.strip(b"\0"):
                    compressed.read(len(padding))
                compressed.read(len(padding) - len(padding.lstrip(b"\0")))
                if not compressed.peek(1):
                    engine = _Finished()
                    return b""
                if not compressed.peek(8).startswith(_MAGIC[kind]):
                    raise SourceError(f"{shown(name)} is damaged: there is something else behind its {kind} data.")
                engine = _ENGINES[kind]()
            data = compressed.read(BLOCK // 4) if engine.needs_input else b""
            starved = engine.needs_input and not data
            out = engine.decompress(data, size)
            if out:
                budget.spend(len(out))
                return out
            if starved and not engine.eof:
                raise SourceError(f"{shown(name)} is cut short: its {kind} data ends in the middle; fetch or copy it again.")

    def checked(size: int) -> bytes:
        try:
            return b"" if isinstance(engine, _Finished) else more(size)
        except (lzma.LZMAError, zlib.error, OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the file below, not of what is in it
            if "memory usage limit" in str(error).lower():
                raise SourceError(f"{shown(name)} asks for more than {_MEMORY >> 20} MiB of memory to be decompressed.") from error
            raise SourceError(f"{shown(name)} is damaged: its {kind} data cannot be decompressed ({error}).") from error

    return Reader(checked)


class _Finished:
    """Stands where a decompressor was when the last stream has ended."""

    eof = False
    needs_input = False
    unused_data = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return b""
