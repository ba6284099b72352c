"""NCCL, pretended: GPUs of several processes that MPI has started, or one GPU that sends to itself.

Each call is noted (`Machine.nccl`), and done when its group ends, or, if the stream is captured, when the graph is launched. All ranks
first tell each other what they are about to do; where NCCL would wait for ever, compute nonsense, or lose a call, this is an
AssertionError.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from tests.standin import machine as state
from tests.standin.machine import Graph

available = True
MESSAGES = {
    4: "NCCL_ERROR_INVALID_ARGUMENT: invalid argument",
    5: "NCCL_ERROR_INVALID_USAGE: invalid usage",
    6: "NCCL_ERROR_REMOTE_ERROR: remote process exited or there was a network error",
}
NCCL_INT8, NCCL_UINT8, NCCL_INT32, NCCL_INT64, NCCL_FLOAT16, NCCL_FLOAT32, NCCL_FLOAT64 = 0, 1, 2, 4, 6, 7, 8
SIZES = {NCCL_INT8: 1, NCCL_UINT8: 1, NCCL_INT32: 4, NCCL_INT64: 8, NCCL_FLOAT16: 2, NCCL_FLOAT32: 4, NCCL_FLOAT64: 8}
ID_BYTES = 128

world: Any = None  # the communicator of MPI that carries the data; None is that of all processes
_groups = itertools.count(1)


class NcclError(RuntimeError):
    """A call that NCCL refuses."""

    def __init__(self, status: int) -> None:
        super().__init__(MESSAGES[status])
        self.status = status


class Call(NamedTuple):
    """One call of a communicator.

    Attributes:
        op: the name that NCCL has for it.
        send, receive: addresses; 0 where there is none.
        size: bytes of one rank.
        peer: the other rank, or the root of a broadcast.
        stream: the address of the stream.
        group: the number of the group that it belongs to.
        captured: whether a graph has it.
    """

    communicator: int
    op: str
    send: int
    receive: int
    size: int
    peer: int
    stream: int
    group: int
    captured: bool


def get_unique_id() -> bytes:
    """128 bytes, as in CuPy 14."""
    return np.random.default_rng().bytes(ID_BYTES)


def groupStart() -> None:
    """The calls that follow are one."""
    if state.machine.nccl_group is not None:
        raise AssertionError("a group of NCCL begins within another one.")
    state.machine.nccl_group = []


def groupEnd() -> None:
    """Do, or note, the calls since groupStart."""
    calls, state.machine.nccl_group = state.machine.nccl_group, None
    if calls is None:
        raise NcclError(5)
    if calls:
        communicator = calls[0][0]
        communicator._queue([call for _, call in calls])


class NcclCommunicator:
    """The GPU of this process, connected with those of the others."""

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        state.machine.refuse_under_capture()
        if len(commId) != ID_BYTES or not 0 <= rank < ndev:
            raise NcclError(4)
        self._size, self._rank, self._device = ndev, rank, state.machine.device
        self._graphs: weakref.WeakSet[Graph] = weakref.WeakSet()
        self._mpi = None
        if ndev > 1:
            from mpi4py import MPI

            self._mpi = world or MPI.COMM_WORLD
            told = self._mpi.allgather((commId, ndev, platform.node(), self._device))
            if self._mpi.rank != rank or {(each[0], each[1]) for each in told} != {(commId, self._mpi.size)}:
                raise NcclError(4)
            if len({each[2:] for each in told}) < ndev:
                raise NcclError(5)  # two ranks on one GPU

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._note("send", sendbuf, 0, count * SIZES[datatype], peer, stream)

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._note("recv", 0, recvbuf, count * SIZES[datatype], peer, stream)

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        size = count * SIZES[datatype]
        if sendbuf != recvbuf + self._rank * size and sendbuf < recvbuf + self._size * size and recvbuf < sendbuf + size:
            raise AssertionError("allGather in place takes the bytes of each rank from where they are to be.")
        self._note("allGather", sendbuf, recvbuf, size, 0, stream)

    def broadcast(self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int) -> None:
        self._note("broadcast", sendbuff, recvbuff, count * SIZES[datatype], root, stream)

    def check_async_error(self) -> None:
        """All is well."""

    def destroy(self) -> None:
        if any(self._graphs):
            raise AssertionError("a communicator is destroyed before the graphs that were captured with it: NCCL would wait for ever.")

    def _note(self, op: str, send: int, receive: int, size: int, peer: int, stream: int) -> None:
        from tests.standin import library

        if stream != library._stream[-1].ptr:
            raise AssertionError(f"{op} is queued on a stream that is not the current one, so nothing orders it with the kernels.")
        if not 0 <= peer < self._size:
            raise NcclError(4)
        alone = state.machine.nccl_group is None
        if alone:
            groupStart()
        assert state.machine.nccl_group is not None
        call = Call(id(self), op, send, receive, size, peer, stream, 0, state.machine.graph is not None)
        for address, span in self._buffers(call):
            state.machine.check_range(op, address, span)
            _refuse_memory_of_the_capture(op, address)
        state.machine.nccl_group.append((self, call))
        if alone:
            groupEnd()

    def _buffers(self, call: Call) -> Iterator[tuple[int, int]]:
        """What a call touches, as addresses and bytes."""
        if call.send:
            yield call.send, call.size
        if call.receive:
            yield call.receive, call.size * (self._size if call.op == "allGather" else 1)

    def _queue(self, calls: Sequence[Call]) -> None:
        number = next(_groups)
        calls = [call._replace(group=number) for call in calls]
        state.machine.nccl += calls
        if state.machine.graph is not None:
            self._graphs.add(state.machine.graph)
        state.machine.write("nccl", lambda: self._run(calls))

    def _run(self, calls: Sequence[Call]) -> None:
        for call in calls:
            for address, span in self._buffers(call):
                state.machine.check_range(call.op, address, span)
        told = [(call.op, call.peer, call.size) for call in calls]
        _check(self._mpi.allgather(told) if self._mpi else [told])
        if self._mpi is None:
            _loop_back(calls)
            return
        requests = [self._mpi.Irecv(memory(call.receive, call.size), call.peer) for call in calls if call.op == "recv"]
        requests += [self._mpi.Isend(memory(call.send, call.size), call.peer) for call in calls if call.op == "send"]
        for request in requests:
            request.Wait()
        for call in calls:
            if call.op == "allGather":
                own = memory(call.send, call.size).copy()
                self._mpi.Allgather(own, memory(call.receive, call.size * self._size))
            elif call.op == "broadcast":
                sent = memory(call.send, call.size).copy()
                self._mpi.Bcast(sent, call.peer)
                memory(call.receive, call.size)[...] = sent


def memory(address: int, size: int) -> np.ndarray:
    """The bytes there."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def _check(told: Sequence[Sequence[tuple[str, int, int]]]) -> None:
    """Refuse a group that the ranks do not agree about: NCCL would wait for ever, or write over the end of an array."""
    together = [[call for call in calls if call[0] not in ("send", "recv")] for calls in told]
    if any(each != together[0] for each in together):
        raise AssertionError(f"the ranks call NCCL for different things: {together}.")
    for a, b in itertools.product(range(len(told)), repeat=2):
        sent = [size for op, peer, size in told[a] if op == "send" and peer == b]
        received = [size for op, peer, size in told[b] if op == "recv" and peer == a]
        if sent != received:
            raise AssertionError(f"rank {a} sends {sent} bytes to rank {b}, which receives {received}.")


def _loop_back(calls: Sequence[Call]) -> None:
    """The data of a single GPU: what it sends it receives."""
    sent = [memory(call.send, call.size).copy() for call in calls if call.op == "send"]
    for call, data in zip([call for call in calls if call.op == "recv"], sent, strict=True):
        memory(call.receive, call.size)[...] = data


def _refuse_memory_of_the_capture(op: str, address: int) -> None:
    graph = state.machine.graph
    owners = graph.memory if graph else []
    if any(owner.ctypes.data <= address < owner.ctypes.data + owner.nbytes for owner in owners):
        raise AssertionError(f"{op} would use memory that was allocated in the capture.")


@contextmanager
def carried_by(mpi: Any) -> Iterator[None]:
    """The processes of ``mpi`` are all there are."""
    global world
    before, world = world, mpi
    try:
        yield
    finally:
        world = before


NAMES = {  # of the module cupy.cuda.nccl
    name: value
    for name, value in globals().items()
    if name.startswith(("NCCL_", "Nccl", "group")) or name in ("available", "get_unique_id")
}
