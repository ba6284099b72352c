"""Worker processes that answer in the order in which they were asked.

Not concurrent.futures: when the parent is killed, its workers wait for ever, and a corpus takes long enough for that to happen.
Here each worker reads from a pipe whose other end is the parent's alone; when the parent dies, for whatever reason, the pipe ends.
Nor multiprocessing: it would import the parent's program once more in every worker, which can take longer than the work.
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

_PROTOCOL = 5  # arrays go through without being copied
_PATIENCE = 1  # seconds that a worker may take to end


class Pool(Generic[Q, A]):
    """``answer(question)`` for many questions, in ``workers`` processes; with one worker, in this one.

    Args:
        make: makes ``answer`` in each process, from ``argument``.
    """

    def __init__(self, workers: int, make: Callable[[Any], Callable[[Q], A]], argument: Any) -> None:
        self._answer = make(argument) if workers == 1 else None
        self._workers: list[_Worker] = []
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        if self._answer is None:
            for _ in range(workers):
                self._workers.append(_Worker())
            for worker in self._workers:
                worker.send((make, argument))
                self._free.put(worker)

    def map(self, questions: Iterable[Q]) -> Iterator[tuple[Q, A]]:
        """Each question and its answer, in order. At most two for each worker are under way.

        Raises:
            DataError: whichever a worker raises, or if a worker dies.
        """
        if self._answer is not None:
            for question in questions:
                yield question, self._answer(question)
            return
        with ThreadPoolExecutor(len(self._workers)) as threads:  # they only wait for the pipes
            pending: deque[tuple[Q, Future[A]]] = deque()
            try:
                for question in questions:
                    pending.append((question, threads.submit(self._ask, question)))
                    while len(pending) > 2 * len(self._workers) or (pending and pending[0][1].done()):
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
        for worker in self._workers:
            worker.close()
        for worker in self._workers:
            worker.wait()

    def __enter__(self) -> Pool[Q, A]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, question: Q) -> A:
        worker = self._free.get()
        try:
            worker.send(question)
            error, answer = worker.receive()
        except (EOFError, OSError, pickle.UnpicklingError) as end:
            raise DataError("a worker process was ended from outside, perhaps for want of memory; try again with fewer --workers.") from end
        finally:
            self._free.put(worker)
        if error is not None:
            raise error
        return answer


class _Worker:
    """The parent's side of one."""

    def __init__(self) -> None:
        program = f"import sys; sys.path[:] = {sys.path!r}; from data.pool import serve; serve()"
        self._process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._process.stdout

    def send(self, question: object) -> None:
        _send(question, self._questions)

    def receive(self) -> Any:
        return pickle.load(self._answers)

    def close(self) -> None:
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(OSError):  # the worker was dead before it had read everything
                pipe.close()

    def wait(self) -> None:
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve() -> None:
    """A worker: read what to make, then questions, from stdin, and write answers to stdout."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end ends the pipe
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    questions = sys.stdin.buffer
    gone = (EOFError, OSError, pickle.UnpicklingError)  # the parent, between two messages or in the middle of one
    with contextlib.suppress(*gone), os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
        make, argument = pickle.load(questions)
        answer = make(argument)
        while True:
            question = pickle.load(questions)
            try:
                reply: tuple[Exception | None, object] = (None, answer(question))
            except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
                reply = (_portable(error), None)
            _send(reply, answers)


def _send(content: object, pipe: IO[bytes]) -> None:
    pickle.dump(content, pipe, _PROTOCOL)
    pipe.flush()


def _portable(error: Exception) -> Exception:
    """``error`` fit for a pipe: some exceptions cannot be put together again from their message."""
    if isinstance(error, DataError):
        return DataError(str(error))
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)  # a full disk is for the parent to explain
    import traceback

    return RuntimeError("in a worker process:\n" + "".join(traceback.format_exception(error)))
