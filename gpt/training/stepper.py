"""One training step: the gradient of a batch (or of several, accumulated), clipped, and the update of the weights.

    CPUStepper      op by op, on a team of workers that share the batch
    GPUStepper      op by op: Python queues every kernel
    GraphStepper    recorded once as a CUDA graph, and launched as a whole from then on

`make_stepper` chooses one of them at the start of a run. They have one interface and give the same numbers: a launched step is the GPU's
eager step bit for bit. In float16 the loss is scaled (`tensorlite.optim.GradScaler`); in every other precision the scaler does nothing.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import tensorlite as tl
from data.loader import Batch
from gpt.config import RandomStream, TrainConfig
from gpt.errors import fail
from gpt.model import LanguageModel
from gpt.training.diagnosis import fail_not_finite
from gpt.training.rows import IGNORE
from gpt.training.stopping import StopRequest
from tensorlite import Tensor, optim
from tensorlite.backend import Array, Device
from tensorlite.kernels.cuda.graph import CaptureError, Recorder, Recording
from tensorlite.op import kernel_mode
from tensorlite.parallel import BatchShards, Workers
from tensorlite.parallel.nccl import Communicator, connect_gpus
from tensorlite.parallel.ranks import World
from tensorlite.precision import half_dtype, use_rounded
from tensorlite.random import draw_dropout_key, make_generator

__all__ = ["CPUStepper", "GPUStepper", "GraphStepper", "StepResult", "Stepper", "make_stepper"]

WARM_UP = 3  # eager steps before the one that is recorded


class StepResult(NamedTuple):
    """What a step returns, all of shape ().

    Attributes:
        loss: the mean over its batches.
        gradient_norm: the length of the gradient before it was clipped.
        gradient_factor: what the optimizer multiplies the gradient with to clip it; None if it is clipped already.
    """

    loss: Tensor
    gradient_norm: Tensor
    gradient_factor: Array | None = None


class Stepper:
    """What the three steppers share.

    Args:
        model: is trained in place.
        optimizer: holds the trained parameters.
        workers: compute the shards.
        stop: is asked whether the user wants to stop.
        world: the ranks that share each batch.

    Attributes:
        shard_count: into how many parts a batch is cut; it decides how sums are rounded.
        scaler: scales the loss in float16; elsewhere it does nothing.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: optim.Optimizer,
        config: TrainConfig,
        workers: Workers,
        stop: StopRequest,
        world: World | None = None,
    ) -> None:
        self.model, self.optimizer, self.config, self.stop = model, optimizer, config, stop
        self.workers, self.world = workers, world or World()
        self.shard_count = config.shards or workers.count * self.world.size
        self.shards = BatchShards(model, optimizer.flats, self.shard_count, workers, world=self.world, optimizer=optimizer)
        is_scaled = config.precision == "float16" and kernel_mode() == "fast"  # the book computes in float32
        self.scaler = optim.GradScaler(optimizer, enabled=is_scaled)

    def step(self, batches: Sequence[Batch], number: int) -> StepResult:
        """Make step ``number`` on ``batches``, which are accumulated; afterwards the gradients are forgotten.

        Raises:
            UserError: on the CPU, if loss or gradient are not finite. The weights are then those of before the step.
            Stopped: on the CPU, if the user asks to stop before the gradient is complete. The weights are those of before the step, too.
        """
        raise NotImplementedError

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The two arrays of a batch as tensors where the model is."""
        x, y = (tl.tensor(array, device=self.config.backend) for array in batch)
        return x, y

    def gradients(self, batches: Sequence[tuple[Tensor, Tensor]], number: int, keys: Sequence[Array] | Array) -> StepResult:
        """Compute the mean loss over ``batches`` and its gradient, which is left in the parameters; see `clip`.

        The workers share each batch (see `tensorlite.parallel`).

        Args:
            number: of the step; together with seed, batch and shard it names the random numbers of dropout on the CPU.
            keys: for each batch those of dropout on a GPU, see `GPUStepper.dropout_keys`.
        """
        share = self.scaler.scale / len(batches)
        losses = self.shards.add_gradients(self.accumulate(batches, number, share, keys))
        self.scaler.unscale_(self.model.parameters())
        norm, factor = self.clip(self.config.grad_clip or math.inf)
        total = functools.reduce(operator.add, losses)  # not a stack: for many arrays CuPy copies a list of addresses from the host
        return StepResult(total * (1 / len(losses)), norm, factor)

    def accumulate(
        self, batches: Sequence[tuple[Tensor, Tensor]], number: int, share: float | Array, keys: Sequence[Array] | Array
    ) -> list[list[Tensor]]:
        """Forward and backward of ``batches``, for `BatchShards.add_gradients`; ``share`` is the factor of each loss."""
        return [self.shards.accumulate(batch, self._dropout_streams(number, i), share, keys[i]) for i, batch in enumerate(batches)]

    def clip(self, max_norm: float) -> tuple[Tensor, Array | None]:
        """The length of the gradient, and what the optimizer multiplies it with as it reads it, to clip it."""
        return optim.clip_factor(self.model.parameters(), max_norm)

    def check(self, loss: float, gradient_norm: float, number: int) -> None:
        """Raise UserError if the loss of step ``number`` is not finite. `CPUStepper` has found that out before."""
        if not math.isfinite(loss):
            fail_not_finite(self.model, loss, gradient_norm, number)

    def wait(self) -> None:
        """Wait until all steps are done, for a limited time: call it before the host reads what they compute."""

    def finalize_step_count(self) -> None:
        """Let the optimizer count only the steps that were made; call it before the optimizer's state is saved."""
        self.scaler.finalize_step_count()

    def metrics(self) -> dict[str, Any]:
        """Further numbers for the log."""
        return {}

    @property
    def graph_memory(self) -> int:
        """Bytes of the GPU's memory that belong to a recorded graph."""
        return 0

    def _dropout_streams(self, number: int, i: int) -> Callable[[int], np.random.Generator]:
        """A function from a shard of batch ``i`` of a step to its random numbers: the same whichever worker computes it, and whenever."""
        return functools.partial(make_generator, self.config.seed, RandomStream.DROPOUT, number * self.config.accumulation + i)


