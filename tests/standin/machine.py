"""The simulated GPU: its memory, its queue of work, and the host's reads.

Every change of memory by the stand-in uses one of two functions, `compute` (returns an array) or `write` (changes an array). So
only this file needs to know whether a graph is being captured; then the work is recorded, and done when the graph is launched.
"""

from __future__ import annotations

import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import numpy as np

GATHERING = ("getitem", "take", "take_along_axis")  # these read of an array what they copy, and no more
BLOCK = 512  # bytes: CuPy's pool hands out multiples of it


class OutOfMemoryError(MemoryError):
    """As CuPy's: what was asked for, what there is, and the limit."""

    def __init__(self, size: int, total: int, limit: int) -> None:
        text = f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes"
        super().__init__(f"{text}, limit set to: {limit:,} bytes)." if limit else f"{text}).")
        self.size, self.total, self.limit = size, total, limit


class CUDARuntimeError(RuntimeError):
    """An error of the CUDA runtime, with its number."""

    NAMES: ClassVar = {
        1: "cudaErrorInvalidValue: invalid argument",
        2: "cudaErrorMemoryAllocation: out of memory",
        35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
        100: "cudaErrorNoDevice: no CUDA-capable device is detected",
        101: "cudaErrorInvalidDevice: invalid device ordinal",
        900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    }

    def __init__(self, status: int) -> None:
        super().__init__(self.NAMES[status])
        self.status = status


class Block(NamedTuple):
    """What a pool has handed out; CuPy's is a MemoryPointer, and comes back when nobody points to it."""

    pool: MemoryPool
    size: int

    def give_back(self) -> None:
        self.pool._used -= self.size


