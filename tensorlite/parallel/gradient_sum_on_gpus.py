"""`SumAcrossRanks` for ranks that have a GPU each, so that a CUDA graph can contain it.

    losses          a number for each shard of each batch         ncclAllGather
    gradients       to each rank its slice of all ranks' sums     ncclSend, ncclRecv
                    added there in the order of the tree          kernels
                    the total of each slice to all ranks          ncclAllGather

Nothing of it waits for the device. Which shards have a gradient is known to the hosts: they tell each other in eager steps, and a step
that is captured must be like the last one of these.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.optim.flat import FlatParameters
from tensorlite.parallel.gradient_sum import SumAcrossRanks, move_to_buffer
from tensorlite.parallel.nccl import connect_gpus
from tensorlite.parallel.ranks import RankError, World
from tensorlite.parallel.threads import Workers
from tensorlite.tensor import Tensor


class SumAcrossGPUs(SumAcrossRanks):
    """See `SumAcrossRanks`. All memory that NCCL reads and writes is allocated before a capture."""

    def __init__(self, flats: Sequence[FlatParameters], world: World, count: int, workers: Workers) -> None:
        super().__init__(flats, world, count, workers)
        self.wire = self.gpus = connect_gpus(world)
        for k, flat in enumerate(flats):
            own = world.slice_of(len(flat.grad))
            self._memory(k, own.stop - own.start)
        self._losses = array_module(flats[0].grad).empty((world.size, 0, 0), flats[0].dtype)
        self._told = self._heard = np.empty((0, 0), bool)

    def _exchange_losses(self, shards: Sequence[Sequence[Tensor]], losses: Sequence[Sequence[Tensor]]) -> tuple[Array, list[list[Tensor]]]:
        batches, rows = len(losses), max(map(len, self.owned))
        message = np.zeros((rows, batches + sum(map(len, self.flats))), bool)  # a row for each shard
        for i, batch in enumerate(losses):
            message[: len(batch), i] = True
        for row, tensors in zip(message, shards, strict=False):
            row[batches:] = [move_to_buffer(tensor) for tensor in tensors]
        heard = self._tell(message)
        gathered = self._gather(losses, (self.world.size, rows, batches))
        places = [(rank, row) for rank, own in enumerate(self.owned) for row in range(len(own))]
        all_losses = [[Tensor.wrap(gathered[rank, row, i, ...]) for rank, row in places if heard[rank, row, i]] for i in range(batches)]
        return np.array([heard[place][batches:] for place in places]), all_losses

    def _tell(self, message: Array) -> Array:
        """The ``message`` of every rank."""
        if not self.gpus.is_capturing():
            self._told, self._heard = message, self.world.gather(message)
        elif not np.array_equal(message, self._told):
            raise RankError("other parameters have a gradient than in the step before.")
        return self._heard

    def _gather(self, losses: Sequence[Sequence[Tensor]], shape: tuple[int, int, int]) -> Array:
        """The losses of all ranks, (ranks, shards of a rank, batches)."""
        if self._losses.shape != shape:
            self._losses = array_module(self._losses).zeros(shape, self._losses.dtype)
        for i, batch in enumerate(losses):
            for row, loss in enumerate(batch):
                self._losses[self.world.rank, row, i] = loss.array
        self.gpus.gather_rows(self._losses)
        return self._losses.copy()
