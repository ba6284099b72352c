"""The gradients of all shards are added, in the order of `tensorlite.parallel.tree`, whoever holds them.

Within a process each worker adds a slice of all of them. Among ranks, each rank adds its shards' as far as the tree allows; then it
receives a slice of the others' sums, adds that, and gives the total of its slice to all. Of N bytes of gradient a rank of R sends
(R - 1) / R · N for each node of the tree that its shards make, usually one, and receives as much; and the totals once more. That is what
a ring takes, whose order of addition would depend on the number of ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.optim.flat import FlatParameters
from tensorlite.parallel.nccl import Communicator
from tensorlite.parallel.ranks import World
from tensorlite.parallel.threads import Workers
from tensorlite.parallel.tree import Node, add_tree, largest_nodes
from tensorlite.tensor import Tensor


def add_on_one_rank(
    flats: Sequence[FlatParameters], shards: Sequence[Sequence[Tensor]], gradients: Sequence[Sequence[Array]], workers: Workers
) -> None:
    """Add the gradients of several shards into those of the first.

    Args:
        shards: the parameters of each shard's model.
        gradients: for each of ``flats`` the flat gradient of each shard.
    """
    root = (0, len(shards))
    filled = [any(parameter.grad is not None for parameter in parameters) for parameters in shards]
    complete = [all(map(_is_in_buffer, parameters)) for parameters in shards]
    if filled[0] and filled == complete:
        for flat, arrays in zip(flats, gradients, strict=True):
            values = {(i, i + 1): array if filled[i] else None for i, array in enumerate(arrays)}
            workers.map(functools.partial(_add_slices, root, values, flat.grad), workers.split(len(flat.grad)))
        return
    for parameter, *twins in zip(*shards, strict=True):  # some parameters were not used in this step
        grads = {(i, i + 1): tensor.grad for i, tensor in enumerate([parameter, *twins])}
        total = add_tree(root, grads, lambda a, b: a + b)
        parameter.grad = total if total is None or total is parameter.grad else total.clone()


class SumAcrossRanks:
    """Adds the gradients of the shards of several ranks.

    Args:
        flats: the flat buffers that receive the sum, on each rank.
        count: the number of shards, which ``world`` shares out.
        workers: this rank's team.

    Attributes:
        wire: carries the arrays.
    """

    def __init__(self, flats: Sequence[FlatParameters], world: World, count: int, workers: Workers) -> None:
        self.flats, self.world, self.workers, self.root = flats, world, workers, (0, count)
        self.wire: World | Communicator = world
        self.owned = [world.share(range(count), rank) for rank in range(world.size)]
        self.nodes = [largest_nodes(self.root, own) for own in self.owned]
        self._received: dict[int, Array] = {}  # memory for what the other ranks send, of each flat buffer

    def add(
        self, shards: Sequence[Sequence[Tensor]], gradients: Sequence[Sequence[Array]], losses: Sequence[Sequence[Tensor]]
    ) -> list[list[Tensor]]:
        """Give the model of this rank, of which the gradients are in ``flats``, the sum over all ranks.

        Args:
            shards: the parameters of the models of this rank's shards.
            gradients: for each of ``flats`` the flat gradients of this rank's shards.
            losses: for each batch those of this rank's shards.

        Returns:
            For each batch the losses of all shards.
        """
        filled, all_losses = self._exchange_losses(shards, losses)
        first = 0
        for k, (flat, arrays) in enumerate(zip(self.flats, gradients, strict=True)):
            pieces = _pieces(flat, filled[:, first : first + len(flat)])
            self._add_flat(k, pieces, arrays)
            first += len(flat)
        for parameter, has in zip((p for flat in self.flats for p in flat.parameters), filled.any(axis=0), strict=True):
            parameter.grad = Tensor.wrap(parameter.grad_buffer) if has else None
        return all_losses

    def _exchange_losses(self, shards: Sequence[Sequence[Tensor]], losses: Sequence[Sequence[Tensor]]) -> tuple[Array, list[list[Tensor]]]:
        """Whether each parameter has a gradient in each shard, (shards, parameters); and for each batch the losses of all shards."""
        batches, parameters = len(losses), sum(map(len, self.flats))
        message = np.zeros((max(map(len, self.owned)), 2 * batches + parameters))  # a row for each shard
        for i, batch in enumerate(losses):
            for row, loss in zip(message, batch, strict=False):
                row[i], row[batches + i] = loss.array, True
        for row, tensors in zip(message, shards, strict=False):
            row[2 * batches :] = [move_to_buffer(tensor) for tensor in tensors]
        received = self.world.gather(message)
        rows = np.concatenate([received[rank, : len(own)] for rank, own in enumerate(self.owned)])
        has_loss, dtype = rows[:, batches : 2 * batches] > 0, self.flats[0].dtype
        all_losses = [[Tensor.wrap(np.asarray(loss, dtype)) for loss in rows[has_loss[:, i], i]] for i in range(batches)]
        return rows[:, 2 * batches :] > 0, all_losses

    def _add_flat(self, k: int, pieces: Sequence[tuple[slice, Sequence[bool]]], arrays: Sequence[Array]) -> None:
        """Add flat buffer ``k``: this rank's shards, then a slice of all ranks' sums; then every rank gets all slices."""
        world, flat, me = self.world, self.flats[k], self.world.rank
        own = dict(zip(self.owned[me], arrays, strict=False))
        sums = {node: own[node[0]] for node in self.nodes[me]}
        for node, total in sums.items():
            for piece, filled in pieces:
                values = {(i, i + 1): own[i] if filled[i] else None for i in range(*node)}
                self._map(functools.partial(_add_slices, node, values, total), piece)

        mine = world.slice_of(len(flat.grad))
        received = self._memory(k, mine.stop - mine.start)
        self.wire.exchange(
            sends=[(rank, total[world.slice_of(len(flat.grad), rank)]) for rank in world.others for total in sums.values()],
            receives=[(rank, received[node]) for rank in world.others for node in self.nodes[rank]],
        )
        slices = {**received, **{node: total[mine] for node, total in sums.items()}}
        for piece, filled in pieces:
            part = slice(max(piece.start, mine.start) - mine.start, min(piece.stop, mine.stop) - mine.start)
            values = {node: array if any(filled[node[0] : node[1]]) else None for node, array in slices.items()}
            self._map(functools.partial(_add_slices, self.root, values, flat.grad[mine]), part)
        self.wire.gather_slices(flat.grad)

    def _map(self, add: functools.partial[None], part: slice) -> None:
        """Call ``add`` for slices of ``part``, one for each worker."""
        if part.start < part.stop:
            self.workers.map(add, [slice(part.start + s.start, part.start + s.stop) for s in self.workers.split(part.stop - part.start)])

    def _memory(self, k: int, length: int) -> dict[Node, Array]:
        """An array of ``length`` for each node that other ranks send of flat buffer ``k``."""
        nodes = [node for rank in self.world.others for node in self.nodes[rank]]
        if k not in self._received:
            self._received[k] = array_module(self.flats[k].grad).empty((len(nodes), length), self.flats[k].dtype)
        return dict(zip(nodes, self._received[k], strict=True))


def _pieces(flat: FlatParameters, filled: Array) -> list[tuple[slice, Sequence[bool]]]:
    """Slices of ``flat``, and for each the shards that have a gradient there: one for all of it if every shard has all gradients or none.

    Args:
        filled: (shards, parameters).
    """
    if (filled.all(axis=1) == filled.any(axis=1)).all():
        return [(slice(0, len(flat.grad)), filled[:, 0].tolist())]
    return [(flat.slice_of(i), has.tolist()) for i, has in enumerate(filled.T)]


def _add_slices(node: Node, values: Mapping[Node, Array | None], total: Array, part: slice) -> None:
    """``total[part]`` ← the sum of the same part of all ``values``, of which some are overwritten."""
    slices = {key: None if array is None else array[part] for key, array in values.items()}
    found = add_tree(node, slices, _add_in_place)
    is_there = any(slices[key] is found for key, array in values.items() if array is total)
    if found is not None and not is_there:
        total[part] = found


def _add_in_place(a: Array, b: Array) -> Array:
    a += b
    return a


def _is_in_buffer(parameter: Tensor) -> bool:
    """Whether the parameter has a gradient, and it lies in the flat buffer."""
    return parameter.grad is not None and parameter.grad.array is parameter.grad_buffer


def move_to_buffer(parameter: Tensor) -> bool:
    """Whether the parameter has a gradient, which is in the flat buffer now.

    Raises:
        ValueError: if it has another shape or dtype.
    """
    grad, home = parameter.grad, parameter.grad_buffer
    if grad is None or home is None:
        return False
    if grad.array is not home:
        if grad.shape != home.shape or grad.dtype != home.dtype:
            raise ValueError(f"a gradient of {grad.shape}, {grad.dtype}, does not fit into the optimizer's, {home.shape}, {home.dtype}.")
        home[...] = grad.array
        parameter.grad = Tensor.wrap(home)
    return True
