"""The checkpoints of one run: step-000250, step-000500, …; the last few and the best are kept.

A checkpoint goes only after a newer one is whole on the disk, so there is never a moment without one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from gpt.checkpoints.model_folder import CheckpointError
from gpt.checkpoints.snapshot import read_snapshot, remove_leftovers, remove_snapshot, write_snapshot
from gpt.checkpoints.training_state import TrainingState

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d+)")


class Checkpoints:
    """Of the run in ``folder``.

    Args:
        keep_last: how many of the newest to keep, besides the best.

    Attributes:
        saved: the step of the newest that is known to be whole; None before the first.
    """

    def __init__(self, folder: Path, keep_last: int = 2) -> None:
        self.folder = folder / FOLDER
        self.keep_last = keep_last
        self.saved: int | None = None
        self._damaged: set[int] = set()

    def save(self, step: int, files: Iterable[tuple[str, bytes]], best: int | None = None) -> None:
        """Write the checkpoint of ``step``, then let go of those that are no longer to be kept.

        Args:
            best: the step whose checkpoint stays, however old it is.

        Raises:
            CheckpointError: if it cannot be written. All that were there are there still.
        """
        write_snapshot(self.path(step), files)
        self.saved = step
        self._damaged.discard(step)
        # Later ones can only be those that were found damaged when this run went on from an earlier one.
        whole = [earlier for earlier in self.steps() if earlier <= step and earlier not in self._damaged]
        for old in set(self.steps()) - set(whole[-self.keep_last :]) - {best}:
            remove_snapshot(self.path(old))

    def clean_up(self) -> None:
        """Remove what a killed process was in the middle of. Only for who holds the lock: another may be at it now."""
        remove_leftovers(self.folder)

    def newest_whole(self) -> TrainingState:
        """The newest checkpoint that holds to the bit what was written; each that does not costs a warning.

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
                self.saved = step
                return state
        raise CheckpointError(f"{self.folder} has no whole checkpoint to go on from; start again: python -m gpt.train.")

    def steps(self) -> list[int]:
        """Of all that are there, whole or not."""
        if not self.folder.is_dir():
            return []
        return sorted(int(found[1]) for entry in self.folder.iterdir() if (found := _NAME.fullmatch(entry.name)))

    def path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is, or would be."""
        return self.folder / f"step-{step:06}"
