"""The log of a run: metrics.jsonl, the same numbers as TensorBoard's events, and the norms of the gradient.

    runs/<name>/metrics.jsonl                             one JSON object a line, appended as training goes
    runs/<name>/tensorboard/events.out.tfevents.…         the same for  tensorboard --logdir runs

TensorboardX writes that format. It is optional, and imported only here, when events are asked for. Each record is written to the disk at
once, without the queue and the thread of tensorboardX: an error is raised where the record is logged, and a killed run loses nothing.
"""

from __future__ import annotations

import errno
import importlib.util
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt.errors import fail
from gpt.model import LanguageModel
from tensorlite.backend import array_module, to_numpy

METRICS = "metrics.jsonl"
FOLDER = "tensorboard"
_BLOCK = re.compile(r"(?:^|\.)(h\.\d+)\.")


def read_metrics(file: Path, count: int | None = None) -> Iterator[dict[str, Any]]:
    """The records in the first ``count`` lines of a metrics.jsonl, or in all. A line that a crash has left incomplete is skipped.

    Raises:
        OSError: if it cannot be read.
    """
    with open(file, encoding="utf-8", errors="replace") as lines:
        for line in itertools.islice(lines, count):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield record


def append_line(file: Path, line: str) -> None:
    """Append ``line`` to ``file`` completely or not at all: a disk that is nearly full takes a part, and the next line would continue it.

    Raises:
        OSError: if it cannot be written.
    """
    content = line.encode()
    with open(file, "ab", buffering=0) as opened:
        size = opened.tell()
        if opened.write(content) < len(content):
            opened.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TensorBoardEvents:
    """TensorBoard's events of the run in ``run_folder``. The files of an earlier process are replaced, so that no number is there twice.

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
        """Write one line of metrics.jsonl, a scalar for each of its numbers.

        Raises:
            OSError: if it cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers_in(record) if name != "step"]
        self._writer.write_event(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """End the file.

        Raises:
            OSError: if the end cannot be written.
        """
        self._writer.close()


def require_tensorboard() -> None:
    """Raise UserError if tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        fail("--tensorboard needs tensorboardX: pip install 'tensorlite[tensorboard]'.")


def numbers_in(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The name and value of each number; a number in a nested table is named table/name."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from numbers_in(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, value


def gradient_norms_by_layer(model: LanguageModel, total: float) -> dict[str, float]:
    """The norm of the last step's gradient, before it was clipped, in each block and in each layer outside of the blocks.

    After a step the gradients are forgotten, but their values stay in the optimizer's flat buffer until the next ones are written there
    (`Tensor.grad_buffer`). Whatever scaled them since scaled all alike, so they are scaled back until their total norm is ``total``.
    """
    found: dict[str, list[Any]] = {}
    for name, parameter in model.named_parameters():
        home = parameter.grad_buffer
        if parameter.requires_grad and home is not None:
            flat = home.reshape(-1)
            found.setdefault(_layer(name), []).append(flat @ flat)
    if not found:
        return {}
    xp = array_module(next(iter(found.values()))[0])
    squares = to_numpy(xp.stack([sum(parts) for parts in found.values()])).astype(float)  # waits for a GPU once, not for each layer
    length = float(squares.sum()) ** 0.5
    scale = total / length if length else 0.0
    return {layer: scale * square**0.5 for layer, square in zip(found, squares.tolist(), strict=True)}


def _layer(name: str) -> str:
    """h.3.attn.c_attn.weight -> h.3, and wte.weight -> wte."""
    block = _BLOCK.search(name)
    return block[1] if block else name.split(".")[-2]
