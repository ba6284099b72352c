"""The program of a process in the team: read tasks from a pipe, compute them, answer. `tensorlite.parallel.processes` is the other side."""

from __future__ import annotations

import io
import os
import pickle
import queue
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from tensorlite.backend import Array
from tensorlite.memory import keep_freed_memory
from tensorlite.op import use_kernels
from tensorlite.parallel.processes import PROTOCOL, TeamError
from tensorlite.parallel.replicas import Shard, Task
from tensorlite.parallel.shared_memory import SharedMemory
from tensorlite.tensor import Tensor


class RemoteModel:
    """The model of another process, in shared memory; it computes the shards that it is sent.

    Args:
        header: `_SharedModel.header` of the process that started this one.
    """

    def __init__(self, header: tuple[Any, ...]) -> None:
        handle, pickled, kinds, data, slices, gradients, others, buffers = header
        memory = SharedMemory.attach(handle)
        trained = [memory.array(place)[part].reshape(shape) for place, parts in zip(data, slices, strict=True) for part, shape in parts]
        arrays = [*trained, *(memory.array(place) for place in others)]
        tensors = [kind(array) for kind, array in zip(kinds, arrays, strict=True)]
        self.trained, self.parameters = tensors[: len(trained)], tensors[: len(tensors) - buffers]
        self.buffers = [(tensor, tensor.array) for tensor in tensors[len(self.parameters) :]]
        self.homes = [
            [memory.array(place)[part].reshape(shape) for place, parts in zip(places, slices, strict=True) for part, shape in parts]
            for places in gradients
        ]
        model, loss = _ModelUnpickler(pickled, tensors).load()
        self.shard = Shard(model, loss)
        self.modules = list(model.modules())

    def run(self, state: tuple[Any, ...], tasks: Sequence[tuple[int, Task]]) -> list[tuple[Array, list[bool]]]:
        """The loss of each task, and which of the trained parameters have a gradient."""
        training, requires_grad, kernels, errors = state
        for module, flag in zip(self.modules, training, strict=True):
            module.training = flag
        for parameter, flag in zip(self.parameters, requires_grad, strict=True):
            parameter.requires_grad = flag
        with use_kernels(kernels), np.errstate(**errors):
            return [self._compute(number, task) for number, task in tasks]

    def _compute(self, number: int, task: Task) -> tuple[Array, list[bool]]:
        for tensor, home in zip(self.trained, self.homes[number - 1], strict=True):
            tensor.grad, tensor.grad_buffer = None, home
        for buffer, view in self.buffers:
            buffer.array = view.copy()
        loss = self.shard.compute(task).array
        has_gradient = [tensor.grad is not None for tensor in self.trained]
        for tensor in self.trained:
            tensor.grad = None
        return loss, has_gradient


class _ModelUnpickler(pickle.Unpickler):
    """Puts the tensors in shared memory in their places."""

    def __init__(self, pickled: bytes, tensors: list[Tensor]) -> None:
        super().__init__(io.BytesIO(pickled))
        self.tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        """The tensor with this number."""
        return self.tensors[number]


def main() -> None:
    """Answer each message until the pipe ends. The first one describes the model."""
    keep_freed_memory()
    threadpool_limits(1, user_api="blas")
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a model prints is no result
    threading.Thread(target=_read, args=(messages,), daemon=True).start()
    header = messages.get()
    model = None
    while True:
        message = messages.get()
        try:
            model = model or _load(header)
            reply = pickle.dumps((None, model.run(*pickle.loads(message))), PROTOCOL)
        except Exception as error:  # noqa: BLE001 - sent to the other process, which raises it
            reply = pickle.dumps((_picklable(error), None), PROTOCOL)
        results.write(reply)
        results.flush()


def _load(header: bytes) -> RemoteModel:
    try:
        return RemoteModel(pickle.loads(header))
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise TeamError(f"another process cannot load the model ({what}); with the team threads it need not.") from error


def _read(messages: queue.SimpleQueue[bytes]) -> None:
    """Read all messages, and end this process when the pipe ends, even in the middle of a step: then nobody waits for it any more."""
    pipe = sys.stdin.buffer
    while (size := pipe.read(8)) and len(message := pipe.read(int.from_bytes(size, "little"))) == int.from_bytes(size, "little"):
        messages.put(message)
    os._exit(0)


def _picklable(error: Exception) -> Exception:
    """``error`` with the place where it was raised as a note, in a form that can be pickled; not every exception can."""
    place = "in a worker process:\n" + "".join(traceback.format_exception(error))
    try:
        copied: Exception = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its class does wrong
        return RuntimeError(place)
    copied.add_note(place)
    return copied
