"""Several workers on one batch: each runs the whole tape on its share.

Where a step is to be spread over the cores of a CPU there are two ways. One shares out every single op, and pays
for a meeting of all threads a hundred times a step. The other shares out the *batch*: every worker takes some rows,
goes forward and backward through the whole model by itself, and all meet once, to add up their gradients. That
is what happens here, with threads: NumPy lets go of Python's lock while it computes.

- A *shard* is a share of the batch, with a `replica` of the model: the same parameters, its own gradients, its own
  stream of random numbers. Shards decide the arithmetic. Gradients are added in the order of the shards.
- A *worker* is a thread that takes shards as they come. How many there are changes the time and not one bit.

The loss is a mean over the batch, so a shard of n of N rows counts n/N: that is the gradient its backward starts from.
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
    """A team of threads with one BLAS thread each, for a ``with`` block; one worker is the calling thread itself.

    Inside the block every product runs on one core: the team is what keeps the others busy. Afterwards BLAS has
    as many threads again as before.

    Raises:
        ValueError: for less than one worker.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"the number of workers must be at least 1, got {count}.")
        self.count = count
        self._pool: ThreadPoolExecutor | None = None  # outside a ``with`` block the calling thread does it all

    def __enter__(self) -> Workers:
        self._limits = threadpool_limits(1, user_api="blas")
        self._pool = ThreadPoolExecutor(self.count, "tensorlite-worker") if self.count > 1 else None
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._pool is not None:
            in_a_hurry = kind is not None and issubclass(kind, KeyboardInterrupt)  # what is begun may take seconds, what waits minutes
            self._pool.shutdown(wait=not in_a_hurry, cancel_futures=in_a_hurry)
            self._pool = None
        self._limits.restore_original_limits()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """``[function(item) for item in items]``, several at a time. The first exception is raised, after all have ended."""
        if self._pool is None:
            return [function(item) for item in items]
        # in a copy of the caller's context, so that numpy.errstate holds for the workers, too
        futures = [self._pool.submit(contextvars.copy_context().run, function, item) for item in items]
        for future in futures:
            future.exception()  # waits: nobody may still be writing when the caller goes on
        return [future.result() for future in futures]

    def split(self, length: int) -> list[slice]:
        """``length`` numbers cut into one piece for each worker, for work that treats every number alike."""
        ends = [length * i // self.count for i in range(self.count + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(ends)]


class BatchShards:
    """A model and its replicas, each for one share of the batch.

    Args:
        model: the first shard's; the others get replicas.
        flats: where the parameters that are trained live, as `Optimizer.flats` lists them.
        count: how many shards.
        workers: who computes them.

    Raises:
        ValueError: for less than one shard.
    """

    def __init__(self, model: Any, flats: Sequence[FlatParameters], count: int, workers: Workers) -> None:
        if count < 1:
            raise ValueError(f"the number of shards must be at least 1, got {count}.")
        self.model, self.flats, self.workers = model, list(flats), workers
        self.replicas = [_Replica(model, self.flats) for _ in range(count - 1)]

    def split_rows(self, rows: int) -> list[slice]:
        """Which rows of a batch belong to which shard: as even as can be. A batch of fewer rows than shards leaves some empty."""
        count = len(self.replicas) + 1
        ends = [rows * i // count for i in range(count + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(ends) if a < b]

    def forward_backward(
        self, batch: tuple[Tensor, ...], generator_of: Callable[[int], np.random.Generator], scale: float | Array = 1.0, keys: Array = ()
    ) -> Tensor:
        """Forward and backward; the gradients of all shards end up added together in the model's own ``grad``.

        Args:
            batch: tensors that are cut along their first axis and passed to the model, which returns (logits, loss).
            generator_of: makes the random numbers of a shard, by its number.
            scale: multiplies the loss before its gradient is taken (one over the number of batches that are accumulated, or that times
                the scale of a `GradScaler`).
            keys: on a GPU, one for each shard: its dropout draws from there instead (see `tensorlite.random.use_dropout_key`).

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
                # only the loss is held: where the vocabulary is large, the logits are most of the memory
                loss = models[i](*(tensor[share] for tensor in batch))[1]
                dy = array_module(loss.array).full((), weight, loss.dtype)  # made on the device: nothing is copied there
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
    """A second model with the parameters of the first: the same memory for the values, its own for the gradients."""

    def __init__(self, model: Any, flats: list[FlatParameters]) -> None:
        self.flats = flats
        self.gradients = [array_module(flat.grad).zeros_like(flat.grad) for flat in flats]
        self.twins: list[tuple[Tensor, Tensor]] = []
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}  # also what is not trained
        for flat, gradient in zip(flats, self.gradients, strict=True):
            for i, parameter in enumerate(flat.parameters):
                twin = type(parameter)(parameter.array)
                twin.grad_buffer = flat.view(gradient, i)
                shared[id(parameter)] = twin
                self.twins.append((parameter, twin))
        self.model = copy.deepcopy(model, memo=dict(shared))

    def refresh(self, model: Any) -> None:
        """Follow what became of the first model: new arrays, another mode."""
        for parameter, twin in self.twins:
            twin.array, twin.requires_grad = parameter.array, parameter.requires_grad
        for module, copied in zip(model.modules(), self.model.modules(), strict=True):
            copied.training = module.training

    def add_gradients(self, workers: Workers) -> None:
        """Add the gradients to those of the first model, and forget them."""
        if all(_is_in_buffer(parameter) and _is_in_buffer(twin) for parameter, twin in self.twins):
            for flat, gradient in zip(self.flats, self.gradients, strict=True):
                workers.map(functools.partial(_add_part, flat.grad, gradient), workers.split(len(gradient)))
        else:  # parts of the model that did not take part in this step
            for parameter, twin in self.twins:
                if twin.grad is not None:
                    parameter.grad = twin.grad.clone() if parameter.grad is None else parameter.grad + twin.grad
        for _, twin in self.twins:
            twin.grad = None


def _is_in_buffer(parameter: Tensor) -> bool:
    """Whether the parameter's gradient is there, and where the flat buffer has it."""
    return parameter.grad is not None and parameter.grad.array is parameter.grad_buffer


def _add_part(mine: Array, theirs: Array, part: slice) -> None:
    mine[part] += theirs[part]
