"""Ranks of MPI: several processes, on one machine or many, that train one model together.

    mpiexec -n 4 python -m gpt.train …

Each rank has the whole model and a team of its own, and computes some of the shards of every batch (`tensorlite.parallel.shards`). This
page knows how ranks talk, and no gradient: `World` exchanges arrays, and lets all ranks leave a block of the program or none.

Whatever one rank waits for, it waits for a limited time, and whatever is raised in one rank is raised in all (`World.together`): without
that, the others would wait for ever for a rank that has given up. Only at the end (`World.finalize`) the others wait for as long as the
first one writes its report.

MPI is spoken by mpi4py, which is imported only if a launcher has started this process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tensorlite.backend import Array
from tensorlite.parallel.messages import PROTOCOL, picklable

T = TypeVar("T")

LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMIX_SIZE")  # how many processes a launcher says it has started
ALIGNMENT = 64  # numbers: where the slice of a rank begins
LIMIT = 600.0  # seconds until a rank that does not answer is given up
GRACE = 1.0  # seconds in which ranks that wait find out who else does
SPINS = 500  # times that a rank asks at once whether a message has come; then it lets others have the core
LONGEST_PAUSE = 1.0  # seconds between two questions that count as waiting
PRESENT, DATA = 1, 2  # tags of messages


class RankError(RuntimeError):
    """MPI is missing, or is another one than the launcher's."""


