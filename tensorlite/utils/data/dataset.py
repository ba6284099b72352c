"""Samples by number."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from tensorlite import random
from tensorlite.tensor import Tensor

T = TypeVar("T")


class Dataset(Generic[T]):
    """The base of a data set: a subclass has ``__getitem__(number)`` and, as a rule, ``__len__``."""

    def __getitem__(self, index: Any) -> T:
        raise NotImplementedError(f"{type(self).__name__} has no __getitem__(): define one.")

    def __add__(self, other: Dataset[T]) -> ConcatDataset:
        return ConcatDataset([self, other])


class IterableDataset(Dataset[T]):
    """The base of a data set that only comes one sample after the other: a subclass has ``__iter__``."""

    def __iter__(self) -> Iterator[T]:
        raise NotImplementedError(f"{type(self).__name__} has no __iter__(): define one.")


class TensorDataset(Dataset[tuple[Tensor, ...]]):
    """Sample i is row i of each tensor."""

    def __init__(self, *tensors: Tensor) -> None:
        if any(len(tensor) != len(tensors[0]) for tensor in tensors):
            raise ValueError(f"TensorDataset: the tensors must have as many rows each, got {[tensor.shape for tensor in tensors]}.")
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])


class ConcatDataset(Dataset[Any]):
    """Several data sets, one after the other."""

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset needs at least one data set.")
        self.cumulative_sizes = list(itertools.accumulate(map(len, self.datasets)))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} does not exist: there are {len(self)}.")
        index %= len(self)
        number = bisect.bisect_right(self.cumulative_sizes, index)
        return self.datasets[number][index - (self.cumulative_sizes[number - 1] if number else 0)]


class Subset(Dataset[Any]):
    """Some samples of a data set, by number."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[[self.indices[i] for i in index] if isinstance(index, list) else self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)


def random_split(dataset: Any, lengths: Sequence[float], generator: np.random.Generator | None = None) -> list[Subset]:
    """Parts of these lengths, or shares of the whole that add up to 1, drawn at random and without overlap.

    Raises:
        ValueError: if the lengths do not add up.
    """
    n = len(dataset)
    counts = [int(length) for length in lengths]
    if math.isclose(sum(lengths), 1) and n != 1:
        counts = [math.floor(n * share) for share in lengths]
        for i in range(n - sum(counts)):  # what rounding down has left over, one by one
            counts[i % len(counts)] += 1
    if sum(counts) != n:
        raise ValueError(f"random_split: the lengths {list(lengths)} do not add up to {n}, the number of samples, or to 1.")
    order = (generator or random.default_generator()).permutation(n).tolist()
    ends = itertools.accumulate(counts)
    return [Subset(dataset, order[end - count : end]) for end, count in zip(ends, counts, strict=True)]
