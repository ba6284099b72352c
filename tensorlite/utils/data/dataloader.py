"""Samples as batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tensorlite import creation
from tensorlite.ops.shape import stack
from tensorlite.tensor import Tensor
from tensorlite.utils.data.dataset import IterableDataset
from tensorlite.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler


class DataLoader:
    """Batches of a data set, epoch after epoch: ``for x, y in DataLoader(dataset, batch_size=32, shuffle=True): …``

    Args:
        dataset: has ``__getitem__`` and ``__len__``, or is an `IterableDataset`.
        batch_size: None for single samples.
        sampler: the order of the samples, in the place of ``shuffle``.
        batch_sampler: lists of samples, in the place of ``batch_size``, ``shuffle``, ``sampler`` and ``drop_last``.
        num_workers, pin_memory, timeout, prefetch_factor, persistent_workers, pin_memory_device, multiprocessing_context: taken for
            torch's sake. Batches are made in this process, when they are asked for, and are the same whatever is said here.
        collate_fn: makes a batch of a list of samples, by default `default_collate`.
        generator: for ``shuffle``, by default the thread's stream.

    Raises:
        ValueError: for options that exclude each other.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[list[int]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: np.random.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
    ) -> None:
        is_stream = isinstance(dataset, IterableDataset)
        if sampler is not None and shuffle:
            raise ValueError("DataLoader: sampler and shuffle both say the order; leave one out.")
        if batch_sampler is not None and (batch_size != 1 or shuffle or sampler is not None or drop_last):
            raise ValueError("DataLoader: batch_sampler takes the place of batch_size, shuffle, sampler and drop_last; leave them out.")
        if is_stream and (shuffle or sampler is not None or batch_sampler is not None):
            raise ValueError("DataLoader: an IterableDataset has an order of its own; leave shuffle, sampler and batch_sampler out.")
        if batch_size is None and drop_last:
            raise ValueError("DataLoader: without batches there is no last one to drop; leave drop_last out.")
        self.dataset, self.batch_size, self.drop_last, self.num_workers = dataset, batch_size, drop_last, num_workers
        self.pin_memory, self.generator, self.collate_fn = pin_memory, generator, collate_fn or default_collate
        self.sampler, self.batch_sampler = sampler, batch_sampler
        if not is_stream:
            if sampler is None:
                self.sampler = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
            if batch_sampler is None and batch_size is not None:
                assert self.sampler is not None
                self.batch_sampler = BatchSampler(self.sampler, batch_size, drop_last)
        self._converts_only = collate_fn is None and batch_size is None and batch_sampler is None

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.dataset, IterableDataset):
            yield from self._stream()
        elif self.batch_sampler is None:
            assert self.sampler is not None
            for number in self.sampler:
                yield self._single(self.dataset[number])
        else:
            for numbers in self.batch_sampler:
                yield self.collate_fn([self.dataset[number] for number in numbers])

    def __len__(self) -> int:
        if isinstance(self.dataset, IterableDataset):
            n = len(self.dataset)  # type: ignore[arg-type]
            return n if self.batch_size is None else n // self.batch_size if self.drop_last else -(-n // self.batch_size)
        return len(self.sampler if self.batch_sampler is None else self.batch_sampler)  # type: ignore[arg-type]

    def _stream(self) -> Iterator[Any]:
        samples = iter(self.dataset)
        if self.batch_size is None:
            yield from map(self._single, samples)
            return
        while batch := list(itertools.islice(samples, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield self.collate_fn(batch)

    def _single(self, sample: Any) -> Any:
        return _converted(sample) if self._converts_only else self.collate_fn(sample)


def default_collate(batch: list[Any]) -> Any:
    """A batch of samples: tensors and arrays stacked, numbers as one tensor (floats as float64, as in torch), text as a list; pairs and
    dicts part by part.

    Raises:
        TypeError: for samples of another type.
    """
    first = batch[0]
    if isinstance(first, Tensor):
        return stack(batch)
    if isinstance(first, np.ndarray | np.generic):
        return creation.tensor(np.stack([np.asarray(sample) for sample in batch]))
    if isinstance(first, float):
        return creation.tensor(batch, dtype=creation.float64)
    if isinstance(first, int):
        return creation.tensor(batch)
    if isinstance(first, str | bytes):
        return batch
    if isinstance(first, Mapping):
        return {key: default_collate([sample[key] for sample in batch]) for key in first}
    if isinstance(first, tuple | list):
        if any(len(sample) != len(first) for sample in batch):
            raise ValueError("default_collate: the samples of a batch must have as many parts each; pass a collate_fn.")
        parts = [default_collate(list(part)) for part in zip(*batch, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else parts
    raise TypeError(f"default_collate: a batch of {type(first).__name__} cannot be made; pass a collate_fn.")


def _converted(sample: Any) -> Any:
    """Arrays in a single sample as tensors."""
    if isinstance(sample, np.ndarray):
        return creation.tensor(sample)
    if isinstance(sample, Mapping):
        return {key: _converted(value) for key, value in sample.items()}
    if isinstance(sample, tuple | list) and not hasattr(sample, "_fields"):
        return [_converted(value) for value in sample]
    return sample