class World:
    """All ranks of this run, as one of them sees them. Without MPI there is one rank, which waits for nobody.

    All ranks must call the same methods in the same order.

    Args:
        comm: the communicator of mpi4py.

    Attributes:
        rank, size: the number of this rank, from 0, and the number of all.
        others: the numbers of all others.
        limit: seconds until a rank that does not answer is given up, and all are ended.
        sent: bytes that this rank has sent to others in `exchange` and `gather_slices`, the latter as a ring sends them.
    """

    def __init__(self, comm: Any = None) -> None:
        self._comm = comm
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()
        self.others = [rank for rank in range(self.size) if rank != self.rank]
        self.limit = LIMIT
        self.sent = 0
        self._raised: list[BaseException] = []

    # --- who has what ---

    def share(self, items: range, rank: int | None = None) -> range:
        """The part of ``items`` that belongs to a rank, this one if not given: neighbours, as many as others have, or one more or less.

        The first item is rank 0's.
        """
        rank = self.rank if rank is None else rank
        first, end = (-(-len(items) * i // self.size) for i in (rank, rank + 1))  # rounded up
        return items[first:end]

    def slice_of(self, length: int, rank: int | None = None) -> slice:
        """The slice of an array of ``length`` numbers that belongs to a rank, this one if not given.

        All slices have the same length, a multiple of `ALIGNMENT`; the last rank's has what is left over as well.
        """
        rank = self.rank if rank is None else rank
        each = length // (ALIGNMENT * self.size) * ALIGNMENT
        return slice(rank * each, length if rank == self.size - 1 else (rank + 1) * each)

    # --- messages ---

    def gather(self, array: Array) -> Array:
        """The ``array`` of every rank, of one shape and dtype: (ranks, …)."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        gathered = np.empty((self.size, *array.shape), array.dtype)
        if self._comm is None:
            gathered[0] = array
        else:
            self._wait([self._comm.Iallgather(_bytes(array), _bytes(gathered))])
        return gathered

    def gather_objects(self, value: T) -> list[T]:
        """The ``value`` of every rank, which can be pickled."""
        if self._comm is None:
            return [value]
        pickled = np.frombuffer(pickle.dumps(value, PROTOCOL), np.uint8)
        sizes = self.gather(np.array(len(pickled)))
        gathered = np.empty(sizes.sum(), np.uint8)
        self._wait([self._comm.Iallgatherv(pickled, [gathered, sizes, np.cumsum(sizes) - sizes, _byte()])])
        return [pickle.loads(part.tobytes()) for part in np.split(gathered, np.cumsum(sizes)[:-1])]

    def gather_slices(self, array: Array) -> None:
        """Give all ranks this one's `slice_of` a flat ``array``, and receive theirs, in place."""
        if self._comm is None:
            return
        slices = [self.slice_of(len(array), rank) for rank in range(self.size)]
        sizes, starts = zip(*((part.stop - part.start, part.start) for part in slices), strict=True)
        size = array.itemsize
        counts, places = [size * n for n in sizes], [size * n for n in starts]
        self._wait([self._comm.Iallgatherv(_in_place(), [_bytes(array), counts, places, _byte()])])
        self.sent += array.nbytes - counts[(self.rank + 1) % self.size]  # a ring sends on all but what the next rank has

    def gather_to_first(self, part: Array, length: int) -> Array | None:
        """A flat array of ``length`` numbers, of which every rank has its `slice_of` as ``part``: all on rank 0, None elsewhere."""
        if self.rank:
            self.exchange([(0, part)], [])
            return None
        whole = np.empty(length, part.dtype)
        whole[self.slice_of(length)] = part
        self.exchange([], [(rank, whole[self.slice_of(length, rank)]) for rank in self.others])
        return whole

    def broadcast(self, array: Array) -> None:
        """Write rank 0's ``array`` into that of all others."""
        if self._comm is not None:
            contiguous = np.ascontiguousarray(array)
            self._wait([self._comm.Ibcast(_bytes(contiguous), 0)])
            array[...] = contiguous.reshape(array.shape)

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        """Send arrays to ranks, and receive some from ranks, in the order in which they were sent."""
        requests = [self._comm.Irecv(_bytes(array), rank, DATA) for rank, array in receives]
        requests += [self._comm.Isend(_bytes(array), rank, DATA) for rank, array in sends]
        if requests:
            self._wait(requests)
        self.sent += sum(array.nbytes for _, array in sends)

    # --- all or none ---

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """All ranks leave the ``with`` block, or an exception that one of them raises inside is raised in all: the first rank's."""
        try:
            yield
        except BaseException as error:
            if (first := self._tell(error)) is not None and type(first) is not type(error):
                raise first from error
            raise
        if (first := self._tell(None)) is not None:
            raise first

    def from_first(self, function: Callable[[], T]) -> T:
        """Call ``function`` on rank 0 alone. What it returns or raises, which can be pickled, all ranks return or raise."""
        result: Any = None
        with self.together():
            if self.rank == 0:
                result = function()
        return self.gather_objects(result)[0] if self.size > 1 else result

    def knows(self, error: BaseException) -> bool:
        """Whether ``error``, or what led to it, was raised in all ranks."""
        chain: BaseException | None = error
        while chain is not None and not any(chain is one for one in self._raised):
            chain = chain.__cause__ or chain.__context__
        return self.size == 1 or chain is not None

    def difference(self, values: Mapping[str, Any]) -> str | None:
        """In what a rank differs from the first one, or None: "--seed is 7 on rank 1, and 5 on rank 0".

        Args:
            values: what must be the same on all ranks, under the names that a user knows.
        """
        told = self.gather_objects(dict(values))
        for rank, theirs in enumerate(told):
            for key in [*told[0], *(key for key in theirs if key not in told[0])]:
                first, other = (side.get(key, "not given") for side in (told[0], theirs))
                if first != other:
                    return f"{key} is {other} on rank {rank}, and {first} on rank 0"
        return None

    def _tell(self, error: BaseException | None) -> BaseException | None:
        """The exception of the first rank that has one. Every rank calls this at the same place, with its own."""
        if self.size == 1 or (error is not None and self.knows(error)):
            return None
        if not self.gather(np.array(error is not None)).any():
            return None
        told = self.gather_objects(None if error is None else picklable(error, f"in rank {self.rank} of MPI"))
        first = next(one for one in told if one is not None)
        self._raised += [first] if error is None else [first, error]
        return first

    # --- the end ---

    def finalize(self) -> None:
        """Wait until all ranks are here, and leave MPI: mpiexec takes a process that ends without that for a broken one, and ends all."""
        if self._comm is not None:
            from mpi4py import MPI

            MPI.Finalize()

    def abort(self, code: int) -> None:
        """End all ranks at once, with this exit code."""
        if self._comm is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            self._comm.Abort(code)

    def _wait(self, requests: list[Any]) -> None:
        """Wait for the messages; end all ranks if that takes longer than the limit. A signal is handled between two questions.

        Time in which this process did not run, such as the sleep of a computer, counts as `LONGEST_PAUSE` at most: the others did not
        run either.
        """
        waited, last, spins = 0.0, time.monotonic(), 0
        while not type(requests[0]).Testall(requests):
            spins += 1
            if spins > SPINS:
                time.sleep(min(spins * 1e-7, 1e-3))
                now = time.monotonic()
                waited, last = waited + min(now - last, LONGEST_PAUSE), now
                if waited > self.limit:
                    self.give_up()

    def give_up(self) -> None:
        """Find out who else has waited for too long; the first of these says who does not answer, and ends all."""
        mark = np.zeros(1, np.uint8)
        waiting = {rank: self._comm.Irecv(np.empty(1, np.uint8), rank, PRESENT) for rank in self.others}
        sent = [self._comm.Isend(mark, rank, PRESENT) for rank in self.others]
        end, present = time.monotonic() + GRACE, {self.rank}
        while time.monotonic() < end:
            present |= {rank for rank, request in waiting.items() if rank not in present and request.Test()}
            time.sleep(0.01)
        if self.rank > min(present):
            time.sleep(GRACE)  # that one speaks
        silent = [rank for rank in range(self.size) if rank not in present]
        who = f"rank {silent[0]} has" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))} have"
        message = f"{who} not answered" if silent else "the ranks have waited for different things"
        with contextlib.suppress(OSError):
            os.write(2, f"error: {message} for {self.limit:g} seconds: the run is ended.\n".encode())
        del sent
        self.abort(1)


