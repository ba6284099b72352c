"""Examine pages in a process of their own, with a limit of time for each: a loop that never ends, or an exit, ends that process alone."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from study.examine import examine
from study.exercise import load
from study.verdict import Verdict

LIMIT = 10.0  # seconds for a page; one that is right takes a hundredth of that
START = 120.0  # seconds for a new process, which imports NumPy, on however slow a machine
GRACE = 5.0  # seconds in which that process should report that the limit has passed; code in C may not let it

Page = tuple[str, Path]  # the exercise, and where its page is


class Channel(Protocol):
    """One end of a pipe between processes, which has another class on Windows."""

    def poll(self, timeout: float, /) -> bool: ...

    def recv(self) -> Any: ...

    def send(self, message: Any, /) -> None: ...


def verdicts(pages: Sequence[Page], limit: float = LIMIT) -> Iterator[Verdict]:
    """The verdict on each of ``pages``, as it is reached.

    Args:
        limit: seconds for each page.

    Raises:
        RuntimeError: if no process can be started.
    """
    context = multiprocessing.get_context("spawn")  # of this process, its threads for instance, nothing gets into the other
    waiting = list(pages)
    while waiting:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_examine_all, args=(waiting, limit, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            if not ours.poll(START):
                raise RuntimeError("the process that examines the pages does not start.")
            ours.recv()
            alive = True
            while waiting and alive:
                verdict, alive = _next(ours, waiting.pop(0), limit)
                yield verdict
        finally:
            process.kill()
            process.join()
            ours.close()


def _next(connection: Channel, page: Page, limit: float) -> tuple[Verdict, bool]:
    """The next verdict, and whether the process can go on with other pages."""
    try:
        if connection.poll(limit + GRACE):
            return connection.recv()
    except (EOFError, ConnectionResetError):
        return Verdict(page[0], False, "the page has ended the whole process, as os._exit() does.", comes_back=False), False
    return Verdict(
        page[0], False, f"the page was still running after {limit:g} seconds: does each of its loops end?", comes_back=False
    ), False


def _examine_all(pages: Sequence[Page], limit: float, connection: Channel) -> None:
    """In the other process: examine one page after the other, and send each verdict with True."""
    connection.send("started")
    for name, path in pages:
        exercise = load(name)
        watch = threading.Timer(limit, _give_up, (name, path, limit, threading.get_ident(), connection))
        watch.daemon = True
        watch.start()
        verdict = examine(exercise, path)
        watch.cancel()
        sys.stdout.flush()  # what the page prints comes before its verdict
        connection.send((verdict, True))


def _give_up(name: str, path: Path, limit: float, thread: int, connection: Channel) -> None:
    """Send the line at which the page is still running, and end this process."""
    frame, says = sys._current_frames().get(thread), f"the page was still running after {limit:g} seconds"
    while frame is not None and frame.f_code.co_filename != str(path):
        frame = frame.f_back
    if frame is not None:
        source = path.read_text(encoding="utf-8").splitlines()
        says += f", in line {frame.f_lineno}. It is: {source[frame.f_lineno - 1].strip()}"
    connection.send((Verdict(name, False, says, "a loop that does not end.", comes_back=False), False))
    sys.stdout.flush()
    os._exit(1)
