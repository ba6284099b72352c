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

import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tensorlite.backend import Array, array_module

if TYPE_CHECKING:
    from tensorlite.tensor import Tensor

Hook = Callable[[Array], "Array | None"]

_FREED: Any = object()  # stands where a node's saved arrays were, once backward has used them
_numbers = itertools.count(1)  # next() on it is atomic, so threads may share it
_thread = threading.local()


class Version:
    """Counts the in-place writes to one piece of memory. A tensor and its views share one."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Node:
    """One line of the tape.

    Attributes:
        number: position on the tape; inputs always have lower numbers than outputs.
        name: the op's name, for messages.
        backward: ``(*dys) -> one gradient per parent``; already bound to what the forward saved.
        parents: for each argument, where its gradient goes: a leaf tensor, a (node, position), or None.
        inputs: for each argument (shape, dtype) or None: what its gradient must look like.
        outputs: (shape, dtype, array module) of each output, to stand in zeros for one that was not used.
        versions: (counter, value seen at forward) of every tensor the forward read or made: it may have saved either.
        hooks: position of an output -> functions that see, and may replace, its gradient.
    """

    __slots__ = ("__weakref__", "backward", "hooks", "inputs", "name", "number", "outputs", "parents", "versions")

    def __init__(
        self,
        name: str,
        backward: Callable[..., tuple[Array | None, ...]],
        parents: list[Tensor | tuple[Node, int] | None],
        inputs: list[tuple[tuple[int, ...], Any] | None],
        outputs: list[tuple[tuple[int, ...], Any, Any]],
        versions: list[tuple[Version, int]],
    ) -> None:
        self.number = next(_numbers)
        self.name = name
        self.backward = backward
        self.parents = parents
        self.inputs = inputs
        self.outputs = outputs
        self.versions = versions
        self.hooks: dict[int, dict[int, Hook]] = {}

    def free(self) -> None:
        """Let go of everything saved, and of the nodes before this one."""
        self.backward = _FREED
        self.parents = []
        self.versions = []


def backward(root: Tensor, dy: Array, retain_graph: bool = False) -> None:
    """Walk the tape from ``root`` back to the leaves, adding into their ``.grad``.

    Args:
        root: where to start.
        dy: the gradient of the objective with respect to ``root``; same shape.
        retain_graph: keep what the forward saved, so that the walk can be repeated.

    Raises:
        RuntimeError: if the walk needs what an earlier one freed, or what was overwritten in place.
    """
    walk = _Walk()
    walk.deliver(root if root.source is None else root.source, dy)
    while walk.queue:
        node = heapq.heappop(walk.queue)[1]
        dys = walk.pending.pop(node)
        _check_usable(node)
        for position, (shape, dtype, xp) in enumerate(node.outputs):
            if dys[position] is None:
                dys[position] = xp.zeros(shape, dtype)
            elif position in node.hooks:
                dys[position] = _run_hooks(node.hooks[position], dys[position])
        gradients = node.backward(*dys)
        for argument, parent in enumerate(node.parents):
            if parent is not None:
                walk.deliver(parent, _checked(node, argument, gradients))
        if not retain_graph:
            node.free()
        del dys, gradients  # before the next op allocates
    for leaf, dx in walk.hooked.values():
        _accumulate(leaf, _run_hooks(leaf.hooks, dx))


class _Walk:
    """The gradients under way: those that wait for their node's turn."""

    def __init__(self) -> None:
        self.queue: list[tuple[int, Node]] = []  # a heap, highest number first
        self.pending: dict[Node, list[Array | None]] = {}
        self.hooked: dict[int, tuple[Tensor, Array]] = {}  # leaves whose hooks want the whole sum

    def deliver(self, target: Tensor | tuple[Node, int], dx: Array) -> None:
        """Add ``dx`` to what ``target`` has received so far.

        The sum is a new array, never ``+=``: an op may hand the same array to two parents (addition
        does), so nothing that arrives here is ours to write to.
        """
        if not isinstance(target, tuple):
            if target.hooks:
                earlier = self.hooked.get(id(target))
                self.hooked[id(target)] = (target, dx if earlier is None else earlier[1] + dx)
            else:
                _accumulate(target, dx)
            return
        node, position = target
        dys = self.pending.get(node)
        if dys is None:
            dys = self.pending[node] = [None] * len(node.outputs)
            heapq.heappush(self.queue, (-node.number, node))
        so_far = dys[position]
        dys[position] = dx if so_far is None else so_far + dx


def _accumulate(leaf: Tensor, dx: Array) -> None:
    """``leaf.grad += dx``; a leaf whose gradient has a home in a flat buffer gets it written there."""
    if leaf.grad is not None:
        leaf.grad.data += dx
    elif leaf.grad_home is not None:
        leaf.grad_home[...] = dx
        leaf.grad = type(leaf).wrap(leaf.grad_home)
    else:
        leaf.grad = type(leaf).wrap(array_module(dx).array(dx, copy=True, order="C"))


def _run_hooks(hooks: dict[int, Hook], dx: Array) -> Array:
    """Show ``dx`` to every hook in turn, by number; a hook that returns an array replaces it."""
    for _, hook in sorted(hooks.items()):
        replaced = hook(dx)
        dx = dx if replaced is None else replaced
    return dx


def _check_usable(node: Node) -> None:
    if node.backward is _FREED:
        raise RuntimeError(
            f"backward() reached {node.name} a second time, but what its forward saved was freed by the first; "
            "pass retain_graph=True to the first call, or run the forward again."
        )
    for version, seen in node.versions:
        if version.count != seen:
            raise RuntimeError(
                f"{node.name} cannot give its gradient: its input or its result was since written to in place "
                f"({version.count - seen} time(s)); change a clone() instead."
            )


def _checked(node: Node, argument: int, gradients: tuple[Array | None, ...]) -> Array:
    """The gradient for one argument, refused with a clear sentence if it cannot be right."""
    dx = gradients[argument] if argument < len(gradients) else None
    if dx is None:
        raise RuntimeError(f"{node.name} has no gradient for its argument {argument}, but that tensor requires one.")
    expected = node.inputs[argument]
    assert expected is not None
    shape, dtype = expected
    if dx.shape != shape:
        raise RuntimeError(
            f"the backward of {node.name} returned a gradient of shape {dx.shape} for argument {argument}, whose shape is "
            f"{shape}: was the sum over a broadcast axis, or a transpose, forgotten?"
        )
    return dx if dx.dtype == dtype else dx.astype(dtype)


def is_grad_enabled() -> bool:
    """Whether ops leave nodes on the calling thread's tape."""
    return getattr(_thread, "grad_enabled", True)


class no_grad(contextlib.ContextDecorator):
    """Inside the ``with`` block, or the decorated function, nothing is recorded.

    The switch belongs to the thread: other threads go on recording.
    """

    enabled = False

    def __init__(self) -> None:
        self._previous: list[bool] = []

    def _recreate_cm(self) -> no_grad:  # a decorated function may run in many threads: one object a call
        return type(self)()

    def __enter__(self) -> None:
        self._previous.append(is_grad_enabled())
        _thread.grad_enabled = self.enabled

    def __exit__(self, *exception: object) -> None:
        _thread.grad_enabled = self._previous.pop()


class enable_grad(no_grad):
    """Record again inside a ``no_grad`` block."""

    enabled = True
