"""What changes from step to step, in the device's memory: the learning rates and step counts of an optimizer, for a step that is recorded.

A CUDA graph repeats what was captured, with the same addresses and numbers. So numbers that change from step to step are kept in
memory that its kernels read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tensorlite.backend import Array
from tensorlite.optim.flat import FlatParameters
from tensorlite.optim.state import Span


class Updater(Protocol):
    """What is asked of an optimizer here; see `tensorlite.optim.optimizer.Optimizer`."""

    layout: int

    @property
    def flats(self) -> Sequence[FlatParameters]: ...


class DeviceScalars:
    """The learning rate and the step count of each span in the device's memory, where a captured step reads them.

    `advance` writes them and counts the step; the graph is launched after it.

    Args:
        spans: what a step of ``optimizer`` updates.
        memory: from `Optimizer.device_scalars_memory`.

    Attributes:
        lr, step: for each span an array of no axes, float32 and int32.
    """

    def __init__(self, optimizer: Updater, spans: Sequence[Span], memory: Array) -> None:
        self.spans = spans
        self._optimizer, self._layout = optimizer, optimizer.layout
        self._device = spans[0].buffer.flat.device
        self._both = memory[:, : len(spans)]  # one array, so that one copy writes all
        self.lr = [self._both[0, i : i + 1].view("float32").reshape(()) for i in range(len(spans))]
        self.step = [self._both[1, i : i + 1].reshape(()) for i in range(len(spans))]

    def are_valid(self) -> bool:
        """Whether the optimizer's parameters and state are still at the addresses that they had when this was made."""
        return self._layout == self._optimizer.layout and all(flat.fits() for flat in self._optimizer.flats)

    def advance(self) -> None:
        """Write the rates and the number of the next step, from the optimizer's groups and counts, and count the step."""
        rates = np.array([span.group["lr"] for span in self.spans], np.float32)
        steps = np.array([span.step for span in self.spans], np.int32)
        self._both[...] = self._device.asarray(np.stack([rates.view(np.int32), steps]))
        for span in self.spans:
            span.count_step()
        for flat in self._optimizer.flats:
            flat.note_rounded()
