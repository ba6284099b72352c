"""CUDA graphs: a step is recorded once and launched many times.

Python needs some microseconds to queue a kernel, and a training step has many hundreds of kernels. If they are short, the GPU waits
for Python. A graph is the list of all these kernels with their arguments, and one call queues it. Between two launches only the contents
of memory may change; addresses, sizes and numbers that were passed by value stay the same.

    recorder = Recorder()
    recorder.run(step)                    # runs, a few times: this compiles the kernels, and fills the memory pool
    recording = recorder.record(step)     # does not run, but is recorded
    recording.launch()                    # runs, as often as wanted

While a stream is captured, the program must not wait for the device, and must not copy from host memory, whose address would be recorded.
"""

from __future__ import annotations

import contextlib
import importlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class CaptureError(RuntimeError):
    """The work cannot be recorded; the message is CUDA's or CuPy's."""


@dataclass(frozen=True)
class Recording(Generic[T]):
    """A captured graph; see `Recorder.record`.

    Attributes:
        result: what the work returned: arrays that every launch writes again.
    """

    result: T
    _graph: Any
    _pool: Any  # the graph holds addresses only, so the memory must exist as long as the graph

    def launch(self) -> None:
        """Queue all of it on the current stream."""
        self._graph.launch()


class Recorder:
    """A separate stream and a separate memory pool for one recording.

    The memory of an array that the work has freed must not be used by others, because the graph writes there at its next launch. And when
    memory is short, CuPy's common pool returns free blocks to the driver. So the graph needs its own pool.
    """

    def __init__(self) -> None:
        cupy = self._cupy = importlib.import_module("cupy")
        self._stream, self._pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
        self._taken = 0  # bytes that the pool held at the last allocation of a capture
        common = cupy.get_default_memory_pool()
        common.free_all_blocks()
        self._limit = common.get_limit()
        if self._limit:  # the limit is for both pools together
            self._pool.set_limit(size=max(1, self._limit - common.total_bytes()))

    def run(self, work: Callable[[], T]) -> T:
        """Run ``work``, after everything that was queued before and before everything that is queued later."""
        with self._at_work():
            return work()

    def record(self, work: Callable[[], T]) -> Recording[T]:
        """Record ``work``. Its Python code runs once, but no kernel runs.

        Raises:
            CaptureError: for work that cannot be recorded, such as a host read of a value, and if there is too little memory.
        """
        self._taken = self.memory
        with self._at_work(self._malloc_in_capture):
            self._stream.synchronize()
            self._stream.begin_capture()
            try:
                result = work()
            except BaseException as error:
                with contextlib.suppress(RuntimeError):  # the end of a failed capture raises, too
                    self._stream.end_capture()
                if isinstance(error, RuntimeError | MemoryError):  # plain steps may still fit into the memory
                    raise CaptureError(str(error)) from error
                raise
            try:
                graph = self._stream.end_capture()
            except RuntimeError as error:
                raise CaptureError(str(error)) from error
        recording = Recording(result, graph, self._pool)
        if self._limit:  # what our pool has taken is not for the common one, as long as there is the recording
            common = self._cupy.get_default_memory_pool()
            common.set_limit(size=max(1, self._limit - self.memory))
            weakref.finalize(recording, _raise_limit, common, self.memory).atexit = False
        return recording

    @property
    def memory(self) -> int:
        """The bytes in our pool, which the work has needed so far."""
        return int(self._pool.total_bytes())

    def _malloc_in_capture(self, size: int) -> Any:
        """Allocate memory while a graph is captured.

        A pool without enough memory returns all its free blocks to the driver before it requests more. The graph may already use them.

        Raises:
            CaptureError: if that has happened.
        """
        memory = self._pool.malloc(size)
        if self.memory < self._taken:
            raise CaptureError("the memory is short, and some that the graph uses was returned to the driver")
        self._taken = self.memory
        return memory

    @contextlib.contextmanager
    def _at_work(self, malloc: Callable[[int], Any] | None = None) -> Iterator[None]:
        """Use our stream and our memory pool, in order with the caller's stream."""
        others = self._cupy.cuda.get_current_stream()
        self._stream.wait_event(others.record())
        try:
            with self._stream, self._cupy.cuda.using_allocator(malloc or self._pool.malloc):
                yield
        finally:
            others.wait_event(self._stream.record())


def _raise_limit(pool: Any, size: int) -> None:
    pool.set_limit(size=pool.get_limit() + size)


__all__ = ["CaptureError", "Recorder", "Recording"]
