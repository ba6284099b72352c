"""The tape: which ops ran, in which order, and how to walk backwards through them.

Every op that runs on a tensor which requires a gradient leaves one `Node`. A node knows its backward
function, what its forward saved, and where the gradients of its inputs go. Nodes are numbered as they are
made, so an op always has a higher number than everything it was computed from. The algorithm follows from
this one fact: of the pending nodes, the one with the highest number has already received all its gradients,
so it is next. There is no recursion and no sorting of the graph. A chain of a million ops works as well as
a chain of ten.

A tensor is connected to the tape by its *source*: the pair (node, position among the node's outputs).
A leaf has no source. Gradients that reach it are added into ``leaf.grad``.

The tape knows no op. It is only the chain rule:  for y = f(x),  dx = dy · ∂y/∂x.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import weakref
from collections.abc import Callable
from types import EllipsisType, ModuleType, NoneType
from typing import Any, Protocol

import numpy as np

from tensorlite.backend import Array, Device, array_module
from tensorlite.context import ContextDecorator

Hook = Callable[[Array], "Array | None"]
Parent = tuple["Variable | tuple[Node, int]", tuple[int, ...], Any]  # where a gradient goes, its shape and its dtype

_FREED: Any = object()  # replaces what a node saved, after backward has used it
_numbers = itertools.count(1)  # next() on it is atomic, so threads may share it
_thread = threading.local()


class Variable(Protocol):
    """What the tape reads and writes of a tensor. `tensorlite.tensor.Tensor` says what each of these is."""

    array: Array
    grad: Any
    grad_buffer: Array | None
    source: tuple[Node, int] | None
    version: VersionCounter

    @property
    def hooks(self) -> dict[int, Hook]: ...

    @staticmethod
    def wrap(array: Array) -> Any: ...


class VersionCounter:
    """Counts the writes in place to one piece of memory. A tensor and its views share one counter.

    Attributes:
        count: the number of writes.
        memory: a weak reference to the array that owns the memory; None before the first write, and after writes to several arrays.
        is_shared: whether a second tensor has ever had this memory.
        shows_leaf: whether a leaf that requires a gradient has this memory.
        last_writer: the number of the last node whose result was written here. A tensor that an older node computed now has values
            that its own history does not explain; see `gradient_target`.
    """

    count = 0
    memory: Callable[[], Array | None] | None = None
    is_shared = False
    shows_leaf = False
    last_writer = 0

    def increment(self, array: Array) -> None:
        """Count a write to ``array``."""
        owner = array.base if type(array.base) is type(array) else array
        if self.count == 0:
            self.memory = weakref.ref(owner)
        elif self.memory is not None and self.memory() is not owner:
            self.memory = None
        self.count += 1


class Node:
    """One op that ran: an entry of the tape.

    Attributes:
        number: position on the tape; inputs always have lower numbers than outputs.
        name: the op's name, for messages.
        pair: the forward that ran, and its backward (`tensorlite.op.Pair`).
        saved: what that forward saved for that backward.
        parents: for each argument None, or the target of its gradient (a leaf, or a (node, position)) with the shape and
            dtype that this gradient must have.
        outputs: (shape, dtype) of each output, to make zeros for one that was not used.
        several: whether the op returns a tuple; its backward then takes one.
        versions: (counter, its value during forward) of every tensor that the forward read or made, because it may have saved any of them.
        hooks: position of an output -> functions that get its gradient and may replace it.
    """

    __slots__ = ("__weakref__", "hooks", "name", "number", "outputs", "pair", "parents", "returns_tuple", "saved", "versions")

    def __init__(
        self,
        name: str,
        pair: Any,
        saved: Any,
        parents: list[Parent | None],
        outputs: list[tuple[tuple[int, ...], Any]],
        returns_tuple: bool,
        versions: list[tuple[VersionCounter, int]],
    ) -> None:
        self.number = next(_numbers)
        self.name = name
        self.pair = pair
        self.saved = saved
        self.parents = parents
        self.outputs = outputs
        self.returns_tuple = returns_tuple
        self.versions = versions
        self.hooks: dict[int, dict[int, Hook]] | None = None

    def run_backward(self, dys: list[Array], backward_pass: BackwardPass) -> tuple[Array | None, ...]:
        """Run the op's backward: one gradient for each of its leading arguments."""
        dy = tuple(dys) if self.returns_tuple else dys[0]
        extra: list[Any] = []
        if self.pair.takes_needs_grad:
            extra.append(tuple(parent is not None for parent in self.parents))
        if self.pair.takes_out:
            extra.append(backward_pass.gradient_buffers(self.parents, self.pair.takes_add))
        if self.pair.takes_add:
            extra.append(tuple(buffer is not None for buffer in backward_pass.added_to))
        if self.pair.takes_accumulated:
            extra.append(backward_pass.take(self.parents[0]))
        dxs = self.pair.backward(dy, self.saved, *extra)
        return dxs if isinstance(dxs, tuple) else (dxs,)

    def hooks_of(self, position: int) -> dict[int, Hook]:
        """The hooks of one output, by number, for reading and adding."""
        self.hooks = self.hooks or {}
        return self.hooks.setdefault(position, {})

    def free(self) -> None:
        """Free what was saved, and the references to earlier nodes."""
        self.saved = _FREED
        self.parents = []
        self.versions = []


