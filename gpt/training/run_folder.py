"""The folder of one training run: what goes in, and what happens when it cannot.

    runs/<name>/
        metrics.jsonl       one line for each look at the loss, appended as training goes
        loss.png            the same as a curve
        tensorboard/        the same as TensorBoard's events, if they are asked for; see `gpt.training.tensorboard`
        model.safetensors, config.json, tokenizer.json      the newest weights, to write with; see `gpt.checkpoint`
        checkpoints/        to go on from; see `gpt.training.checkpoints`
        .lock               see `gpt.training.lock`

A run that nobody can keep is worth nothing, so the folder is tried before the work begins. After that, the weights come
first: a line of metrics that cannot be written is reported once and costs nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any, Self

from data.files import explain, write_atomically
from data.paths import expanded
from gpt.config import nearest
from gpt.errors import fail
from gpt.plots.curves import plot_losses
from gpt.plots.figure import HOW_TO_GET_IT, can_plot
from gpt.training.lock import FolderLock
from gpt.training.tensorboard import Events

METRICS = "metrics.jsonl"
PLOT = "loss.png"


class RunFolder:
    """A new folder, for one run alone and locked for it. What was in a folder of that name before is left alone.

    Args:
        wanted: the path; where that exists and is not empty, the first free one of path-2, path-3, … is taken.

    Attributes:
        wanted, path: the folder asked for and the one taken.
        records: all that was logged, whether or not it could be written.

    Raises:
        UserError: if the folder cannot be made or written to.
    """

    def __init__(self, wanted: Path) -> None:
        self.wanted = wanted = expanded(wanted)
        self.records: list[dict[str, Any]] = []
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
        folder.wanted = folder.path = expanded(path)
        folder.records, folder._complained, folder._events = [], False, None
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
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
            self.records = [record for line in lines[:count] if (record := _parsed(line)) is not None]
            write_atomically(file, "".join(json.dumps(record) + "\n" for record in self.records))
        except OSError as error:
            fail(f"the run folder cannot be written: {explain(error, self.path)}")

    def open_tensorboard(self) -> None:
        """Write what was logged so far, and all that will be, for TensorBoard too.

        Raises:
            UserError: if that cannot be written.
        """
        try:
            self._events = Events(self.path, self.records)
        except OSError as error:
            fail(f"the run folder cannot be written: {explain(error, self.path)}")

    def log(self, **record: Any) -> None:
        """Append one line to metrics.jsonl (and an event for TensorBoard)."""
        self.records.append(record)
        try:
            with open(self.path / METRICS, "a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(record) + "\n")
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
            plot_losses(self.records, self.path / PLOT, title=self.path.name)
        except OSError as error:
            print(f"loss.png cannot be written: {explain(error, self.path / PLOT)}", file=sys.stderr)

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


def _parsed(line: str) -> dict[str, Any] | None:
    """What a line of metrics.jsonl says; None where a crash of the machine has left something else."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


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
