"""The checkpoints of one run, step-000250, step-000500, …: the last few and the best are kept.

A checkpoint is removed only after a newer one is complete on the disk, so there is always one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from gpt.checkpoints.snapshot import read_snapshot, remove_leftovers, remove_snapshot, write_snapshot
from gpt.checkpoints.training_state import TrainingState
from gpt.checkpoints.weights import CheckpointError

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d+)")


class Checkpoints:
    """The checkpoints of the run in ``folder``.

    Args:
        keep_last: how many of the newest to keep, besides the best.

    Attributes:
        last_saved: the step of the newest checkpoint that is known to be complete; None before the first.
    """

    def __init__(self, folder: Path, keep_last: int = 2) -> None:
        self.folder = folder / FOLDER
        self.keep_last = keep_last
        self.last_saved: int | None = None
        self._damaged: set[int] = set()

    def save(self, step: int, files: Iterable[tuple[str, bytes]], best: int | None = None) -> None:
        """Write the checkpoint of ``step``, then remove those that are no longer to be kept.

        Args:
            best: the step whose checkpoint is kept, however old it is.

        Raises:
            CheckpointError: if it cannot be written. All earlier checkpoints are then still there.
        """
        write_snapshot(self.path(step), files)
        self.last_saved = step
        self._damaged.discard(step)
        # Later ones can only be damaged ones, found when this run went on from an earlier one.
        complete = [earlier for earlier in self.steps() if earlier <= step and earlier not in self._damaged]
        for old in set(self.steps()) - set(complete[-self.keep_last :]) - {best}:
            remove_snapshot(self.path(old))

    def clean_up(self) -> None:
        """Remove what a killed process has left half done. Only the holder of the folder's lock may: another process may be writing."""
        remove_leftovers(self.folder)

    def load_latest(self) -> TrainingState:
        """The newest checkpoint that is complete and undamaged; a warning is printed for each newer one.

        Raises:
            CheckpointError: if there is none.
        """
        for step in reversed(self.steps()):
            try:
                state = TrainingState.from_files(read_snapshot(self.path(step)), str(self.path(step)))
            except CheckpointError as error:
                self._damaged.add(step)
                print(f"warning: {error} Trying the one before.", file=sys.stderr)
            else:
                self.last_saved = step
                return state
        raise CheckpointError(f"{self.folder} has no complete checkpoint to go on from; start again: python -m gpt.train.")

    def steps(self) -> list[int]:
        """The steps of all checkpoints in the folder, complete or not."""
        if not self.folder.is_dir():
            return []
        return sorted(int(found[1]) for entry in self.folder.iterdir() if (found := _NAME.fullmatch(entry.name)))

    def path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is, or would be."""
        return self.folder / f"step-{step:06}"
