"""A step of work, recorded once and launched many times: CUDA graphs.

Python takes some microseconds to queue a kernel, and a training step has many hundreds. Where the kernels are short the GPU waits for
Python. A graph is the list of all of them, with their arguments, and one call queues it. What may change from one launch to the
next is what lies in memory, and nothing else: neither addresses, nor sizes, nor numbers that were passed by value.

    recorder = Recorder()
    recorder.run(step)                    # really done, a few times: compiles the kernels, and fills the pool with memory
    recording = recorder.record(step)     # not done, but written down
    recording.launch()                    # done, as often as wanted

While a stream records, nothing may wait for the device, and no memory of the host may be copied from: its address would be written down.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class CaptureError(RuntimeError):
    """The work cannot be recorded; the message is CUDA's or CuPy's."""


@dataclass(frozen=True)
class Recording(Generic[T]):
    """What `Recorder.record` has written down.

    Attributes:
        result: what the work returned: arrays that every launch fills anew.
    """

    result: T
    _graph: Any
    _pool: Any  # the graph knows addresses only: as long as it is there, so must the memory be

    def launch(self) -> None:
        """Queue all of it on the current stream."""
        self._graph.launch()


class Recorder:
    """A stream and a pool of memory of their own; one recorder makes one recording.

    The pool is its own for a reason. An array that the work has let go of is free again, but not for others: the graph will write there
    at its next launch. And where memory is short, CuPy's common pool hands what is free back to the driver.
    """

    def __init__(self) -> None:
        cupy = self._cupy = importlib.import_module("cupy")
        self._stream, self._pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
        self._taken = 0  # bytes that the pool held at the last allocation of a capture
        common = cupy.get_default_memory_pool()
        common.free_all_blocks()
        self._limit = common.get_limit()
        if self._limit:  # both pools together shall keep to it
            self._pool.set_limit(size=max(1, self._limit - common.total_bytes()))

    def run(self, work: Callable[[], T]) -> T:
        """Do ``work``, after everything that was queued before and before everything that is queued later."""
        with self._at_work():
            return work()

    def record(self, work: Callable[[], T]) -> Recording[T]:
        """Write ``work`` down. Python runs it once, but no kernel does.

        Raises:
            CaptureError: for what cannot be recorded, such as a look at a value; also if the memory does not suffice.
        """
        self._taken = self.memory
        with self._at_work(self._malloc_for_good):
            self._stream.synchronize()
            self._stream.begin_capture()
            try:
                result = work()
            except BaseException as error:
                with contextlib.suppress(RuntimeError):  # a capture that has failed is also ended by an error
                    self._stream.end_capture()
                if isinstance(error, RuntimeError | MemoryError):  # plain steps may fit into the memory all the same
                    raise CaptureError(str(error)) from error
                raise
            try:
                graph = self._stream.end_capture()
            except RuntimeError as error:
                raise CaptureError(str(error)) from error
        if self._limit:
            self._cupy.get_default_memory_pool().set_limit(size=max(1, self._limit - self.memory))
        return Recording(result, graph, self._pool)

    @property
    def memory(self) -> int:
        """Bytes in our pool: what the work has needed so far."""
        return int(self._pool.total_bytes())

    def _malloc_for_good(self, size: int) -> Any:
        """Take memory while a graph is captured.

        A pool that runs short gives all its free blocks back to the driver before it asks for more. The graph may use them already.

        Raises:
            CaptureError: if that has happened.
        """
        memory = self._pool.malloc(size)
        if self.memory < self._taken:
            raise CaptureError("the memory is short, and some that the graph uses was given back")
        self._taken = self.memory
        return memory

    @contextlib.contextmanager
    def _at_work(self, malloc: Callable[[int], Any] | None = None) -> Iterator[None]:
        """On our stream, in our memory."""
        others = self._cupy.cuda.get_current_stream()
        self._stream.wait_event(others.record())
        try:
            with self._stream, self._cupy.cuda.using_allocator(malloc or self._pool.malloc):
                yield
        finally:
            others.wait_event(self._stream.record())


__all__ = ["CaptureError", "Recorder", "Recording"]