class CPUStepper(Stepper):
    """Op by op on NumPy. Loss and gradient are checked before every update, because on the CPU that costs nothing.

    A step may take seconds. A user who asks to stop does not wait for its gradient: nothing is lost but the gradient.
    """

    def step(self, batches: Sequence[Batch], number: int) -> StepResult:
        result = self.gradients([self.to_device(batch) for batch in batches], number, [()] * len(batches))
        loss, norm = result.loss.array, result.gradient_norm.array
        if not np.isfinite(loss + norm):
            with self.world.together():
                fail_not_finite(self.model, float(loss), float(norm), number, self._shares(batches, number))
        if self.config.zero and self.world.size > 1:
            self._update_own_slice(result.gradient_factor)
        else:
            self.workers.update(self.optimizer, result.gradient_factor)
        self.optimizer.zero_grad()
        return result

    def clip(self, max_norm: float) -> tuple[Tensor, Array | None]:
        norm, factor = super().clip(max_norm)
        return norm, None if factor == 1 else factor  # on the CPU the comparison costs nothing, and most steps need no clipping

    def accumulate(
        self, batches: Sequence[tuple[Tensor, Tensor]], number: int, share: float | Array, keys: Sequence[Array] | Array
    ) -> list[list[Tensor]]:
        """All ranks give the step up, or none."""
        with self.world.together(), self.stop.interruptible():  # side by side, so that a signal between the two is told as well
            return super().accumulate(batches, number, share, keys)

    def _update_own_slice(self, factor: Array | None) -> None:
        """Update the weights of which this rank keeps the optimizer's state, give them to the other ranks, and receive theirs."""
        spans = self.optimizer.begin_step()
        for flat in self.optimizer.flats:
            own = self.world.slice_of(len(flat.data))
            parts = [slice(own.start + part.start, own.start + part.stop) for part in self.workers.split(own.stop - own.start)]
            self.workers.map(functools.partial(self.optimizer.update_slice, spans, flat, gradient_factor=factor), parts)
        self.optimizer.end_step(spans)
        for flat in self.optimizer.flats:
            self.world.gather_slices(flat.data)

    def _shares(self, batches: Sequence[Batch], number: int) -> Iterator[tuple[tuple[Tensor, ...], np.random.Generator]]:
        """What each shard computes in this step: its rows, and its random numbers."""
        for i, batch in enumerate(batches):
            tensors = self.to_device(batch)
            for shard, rows in enumerate(self.shards.split_rows(len(batch[0]))):
                yield tuple(tensor[rows] for tensor in tensors), self._dropout_streams(number, i)(shard)


