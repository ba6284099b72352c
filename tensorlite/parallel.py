"""Data parallelism on the cores of a CPU: each worker runs the whole tape on its part of the batch.

There are two ways to use several cores. One splits every op, and synchronises all threads a hundred times a step. The
other splits the *batch*: every worker takes some rows through forward and backward of the whole model, and the threads
synchronise once, to add their gradients. This page does the second, with threads, because NumPy releases Python's lock
while it computes.

- A *shard* is a part of the batch, with a replica of the model: the same parameters, its own gradients, its own
  random generator. The number of shards decides how sums are rounded. Gradients are added in the order of the shards.
- A *worker* is a thread that takes one shard after the other. The number of workers changes the time, and no bit of the result.

The loss is a mean over the batch, so a shard with n of N rows has the weight n/N. Its backward starts from that gradient.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from tensorlite.backend import Array, array_module
from tensorlite.optim.flat import FlatParameters
from tensorlite.random import use_dropout_key, use_generator
from tensorlite.tensor import Tensor

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """A pool of threads with one BLAS thread each, for a ``with`` block. A single worker is the calling thread itself.

    Inside the block every matrix product runs on one core, and the pool uses the others. After the block BLAS has
    as many threads as before. A KeyboardInterrupt leaves the block at once, without the end of the work that is running; the next
    block begins when that work has ended.

    Raises:
        ValueError: for less than one worker.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"the number of workers must be at least 1, got {count}.")
        self.count = count
        self._pool: ThreadPoolExecutor | None = None  # outside a ``with`` block the calling thread does all the work
        self._interrupted: ThreadPoolExecutor | None = None  # its threads may still be at work

    def __enter__(self) -> Workers:
        if self._interrupted is not None:
            self._interrupted.shutdown()  # waits
            self._interrupted = None
        self._limits = threadpool_limits(1, user_api="blas")
        self._pool = ThreadPoolExecutor(self.count, "tensorlite-worker") if self.count > 1 else None
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._pool is not None:
            interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)  # the running work may take seconds, the queue minutes
            self._pool.shutdown(wait=not interrupted, cancel_futures=interrupted)
            self._interrupted = self._pool if interrupted else None
            self._pool = None
        self._limits.restore_original_limits()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """``[function(item) for item in items]``, in parallel. The first exception is raised after all calls have ended."""
        if self._pool is None:
            return [function(item) for item in items]
        # in a copy of the caller's context, so that numpy.errstate applies to the workers, too
        futures = [self._pool.submit(contextvars.copy_context().run, function, item) for item in items]
        for future in futures:
            future.exception()  # waits until no worker writes any more
        return [future.result() for future in futures]

    def split(self, length: int) -> list[slice]:
        """``range(length)`` split into one slice for each worker."""
        ends = [length * i // self.count for i in range(self.count + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(ends)]


class BatchShards:
    """A model and its replicas, each for one shard of the batch.

    Args:
        model: the model for the first shard; the others get replicas.
        flats: the flat buffers of the parameters that are trained, as in `Optimizer.flats`.
        count: the number of shards.
        workers: the threads that run them.

    Raises:
        ValueError: for less than one shard.
    """

    def __init__(self, model: Any, flats: Sequence[FlatParameters], count: int, workers: Workers) -> None:
        if count < 1:
            raise ValueError(f"the number of shards must be at least 1, got {count}.")
        self.model, self.flats, self.workers = model, list(flats), workers
        self.replicas = [_Replica(model, self.flats) for _ in range(count - 1)]

    def zero_grad(self) -> None:
        """Drop all gradients: the model's, and those that an interrupted call left in the replicas."""
        for tensor in self.model.parameters():
            tensor.grad = None
        for replica in self.replicas:
            replica.zero_grad()

    def split_rows(self, rows: int) -> list[slice]:
        """The rows of each shard, as even as possible. With fewer rows than shards there are fewer slices."""
        count = len(self.replicas) + 1
        ends = [rows * i // count for i in range(count + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(ends) if a < b]

    def forward_backward(
        self, batch: tuple[Tensor, ...], generator_of: Callable[[int], np.random.Generator], scale: float | Array = 1.0, keys: Array = ()
    ) -> Tensor:
        """Forward and backward. The gradients of all shards are added into the model's own ``grad``.

        Args:
            batch: tensors that are split along their first axis and passed to the model, which returns (logits, loss).
            generator_of: returns the random generator of a shard, by its number.
            scale: the factor of the loss in backward: one over the number of accumulated batches, times the scale of a `GradScaler` if
                there is one.
            keys: on a GPU, the dropout key of each shard (see `tensorlite.random.use_dropout_key`).

        Returns:
            The mean loss over the batch.
        """
        rows = batch[0].shape[0]
        shares = self.split_rows(rows)
        for replica in self.replicas:
            replica.refresh(self.model)
        models = [self.model, *(replica.model for replica in self.replicas)]

        def run(i: int) -> Tensor:
            share = shares[i]
            weight = (share.stop - share.start) / rows
            with use_generator(generator_of(i)), use_dropout_key(keys[i]) if len(keys) else contextlib.nullcontext():
                # keep only the loss: with a large vocabulary, the logits are most of the memory
                loss = models[i](*(tensor[share] for tensor in batch))[1]
                dy = array_module(loss.array).full((), weight, loss.dtype)  # created on the device, without a copy
                dy *= scale
                loss.backward(Tensor.wrap(dy))
            return loss.detach() * weight

        losses = self.workers.map(run, range(len(shares)))
        for replica in self.replicas[: len(shares) - 1]:
            replica.add_gradients(self.workers)
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total


class _Replica:
    """A copy of the model that shares the memory of the parameters, and has its own memory for their gradients."""

    def __init__(self, model: Any, flats: list[FlatParameters]) -> None:
        self.flats = flats
        self.gradients = [array_module(flat.grad).zeros_like(flat.grad) for flat in flats]
        self.twins: list[tuple[Tensor, Tensor]] = []
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}  # also frozen parameters
        for flat, gradient in zip(flats, self.gradients, strict=True):
            for i, parameter in enumerate(flat.parameters):
                twin = type(parameter)(parameter.array)
                twin.grad_buffer = flat.view(gradient, i)
                shared[id(parameter)] = twin
                self.twins.append((parameter, twin))
        self.model = copy.deepcopy(model, memo=dict(shared))

    def refresh(self, model: Any) -> None:
        """Take over changes of the first model: new arrays, training or evaluation mode."""
        for parameter, twin in self.twins:
            twin.array, twin.requires_grad = parameter.array, parameter.requires_grad
        for module, copied in zip(model.modules(), self.model.modules(), strict=True):
            copied.training = module.training

    def add_gradients(self, workers: Workers) -> None:
        """Add the gradients to those of the first model, and drop them here."""
        if all(_is_in_buffer(parameter) and _is_in_buffer(twin) for parameter, twin in self.twins):
            for flat, gradient in zip(self.flats, self.gradients, strict=True):
                workers.map(functools.partial(_add_part, flat.grad, gradient), workers.split(len(gradient)))
        else:  # some parameters were not used in this step
            for parameter, twin in self.twins:
                if twin.grad is not None:
                    parameter.grad = twin.grad.clone() if parameter.grad is None else parameter.grad + twin.grad
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for _, twin in self.twins:
            twin.grad = None


def _is_in_buffer(parameter: Tensor) -> bool:
    """Whether the parameter has a gradient, and it lies in the flat buffer."""
    return parameter.grad is not None and parameter.grad.array is parameter.grad_buffer


def _add_part(total: Array, gradient: Array, part: slice) -> None:
    total[part] += gradient[part]