def backward(root: Variable, dy: Array, retain_graph: bool = False) -> None:
    """Walk the tape from ``root`` back to the leaves, adding into their ``.grad``.

    Args:
        root: where to start.
        dy: the gradient of the objective with respect to ``root``; same shape.
        retain_graph: keep what the forward saved, so that the walk can be repeated.

    Raises:
        RuntimeError: if the walk needs what an earlier walk freed, or what was overwritten in place.
    """
    backward_pass = BackwardPass()
    backward_pass.deliver(gradient_target(root), dy)
    while backward_pass.queue:
        backward_pass.step(retain_graph)
    backward_pass.finish()


class BackwardPass:
    """A walk from a result back to the leaves, with the gradients that have arrived at nodes which have not run yet.

    `tensorlite.inspect.Walk` is one that stops after each step.
    """

    def __init__(self) -> None:
        self.queue: list[tuple[int, Node]] = []  # a heap, highest number first
        self.pending: dict[Node, list[Array | None]] = {}
        self.hooked: dict[int, tuple[Variable, Array]] = {}  # leaves with hooks, which get the whole sum
        self.added_to: list[Array | None] = []  # for each argument of the running node, the gradient that its backward adds to

    def step(self, retain_graph: bool = False) -> tuple[Node, list[Array | None], tuple[Array | None, ...]]:
        """Run the backward of the pending node with the highest number, and deliver its gradients: (node, dys, dxs)."""
        node = heapq.heappop(self.queue)[1]
        dys = self.pending.pop(node)
        _check_saved(node)
        if node.hooks:
            for position, hooks in node.hooks.items():
                if dys[position] is not None:
                    dys[position] = _run_hooks(hooks, dys[position])
        if node.returns_tuple:
            _fill_unused(dys, node.outputs)
        self.added_to = [None] * len(node.parents)
        dxs = node.run_backward(dys, self)
        for argument, parent in enumerate(node.parents):
            if parent is not None:
                dx = _checked_gradient(node, argument, dxs)
                if dx is not self.added_to[argument]:
                    self.deliver(parent[0], dx)
        if not retain_graph:
            node.free()
        return node, dys, dxs

    def finish(self) -> None:
        """Run the hooks of leaves, and give these leaves their gradients."""
        for leaf, dx in self.hooked.values():
            self.accumulate(leaf, _run_hooks(leaf.hooks, dx))

    def take(self, parent: Parent | None) -> Array | None:
        """Remove and return the gradient that has arrived for this parent, an op's output. The backward that gets it delivers the sum."""
        if parent is None or not isinstance(parent[0], tuple):
            return None
        node, position = parent[0]
        if node not in self.pending:
            return None
        accumulated, self.pending[node][position] = self.pending[node][position], None
        return accumulated

    def gradient_buffers(self, parents: list[Parent | None], can_add: bool = False) -> tuple[Array | None, ...]:
        """For each argument the buffer of its gradient. If the leaf has a gradient there already, only for a backward that adds to it."""
        out: list[Array | None] = []
        for argument, parent in enumerate(parents):
            leaf = None if parent is None or isinstance(parent[0], tuple) else parent[0]
            buffer = _buffer_of(leaf) if leaf is not None and not leaf.hooks else None
            if leaf is None or any(buffer is other for other in out):
                buffer = None  # the second gradient of one tensor is added later
            elif leaf.grad is not None:
                buffer = self.added_to[argument] = buffer if can_add and leaf.grad.array is buffer else None
            out.append(buffer)
        return tuple(out)

    def accumulate(self, leaf: Variable, dx: Array) -> None:
        """``leaf.grad += dx``. If the leaf has a gradient buffer, the first dx is written there, unless it was computed there."""
        if leaf.grad is not None:
            leaf.grad.array += dx
        elif (buffer := _buffer_of(leaf)) is not None:
            if dx is not buffer:
                buffer[...] = dx
            leaf.grad = type(leaf).wrap(buffer)
        else:
            leaf.grad = type(leaf).wrap(array_module(dx).array(dx, copy=True, order="C"))

    def deliver(self, target: Variable | tuple[Node, int], dx: Array) -> None:
        """Add ``dx`` to what ``target`` has received so far.

        The sum is a new array, never ``+=``. An op may return the same array for two parents (addition does), so an
        array that arrives here must not be written to.
        """
        if not isinstance(target, tuple):
            if target.hooks:
                earlier = self.hooked.get(id(target))
                self.hooked[id(target)] = (target, dx if earlier is None else earlier[1] + dx)
            else:
                self.accumulate(target, dx)
            return
        node, position = target
        dys = self.pending.get(node)
        if dys is None:
            dys = self.pending[node] = [None] * len(node.outputs)
            heapq.heappush(self.queue, (-node.number, node))
        accumulated = dys[position]
        dys[position] = dx if accumulated is None else accumulated + dx


