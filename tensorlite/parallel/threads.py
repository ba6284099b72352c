"""A team of threads. NumPy releases Python's lock while it computes, so that they work at the same time."""

from __future__ import annotations

import contextvars
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Self, TypeVar

from threadpoolctl import threadpool_limits

from tensorlite.backend import Array
from tensorlite.optim.optimizer import Optimizer
from tensorlite.parallel.replicas import Shard, Task
from tensorlite.tensor import Tensor

T = TypeVar("T")
R = TypeVar("R")

ANSWER_WITHIN = 0.1  # seconds until a Ctrl-C is noticed


class Workers:
    """A pool of threads with one BLAS thread each, for a ``with`` block. A single worker is the calling thread itself.

    Inside the block every matrix product runs on one core, and the pool uses the others. After the block BLAS has
    as many threads as before. A KeyboardInterrupt leaves the block at once, without the end of the work that is running; the next
    block begins when that work has ended.

    Raises:
        ValueError: for less than one worker.
    """

    name = "threads"

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"the number of workers must be at least 1, got {count}.")
        self.count = count
        self._pool: ThreadPoolExecutor | None = None  # outside a ``with`` block the calling thread does all the work
        self._interrupted: ThreadPoolExecutor | None = None  # its threads may still be at work
        self._running: list[Future[Any]] = []  # what an interrupted `map` did not wait for

    def __enter__(self) -> Self:
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
        _wait_for(self._running)
        # in a copy of the caller's context, so that numpy.errstate applies to the workers, too
        self._running = futures = [self._pool.submit(contextvars.copy_context().run, function, item) for item in items]
        _wait_for(futures)  # until no worker writes any more
        return [future.result() for future in futures]

    def compute(self, shards: Sequence[Shard], tasks: Sequence[Task], optimizer: Optimizer | None = None) -> list[Tensor]:
        """The loss of each task, which the shard of the same number computes, with its gradient.

        Args:
            optimizer: will be passed to `update`.
        """
        return self.map(lambda i: shards[i].compute(tasks[i]), range(len(tasks)))

    def update(self, optimizer: Optimizer, gradient_factor: Array | None = None) -> None:
        """`Optimizer.step`. Threads do not share it out: its many short calls would wait for Python's lock."""
        optimizer.step(gradient_factor=gradient_factor)

    def split(self, length: int) -> list[slice]:
        """``range(length)`` split into one slice for each worker."""
        ends = [length * i // self.count for i in range(self.count + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(ends)]


def _wait_for(futures: Sequence[Future[Any]]) -> None:
    """Wait until all calls have ended. Python runs a signal's handler between two waits: one that arrives just before a wait begins does
    not end it, and on Windows none does.
    """
    while wait(futures, timeout=ANSWER_WITHIN).not_done:
        pass
