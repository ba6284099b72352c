"""A pool of worker processes that returns results in the order of the tasks.

concurrent.futures is not used: if the parent is killed, its workers wait for ever, and preparing a corpus takes long enough for that to
happen. Here each worker reads from a pipe whose other end only the parent has. When the parent ends, in whatever way, the pipe ends.
multiprocessing is not used either: it would import the parent's program again in every worker, which can take longer than the work.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, Generic, TypeVar

from data.errors import DataError

Q = TypeVar("Q")
A = TypeVar("A")

_PROTOCOL = 5  # pickles arrays without a copy
_TIMEOUT = 1  # seconds for a worker to end


class Pool(Generic[Q, A]):
    """Runs ``function(task)`` for many tasks, in ``workers`` processes; with one worker, in this process.

    Args:
        make: returns ``function``, in each process, for ``argument``.
    """

    def __init__(self, workers: int, make: Callable[[Any], Callable[[Q], A]], argument: Any) -> None:
        self._function = make(argument) if workers == 1 else None
        self._workers: list[_Worker] = []
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        if self._function is None:
            for _ in range(workers):
                self._workers.append(_Worker())
            for worker in self._workers:
                worker.send((make, argument))
                self._free.put(worker)

    def map(self, tasks: Iterable[Q]) -> Iterator[tuple[Q, A]]:
        """Each task with its result, in order. At most two tasks for each worker are in progress.

        Raises:
            DataError: that a worker raises, or if a worker process ends.
        """
        if self._function is not None:
            for task in tasks:
                yield task, self._function(task)
            return
        with ThreadPoolExecutor(len(self._workers)) as threads:  # they only wait for the pipes
            pending: deque[tuple[Q, Future[A]]] = deque()
            try:
                for task in tasks:
                    pending.append((task, threads.submit(self._run, task)))
                    while len(pending) > 2 * len(self._workers) or (pending and pending[0][1].done()):
                        first, future = pending.popleft()
                        yield first, future.result()
                while pending:
                    first, future = pending.popleft()
                    yield first, future.result()
            finally:
                for _, future in pending:
                    future.cancel()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()
        for worker in self._workers:
            worker.wait()

    def __enter__(self) -> Pool[Q, A]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self, task: Q) -> A:
        worker = self._free.get()
        try:
            worker.send(task)
            error, result = worker.receive()
        except (EOFError, OSError, pickle.UnpicklingError) as end:
            raise DataError("a worker process was killed, perhaps because memory was short; try again with fewer --workers.") from end
        finally:
            self._free.put(worker)
        if error is not None:
            raise error
        return result


class _Worker:
    """The parent's side of one worker process."""

    def __init__(self) -> None:
        program = f"import sys; sys.path[:] = {sys.path!r}; from data.pool import run_worker; run_worker()"
        self._process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks, self._results = self._process.stdin, self._process.stdout

    def send(self, task: object) -> None:
        _send(task, self._tasks)

    def receive(self) -> Any:
        return pickle.load(self._results)

    def close(self) -> None:
        for pipe in (self._tasks, self._results):
            with contextlib.suppress(OSError):  # the worker ended before it had read everything
                pipe.close()

    def wait(self) -> None:
        try:
            self._process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run_worker() -> None:
    """Run a worker: read ``make`` and its argument, then tasks, from stdin, and write results to stdout."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C; its end ends the pipe
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers run in parallel already
    tasks = sys.stdin.buffer
    gone = (EOFError, OSError, pickle.UnpicklingError)  # the parent ended, between two messages or within one
    with contextlib.suppress(*gone), os.fdopen(os.dup(sys.stdout.fileno()), "wb") as results:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is not a result
        make, argument = pickle.load(tasks)
        function = make(argument)
        while True:
            task = pickle.load(tasks)
            try:
                reply: tuple[Exception | None, object] = (None, function(task))
            except Exception as error:  # noqa: BLE001 - sent to the parent, which raises it
                reply = (_picklable(error), None)
            _send(reply, results)


def _send(content: object, pipe: IO[bytes]) -> None:
    pickle.dump(content, pipe, _PROTOCOL)
    pipe.flush()


def _picklable(error: Exception) -> Exception:
    """``error`` in a form that can be unpickled; not every exception can."""
    if isinstance(error, DataError):
        return DataError(str(error))
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)  # the parent explains a full disk
    import traceback

    return RuntimeError("in a worker process:\n" + "".join(traceback.format_exception(error)))
