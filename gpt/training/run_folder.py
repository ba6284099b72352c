"""The folder of one training run: what goes in, and what happens when it cannot.

    runs/<name>/
        metrics.jsonl       one line for each look at the loss, appended as training goes
        loss.png            the same as a curve
        tensorboard/        the same as TensorBoard's events, if they are asked for; see `gpt.training.metrics`
        model.safetensors, config.json, tokenizer.json      the newest weights, to write with; see `gpt.checkpoints.model_folder`
        checkpoints/        to go on from; see `gpt.checkpoints.retention`
        .lock               held while a program works here, see `FolderLock`

A run that nobody can keep is worth nothing, so the folder is tried before the work begins. After that, the weights come
first: a line of metrics that cannot be written is reported once and costs nothing else. What was logged is on the disk alone: a run may
be long, and its memory shall not grow with it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from data.files import explain, write_atomically
from data.lock import lock
from data.paths import expand_path
from gpt.config import nearest
from gpt.errors import fail
from gpt.plots.curves import plot_losses
from gpt.plots.figure import HOW_TO_GET_IT, can_plot
from gpt.training.metrics import METRICS, Events, append_line, read_metrics

PLOT = "loss.png"
LOCK = ".lock"
_UNKNOWN_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # some network file systems


class RunFolder:
    """A new folder, for one run alone and locked for it. What was in a folder of that name before is left alone.

    Args:
        wanted: the path; where that exists and is not empty, the first free one of path-2, path-3, … is taken.

    Attributes:
        wanted, path: the folder asked for and the one taken.
        logged: how many lines metrics.jsonl has.

    Raises:
        UserError: if the folder cannot be made or written to.
    """

    def __init__(self, wanted: Path) -> None:
        if wanted == Path("~"):
            fail("the home folder is no run's: name one for the run, such as --out ~/runs/mine.")
        self.wanted = wanted = expand_path(wanted)
        self.logged = 0
        self._complained = False
        self._events: Events | None = None
        try:
            self.path = _first_free(wanted)
            self.lock = FolderLock(self.path)
            (self.path / METRICS).touch(exist_ok=False)
        except OSError as error:
            fail(f"the run folder cannot be written: {explain(error, wanted)}")

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """The folder of a run that goes on.

        Raises:
            UserError: if there is none, or another process is at it.
        """
        folder = cls.__new__(cls)
        folder.wanted = folder.path = expand_path(path)
        folder.logged, folder._complained, folder._events = 0, False, None
        if not folder.path.is_dir():
            fail(f"there is no run {folder.path} to resume{_nearby(folder.path)}.")
        folder.lock = FolderLock(folder.path)
        return folder

    def forget_after(self, count: int) -> None:
        """Keep the first ``count`` lines of metrics.jsonl: what was logged after the checkpoint will be logged again.

        Raises:
            UserError: if the file cannot be written.
        """
        try:
            file = self.path / METRICS
            kept = list(read_metrics(file, count)) if file.exists() else []
            write_atomically(file, "".join(json.dumps(record) + "\n" for record in kept))
            self.logged = len(kept)
        except OSError as error:
            fail(f"the run folder cannot be written: {explain(error, self.path)}")

    def open_tensorboard(self) -> None:
        """Write what was logged so far, and all that will be, for TensorBoard too.

        Raises:
            UserError: if that cannot be written.
        """
        try:
            self._events = Events(self.path, self.records())
        except OSError as error:
            fail(f"the run folder cannot be written: {explain(error, self.path)}")

    def records(self) -> Iterator[dict[str, Any]]:
        """What was logged so far, one after the other.

        Raises:
            OSError: if it cannot be read.
        """
        return read_metrics(self.path / METRICS, self.logged)

    def log(self, **record: Any) -> None:
        """Append one line to metrics.jsonl (and an event for TensorBoard)."""
        try:
            append_line(self.path / METRICS, json.dumps(record) + "\n")
            self.logged += 1
            if self._events:
                self._events.write(record)
        except OSError as error:
            self._complain_once(f"the metrics are not being written ({explain(error, self.path / METRICS)}) Training goes on.")

    def plot(self) -> None:
        """Draw loss.png, or say in one line why not."""
        if not can_plot():
            print(f"{PLOT} {HOW_TO_GET_IT}")
            return
        try:
            plot_losses(list(self.records()), self.path / PLOT, title=self.path.name)
        except OSError as error:
            print(f"{PLOT} cannot be written: {explain(error, self.path / PLOT)}", file=sys.stderr)
        except Exception as error:  # noqa: BLE001 - another library draws, and whatever it ends with, a finished training has its say
            print(f"{PLOT} cannot be drawn: matplotlib ended with {type(error).__name__}: {error}", file=sys.stderr)

    def close(self) -> None:
        """Let others have the folder."""
        if self._events:
            with contextlib.suppress(OSError):  # each event is on the disk already, or was complained about
                self._events.close()
        self.lock.release()

    def _complain_once(self, message: str) -> None:
        if not self._complained:
            self._complained = True
            print(f"\nwarning: {message}", file=sys.stderr)


class FolderLock:
    """Holds ``folder`` until `release`, or until the process ends, however it ends.

    The system remembers who holds the file; the file itself may stay. It has the number of the process in it, for the message.

    Raises:
        UserError: if somebody else holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            lock(self._descriptor)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())
        except OSError as error:
            if self._descriptor is not None and error.errno in _UNKNOWN_HERE:
                print(f"warning: {folder} cannot be locked on this file system: see that no other run uses it.", file=sys.stderr)
                return
            opened = self._descriptor is not None
            self.release()
            if opened and isinstance(error, BlockingIOError):
                fail(f"{folder} is in use by {self._owner()}, which trains there: wait for its end, or give another folder with --out.")
            fail(f"the run folder cannot be locked: {explain(error, self.path)}")

    def release(self) -> None:
        """Let others have the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _owner(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return f"process {int(self.path.read_text(encoding='ascii'))}"
        return "another process"


def _nearby(path: Path) -> str:
    """A hint at what else there is."""
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir()) if path.parent.is_dir() else []
    meant = nearest(path.name, names)
    return f"; did you mean {path.parent / meant}?" if meant else f": {path.parent} has no such folder"


def _first_free(wanted: Path) -> Path:
    """``wanted`` or the first of wanted-2, wanted-3, … that could be made, or was there but empty."""
    wanted = wanted if wanted.name else wanted.resolve()  # "." has no name to put a number to
    for number in itertools.count(1):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not path.is_dir():
                raise
            if any(path.iterdir()):
                continue
        return path
    raise AssertionError  # there is always another number
