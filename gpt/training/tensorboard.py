"""The numbers of metrics.jsonl once more, as TensorBoard reads them:  tensorboard --logdir runs

    runs/<name>/tensorboard/events.out.tfevents.…

TensorboardX, which writes the format, is optional and imported only here, when events are asked for. Each record becomes an event on the
disk at once, without tensorboardX's own queue and thread: an error belongs to whoever logs, and a killed run has lost nothing.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt.errors import fail

FOLDER = "tensorboard"


class Events:
    """Of the run in ``run_folder``. The files of an earlier process are replaced: a run that goes on has each number once.

    Args:
        records: what was logged so far.

    Raises:
        OSError: if the files cannot be written.
    """

    def __init__(self, run_folder: Path, records: Iterable[Mapping[str, Any]] = ()) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        folder = run_folder / FOLDER
        folder.mkdir(exist_ok=True)
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._writer = EventsWriter(str(folder / "events"))
        for record in records:
            self.write(record)
        self._writer.flush()

    def write(self, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl: a scalar for each of its numbers.

        Raises:
            OSError: if it cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers_in(record) if name != "step"]
        self._writer.write_event(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Nothing more will be written.

        Raises:
            OSError: if the last words cannot be.
        """
        self._writer.close()


def require_tensorboard() -> None:
    """Raises UserError if tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        fail("--tensorboard needs tensorboardX: pip install 'tensorlite[tensorboard]'.")


def numbers_in(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of each number; those of a table within the record are called table/name."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from numbers_in(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, value
