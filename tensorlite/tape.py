"""The tape: what ran, in which order, and how to walk it backwards.

Every op that runs on a tensor which wants a gradient leaves one `Node` behind. A node knows its
backward function, what its forward saved, and where the gradients of its inputs have to go. Nodes are
numbered as they are made, so an op always has a higher number than everything it was computed from.
That one fact *is* the algorithm: take the pending node with the highest number, and every gradient
that could still flow into it has already arrived. No recursion, no sorting of the graph beforehand;
a chain of a million ops walks as well as a chain of ten.

A tensor is connected to the tape by its *source*: the pair (node, position among the node's outputs).
A leaf has none; gradients that reach it are added into ``leaf.grad``.

The tape knows no op. It is the chain rule and nothing else:  for y = f(x),  dx = dy · ∂y/∂x.
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

_FREED: Any = object()  # stands where a node's saved arrays were, once backward has used them
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
    """What was written in place to one piece of memory. A tensor and its views share one.

    Attributes:
        count: how many writes.
        memory: a weak reference to the array that owns what was written; None before the first write, and if they went to several.
        is_shared: whether a second tensor has ever shown this memory.
        shows_leaf: whether a leaf that requires a gradient shows it.
        last_writer: the number of the last node whose result was written here. Who was on the tape before it shows values
            that the tape knows nothing of; see `gradient_target`.
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
    """One line of the tape.

    Attributes:
        number: position on the tape; inputs always have lower numbers than outputs.
        name: the op's name, for messages.
        pair: the forward that ran, and its backward (`tensorlite.op.Pair`).
        saved: what that forward kept for that backward.
        parents: for each argument None, or where its gradient goes, a leaf tensor or a (node, position), and the
            shape and dtype that this gradient must have.
        outputs: (shape, dtype) of each output, to stand in zeros for one that was not used.
        several: whether the op returns a tuple; its backward then takes one.
        versions: (counter, value seen at forward) of every tensor the forward read or made: it may have saved either.
        hooks: position of an output -> functions that see, and may replace, its gradient.
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
            extra.append(backward_pass.gradient_buffers(self.parents))
        if self.pair.takes_accumulated:
            extra.append(backward_pass.take(self.parents[0]))
        dxs = self.pair.backward(dy, self.saved, *extra)
        return dxs if isinstance(dxs, tuple) else (dxs,)

    def hooks_of(self, position: int) -> dict[int, Hook]:
        """The hooks of one output, by number, for reading and adding."""
        self.hooks = self.hooks or {}
        return self.hooks.setdefault(position, {})

    def free(self) -> None:
        """Let go of everything saved, and of the nodes before this one."""
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
        RuntimeError: if the walk needs what an earlier one freed, or what was overwritten in place.
    """
    backward_pass = BackwardPass()
    backward_pass.deliver(gradient_target(root), dy)
    while backward_pass.queue:
        backward_pass.step(retain_graph)
    backward_pass.finish()


class BackwardPass:
    """A walk from a result back to the leaves, and the gradients under way: those that wait for their node's turn.

    `tensorlite.inspect.Walk` is one that stops after each step.
    """

    def __init__(self) -> None:
        self.queue: list[tuple[int, Node]] = []  # a heap, highest number first
        self.pending: dict[Node, list[Array | None]] = {}
        self.hooked: dict[int, tuple[Variable, Array]] = {}  # leaves whose hooks want the whole sum

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
        dxs = node.run_backward(dys, self)
        for argument, parent in enumerate(node.parents):
            if parent is not None:
                self.deliver(parent[0], _checked_gradient(node, argument, dxs))
        if not retain_graph:
            node.free()
        return node, dys, dxs

    def finish(self) -> None:
        """Give the leaves that have hooks their gradients."""
        for leaf, dx in self.hooked.values():
            self.accumulate(leaf, _run_hooks(leaf.hooks, dx))

    def take(self, parent: Parent | None) -> Array | None:
        """What has arrived for this parent so far, if it is an op's output: handed over to a backward that delivers the sum."""
        if parent is None or not isinstance(parent[0], tuple):
            return None
        node, position = parent[0]
        if node not in self.pending:
            return None
        accumulated, self.pending[node][position] = self.pending[node][position], None
        return accumulated

    def gradient_buffers(self, parents: list[Parent | None]) -> tuple[Array | None, ...]:
        """For each argument the buffer of its gradient, if nothing is there yet that it must be added to."""
        out: list[Array | None] = []
        for parent in parents:
            leaf = None if parent is None or isinstance(parent[0], tuple) else parent[0]
            is_free = leaf is not None and leaf.grad is None and not leaf.hooks
            buffer = _buffer_of(leaf) if leaf is not None and is_free else None
            out.append(buffer if all(buffer is not other for other in out) else None)  # one tensor twice: the second is added
        return tuple(out)

    def accumulate(self, leaf: Variable, dx: Array) -> None:
        """``leaf.grad += dx``; a leaf whose gradient has a buffer in a flat buffer gets it written there, if it is not there already."""
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

        The sum is a new array, never ``+=``: an op may hand the same array to two parents (addition
        does), so nothing that arrives here is ours to write to.
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
    """Where the gradient of ``leaf`` belongs; nowhere, if ``leaf.data`` was since given another shape or dtype."""
    buffer, array = leaf.grad_buffer, leaf.array
    return buffer if buffer is not None and buffer.shape == array.shape and buffer.dtype == array.dtype else None


