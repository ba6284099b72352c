"""In which order samples are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np

from tensorlite import random

_DRAWN_AT_ONCE = 1024


class Sampler:
    """The base: a subclass has ``__iter__``, over the numbers of samples, and ``__len__``."""

    def __init__(self, data_source: Any = None) -> None:
        """Takes and ignores the data set."""

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError(f"{type(self).__name__} has no __iter__(): define one.")


class SequentialSampler(Sampler):
    """0, 1, 2, …"""

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler):
    """At random: every sample once, or, with ``replacement``, each draw for itself.

    Args:
        num_samples: how many to draw; by default as many as there are.
        generator: by default the thread's stream.
    """

    def __init__(
        self, data_source: Sized, replacement: bool = False, num_samples: int | None = None, generator: np.random.Generator | None = None
    ) -> None:
        self.data_source, self.replacement, self.generator = data_source, replacement, generator
        self.num_samples = len(data_source) if num_samples is None else num_samples

    def __iter__(self) -> Iterator[int]:
        stream, n = self.generator or random.default_generator(), len(self.data_source)
        left = self.num_samples
        while left > 0:
            drawn = stream.integers(n, size=min(left, _DRAWN_AT_ONCE)) if self.replacement else stream.permutation(n)[:left]
            yield from drawn.tolist()
            left -= len(drawn)

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler):
    """The numbers of another sampler, as lists of ``batch_size``; the last one may be shorter, or with ``drop_last`` is left out."""

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch has at least one sample, got batch_size {batch_size}.")
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for number in self.sampler:
            batch.append(number)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def __len__(self) -> int:
        n = len(self.sampler)  # type: ignore[arg-type]
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
