"""Three lines for a training loop of your own: the batch is shared among the cores, whatever the model, and among the ranks of MPI.

step = tl.parallel.shared(model, optimizer)
for x, y in batches:
    loss = step(x, y)

Every rank runs the whole program (`mpiexec -n 4 python -m mpi4py loop.py`). All must draw the same batches, so their seeds are the same.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from tensorlite.optim.clip import clip_factor
from tensorlite.optim.optimizer import Optimizer
from tensorlite.parallel.ranks import connect, hash_of_arrays
from tensorlite.parallel.replicas import Loss, second_output
from tensorlite.parallel.shards import BatchShards
from tensorlite.parallel.teams import make_team
from tensorlite.random import default_generator, make_generator
from tensorlite.tensor import Tensor


def shared(
    model: Any,
    optimizer: Optimizer,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    *,
    max_norm: float | None = None,
    workers: int | None = None,
    team: str = "threads",
    shards: int | None = None,
) -> SharedStep:
    """A function that makes training steps of ``model``, in which each core computes a part of the batch.

    Under mpiexec the parts of a batch are shared among all ranks, and each has a team of its own. They must have the same weights, the same
    seed, and be given the same batches; the weights then stay the same on all of them.

    Args:
        model: ``model(x, y)`` returns (logits, loss); with ``loss`` it is called as ``model(x)``.
        optimizer: has all parameters of the model that require a gradient.
        loss: ``loss(model(x), y)`` is the mean loss over the rows of x and y, as `nn.functional.cross_entropy` returns it.
        max_norm: clip the gradient to this norm (see `optim.clip_grad_norm_`).
        workers: how many cores (default: all).
        team: "threads", or "processes", which may be faster for a small model and need one that can be pickled.
        shards: the number of parts of a batch (default: as many as workers in all ranks). It decides how sums are rounded; workers, team
            and ranks do not.

    Raises:
        ValueError: for less than one worker or shard, an unknown team, or a parameter that requires a gradient and is not the optimizer's;
            on all ranks, if one of them differs in the seed, the weights, the optimizer's state, the number of shards or the norm.
        RankError: if mpiexec has started several processes that cannot find each other.
    """
    return SharedStep(model, optimizer, loss, max_norm, available_cores() if workers is None else workers, team, shards)


class SharedStep:
    """``step(x, y)`` makes a training step; see `shared`.

    The team works from the first step until `close`, the end of the ``with`` block if there is one, or until nothing refers to this
    object. In that time every product of the program is computed on one core, also outside of steps.

    Attributes:
        world: the ranks of MPI that share each batch; usually one.
        number: the steps so far. With the seed, which is drawn from the thread's generator (`tl.manual_seed`), it names the random numbers.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Optimizer,
        loss: Callable[[Any, Tensor], Tensor] | None,
        max_norm: float | None,
        workers: int,
        team: str,
        shards: int | None,
    ) -> None:
        self.model, self.optimizer, self.max_norm, self.number = model, optimizer, max_norm, 0
        self.team, self.world = make_team(team, workers), connect()
        self._loss: Loss = second_output if loss is None else functools.partial(_loss_of_output, loss)
        self._shard_count = workers * self.world.size if shards is None else shards
        self._seed = int(default_generator().integers(2**63))
        self._end: Callable[[], object] | None = None  # while the team works
        self._lay_out()
        self._require_same_start()

    def __call__(self, *batch: Any) -> Tensor:
        """Make a step with the rows of ``batch``, tensors or arrays; return the mean loss.

        Raises:
            ValueError: for a batch without rows, tensors with different numbers of them, or another batch on another rank. Nothing is
                changed then.
            TeamError: if a process cannot be started, ends, or shows no sign of life for minutes. The weights are those of before the step.
        """
        loss = self.gradients(*batch)
        factor = None if self.max_norm is None else clip_factor(self.model.parameters(), self.max_norm)[1]
        self.team.update(self.optimizer, factor)
        self.optimizer.zero_grad()
        self.number += 1
        return loss

    def gradients(self, *batch: Any) -> Tensor:
        """Compute the mean loss over the rows of ``batch`` and leave its gradient in the parameters, for a step that you make yourself."""
        with self.world.together():
            tensors = _checked(batch)
        if self.world.size > 1:
            self._require_same({"the hash of the batch": hash_of_arrays(tensor.numpy() for tensor in tensors)})
        if self._end is None:
            self._end = weakref.finalize(self, self.team.__enter__().__exit__, None, None, None)
        if self._layout != self.optimizer.layout:
            self._lay_out()  # a parameter group was added, for example
        self.shards.zero_grad()
        with self.world.together():
            losses = self.shards.accumulate(tensors, functools.partial(make_generator, self._seed, self.number))
        return self.shards.add_gradients([losses])[0]

    def close(self) -> None:
        """End the team; the next step begins again."""
        if self._end is not None:
            self._end()
            self._end = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _lay_out(self) -> None:
        self._layout = self.optimizer.layout
        self.shards = BatchShards(self.model, self.optimizer.flats, self._shard_count, self.team, self._loss, self.world, self.optimizer)

    def _require_same_start(self) -> None:
        """Ranks that begin with other numbers would train other models."""
        if self.world.size == 1:
            return
        state = self.optimizer.state_dict()["state"]
        kept = [np.asarray(value) for number in sorted(state) for _, value in sorted(state[number].items())]
        self._require_same(
            {
                "the seed (tl.manual_seed)": self._seed,
                "the hash of the weights": hash_of_arrays(tensor.numpy() for tensor in self.model.state_dict().values()),
                "the hash of the optimizer's state": hash_of_arrays(kept),
                "the number of shards": self._shard_count,
                "max_norm": self.max_norm,
            }
        )

    def _require_same(self, values: Mapping[str, Any]) -> None:
        if (difference := self.world.difference(values)) is not None:
            raise ValueError(f"all ranks must train the same model on the same batches: {difference}.")


def _checked(batch: Sequence[Any]) -> tuple[Tensor, ...]:
    """The tensors of a batch, which all have the same number of rows."""
    tensors = tuple(part if isinstance(part, Tensor) else Tensor(np.asarray(part)) for part in batch)
    rows = [tensor.shape[0] if tensor.ndim else 0 for tensor in tensors]
    if not rows or not rows[0] or len(set(rows)) > 1:
        raise ValueError(f"a batch is one or more tensors with the same number of rows, at least 1; got {rows} rows.")
    return tensors


def _loss_of_output(loss: Callable[[Any, Tensor], Tensor], model: Any, x: Tensor, y: Tensor) -> Tensor:
    return loss(model(x), y)


def available_cores() -> int:
    """The cores that this process may use. A container's quota of CPU time is not read: there, pass ``workers``."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