class GPUStepper(Stepper):
    """Op by op on a GPU. Nothing is read back from the device, so that it never waits for Python.

    The optimizer clips the gradient as it reads it, and writes the weights in a half precision as well, for the next step's products.
    """

    def step(self, batches: Sequence[Batch], number: int) -> StepResult:
        self.round_weights()
        result = self.gradients([self.to_device(batch) for batch in batches], number, self.dropout_keys(number))
        self.scaler.step(result.gradient_norm, result.gradient_factor)
        self.gather_weights()
        self.optimizer.zero_grad()
        return result

    def wait(self) -> None:
        if self.world.size > 1:
            self.gpus.wait()

    def gather_weights(self) -> None:
        """With --zero: give the other ranks the weights that this one has updated, and receive theirs."""
        if not (self.config.zero and self.world.size > 1):
            return
        for flat in self.optimizer.flats:
            self.gpus.gather_slices(flat.data)
            if flat.rounded is not None:  # AdamW has rounded this rank's; to round the others' here is faster than to send them
                flat.rounded[...] = flat.data

    @property
    def gpus(self) -> Communicator:
        """The GPUs of all ranks."""
        return connect_gpus(self.world)

    def round_weights(self) -> None:
        """Write the weights in the half precision in use, if there is one and others than the optimizer have written to them."""
        dtype = half_dtype() if kernel_mode() == "fast" else None
        for flat in self.optimizer.flats if dtype is not None else ():
            flat.round_to(dtype)

    def gradients(self, batches: Sequence[tuple[Tensor, Tensor]], number: int, keys: Sequence[Array] | Array) -> StepResult:
        with use_rounded([(flat.data, flat.rounded) for flat in self.optimizer.flats if flat.rounded is not None]):
            return super().gradients(batches, number, keys)

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self._check_ids(batch)  # on a GPU an id out of range raises nothing: it reads another row
        return super().to_device(batch)

    def dropout_keys(self, number: int) -> Array:
        """The key of dropout for each shard of each of the step's batches: (accumulation, shards, 2), on the device."""
        streams = [[self._dropout_streams(number, i)(shard) for shard in range(self.shard_count)] for i in range(self.config.accumulation)]
        return Device(self.config.backend).asarray(np.array([[draw_dropout_key(stream) for stream in row] for row in streams]))

    def check(self, loss: float, gradient_norm: float, number: int) -> None:
        """Raise UserError if the loss is not finite, or if no step is made any more because every gradient overflows."""
        super().check(loss, gradient_norm, number)
        if self.scaler.is_enabled() and self.scaler.state_dict()["scale"] < 1:
            fail(
                f"the gradient overflows float16 again and again, and no step has been made for a while, at step {number}: "
                "try --precision bfloat16, or a smaller learning rate."
            )

    def metrics(self) -> dict[str, Any]:
        """The loss scale in float16; the bytes of memory that training holds, the graph's included, and how many it may hold."""
        pool, limit = Device(self.config.backend).memory(), self.config.memory_limit
        scale = {"loss_scale": self.scaler.state_dict()["scale"]} if self.scaler.is_enabled() else {}
        return {
            **scale,
            "gpu_memory": pool.reserved + self.graph_memory,
            "gpu_memory_limit": pool.limit if limit is None else int(limit * 2**30),
        }

    def _check_ids(self, batch: Batch) -> None:
        known = self.model.config.vocab_size
        largest, smallest = max(array.max() for array in batch), min(array[array != IGNORE].min(initial=0) for array in batch)
        if largest >= known or smallest < 0:
            wrong = largest if largest >= known else smallest
            raise ValueError(f"token id {wrong} is out of range: the model knows {known} tokens, 0 to {known - 1}.")


