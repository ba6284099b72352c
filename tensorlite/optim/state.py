"""The state of an optimizer: arrays that lie beside a flat buffer, and the spans of it that one step updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tensorlite.backend import Array
from tensorlite.optim.flat import FlatParameters


class Buffer:
    """A flat buffer and its state: the step count of each parameter, and arrays as long as the buffer."""

    def __init__(self, flat: FlatParameters) -> None:
        self.flat = flat
        self.steps = [0] * len(flat)
        self.state: dict[str, Array] = {}
        self.present: list[int] = []  # the parameters that have a gradient now
        self.part = slice(0, flat.starts[-1])  # which part of the arrays is kept here

    def array(self, name: str) -> Array:
        """The array of that name; zeros at the first call."""
        if name not in self.state:
            self.state[name] = self.flat.device.zeros(self.part.stop - self.part.start, self.flat.dtype)
        return self.state[name]

    def move(self, arrays: Mapping[str, Array]) -> None:
        """Keep the state in these arrays from now on."""
        for name, array in arrays.items():
            if self.state.get(name) is not array:
                array[...] = self.state.get(name, 0)
                self.state[name] = array

    def write(self, name: str, i: int, values: Any) -> None:
        """Write the values of parameter ``i`` into an array, as far as they are kept here."""
        place, part, array = self.flat.slice_of(i), self.part, self.array(name)
        start, stop = max(place.start, part.start), min(place.stop, part.stop)
        if start < stop:
            flat = self.flat.device.asarray(values).reshape(-1)
            array[start - part.start : stop - part.start] = flat[start - place.start : stop - place.start]

    def spans(self, first: int, last: int) -> list[tuple[int, int]]:
        """Cut the parameters from ``first`` to ``last`` (excluded) into spans of neighbours that can be updated as one.

        The parameters of a span all have a gradient and the same step count; usually there is one span.
        """
        spans: list[tuple[int, int]] = []
        for i in self.present:
            if not first <= i < last:
                continue
            if spans and spans[-1][1] == i and self.steps[i] == self.steps[i - 1]:
                spans[-1] = (spans[-1][0], i + 1)
            else:
                spans.append((i, i + 1))
        return spans


@dataclass(frozen=True)
class SharedState:
    """How several programs share the state of an optimizer.

    Attributes:
        part_of: the part that this program keeps of a flat array with so many numbers.
        gather: from this program's part of a flat array, and its whole length, the whole array; None in all programs but one. All of them
            call it at the same time.
    """

    part_of: Callable[[int], slice]
    gather: Callable[[Array, int], Array | None]


@dataclass(frozen=True)
class Span:
    """The parameters of ``group`` in ``buffer`` from ``first`` to ``last`` (excluded): they lie side by side and are updated as one."""

    group: dict[str, Any]
    buffer: Buffer
    first: int
    last: int

    @property
    def step(self) -> int:
        """The number of their next step, counted from 1."""
        return self.buffer.steps[self.first] + 1

    def count_step(self) -> None:
        """Count a step and a write in place for each of them."""
        step = self.step
        for i in range(self.first, self.last):
            self.buffer.steps[i] = step
            p = self.buffer.flat.parameters[i]
            p.version.increment(p.array)
