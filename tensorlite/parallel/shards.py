"""A batch is cut into shards, a team computes them, and their gradients are added in the order of the shards."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensorlite.backend import Array
from tensorlite.optim.flat import FlatParameters
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

    Raises:
        ValueError: for less than one shard, or if the model has a parameter that requires a gradient and is in none of ``flats``.
    """

    def __init__(self, model: Any, flats: Sequence[FlatParameters], count: int, workers: Workers, loss: Loss = second_output) -> None:
        if count < 1:
            raise ValueError(f"the number of shards must be at least 1, got {count}.")
        self.model, self.flats, self.workers = model, list(flats), workers
        self._require_all_trained()
        self.replicas = [Replica(model, self.flats, loss) for _ in range(count - 1)]
        self._shards = [Shard(model, loss), *self.replicas]

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
        count = len(self._shards)
        ends = [rows * i // count for i in range(count + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(ends) if a < b]

    def forward_backward(
        self, batch: tuple[Tensor, ...], generator_of: Callable[[int], np.random.Generator], scale: float | Array = 1.0, keys: Array = ()
    ) -> Tensor:
        """Forward and backward. The gradients of all shards are added into the model's own ``grad``.

        Args:
            batch: tensors that are split along their first axis and passed to the model.
            generator_of: returns the random generator of a shard, by its number. `Processes` pickle it.
            scale: the factor of the loss in backward: one over the number of accumulated batches, times the scale of a `GradScaler` if
                there is one.
            keys: on a GPU, the dropout key of each shard (see `tensorlite.random.use_dropout_key`).

        Returns:
            The mean loss over the batch.
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
        ]
        for replica in self.replicas:
            replica.refresh(self.model)
        losses = self.workers.compute(self._shards, tasks)
        for replica in self.replicas[: len(tasks) - 1]:
            self._add_gradients(replica)
        return functools.reduce(lambda total, loss: total + loss, losses)

    def _add_gradients(self, replica: Replica) -> None:
        """Add the gradients of ``replica`` to those of the first model, and drop them there."""
        if all(_is_in_buffer(parameter) and _is_in_buffer(twin) for parameter, twin in replica.twins):
            for flat, gradient in zip(self.flats, replica.gradients, strict=True):
                self.workers.map(functools.partial(_add_part, flat.grad, gradient), self.workers.split(len(gradient)))
        else:  # some parameters were not used in this step
            for parameter, twin in replica.twins:
                if twin.grad is not None:
                    parameter.grad = twin.grad.clone() if parameter.grad is None else parameter.grad + twin.grad
        replica.zero_grad()


def _is_in_buffer(parameter: Tensor) -> bool:
    """Whether the parameter has a gradient, and it lies in the flat buffer."""
    return parameter.grad is not None and parameter.grad.array is parameter.grad_buffer


def _add_part(total: Array, gradient: Array, part: slice) -> None:
    total[part] += gradient[part]