def _buffer_of(leaf: Variable) -> Array | None:
    """The buffer for the gradient of ``leaf``; None if it has none, or if ``leaf.data`` now has another shape or dtype."""
    buffer, array = leaf.grad_buffer, leaf.array
    return buffer if buffer is not None and buffer.shape == array.shape and buffer.dtype == array.dtype else None


def _run_hooks(hooks: dict[int, Hook], dx: Array) -> Array:
    """Call every hook with ``dx``, in the order of their numbers. What a hook returns replaces it."""
    for _, hook in sorted(hooks.items()):
        replaced = hook(dx)
        dx = dx if replaced is None else replaced
    return dx


def gradient_target(tensor: Variable) -> Variable | tuple[Node, int]:
    """Where the gradient of ``tensor`` goes: to the node that computed it, or into the leaf itself.

    Raises:
        RuntimeError: if its values were changed through another tensor on the tape.
    """
    source = tensor.source
    if source is None:
        return tensor
    if source[0].number < tensor.version.last_writer:
        raise RuntimeError(
            f"the result of {source[0].name} has no gradient any more: its memory was written to in place through another tensor "
            "with the same memory, such as a view; use that tensor, or change a clone()."
        )
    return source


def _check_saved(node: Node) -> None:
    if node.saved is _FREED:
        raise RuntimeError(
            f"backward() reached {node.name} a second time, but the first call freed what its forward saved; "
            "pass retain_graph=True to the first call, or run the forward again."
        )
    for version, seen in node.versions:
        if version.count != seen and _may_overlap(node.saved, version):
            raise RuntimeError(
                f"{node.name} cannot compute its gradient: its input or its result was written to in place after the forward "
                f"({version.count - seen} time(s)); change a clone() instead."
            )


_HOLDS_NO_ARRAY = (NoneType, bool, int, float, str, slice, EllipsisType, type, ModuleType, Device, np.dtype, np.generic)


def _may_overlap(saved: Any, version: VersionCounter) -> bool:
    """Whether ``saved`` may share memory that was written to. For an object of an unknown type this is True."""
    if isinstance(saved, tuple | list):
        return any(_may_overlap(item, version) for item in saved)
    if isinstance(saved, _HOLDS_NO_ARRAY):
        return False
    if version.memory is None or not hasattr(saved, "dtype"):
        return True
    written = version.memory()  # if the array is gone, nothing that was saved shares its memory
    xp = array_module(saved)
    return written is not None and xp is array_module(written) and bool(xp.may_share_memory(saved, written))


def _fill_unused(dys: list[Array | None], outputs: list[tuple[tuple[int, ...], Any]]) -> None:
    """Put zeros in place of the gradients of unused outputs."""
    xp = array_module(next(dy for dy in dys if dy is not None))
    for position, (shape, dtype) in enumerate(outputs):
        if dys[position] is None:
            dys[position] = xp.zeros(shape, dtype)


def _checked_gradient(node: Node, argument: int, dxs: tuple[Array | None, ...]) -> Array:
    """The gradient for one argument, after a check of its shape. Its dtype is converted if necessary."""
    dx = dxs[argument] if argument < len(dxs) else None
    if dx is None:
        raise RuntimeError(f"{node.name} has no gradient for its argument {argument}, but that tensor requires one.")
    parent = node.parents[argument]
    assert parent is not None
    _, shape, dtype = parent
    if dx.shape != shape:
        raise RuntimeError(
            f"the backward of {node.name} returned a gradient of shape {dx.shape} for argument {argument}, whose shape is "
            f"{shape}: was the sum over a broadcast axis, or a transpose, forgotten?"
        )
    return dx if dx.dtype == dtype else dx.astype(dtype)


def is_grad_enabled() -> bool:
    """Whether ops in the calling thread are recorded on the tape."""
    return getattr(_thread, "grad_enabled", True)


class no_grad(ContextDecorator):
    """Inside the ``with`` block, or the decorated function, nothing is recorded.

    This holds for the calling thread; other threads go on recording. As a decorator it needs no brackets.
    """

    enabled = False

    def __new__(cls, function: Any = None) -> Any:
        """A block; or, for ``@no_grad`` without brackets, the decorated function."""
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self) -> None:
        self._previous: list[bool] = []

    def clone(self) -> no_grad:
        return type(self)()

    def __enter__(self) -> None:
        self._previous.append(is_grad_enabled())
        _thread.grad_enabled = self.enabled

    def __exit__(self, *exception: object) -> None:
        _thread.grad_enabled = self._previous.pop()


class enable_grad(no_grad):
    """Record again inside a ``no_grad`` block."""

    enabled = True