class MemoryPool:
    """CuPy's memory pool: what is in use, what it holds, and a limit. Memory that is let go of stays in the pool."""

    def __init__(self) -> None:
        self._used = self._total = self._limit = 0

    def malloc(self, size: int) -> Block:
        """Take ``size`` bytes, rounded up to whole blocks."""
        size = -(-size // BLOCK) * BLOCK
        grown = max(self._total, self._used + size)
        if (self._limit and grown > self._limit) or grown > machine.memory:
            raise OutOfMemoryError(size, self._total, self._limit)
        self._used, self._total = self._used + size, grown
        return Block(self, size)

    def used_bytes(self) -> int:
        return self._used

    def total_bytes(self) -> int:
        return self._total

    def free_bytes(self) -> int:
        return self._total - self._used

    def free_all_blocks(self, stream: Any = None) -> None:
        self._total = self._used

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = int(size if fraction is None else fraction * machine.memory) if size or fraction else 0

    def get_limit(self) -> int:
        return self._limit

    def n_free_blocks(self) -> int:
        return int(self._total > self._used)


class Work(NamedTuple):
    """What the GPU is given to do at once: a kernel of ours or of CuPy's, a product, a copy within its memory.

    Attributes:
        op: what `Machine.op` was.
        read, written: bytes of the arrays that it reads and writes, each once.
        operations: multiplications and additions, of a product of cuBLAS alone.
        arguments: of a kernel of ours, by the names of its parameters; arrays are shapes.
    """

    name: str
    op: str
    read: int
    written: int
    operations: int = 0
    arguments: dict[str, Any] = {}  # noqa: RUF012


class Graph:
    """Work that was noted instead of done."""

    def __init__(self, stream: int = 0) -> None:
        self.stream = stream  # the address of the one that is captured
        self.work: list[tuple[str, Callable[[], None]]] = []
        self.memory: list[np.ndarray] = []

    def launch(self, stream: Any = None) -> None:
        """Do all of it, in order, on the memory it was noted for."""
        for _, action in self.work:
            action()

    def upload(self, stream: Any = None) -> None:
        """Nothing to bring anywhere."""


def _silent(work: Callable[[], Any]) -> Callable[[], Any]:
    """``work`` without NumPy's warnings: a GPU divides by zero and overflows in silence."""

    def run() -> Any:
        with np.errstate(all="ignore"):
            return work()

    return run


class Machine:
    """One per `installed` block.

    Attributes:
        devices, driver, compute_capability, memory: what it pretends to be.
        device: the number of the GPU in use.
        is_done: whether the GPU has done all that was queued, as an event says.
        reads: every time the host waited for a value, and from where in our code.
        launches: the names of the kernels of ours that ran, in order.
        products: every call of cuBLAS, as a dict.
        nccl: every call of NCCL; the kind, in bytes (`tests.standin.nccl`).
        work: everything that was launched, in order; `op` is a word for it that a test may set.
        computes: False lets nothing be computed and no array be written, so that a large model's step can be counted in seconds.
        order: in which order the threads of a block get their turns, see `tests.cuda_on_cpu`.
    """

    def __init__(self) -> None:
        self.devices, self.driver, self.compute_capability, self.memory = 1, 13000, (9, 0), 64 << 30
        self.present, self.device = True, 0
        self.reads: list[str] = []
        self.launches: list[str] = []
        self.products: list[dict[str, Any]] = []
        self.nccl: list[Any] = []
        self.nccl_group: list[Any] | None = None  # calls since groupStart
        self.is_done = True
        self.work: list[Work] = []
        self.op = ""
        self.computes = True
        self.order = "ascending"
        self.graph: Graph | None = None
        self.default_pool = MemoryPool()
        self.allocators: list[Callable[[int], Any]] = [self.default_pool.malloc]
        self._blocks: dict[int, tuple[int, Any]] = {}  # address -> bytes, and a weak reference to the array that owns them
        self.reading_forbidden = False

    # --- compute and write --------------------------------------------------------------------------------

    def compute(self, name: str, work: Callable[[], Any], *operands: Any) -> Any:
        """The result of ``work``, in memory of its own or as a view. Under capture its memory holds no result yet.

        Args:
            operands: the arrays that it reads.
        """
        work = _silent(work)
        result = work()
        several = isinstance(result, tuple | list)
        arrays = [np.asarray(part) for part in (result if several else (result,))]
        fresh = [i for i, array in enumerate(arrays) if self.adopt(array)]
        if fresh:
            made = [arrays[i] for i in fresh]
            self.note(name, [*operands, *(made if name in GATHERING else ())], made)
        if self.graph is not None and fresh:

            def again() -> None:
                results = work()
                for i in fresh:
                    np.copyto(arrays[i], np.asarray(results[i] if several else results))

            self.graph.work.append((name, again))
            for i in fresh:
                poison(arrays[i])
        return (type(result)(arrays) if isinstance(result, list) else tuple(arrays)) if several else arrays[0]

    def write(self, name: str, action: Callable[[], Any]) -> None:
        """Change memory that is there."""
        action = _silent(action)
        if self.graph is not None:
            self.graph.work.append((name, action))
        elif self.computes:
            action()

    def note(
        self, name: str, read: Iterable[Any], written: Iterable[Any], operations: int = 0, arguments: dict[str, Any] | None = None
    ) -> None:
        """Count a launch that reads and writes these arrays; what is no array takes no room."""
        sizes = (sum(array.nbytes for array in arrays if isinstance(array, np.ndarray)) for arrays in (read, written))
        self.work.append(Work(name, self.op, *sizes, operations, arguments or {}))

    def add_to_last(self, read: Iterable[np.ndarray], written: Iterable[np.ndarray]) -> None:
        """Count these arrays for the launch that was noted last."""
        last, (more_read, more_written) = self.work[-1], (sum(array.nbytes for array in arrays) for arrays in (read, written))
        self.work[-1] = last._replace(read=last.read + more_read, written=last.written + more_written)

    # --- memory ---------------------------------------------------------------------------------------

    def adopt(self, array: np.ndarray) -> bool:
        """Whether ``array`` is in new memory; if so the pool is charged for it as long as it lives."""
        owner = owner_of(array)
        if array.nbytes == 0 or self.block_of(array.ctypes.data) is not None:
            return False
        address = owner.ctypes.data
        if self.graph is None:
            block = self.allocators[-1](owner.nbytes)
        else:  # every launch works in this memory, so it is nobody else's again; a real pool has it from the steps before
            block = self.allocators[-1](0)
            self.graph.memory.append(owner)
            # until this point of a launch, the graph may keep something else there: what was written between two launches is lost
            self.graph.work.append(("allocate", lambda: poison(owner)))
        self._blocks[address] = (owner.nbytes, weakref.ref(owner))
        weakref.finalize(owner, self._release, address, block)
        return True

    def freed_in_capture(self, graph: Graph, owner: np.ndarray) -> None:
        """Nobody holds an array of a capture any more. Until the capture ends its memory is another array's: what stands there is lost."""
        if self.graph is graph:
            graph.work.append(("free", lambda: poison(owner)))

    def _release(self, address: int, block: Block) -> None:
        self._blocks.pop(address, None)
        block.give_back()

    def block_of(self, address: int) -> tuple[int, int] | None:
        """Start and length of the live memory that holds ``address``."""
        if address in self._blocks:
            return address, self._blocks[address][0]
        return next(((start, size) for start, (size, _) in list(self._blocks.items()) if start <= address < start + size), None)

    def check_range(self, what: str, address: int, span: int) -> None:
        """Refuse to touch memory that was never taken, or was let go of."""
        block = self.block_of(address)
        if block is None or address + span > block[0] + block[1]:
            raise AssertionError(f"{what} would touch {span} bytes at {address:#x}, which are not all in one array that is alive.")

    # --- what the host must not do too often ----------------------------------------------------------

    def read(self, what: str) -> None:
        """The host waits for a value."""
        self.refuse_under_capture()
        frame = next((f for f in reversed(traceback.extract_stack()) if "/standin/" not in f.filename), None)
        where = f"{what} in {frame.filename.rpartition('/')[2]}:{frame.lineno}" if frame else what
        if self.reading_forbidden:
            raise AssertionError(f"the host reads a value of the device here: {where}")
        self.reads.append(where)

    def refuse_under_capture(self) -> None:
        """What a capturing stream cannot take."""
        if self.graph is not None:
            raise CUDARuntimeError(900)


def owner_of(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def poison(array: np.ndarray) -> None:
    """NaN for floating point numbers, -1 or the like for others: nobody can take it for a result."""
    if not machine.computes:
        return  # memory that is not touched takes no room
    if array.flags.c_contiguous and array.nbytes:
        array.reshape(-1).view(np.uint8)[...] = 0xFF
    else:
        array[...] = np.nan if array.dtype.kind == "f" else 0


machine = Machine()


def fresh_machine() -> Machine:
    """Forget everything, as for another test; there is one machine at a time."""
    global machine
    machine = Machine()
    sys.modules[__name__].machine = machine
    return machine


@contextmanager
def forbid_host_reads() -> Iterator[None]:
    """Inside the ``with`` block, any host read is an AssertionError that says where."""
    machine.reading_forbidden = True
    try:
        yield
    finally:
        machine.reading_forbidden = False
