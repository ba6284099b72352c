"""Worker processes that answer in the order in which they were asked.

Not concurrent.futures: when the parent is killed, its workers wait for ever, and a corpus takes long enough for that to happen.
Here each worker reads from a pipe whose other end is the parent's alone; when the parent dies, for whatever reason, the pipe ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from data.errors import DataError

Q = TypeVar("Q")
A = TypeVar("A")


class Pool(Generic[Q, A]):
    """``answer(question)`` for many questions, in ``workers`` processes; with one worker, in this one.

    Args:
        make: makes ``answer`` in each process, from ``argument``.
    """

    def __init__(self, workers: int, make: Callable[[Any], Callable[[Q], A]], argument: Any) -> None:
        self._answer = make(argument) if workers == 1 else None
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self._free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._workers = workers
        if self._answer is None:
            context = multiprocessing.get_context("spawn")  # forked ones would hold each other's pipes open
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, make, argument), daemon=True)
                process.start()
                theirs.close()
                self._connections.append(ours)
                self._processes.append(process)
                self._free.put(ours)

    def map(self, questions: Iterable[Q]) -> Iterator[tuple[Q, A]]:
        """Each question and its answer, in order. At most two for each worker are under way.

        Raises:
            DataError: whichever a worker raises, or if a worker dies.
        """
        if self._answer is not None:
            for question in questions:
                yield question, self._answer(question)
            return
        with ThreadPoolExecutor(self._workers) as threads:  # they only wait for the pipes
            pending: deque[tuple[Q, Future[A]]] = deque()
            try:
                for question in questions:
                    pending.append((question, threads.submit(self._ask, question)))
                    while len(pending) > 2 * self._workers or (pending and pending[0][1].done()):
                        asked, future = pending.popleft()
                        yield asked, future.result()
                while pending:
                    asked, future = pending.popleft()
                    yield asked, future.result()
            finally:
                for _, future in pending:
                    future.cancel()

    def close(self) -> None:
        """End the workers."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(1)
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Pool[Q, A]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, question: Q) -> A:
        connection = self._free.get()
        try:
            connection.send(question)
            error, answer = _receive(connection)
        except (EOFError, OSError) as end:
            raise DataError("a worker process was ended from outside, perhaps for want of memory; try again with fewer --workers.") from end
        finally:
            self._free.put(connection)
        if error is not None:
            raise error
        return answer


def _serve(connection: Connection, make: Callable[[Any], Callable[[Q], A]], argument: Any) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end ends the pipe
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    answer = make(argument)
    with contextlib.suppress(EOFError, OSError):
        while True:
            question = connection.recv()
            try:
                reply: tuple[Exception | None, A | None] = (None, answer(question))
            except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
                reply = (_portable(error), None)
            _send(connection, reply)


def _send(connection: Connection, reply: object) -> None:
    """Pickle ``reply``, but send its arrays as they lie in memory: they are most of it, and copying them costs more than sending."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(reply, 5, buffer_callback=buffers.append)
    connection.send((head, len(buffers)))
    for buffer in buffers:
        connection.send_bytes(buffer.raw())


def _receive(connection: Connection) -> Any:
    head, count = connection.recv()
    return pickle.loads(head, buffers=[connection.recv_bytes() for _ in range(count)])


def _portable(error: Exception) -> Exception:
    """``error`` fit for a pipe: some exceptions cannot be put together again from their message."""
    if isinstance(error, DataError):
        return DataError(str(error))
    import traceback

    return RuntimeError("in a worker process:\n" + "".join(traceback.format_exception(error)))