def _run_hooks(hooks: dict[int, Hook], dx: Array) -> Array:
    """Show ``dx`` to every hook in turn, by number; a hook that returns an array replaces it."""
    for _, hook in sorted(hooks.items()):
        replaced = hook(dx)
        dx = dx if replaced is None else replaced
    return dx


def gradient_target(tensor: Variable) -> Variable | tuple[Node, int]:
    """Where the gradient of ``tensor`` goes: to the node that computed it, or into the leaf itself.

    Raises:
        RuntimeError: if what it shows was since changed, on the tape, through another tensor.
    """
    source = tensor.source
    if source is None:
        return tensor
    if source[0].number < tensor.version.last_writer:
        raise RuntimeError(
            f"the result of {source[0].name} has no gradient any more: its memory was written to in place through another tensor, "
            "a view of it or what it is a view of; use that tensor, or change a clone()."
        )
    return source


def _check_saved(node: Node) -> None:
    if node.saved is _FREED:
        raise RuntimeError(
            f"backward() reached {node.name} a second time, but what its forward saved was freed by the first; "
            "pass retain_graph=True to the first call, or run the forward again."
        )
    for version, seen in node.versions:
        if version.count != seen and _may_overlap(node.saved, version):
            raise RuntimeError(
                f"{node.name} cannot give its gradient: its input or its result was since written to in place "
                f"({version.count - seen} time(s)); change a clone() instead."
            )


_HOLDS_NO_ARRAY = (NoneType, bool, int, float, str, slice, EllipsisType, type, ModuleType, Device, np.dtype, np.generic)


def _may_overlap(saved: Any, version: VersionCounter) -> bool:
    """Whether ``saved`` shows memory that was written to. What cannot be looked into may."""
    if isinstance(saved, tuple | list):
        return any(_may_overlap(item, version) for item in saved)
    if isinstance(saved, _HOLDS_NO_ARRAY):
        return False
    if version.memory is None or not hasattr(saved, "dtype"):
        return True
    written = version.memory()  # if it is gone, nothing that was saved can be a part of it
    xp = array_module(saved)
    return written is not None and xp is array_module(written) and bool(xp.may_share_memory(saved, written))


def _fill_unused(dys: list[Array | None], outputs: list[tuple[tuple[int, ...], Any]]) -> None:
    """Zeros for the outputs that nothing was computed from: their gradient is 0."""
    xp = array_module(next(dy for dy in dys if dy is not None))
    for position, (shape, dtype) in enumerate(outputs):
        if dys[position] is None:
            dys[position] = xp.zeros(shape, dtype)


def _checked_gradient(node: Node, argument: int, dxs: tuple[Array | None, ...]) -> Array:
    """The gradient for one argument, refused with a clear sentence if it cannot be right."""
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
    """Whether ops leave nodes on the calling thread's tape."""
    return getattr(_thread, "grad_enabled", True)


class no_grad(ContextDecorator):
    """Inside the ``with`` block, or the decorated function, nothing is recorded.

    The switch belongs to the thread: other threads go on recording. As a decorator it needs no brackets.
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
