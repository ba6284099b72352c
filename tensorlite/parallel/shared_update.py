"""A step of an optimizer that processes share out: each updates some tiles of the flat buffers, which lie in shared memory.

It takes the rule of an optimizer, such as AdamW's, number by number, so whoever updates a tile, the bits are the same. A process that dies
leaves its tile half updated. Therefore it saves each tile first (`Journal`); the calling process takes that one back, updates the
rest of the share itself, and the step is whole. The next step says that a process has ended.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from tensorlite.backend import Array
from tensorlite.op import kernel_mode, use_kernels
from tensorlite.optim.optimizer import TILE, Optimizer
from tensorlite.optim.state import Span
from tensorlite.parallel.messages import SharedModel, TeamError
from tensorlite.parallel.shared_memory import Place, Plan, SharedMemory

ENOUGH = 4  # tiles: for fewer, the messages take longer than the update
_NOT_SENT = ("param_groups", "_buffers", "_places", "_parts")  # attributes of an optimizer that hold parameters and state


class Tile(NamedTuple):
    """Neighbours in a flat buffer that are updated together.

    Attributes:
        flat, group: numbers of the buffer and of the parameter group.
        step: as of `Optimizer.update`.
    """

    flat: int
    group: int
    step: int
    start: int
    stop: int


class Share(NamedTuple):
    """A message: what one process updates in a step.

    Attributes:
        process: its number, which is that of its journal.
        options: of each parameter group.
        factor: multiplies the gradient.
        kernels: the mode of `tensorlite.op.use_kernels`.
        floating_point_errors: as of `numpy.geterr`.
    """

    process: int
    tiles: list[Tile]
    options: list[dict[str, Any]]
    factor: Array | None
    kernels: str
    floating_point_errors: Any


class SharedOptimizer(NamedTuple):
    """A part of the first message to a process.

    Attributes:
        pickled: an optimizer without parameters and state.
        states: for each flat buffer, the arrays of the optimizer's state, by name.
        journals: for each process, how many tiles it has begun and finished, and memory for one.
    """

    pickled: bytes
    states: list[dict[str, Place]]
    journals: list[tuple[Place, Place]]


class Process(Protocol):
    """What is asked of a process here."""

    def send(self, message: object) -> None: ...
    def receive(self) -> Any: ...


class Journal:
    """A tile as it was before one process changed it.

    Args:
        count: how many tiles were begun and finished: odd while one is being changed. Its state is then in ``memory``.
        memory: (arrays, bytes of a tile).
    """

    def __init__(self, count: Array, memory: Array) -> None:
        self.count, self.memory = count, memory

    def change(self, arrays: Sequence[Array], update: Callable[[], None]) -> None:
        """Call ``update``, which changes ``arrays``."""
        for array, saved in self._pairs(arrays):
            saved[...] = array
        self.count += 1
        update()
        self.count += 1

    def take_back(self, arrays_of: Callable[[int], Sequence[Array]]) -> int:
        """Undo what was begun and not finished; return how many tiles are finished.

        Args:
            arrays_of: the arrays of a tile, by its number.
        """
        done, half = divmod(int(self.count), 2)
        if half:
            for array, saved in self._pairs(arrays_of(done)):
                array[...] = saved
        return done

    def _pairs(self, arrays: Sequence[Array]) -> list[tuple[Array, Array]]:
        return [(array, row[: array.nbytes].view(array.dtype)) for array, row in zip(arrays, self.memory, strict=False)]


class UpdatedArrays:
    """The arrays of an optimizer, in shared memory; both sides have one.

    Args:
        flats: for each flat buffer, parameters, gradient, and state by name.
    """

    def __init__(self, rule: Optimizer, flats: Sequence[tuple[Array, Array, Mapping[str, Array]]], journals: Sequence[Journal]) -> None:
        self.rule, self.flats, self.journals = rule, flats, journals

    def update(self, tile: Tile, group: dict[str, Any], factor: Array | None, journal: Journal | None = None) -> None:
        """Update one tile, and note it in the journal."""
        data, grad, *state = self._arrays(tile, group)

        def update() -> None:
            self.rule.update_tile(group, tile.step, (data, grad, *state), factor)

        if journal is None:
            update()
        else:
            journal.change((data, *state), update)

    def finish(self, share: Share) -> None:
        """Update what a process that has ended has left of its share."""

        def changed(number: int) -> Sequence[Array]:
            data, _, *state = self._arrays(share.tiles[number], share.options[share.tiles[number].group])
            return data, *state

        for tile in share.tiles[self.journals[share.process].take_back(changed) :]:
            self.update(tile, share.options[tile.group], share.factor)

    def run(self, share: Share) -> None:
        """Update a share in the process that has been sent it."""
        with use_kernels(share.kernels), np.errstate(**share.floating_point_errors):
            for tile in share.tiles:
                self.update(tile, share.options[tile.group], share.factor, self.journals[share.process])

    def _arrays(self, tile: Tile, group: dict[str, Any]) -> list[Array]:
        data, grad, state = self.flats[tile.flat]
        return [array[tile.start : tile.stop] for array in (data, grad, *(state[name] for name in self.rule.arrays_of(group)))]


class SharedUpdate:
    """The calling process's side.

    Args:
        plan: collects the arrays that will lie in shared memory.
        processes: how many others there are.
    """

    def __init__(self, optimizer: Optimizer, plan: Plan, processes: int) -> None:
        self.optimizer = optimizer
        names = list(dict.fromkeys(name for group in optimizer.param_groups for name in optimizer.arrays_of(group)))
        row = np.empty((1 + len(names), TILE * max(flat.dtype.itemsize for flat in optimizer.flats)), np.uint8)
        self.message = SharedOptimizer(
            pickled=pickle_rule(optimizer),
            states=[{name: plan.add(flat.data) for name in names} for flat in optimizer.flats],
            journals=[(plan.add(np.zeros((), np.int64)), plan.add(row)) for _ in range(processes)],
        )

    @staticmethod
    def suits(optimizer: Optimizer) -> bool:
        """Whether a step of it can be shared out: number by number, and by a class that other processes can import."""
        if not optimizer.is_elementwise or optimizer.shares_state:
            return False
        try:
            pickle_rule(optimizer)
        except (pickle.PicklingError, AttributeError, TypeError):
            return False
        return type(optimizer).__module__ != "__main__"

    def attach(self, memory: SharedMemory) -> None:
        """Begin to use the memory, to which the flat buffers have moved."""
        self.states = [{name: memory.array(place) for name, place in state.items()} for state in self.message.states]
        flats = [(flat.data, flat.grad, state) for flat, state in zip(self.optimizer.flats, self.states, strict=True)]
        self.arrays = UpdatedArrays(self.optimizer, flats, _journals(self.message, memory))

    def step(self, processes: Sequence[Process], factor: Array | None) -> None:
        """`Optimizer.step`, shared out among these processes and this one."""
        spans = self.optimizer.begin_step()
        if not self._is_in_place(spans) or len(tiles := self._tiles(spans)) < ENOUGH:
            self.optimizer.step(gradient_factor=factor)
            return
        self.optimizer.move_state(self.states)
        options = [{name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups]
        count = 1 + len(processes)
        ends = [len(tiles) * i // count for i in range(count + 1)]
        own, *others = [tiles[a:b] for a, b in itertools.pairwise(ends)]
        shares = [Share(i, part, options, factor, kernel_mode(), np.geterr()) for i, part in enumerate(others)]
        for share, process in zip(shares, processes, strict=True):
            self.arrays.journals[share.process].count[...] = 0
            _unless_ended(process.send, ("update", (share,)))
        for tile in own:
            self.arrays.update(tile, options[tile.group], factor)
        for share, process in zip(shares, processes, strict=True):
            if not _unless_ended(process.receive):
                self.arrays.finish(share)
        self.optimizer.end_step(spans)

    def _is_in_place(self, spans: Sequence[Span]) -> bool:
        """Whether the optimizer still has the buffers that were shared, and no array more."""
        flats = self.optimizer.flats
        known = all(name in self.states[0] for span in spans for name in self.optimizer.arrays_of(span.group))
        return known and [id(flat.data) for flat in flats] == [id(data) for data, _, _ in self.arrays.flats]

    def _tiles(self, spans: Sequence[Span]) -> list[Tile]:
        flats, groups = ([id(thing) for thing in things] for things in (self.optimizer.flats, self.optimizer.param_groups))
        return [
            Tile(flats.index(id(flat)), groups.index(id(span.group)), span.step, k, min(k + TILE, flat.starts[span.last]))
            for span in spans
            for flat in (span.buffer.flat,)
            for k in range(flat.starts[span.first], flat.starts[span.last], TILE)
        ]


def attach_remote(message: SharedModel, memory: SharedMemory) -> UpdatedArrays:
    """The other side: the arrays as another process sees them."""
    optimizer: SharedOptimizer = message.optimizer
    kind, attributes = pickle.loads(optimizer.pickled)
    rule = object.__new__(kind)
    vars(rule).update(attributes)
    arrays = [
        (memory.array(data), memory.array(grad), {name: memory.array(place) for name, place in state.items()})
        for data, grad, state in zip(message.flats, message.totals, optimizer.states, strict=True)
    ]
    return UpdatedArrays(rule, arrays, _journals(optimizer, memory))


def pickle_rule(optimizer: Optimizer) -> bytes:
    """An optimizer without parameters and state: what `Optimizer.update_tile` needs."""
    return pickle.dumps((type(optimizer), {name: value for name, value in vars(optimizer).items() if name not in _NOT_SENT}))


def _journals(message: SharedOptimizer, memory: SharedMemory) -> list[Journal]:
    return [Journal(memory.array(count), memory.array(saved)) for count, saved in message.journals]


def _unless_ended(call: Callable[..., Any], *args: Any) -> bool:
    """Call, and return whether the process is still there."""
    try:
        call(*args)
    except TeamError:
        return False
    return True
