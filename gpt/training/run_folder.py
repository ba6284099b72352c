"""The folder of one training run.

    runs/<name>/
        metrics.jsonl       one line for each log interval and each evaluation; see `gpt.training.metrics`
        loss.png            the same as a curve
        tensorboard/        the same as TensorBoard's events, if they are asked for
        model.safetensors, config.json, tokenizer.json      the newest weights, to generate with; see `gpt.checkpoints.model_folder`
        checkpoints/        to resume from; see `gpt.checkpoints.retention`
        .lock               held while a program trains here, see `FolderLock`

The folder is written to before the work begins, so that a run that cannot be saved is refused at once. During training the weights matter
most: metrics that cannot be written are reported once, and training goes on. Metrics are kept on the disk alone, so that the memory of a
long run does not grow.
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
from gpt.config import closest_name
from gpt.errors import fail
from gpt.plots.curves import plot_losses
from gpt.plots.figure import HOW_TO_GET_IT, can_plot
from gpt.training.metrics import METRICS, TensorBoardEvents, append_line, read_metrics

PLOT = "loss.png"
LOCK = ".lock"
_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # what some network file systems answer


class RunFolder:
    """A new folder for one run, locked. A folder of that name that is not empty is left alone.

    Args:
        wanted: the path; where that exists and is not empty, the first free one of path-2, path-3, … is taken.

    Attributes:
        wanted, path: the folder that was asked for, and the one that was taken.
        logged: how many lines metrics.jsonl has.

    Raises:
        UserError: if the folder cannot be made or written to.
    """

    def __init__(self, wanted: Path) -> None:
        if wanted == Path("~"):
            fail("the home folder is no run's: name one for the run, such as --out ~/runs/mine.")
        self.wanted = wanted = expand_path(wanted)
        self.logged = 0
        self._warned = False
        self._events: TensorBoardEvents | None = None
        try:
            self.path = _first_free(wanted)
            self.lock = FolderLock(self.path)
            (self.path / METRICS).touch(exist_ok=False)
        except OSError as error:
            fail(f"the run folder cannot be written: {explain(error, wanted)}")

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """The folder of a run that is resumed.

        Raises:
            UserError: if there is none, or another process holds it.
        """
        folder = cls.__new__(cls)
        folder.wanted = folder.path = expand_path(path)
        folder.logged, folder._warned, folder._events = 0, False, None
        if not folder.path.is_dir():
            fail(f"there is no run {folder.path} to resume{_suggest_run(folder.path)}.")
        folder.lock = FolderLock(folder.path)
        return folder

    def truncate_metrics(self, count: int) -> None:
        """Keep the first ``count`` lines of metrics.jsonl: what was logged after the checkpoint is going to be logged again.

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
        """Write all records for TensorBoard as well: those that were logged so far, and those to come.

        Raises:
            UserError: if they cannot be written.
        """
        try:
            self._events = TensorBoardEvents(self.path, self.records())
        except OSError as error:
            fail(f"the run folder cannot be written: {explain(error, self.path)}")

    def records(self) -> Iterator[dict[str, Any]]:
        """The records that were logged so far, one after the other.

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
            self._warn_once(f"the metrics are not being written ({explain(error, self.path / METRICS)}) Training goes on.")

    def plot(self) -> None:
        """Draw loss.png, or say in one line why not."""
        if not can_plot():
            print(f"{PLOT} {HOW_TO_GET_IT}")
            return
        try:
            plot_losses(list(self.records()), self.path / PLOT, title=self.path.name)
        except OSError as error:
            print(f"{PLOT} cannot be written: {explain(error, self.path / PLOT)}", file=sys.stderr)
        except Exception as error:  # noqa: BLE001 - whatever error the drawing library raises, the run still reports its result
            print(f"{PLOT} cannot be drawn: matplotlib ended with {type(error).__name__}: {error}", file=sys.stderr)

    def close(self) -> None:
        """Release the folder."""
        if self._events:
            with contextlib.suppress(OSError):  # every event is on the disk already, or there was a warning
                self._events.close()
        self.lock.release()

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            print(f"\nwarning: {message}", file=sys.stderr)


class FolderLock:
    """A lock on ``folder``: two runs in one folder would overwrite each other's files. It ends with `release`, or with the process.

    The operating system knows who holds the file ``.lock``, which is never removed. The file holds the number of the process, for messages.

    Raises:
        UserError: if another process holds the folder.
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
            if self._descriptor is not None and error.errno in _NOT_SUPPORTED:
                print(f"warning: {folder} cannot be locked on this file system: make sure that no other run uses it.", file=sys.stderr)
                return
            opened = self._descriptor is not None
            self.release()
            if opened and isinstance(error, BlockingIOError):
                fail(f"{folder} is in use by {self._owner()}, which trains there: wait for its end, or give another folder with --out.")
            fail(f"the run folder cannot be locked: {explain(error, self.path)}")

    def release(self) -> None:
        """Give up the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _owner(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return f"process {int(self.path.read_text(encoding='ascii'))}"
        return "another process"


def _suggest_run(path: Path) -> str:
    """The run beside ``path`` that was probably meant, as the end of a sentence."""
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir()) if path.parent.is_dir() else []
    meant = closest_name(path.name, names)
    return f"; did you mean {path.parent / meant}?" if meant else f": {path.parent} has no such folder"


def _first_free(wanted: Path) -> Path:
    """``wanted``, or the first of wanted-2, wanted-3, … that could be made, or that exists and is empty."""
    wanted = wanted if wanted.name else wanted.resolve()  # "." has no name to append a number to
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
