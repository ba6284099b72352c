"""A batch is cut into shards, teams compute them, and their gradients are added (`tensorlite.parallel.gradient_sum`)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensorlite.backend import Array
from tensorlite.optim.flat import FlatParameters
from tensorlite.optim.optimizer import Optimizer
from tensorlite.parallel.gradient_sum import SumAcrossRanks, add_on_one_rank
from tensorlite.parallel.gradient_sum_on_gpus import SumAcrossGPUs
from tensorlite.parallel.nccl import Communicator
from tensorlite.parallel.ranks import World
from tensorlite.parallel.replicas import Loss, Replica, Shard, Task, second_output
from tensorlite.parallel.threads import Workers
from tensorlite.tensor import Tensor


class BatchShards:
    """A model and its replicas, each for one shard of the batch.

    Args:
        model: the model for the first shard; the others get replicas.
        flats: the flat buffers of the parameters that are trained, as in `Optimizer.flats`.
        count: the number of shards.
        workers: the team that runs them.
        loss: ``loss(model, *rows)`` is the mean loss over some rows of a batch; without one, the model returns (logits, loss).
        world: the ranks that share the shards; each has a model and a team of its own.
        optimizer: has ``flats``. A team of processes shares out its steps as well, if they are made by `Workers.update`.

    Attributes:
        own: the numbers of the shards that this rank computes.

    Raises:
        ValueError: for less than one shard, or if the model has a parameter that requires a gradient and is in none of ``flats``.
    """

    def __init__(
        self,
        model: Any,
        flats: Sequence[FlatParameters],
        count: int,
        workers: Workers,
        loss: Loss = second_output,
        world: World | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"the number of shards must be at least 1, got {count}.")
        self.model, self.flats, self.workers, self.count, self.world = model, list(flats), workers, count, world or World()
        self.optimizer = optimizer
        self._require_all_trained()
        self.own = self.world.share(range(count))
        self.replicas = [Replica(model, self.flats, loss) for _ in self.own[1:]]
        self._shards = [Shard(model, loss), *self.replicas]
        kind = SumAcrossGPUs if self.world.size > 1 and self.flats[0].device.name == "cupy" else SumAcrossRanks
        self._across_ranks = kind(self.flats, self.world, count, workers)
        self._is_added = False  # whether the model's gradient is already the sum over all ranks

    @property
    def wire(self) -> World | Communicator:
        """What carries arrays between the ranks: MPI on CPUs, NCCL on GPUs."""
        return self._across_ranks.wire

    def _require_all_trained(self) -> None:
        """Shards would write to the gradient of any other parameter at the same time."""
        trained = {id(parameter) for flat in self.flats for parameter in flat.parameters}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in trained:
                raise ValueError(f"the parameter {name} requires a gradient and no optimizer has it: freeze it with requires_grad_(False).")

    def zero_grad(self) -> None:
        """Drop all gradients: the model's, and those that an interrupted call left in the replicas."""
        for tensor in self.model.parameters():
            tensor.grad = None
        for replica in self.replicas:
            replica.zero_grad()

    def split_rows(self, rows: int) -> list[slice]:
        """The rows of each shard, as even as possible. With fewer rows than shards there are fewer slices."""
        ends = [rows * i // self.count for i in range(self.count + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(ends) if a < b]

    def forward_backward(
        self, batch: tuple[Tensor, ...], generator_of: Callable[[int], np.random.Generator], scale: float | Array = 1.0, keys: Array = ()
    ) -> Tensor:
        """`accumulate` one batch, and `add_gradients`. Return the mean loss over the batch."""
        return self.add_gradients([self.accumulate(batch, generator_of, scale, keys)])[0]

    def accumulate(
        self, batch: tuple[Tensor, ...], generator_of: Callable[[int], np.random.Generator], scale: float | Array = 1.0, keys: Array = ()
    ) -> list[Tensor]:
        """Forward and backward. Each shard of this rank adds the gradient into its own, where it stays until `add_gradients`.

        Args:
            batch: tensors that are split along their first axis and passed to the model; the same on all ranks.
            generator_of: returns the random generator of a shard, by its number. `Processes` pickle it.
            scale: the factor of the loss in backward: one over the number of accumulated batches, times the scale of a `GradScaler` if
                there is one.
            keys: on a GPU, the dropout key of each shard (see `tensorlite.random.use_dropout_key`).

        Raises:
            RuntimeError: on several ranks, if the gradient that `add_gradients` has left was not dropped.

        Returns:
            The losses of this rank's shards, each times its share of the rows.
        """
        rows = batch[0].shape[0]
        tasks = [
            Task(
                rows=tuple(tensor[share] for tensor in batch),
                weight=(share.stop - share.start) / rows,
                generator=functools.partial(generator_of, i),
                scale=scale,
                key=keys[i] if len(keys) else None,
            )
            for i, share in enumerate(self.split_rows(rows))
            if i in self.own
        ]
        if self._is_added and any(parameter.grad is not None for flat in self.flats for parameter in flat.parameters):
            raise RuntimeError("several ranks cannot accumulate into a gradient that is added already: call zero_grad() first.")
        self._is_added = False
        for replica in self.replicas:
            replica.refresh(self.model)
        return self.workers.compute(self._shards, tasks, self.optimizer)

    def add_gradients(self, losses: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Add the gradients of all shards into the model's own ``grad``: the same bits on all ranks.

        Args:
            losses: what `accumulate` has returned, for each batch.

        Returns:
            The mean loss over each batch.
        """
        parameters = [parameter for flat in self.flats for parameter in flat.parameters]
        shards = [parameters, *([twin for _, twin in replica.twins] for replica in self.replicas)]
        gradients = [[flat.grad, *(replica.gradients[k] for replica in self.replicas)] for k, flat in enumerate(self.flats)]
        if self.world.size > 1:
            losses = self._across_ranks.add(shards[: len(self.own)], gradients, losses)
            for buffer in self.model.buffers():  # the first shard's, as on one rank
                self.wire.broadcast(buffer.array)
            self._is_added = True
        elif self.replicas:
            add_on_one_rank(self.flats, shards, gradients, self.workers)
        for replica in self.replicas:
            replica.zero_grad()
        return [functools.reduce(lambda total, loss: total + loss, each) for each in losses]