@functools.cache
def connect() -> World:
    """The ranks that the launcher of MPI has started together with this process. Without one, a world of one rank.

    Raises:
        RankError: if a launcher has started several processes that cannot find each other.
    """
    launcher = next((name for name in LAUNCHERS if os.environ.get(name, "").isdecimal()), None)
    started = int(os.environ[launcher]) if launcher else 1
    if "mpi4py.MPI" not in sys.modules and started == 1:
        return World()
    try:
        with _ended_by_signals():
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise RankError(f'mpiexec has started {started} processes, and they cannot use MPI ({error}): pip install -e ".[mpi]".') from error
    if MPI.COMM_WORLD.Get_size() != started:
        found = MPI.Get_library_version().split("\n")[0].strip("\0 ")
        raise RankError(
            f"the launcher has started {started} processes, but each of them finds a world of {MPI.COMM_WORLD.Get_size()}: the launcher "
            f"({launcher}) belongs to another MPI than the one that Python uses ({found}); use the mpiexec that was installed with that."
        )
    _remove_names_of_memory()
    return World(MPI.COMM_WORLD) if started > 1 else World()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A block in which Ctrl-C, and an alarm after the limit, end this process at once. mpiexec then ends the others.

    MPI starts in one call, which waits for all ranks; Python would handle a signal after it.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "alarm"):
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.alarm(int(LIMIT))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGINT, before)


def _remove_names_of_memory() -> None:
    """Remove the file that names the memory which ranks on one machine share. All have it by now, and it ends with the last of them.

    MPICH itself removes the file only when a run ends well: after each one that is killed it would stay in /dev/shm.
    """
    with contextlib.suppress(OSError):  # there is no /proc
        for path in set(re.findall(r"/dev/shm/mpich_shm_\w+$", Path("/proc/self/maps").read_text(encoding="utf-8"), re.MULTILINE)):
            with contextlib.suppress(FileNotFoundError):  # another rank was faster
                os.unlink(path)


def hash_of_arrays(arrays: Iterable[Array]) -> str:
    """The first 12 digits of the SHA-256 of their shapes and numbers."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:12]


def _bytes(array: Array) -> Array:
    """The memory of a contiguous array: MPI does not know all dtypes."""
    return array.reshape(-1).view(np.uint8)


def _byte() -> Any:
    from mpi4py import MPI

    return MPI.BYTE


def _in_place() -> Any:
    from mpi4py import MPI

    return MPI.IN_PLACE