class GraphStepper(GPUStepper):
    """A step as a CUDA graph.

    The first steps are eager: they compile the kernels, and show how much memory a step needs. Then a step is recorded, with the batch,
    the dropout's keys, the learning rates and the step counts in arrays of its own. Each later step copies the new values in and launches.
    What an eager step changes on Python's side, above all the optimizer's counts, is changed here as well: between two steps everything is
    as an eager step would have left it. The two tensors of the result are overwritten by the next step.

    Attributes:
        why_eager: why a step cannot be recorded, so that all steps are eager; None while they are not.
    """

    why_eager: str | None = None
    _recorder: Recorder | None = None
    _recording: Recording[StepResult] | None = None
    _scalars: optim.DeviceScalars | None = None
    _warm = 0  # eager steps so far
    _batches: list[tuple[Tensor, Tensor]]
    _keys: Array

    def step(self, batches: Sequence[Batch], number: int) -> StepResult:
        """Make a step.

        Raises:
            UserError: if it cannot be recorded, and the user insists.
        """
        if self.why_eager is not None:
            return super().step(batches, number)
        if self._scalars and not self._scalars.are_valid():
            self._reset()  # the optimizer has new arrays
        if self._recorder is None:
            self._recorder = Recorder()
        if self._warm < WARM_UP:
            self._warm += 1
            return self._recorder.run(lambda: super(GraphStepper, self).step(batches, number))
        if self._recording is None:
            try:
                with self.world.together():  # all ranks have a graph, or none
                    self._recording = self._record(self._recorder, batches, number)
            except CaptureError as error:
                self.why_eager = str(error).strip().rstrip(".")
                self._reset()
                with self.world.together():
                    report_no_graph(self.config, self.why_eager, number)
                return super().step(batches, number)
        return self._launch(self._recording, batches, number)

    @property
    def graph_memory(self) -> int:
        return self._recorder.memory if self._recorder else 0

    def _reset(self) -> None:
        """Begin again: nothing is recorded."""
        self._recorder = self._recording = self._scalars = None
        self._warm = 0

    def _record(self, recorder: Recorder, batches: Sequence[Batch], number: int) -> Recording[StepResult]:
        """Record a step on arrays like those of ``batches``. The arrays that change between launches are allocated before the capture."""
        self._batches = [self.to_device(batch) for batch in batches]
        keys = self._keys = self.dropout_keys(number)
        self.round_weights()
        memory = self.optimizer.device_scalars_memory()

        def step() -> StepResult:
            result = self.gradients(self._batches, number, keys)
            self._scalars = self.optimizer.device_scalars(memory)
            self.scaler.step_with(self._scalars, result.gradient_norm, result.gradient_factor)
            self.gather_weights()
            return result

        try:
            recording = recorder.record(step)
        finally:
            self.optimizer.zero_grad()  # the gradients have their places now, but nothing was written there
        tqdm.write(f"step {number}: recorded as a CUDA graph, which works in {recorder.memory / 2**20:,.0f} MiB")
        return recording

    def _launch(self, recording: Recording[StepResult], batches: Sequence[Batch], number: int) -> StepResult:
        assert self._scalars is not None
        for recorded, batch in zip(self._batches, batches, strict=True):
            for tensor, new in zip(recorded, self.to_device(batch), strict=True):
                tensor.array[...] = new.array
        self._keys[...] = self.dropout_keys(number)
        self.round_weights()
        self._scalars.advance()
        recording.launch()
        return recording.result


def make_stepper(
    model: LanguageModel,
    optimizer: optim.Optimizer,
    config: TrainConfig,
    workers: Workers,
    stop: StopRequest,
    one_shape: bool = True,
    world: World | None = None,
) -> Stepper:
    """The stepper for these settings.

    Args:
        one_shape: whether all batches have the same shape, without which a step cannot be recorded.

    Raises:
        UserError: if the user insists on a CUDA graph, and there cannot be one.
    """
    if config.backend == "numpy":
        return CPUStepper(model, optimizer, config, workers, stop, world)
    if not config.cuda_graph:
        return GPUStepper(model, optimizer, config, workers, stop, world)
    if not one_shape:
        report_no_graph(config, "batches are as wide as their longest row", 0)
        return GPUStepper(model, optimizer, config, workers, stop, world)
    if kernel_mode() == "book":
        report_no_graph(config, "TENSORLITE_KERNELS=book, and the book's AdamW takes its rates from Python", 0)
        return GPUStepper(model, optimizer, config, workers, stop, world)
    if config.precision == "float16" and not isinstance(optimizer, optim.AdamW):
        report_no_graph(config, "in float16 the device decides whether a step is made, which only AdamW's kernel can read from it", 0)
        return GPUStepper(model, optimizer, config, workers, stop, world)
    return GraphStepper(model, optimizer, config, workers, stop, world)


def report_no_graph(config: TrainConfig, why: str, number: int) -> None:
    """Say that all steps from ``number`` on are eager, and why.

    Raises:
        UserError: if the user insists on a CUDA graph.
    """
    if config.cuda_graph is True:
        fail(f"--cuda-graph true, but the step cannot be recorded: {why}.")
    tqdm.write(f"step {number}: no CUDA graph, every op is queued by Python: {why}.")
