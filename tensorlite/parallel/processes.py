"""A team of processes. They share the memory of parameters and gradients; each has a Python of its own, and waits for no other's lock.

The calling process computes the first shards itself, on the model itself. Each further process is sent its tasks by a pipe, a message
for each step, and answers with its losses when its gradients are in the shared memory. `tensorlite.parallel.worker` is what they run.

They end with the process that started them, however that ends: their pipe does. The Ctrl-C of a terminal does not reach them, the calling
process decides. One that shows no sign of life is killed (`tensorlite.parallel.heartbeat`), so that nobody waits for it for ever. After
an exception, whoever raised it, all of them are ended, and the next step starts new ones: no part of a gradient that was given up finds
its way into another.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.op import kernel_mode
from tensorlite.optim.optimizer import Optimizer
from tensorlite.parallel.heartbeat import LIMIT, Watch
from tensorlite.parallel.messages import PROTOCOL, Done, SharedModel, Start, State, TeamError
from tensorlite.parallel.replicas import Replica, Shard, Task
from tensorlite.parallel.shared_memory import Place, Plan, SharedMemory
from tensorlite.parallel.shared_update import SharedUpdate
from tensorlite.parallel.threads import Workers
from tensorlite.tensor import Tensor

PATIENCE = 5  # seconds for a process to end by itself
PROGRAM = "import sys; sys.path[:] = {path!r}; from tensorlite.parallel.worker import main; main()"


class Processes(Workers):
    """Workers whose shards are computed by this process and ``count - 1`` others. What else is mapped is computed by threads.

    They are started by the first step in a ``with`` block, for the model that makes it; from then on its parameters lie in shared memory.
    Outside of a block this process computes all shards.

    Attributes:
        limit: seconds without a heartbeat until another process is given up. It does not limit the time of a step.

    Raises:
        ValueError: for less than one worker.
    """

    name = "processes"
    limit = LIMIT

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._memory: _SharedModel | None = None
        self._others: list[_Process] = []
        self._watch: Watch | None = None  # while there are others

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._end(at_once=kind is not None)
        super().__exit__(kind, *exception)

    def compute(self, shards: Sequence[Shard], tasks: Sequence[Task], optimizer: Optimizer | None = None) -> list[Tensor]:
        """The loss of each task, which the shard of the same number computes, with its gradient.

        Args:
            optimizer: will be passed to `update`; its state moves to the shared memory.

        Raises:
            TeamError: if the model cannot be sent to another process, memory does not suffice, or a process ends or is given up.
        """
        if self._pool is None or len(shards) == 1:
            return [shard.compute(task) for shard, task in zip(shards, tasks, strict=False)]
        try:
            if self._memory is None or self._memory.shards is not shards:
                self._end()
                self._memory = _SharedModel(shards, optimizer, min(self.count, len(shards)) - 1)
            if not self._others:
                self._start(self._memory)
            return self._compute(self._memory, tasks)
        except BaseException:
            self._end(at_once=True)
            raise

    def update(self, optimizer: Optimizer, gradient_factor: Array | None = None) -> None:
        """`Optimizer.step`, shared out if `compute` was given this optimizer, its rule is elementwise, and its class can be imported.

        If a process ends or is given up meanwhile, this one does its share: the step is whole, and the next `compute` raises the TeamError.
        """
        shared = None if self._memory is None else self._memory.update
        if shared is None or shared.optimizer is not optimizer or not self._others:
            optimizer.step(gradient_factor=gradient_factor)
            return
        try:
            shared.step(self._others, gradient_factor)
        except BaseException:
            self._end(at_once=True)
            raise

    def _start(self, memory: _SharedModel) -> None:
        """Start the other processes, and send them the model. A process that is stopped now does not read it: they are watched already."""
        for heartbeats in memory.heartbeats:
            self._others.append(_Process(memory.memory, heartbeats))
        self._watch = Watch(self._others, self.limit)
        self._watch.start()
        for process in self._others:
            process.send(process.start)
            process.send(memory.header)

    def _compute(self, memory: _SharedModel, tasks: Sequence[Task]) -> list[Tensor]:
        count = 1 + len(self._others)
        ends = [math.ceil(len(tasks) * i / count) for i in range(count + 1)]  # the first share is the largest, and holds shard 0
        numbers = [range(a, b) for a, b in itertools.pairwise(ends)]
        memory.refresh()
        busy = [(process, share) for process, share in zip(self._others, numbers[1:], strict=True) if share]
        for process, share in busy:
            process.send(("run", (memory.state(), [(i, tasks[i], memory.has_gradient(i)) for i in share])))
        losses = [memory.shards[i].compute(tasks[i]) for i in numbers[0]]
        for process, share in busy:
            for i, done in zip(share, process.receive(), strict=True):
                memory.take_gradients(i, done)
                losses.append(Tensor.wrap(done.loss))
        return losses

    def _end(self, at_once: bool = False) -> None:
        """End the other processes; ``at_once`` without waiting for what they compute."""
        others, self._others = self._others, []
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        for process in others:
            process.close(at_once)
        for process in others:
            process.wait()


class _SharedModel:
    """A model and its replicas, with all that other processes need of them in shared memory.

    Trained and frozen parameters move there. Buffers are copied there at each step, because a forward may write to them.

    Args:
        optimizer: has all trained parameters; None if its steps are not shared out.
        processes: how many others there will be.

    Raises:
        TeamError: if the memory does not suffice, or the model cannot be pickled.
    """

    def __init__(self, shards: Sequence[Shard], optimizer: Optimizer | None, processes: int) -> None:
        self.shards, self.replicas = shards, [shard for shard in shards if isinstance(shard, Replica)]
        model, flats = shards[0].model, self.replicas[0].flats
        trained = {id(parameter): parameter for flat in flats for parameter in flat.parameters}
        frozen = [parameter for parameter in model.parameters() if id(parameter) not in trained]
        buffers = list(model.buffers())
        tensors = [*trained.values(), *frozen, *buffers]
        if any(array_module(tensor.array) is not np for tensor in tensors):
            raise TeamError("processes share the memory of the CPU, and the model is on a GPU: use the team threads.")

        plan = Plan()
        self.update = None if optimizer is None or not SharedUpdate.suits(optimizer) else SharedUpdate(optimizer, plan, processes)
        self.header = SharedModel(
            pickled=_pickle_model((model, shards[0].loss), {id(tensor): number for number, tensor in enumerate(tensors)}),
            kinds=[type(tensor) for tensor in tensors],
            flats=[plan.add(flat.data) for flat in flats],
            totals=[plan.add(flat.grad) for flat in flats],
            slices=[[(flat.slice_of(i), p.shape) for i, p in enumerate(flat.parameters)] for flat in flats],
            gradients=[[plan.add(gradient) for gradient in replica.gradients] for replica in self.replicas],
            others=[plan.add(tensor.array) for tensor in (*frozen, *buffers)],
            buffer_count=len(buffers),
            optimizer=None if self.update is None else self.update.message,
        )
        self.heartbeats = [plan.add(np.zeros((), np.int64)) for _ in range(processes)]
        self.memory = self._allocate(plan.size)

        for flat, data, total in zip(flats, self.header.flats, self.header.totals, strict=True):
            flat.move(self.memory.array(data), self.memory.array(total))
        if self.update is not None:
            self.update.attach(self.memory)
        for replica, places in zip(self.replicas, self.header.gradients, strict=True):
            replica.use_gradients([self.memory.array(place) for place in places])
        views = [self.memory.array(place) for place in self.header.others]
        self._parameters = [*((p, p.array) for p in trained.values()), *zip(frozen, views[: len(frozen)], strict=True)]
        self._buffers = list(zip(buffers, views[len(frozen) :], strict=True))
        self._modules = list(model.modules())

    def _allocate(self, size: int) -> SharedMemory:
        try:
            return SharedMemory(size)
        except (OSError, MemoryError) as error:
            raise TeamError(
                f"processes need {size / 2**20:,.1f} MiB of shared memory for parameters and gradients of {len(self.shards)} shards, "
                f"and the system does not give that ({error}): use the team threads, or fewer shards."
            ) from error

    def refresh(self) -> None:
        """Copy what has changed outside of shared memory, such as a parameter that was assigned a new array."""
        for parameter, view in self._parameters:
            if parameter.array is not view:
                view[...] = parameter.array
                parameter.array = view
        for buffer, view in self._buffers:
            view[...] = buffer.array

    def state(self) -> State:
        """What the other processes are told with each task."""
        return State(
            training=[module.training for module in self._modules],
            requires_grad=[parameter.requires_grad for parameter, _ in self._parameters],
            kernels=kernel_mode(),
            floating_point_errors=np.geterr(),
        )

    def has_gradient(self, number: int) -> list[bool]:
        """Which parameters of the replica for this shard have a gradient, from batches that were accumulated before."""
        return [twin.grad is not None for _, twin in self.replicas[number - 1].twins]

    def take_gradients(self, number: int, done: Done) -> None:
        """Give the replica for this shard the gradients that another process has written."""
        for (_, twin), has in zip(self.replicas[number - 1].twins, done.has_gradient, strict=True):
            twin.grad = Tensor.wrap(twin.grad_buffer) if has else None


class _Process:
    """This process's side of another one.

    Args:
        heartbeats: the place of its counter.

    Attributes:
        start: the first message for it.
    """

    def __init__(self, memory: SharedMemory, heartbeats: Place) -> None:
        self.start, self.heartbeats = Start(memory.handle, heartbeats), memory.array(heartbeats)
        self._silence: float | None = None  # seconds without a heartbeat, after which it was given up
        apart: dict[str, Any] = {"start_new_session": True, "pass_fds": memory.inherited}
        if sys.platform == "win32":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        program = PROGRAM.format(path=sys.path)
        self._process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **apart)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks, self._results = self._process.stdin, self._process.stdout

    def send(self, message: object) -> None:
        """Send a message.

        Raises:
            TeamError: if the process has ended, or the message cannot be pickled.
        """
        try:
            pickled = pickle.dumps(message, PROTOCOL)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TeamError(
                f"what a shard computes cannot be sent to another process ({error}); with the team threads it need not be."
            ) from error
        try:
            self._tasks.write(len(pickled).to_bytes(8, "little") + pickled)
            self._tasks.flush()
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> Any:
        """The answer to the last task.

        Raises:
            TeamError: if the process has ended.
            Exception: what it has raised.
        """
        try:
            error, result = pickle.load(self._results)
        except (EOFError, OSError, pickle.UnpicklingError) as end:
            raise self._ended() from end
        if error is not None:
            raise error
        return result

    def give_up(self, seconds: float) -> None:
        """Kill the process, if it has not ended: there was no heartbeat for so many seconds. The watch calls this in its thread."""
        if self._process.poll() is None:
            self._silence = seconds
            self._process.kill()

    def close(self, at_once: bool) -> None:
        """End the pipe, and with it the process when it has finished its task; ``at_once``: now."""
        if at_once:
            self._process.kill()
        for pipe in (self._tasks, self._results):
            with contextlib.suppress(OSError):  # what was not read any more
                pipe.close()

    def wait(self) -> None:
        """Wait until it has ended."""
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ended(self) -> TeamError:
        """The error that says how the process has ended."""
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return TeamError("a worker process no longer answers; the team threads has none.")
        if self._silence is not None:
            return TeamError(
                f"a worker process was stopped, or hung: it showed no sign of life for {self._silence:g} seconds, and was ended; "
                "the team threads has none."
            )
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        why = ", perhaps because memory was short: fewer --workers need less" if how.endswith("SIGKILL") else ""
        return TeamError(f"a worker process {how}{why}; the team threads has none.")


class _ModelPickler(pickle.Pickler):
    """Pickles a model without its parameters and buffers, which are in shared memory."""

    def __init__(self, file: io.BytesIO, numbers: dict[int, int]) -> None:
        super().__init__(file, PROTOCOL)
        self.numbers = numbers

    def persistent_id(self, thing: Any) -> int | None:
        """The number of a tensor that is in shared memory."""
        return self.numbers.get(id(thing)) if isinstance(thing, Tensor) else None

    def reducer_override(self, thing: Any) -> Any:
        """Refuse what another process cannot import."""
        if isinstance(thing, type | FunctionType) and thing.__module__ == "__main__":
            raise pickle.PicklingError(f"{thing.__qualname__} is defined in the program itself: move it to a file that is imported")
        return NotImplemented


def _pickle_model(model: Any, numbers: dict[int, int]) -> bytes:
    file = io.BytesIO()
    try:
        _ModelPickler(file, numbers).dump(model)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TeamError(f"the model cannot be sent to another process ({error}); with the team threads it need not be.") from error
    return file.getvalue()


__all__ = ["Processes", "TeamError"]
