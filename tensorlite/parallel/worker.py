"""The program of a process in the team: read tasks from a pipe, compute them, answer. `tensorlite.parallel.processes` is the other side."""

from __future__ import annotations

import io
import os
import pickle
import queue
import sys
import threading
from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from tensorlite.backend import Array
from tensorlite.memory import keep_freed_memory
from tensorlite.op import use_kernels
from tensorlite.parallel.heartbeat import start_heartbeat
from tensorlite.parallel.messages import PROTOCOL, Done, SharedModel, Start, State, TeamError, picklable
from tensorlite.parallel.replicas import Shard, Task
from tensorlite.parallel.shared_memory import Place, SharedMemory
from tensorlite.parallel.shared_update import attach_remote
from tensorlite.tensor import Tensor


class RemoteModel:
    """The model of another process, in shared memory; it computes the shards that it is sent.

    Args:
        message: describes it.
    """

    def __init__(self, message: SharedModel, memory: SharedMemory) -> None:
        self.homes = [_parameters_in(message, memory, gradients) for gradients in message.gradients]
        arrays = [*_parameters_in(message, memory, message.flats), *(memory.array(place) for place in message.others)]
        tensors = [kind(array) for kind, array in zip(message.kinds, arrays, strict=True)]
        self.trained = tensors[: sum(map(len, message.slices))]
        self.parameters = tensors[: len(tensors) - message.buffer_count]
        self.buffers = [(buffer, buffer.array) for buffer in tensors[len(self.parameters) :]]
        model, loss = _ModelUnpickler(message.pickled, tensors).load()
        self.shard = Shard(model, loss)
        self.modules = list(model.modules())
        if message.optimizer is not None:
            self.update = attach_remote(message, memory).run  # a share of the optimizer's step

    def run(self, state: State, tasks: Sequence[tuple[int, Task, list[bool]]]) -> list[Done]:
        """Compute the tasks, each for the shard with that number, and with the parameters that have a gradient there already."""
        for module, training in zip(self.modules, state.training, strict=True):
            module.training = training
        for parameter, requires_grad in zip(self.parameters, state.requires_grad, strict=True):
            parameter.requires_grad = requires_grad
        with use_kernels(state.kernels), np.errstate(**state.floating_point_errors):
            return [self._compute(*task) for task in tasks]

    def _compute(self, number: int, task: Task, accumulated: list[bool]) -> Done:
        for tensor, home, has in zip(self.trained, self.homes[number - 1], accumulated, strict=True):
            tensor.grad, tensor.grad_buffer = Tensor.wrap(home) if has else None, home
        for buffer, view in self.buffers:
            buffer.array = view.copy()
        loss = self.shard.compute(task).array
        has_gradient = [tensor.grad is not None for tensor in self.trained]
        for tensor in self.trained:
            tensor.grad = None
        return Done(loss, has_gradient)


def _parameters_in(message: SharedModel, memory: SharedMemory, flats: Sequence[Place]) -> list[Array]:
    """The parts of flat arrays that belong to the trained parameters, in their shapes."""
    arrays = [memory.array(place) for place in flats]
    return [array[part].reshape(shape) for array, parts in zip(arrays, message.slices, strict=True) for part, shape in parts]


class _ModelUnpickler(pickle.Unpickler):
    """Puts the tensors in shared memory in their places."""

    def __init__(self, pickled: bytes, tensors: list[Tensor]) -> None:
        super().__init__(io.BytesIO(pickled))
        self.tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        """The tensor with this number."""
        return self.tensors[number]


def main() -> None:
    """Answer each message until the pipe ends. The first two describe the memory and the model, and have no answer."""
    keep_freed_memory()
    threadpool_limits(1, user_api="blas")
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a model prints is no result
    threading.Thread(target=_read, args=(messages,), daemon=True).start()
    model = failure = None
    try:
        model = _load(messages.get(), messages.get())
    except TeamError as error:
        failure = error  # the answer to every task
    while True:
        message = messages.get()
        try:
            if failure is not None:
                raise failure
            work, arguments = pickle.loads(message)  # "run" or "update"
            reply = pickle.dumps((None, getattr(model, work)(*arguments)), PROTOCOL)
        except Exception as error:  # noqa: BLE001 - sent to the other process, which raises it
            reply = pickle.dumps((picklable(error, "in a worker process"), None), PROTOCOL)
        results.write(reply)
        results.flush()


def _load(start: bytes, header: bytes) -> RemoteModel:
    """The model. The heartbeat starts first: the modules of the model may take long to import."""
    try:
        message: Start = pickle.loads(start)
        memory = SharedMemory.attach(message.memory)
        start_heartbeat(memory.array(message.heartbeats))
        return RemoteModel(pickle.loads(header), memory)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise TeamError(f"another process cannot load the model ({what}); with the team threads it need not.") from error


def _read(messages: queue.SimpleQueue[bytes]) -> None:
    """Read all messages, and end this process when the pipe ends, even in the middle of a step: then nobody waits for it any more."""
    pipe = sys.stdin.buffer
    while (size := pipe.read(8)) and len(message := pipe.read(int.from_bytes(size, "little"))) == int.from_bytes(size, "little"):
        messages.put(message)
    os._exit(0)
