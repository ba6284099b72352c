"""The members of .zip and .7z archives. Both have their table of contents at the end, so they need a file that can be sought in."""

from __future__ import annotations

import contextlib
import lzma
import queue
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from data.errors import DataError
from data.sources.streams import Budget, Reader, SourceError, shown


@dataclass(frozen=True)
class ZipMember:
    """A member: its name, whether it is a regular file, its bytes."""

    name: str
    regular: bool
    folder: bool
    content: Reader


def zip_members(file: BinaryIO, archive: str, budget: Budget) -> Iterator[ZipMember]:
    """The members in the order of the table of contents.

    Raises:
        SourceError: if the archive is cut short, damaged, encrypted, or compressed in a way unknown to Python.
    """
    file.seek(0)
    with _zip_errors(archive), zipfile.ZipFile(file) as opened:
        for info in opened.infolist():
            name = f"{archive}!{info.filename}"
            mode = info.external_attr >> 16
            regular = not info.is_dir() and (not mode or not stat.S_IFMT(mode) or stat.S_ISREG(mode))
            if not regular:
                yield ZipMember(info.filename, False, info.is_dir(), Reader(lambda size: b""))
                continue
            if info.flag_bits & 1:
                raise SourceError(f"{shown(name)} is encrypted; unpack the archive with its password and give the folder instead.")
            with _zip_errors(name):
                content = opened.open(info)
            with content:
                yield ZipMember(info.filename, True, False, Reader(_spending(content, name, budget)))


def _spending(content: Any, name: str, budget: Budget) -> Any:
    def more(size: int) -> bytes:
        with _zip_errors(name):
            data = content.read(size)
        budget.spend(len(data))
        return data

    return more


@contextlib.contextmanager
def _zip_errors(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except NotImplementedError as error:
        raise SourceError(f"{shown(name)} cannot be read: {error}; unpack it by hand and give the folder instead.") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise SourceError(f"{shown(name)} is damaged or cut short: {_sentence(error)}; fetch or copy it again.") from error
    except OSError as error:
        if error.errno is not None and error.filename is not None:
            raise
        raise SourceError(f"{shown(name)} is damaged or cut short: {_sentence(error)}; fetch or copy it again.") from error


def seven_zip_members(file: BinaryIO, archive: str, budget: Budget) -> Iterator[ZipMember]:
    """The members in the archive's order.

    py7zr pushes what it decompresses into files of its own making. Here these files are one end of a queue, and the thread that
    pushes stands still until what it pushed has been read: two blocks are in memory at most.

    Raises:
        SourceError: if py7zr is missing, or the archive is cut short, damaged or encrypted.
    """
    try:
        import py7zr
        from py7zr.io import Py7zIO, WriterFactory
    except ImportError as error:
        raise SourceError(f"{shown(archive)} is a 7z archive, which takes py7zr to read: pip install 'tensorlite[data]'.") from error

    events: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
    abandoned = threading.Event()

    def tell(what: str, value: Any) -> None:
        while not abandoned.is_set():
            with contextlib.suppress(queue.Full):
                events.put((what, value), timeout=0.1)
                return
        raise _AbandonedError

    class Sink(Py7zIO):
        written = 0

        def write(self, data: bytes | bytearray) -> int:
            self.written += len(data)
            tell("data", bytes(data))
            return len(data)

        def read(self, size: int | None = None) -> bytes:
            return b""

        def seek(self, offset: int, whence: int = 0) -> int:
            return offset

        def flush(self) -> None:
            pass

        def size(self) -> int:
            return self.written

    class Sinks(WriterFactory):
        def create(self, filename: str) -> Py7zIO:
            tell("member", filename)
            return Sink()

    def push() -> None:
        try:
            file.seek(0)
            with py7zr.SevenZipFile(file) as opened:
                if opened.needs_password():
                    raise _EncryptedError
                irregular = [info.filename for info in opened.files if not info.is_directory and not info.is_file]
                for name in irregular:
                    tell("irregular", name)
                regular = [info.filename for info in opened.files if not info.is_directory and info.is_file]
                if regular:
                    opened.extract(targets=regular, factory=Sinks())
            tell("end", None)
        except _AbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001 - told to the reading thread, which raises it
            with contextlib.suppress(_AbandonedError):
                tell("error", error)

    pending: list[tuple[str, Any]] = []

    def next_event() -> tuple[str, Any]:
        event = pending.pop() if pending else events.get()
        if event[0] == "error":
            raise _seven_zip_error(event[1], archive) from event[1]
        return event

    def more(size: int) -> bytes:
        while True:
            event = next_event()
            if event[0] != "data":
                pending.append(event)
                return b""
            budget.spend(len(event[1]))
            if event[1]:
                return event[1]

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    try:
        while True:
            what, name = next_event()
            if what == "end":
                return
            if what == "irregular":
                yield ZipMember(name, False, False, Reader(lambda size: b""))
            elif what == "member":
                content = Reader(more)
                yield ZipMember(name, True, False, content)
                content.drain()
    finally:
        abandoned.set()
        thread.join()


class _AbandonedError(Exception):
    """Nobody reads on."""


class _EncryptedError(Exception):
    """The archive wants a password."""


def _seven_zip_error(error: BaseException, archive: str) -> BaseException:
    if isinstance(error, _EncryptedError) or type(error).__name__ == "PasswordRequired":
        return SourceError(f"{shown(archive)} is encrypted; unpack it with its password and give the folder instead.")
    if isinstance(error, Exception) and not (isinstance(error, OSError) and error.filename is not None):
        # py7zr meets damage with whatever it stumbles over: its own errors, IndexError, struct.error, LZMAError, …
        return SourceError(f"{shown(archive)} is damaged or cannot be read by py7zr: {_sentence(error)}; fetch or copy it again.")
    return error


def _sentence(error: BaseException) -> str:
    """What an error says, on one line, without the full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
