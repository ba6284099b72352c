"""The GPUs of several ranks: one rank has one GPU, and NCCL carries arrays from GPU to GPU.

    world = connect()                                  # MPI: which ranks there are
    Device(f"cupy:{choose_gpu(world)}").use()
    gpus = connect_gpus(world)
    gpus.exchange(sends=[(1, x)], receives=[(1, y)])   # queued on the current stream

A `Communicator` has the methods that `World` has for arrays. What it does is queued on the current stream, so a CUDA graph that is captured
there contains it, and the host waits for nothing. MPI stays what hosts use: for errors, signals, evaluations and files.

NCCL only moves bytes here, and adds nothing. A sum by NCCL (ncclAllReduce) takes the ranks in an order of its own, which changes with their
number; our sums have the order of `tensorlite.parallel.tree`, with any number.

CuPy wraps NCCL (``cupy.cuda.nccl``); the library itself is a package of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import platform
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tensorlite.backend import Array, Device
from tensorlite.parallel.ranks import RankError, World

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux: differs between two machines of one name
PAUSE = 1e-4  # seconds between two questions whether the device is done


def choose_gpu(world: World, index: int | None = None) -> int:
    """The number of the GPU that this rank takes: the first rank of a machine takes the first one, the next rank the next.

    Args:
        index: take this one; another machine's rank may take its own of that number.

    Raises:
        RankError: on all ranks, if two of them would take the same GPU, which NCCL does not allow.
        DeviceUnavailableError: on all ranks, if one has no GPU.
    """
    with world.together():
        cuda = Device("cupy").module.cuda
    machines = world.gather_objects(_machine())
    count = cuda.runtime.getDeviceCount()
    if index is None:
        index = machines[: world.rank].count(machines[world.rank]) % count
    with world.together():
        address = cuda.Device(index).pci_bus_id
    taken = world.gather_objects((machines[world.rank], address, count))
    for rank, (machine, address, there) in enumerate(taken):
        first = next(other for other in range(rank + 1) if taken[other][:2] == (machine, address))
        if first < rank:
            raise RankError(
                f"ranks {first} and {rank} would both compute on GPU {address} of {machine[0]}, and NCCL takes one rank for each GPU: "
                f"{machine[0]} has {there}, so start at most so many ranks there."
            )
    return index


@functools.cache
def connect_gpus(world: World) -> Communicator:
    """The GPUs that the ranks of ``world`` have chosen; one object for each world.

    Raises:
        RankError: on all ranks, if NCCL is missing in one or cannot connect them.
    """
    return Communicator(world)


class Communicator:
    """The GPUs of all ranks, as one of them sees them. See `connect_gpus`.

    All ranks must call the same methods in the same order. Arrays are contiguous, on this rank's GPU, and stay alive as long as a graph
    that was captured with them.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        with world.together():
            self._nccl = _import_nccl()
        self._cuda, self._byte = importlib.import_module("cupy").cuda, self._nccl.NCCL_UINT8
        name = world.from_first(self._nccl.get_unique_id)
        limit = threading.Timer(world.limit, world.give_up)  # NCCL waits for all ranks, with Python's lock released
        limit.daemon = True
        limit.start()
        try:
            self._communicator = self._nccl.NcclCommunicator(world.size, name, world.rank)
        except self._nccl.NcclError as error:
            raise RankError(f"NCCL cannot connect the GPUs of {world.size} ranks ({error}): NCCL_DEBUG=INFO shows why.") from error
        finally:
            limit.cancel()
        # It is never destroyed. NCCL would wait for the graphs that were captured with it and for the other ranks, in whatever order the
        # end of Python forgets them.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._communicator))

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        """Send arrays to ranks, and receive some from ranks, in the order in which they were sent."""
        with self._group() as stream:
            for rank, array in sends:
                if array.nbytes:
                    self._communicator.send(array.data.ptr, array.nbytes, self._byte, rank, stream)
            for rank, array in receives:
                if array.nbytes:
                    self._communicator.recv(array.data.ptr, array.nbytes, self._byte, rank, stream)

    def gather_slices(self, array: Array) -> None:
        """Give all ranks this one's `World.slice_of` a flat ``array``, and receive theirs, in place."""
        each, last = self.world.slice_of(len(array), 0), self.world.size - 1
        rest = array[self.world.slice_of(len(array), last)][each.stop :]  # what only the last rank has more
        with self._group() as stream:
            self._all_gather(array.data.ptr, each.stop * array.itemsize, stream)
            if rest.nbytes:
                self._communicator.broadcast(rest.data.ptr, rest.data.ptr, rest.nbytes, self._byte, last, stream)

    def gather_rows(self, array: Array) -> None:
        """Give all ranks this one's row of ``array``, (ranks, …), and receive theirs, in place."""
        with self._group() as stream:
            self._all_gather(array.data.ptr, array.nbytes // len(array), stream)

    def broadcast(self, array: Array) -> None:
        """Write rank 0's ``array`` into that of all others."""
        with self._group() as stream:
            self._communicator.broadcast(array.data.ptr, array.data.ptr, array.nbytes, self._byte, 0, stream)

    def is_capturing(self) -> bool:
        """Whether the current stream is being captured."""
        return bool(self._cuda.get_current_stream().is_capturing())

    def wait(self) -> None:
        """Wait until the device has done all that was queued; end all ranks if that takes longer than the limit.

        A rank that is gone lets the GPUs of all others wait for ever, and with them a host that reads a value.

        Raises:
            RankError: if NCCL has lost another rank.
        """
        event, end = self._cuda.get_current_stream().record(), time.monotonic() + self.world.limit
        while not event.done:
            try:
                self._communicator.check_async_error()
            except self._nccl.NcclError as error:
                raise RankError(f"NCCL has lost another rank ({error}); --resume goes on from the last checkpoint.") from error
            if time.monotonic() > end:
                self.world.give_up()
            time.sleep(PAUSE)

    def _all_gather(self, address: int, size: int, stream: int) -> None:
        """Gather ``size`` bytes of each rank from ``address`` on; this rank's lie in their place."""
        if size:
            self._communicator.allGather(address + self.world.rank * size, address, size, self._byte, stream)

    @contextlib.contextmanager
    def _group(self) -> Iterator[int]:
        """Queue all calls inside the ``with`` block as one, on the current stream, of which this is the address."""
        self._nccl.groupStart()
        try:
            yield self._cuda.get_current_stream().ptr
        finally:
            self._nccl.groupEnd()


def _machine() -> tuple[str, str]:
    """The name of this machine, and what tells it from another of the same name."""
    return platform.node(), BOOT_ID.read_text(encoding="ascii") if BOOT_ID.exists() else ""


def _import_nccl() -> Any:
    with warnings.catch_warnings(action="ignore"):  # CuPy's says how to install NCCL alone
        nccl = importlib.import_module("cupy.cuda.nccl")
    if not nccl.available:
        version = importlib.import_module("cupy").cuda.runtime.runtimeGetVersion() // 1000
        raise RankError(f'several GPUs need NCCL, which CuPy does not find: pip install -e ".[nccl{version}]".')
    return nccl
