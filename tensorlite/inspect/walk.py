"""The backward pass, one op at a time: forward, back, rewind, or on to a given op.

`Walk` is a `tensorlite.tape.BackwardPass` that stops after each step. It changes no ``.grad`` and frees nothing: the gradients that reach
the leaves are kept in the walk. It keeps the result of each step. So a step back computes nothing, and a second step forward gives the
same bits.
"""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.inspect.trace import Call, Site, call_of, trace
from tensorlite.nn import Module
from tensorlite.op import REGISTRY
from tensorlite.tape import BackwardPass, Node, Parent, Variable, gradient_target
from tensorlite.tensor import Tensor, is_floating

SHOWN = 32  # pending nodes in a step: in a wide graph of a million nodes it must not list all
Condition = Callable[["Step"], bool]


@dataclass(frozen=True)
class Delivery:
    """A gradient that a step computed for one argument.

    Attributes:
        argument: of the op, counted from 0.
        target: a leaf, or a node and the position among its outputs.
        name: of the parameter, of the op that receives it, or "a leaf".
        dx: the gradient.
    """

    argument: int
    target: Any
    name: str
    dx: Array


@dataclass(frozen=True)
class Step:
    """One op's backward.

    Attributes:
        index: counted from 0.
        node: the node of the tape; ``node.saved`` is what its forward saved.
        dy: the gradient of each output.
        deliveries: the gradients of the arguments.
        accumulated: the gradient of the first argument from other ops, if it was passed to this backward, which then returns the sum.
        queue: the nodes that are pending after this step, the next one first; at most `SHOWN` of them.
    """

    index: int
    node: Node
    dy: tuple[Array, ...]
    deliveries: tuple[Delivery, ...]
    accumulated: Array | None
    queue: tuple[Node, ...]

    @property
    def op(self) -> str:
        return self.node.name

    @property
    def call(self) -> Call | None:
        """How the op was called; None without a `trace`."""
        return call_of(self.node)

    @property
    def site(self) -> Site | None:
        """From where."""
        return self.call.site if self.call else None

    @property
    def is_finite(self) -> bool:
        """Whether all gradients of the outputs and of the arguments are finite."""
        return _are_finite([*self.dy, *(delivery.dx for delivery in self.deliveries)])

    @property
    def introduces_non_finite(self) -> bool:
        """Whether a nan or an infinity first appears at this op, in forward or in backward.

        A nan in a weight makes the loss nan, and with it every gradient. So it first appears where the op's result is not finite although
        its inputs from other ops are; or where finite dy give gradients that are not. Without a `trace` the results are not known, and
        every step with a number that is not finite counts.
        """
        if self.call is None:
            return not self.is_finite
        pairs = zip(self.call.arrays, self.node.parents, strict=False)
        from_ops = [array for array, parent in pairs if parent is not None and isinstance(parent[0], tuple)]
        if not _are_finite(self.call.results):
            return _are_finite(from_ops)
        return _are_finite(self.dy) and not self.is_finite

    def own_gradient(self, delivery: Delivery) -> Array:
        """The contribution of this op alone to a delivery, in float64: if the delivery is a sum, without the gradient from other ops."""
        dx = delivery.dx.astype("float64")
        return dx - self.accumulated if delivery.argument == 0 and self.accumulated is not None else dx

    @property
    def norm(self) -> float:
        """The norm of all gradients of the arguments together."""
        squares = [float((d.dx.astype("float64") ** 2).sum()) for d in self.deliveries]
        return sum(squares) ** 0.5


class Walk(BackwardPass):
    """See the module's docstring.

    Args:
        result: the tensor to start from. If it has more than one element, ``gradient`` is needed.
        gradient: of the objective with respect to ``result``; by default 1.
        model: gives parameters their names.

    Attributes:
        steps: all steps that were computed, also those that were undone with `back`.
        position: how many of them are before the present position.

    Raises:
        RuntimeError: if ``result`` has no gradient, if it has more than one element and no ``gradient`` is given, and in `forward` if the
            graph was freed by an earlier ``backward()``.
    """

    def __init__(self, result: Tensor, gradient: Tensor | None = None, model: Module | None = None) -> None:
        super().__init__()
        if result.source is None:
            raise RuntimeError("this tensor was computed from nothing that requires a gradient: there is no way back from it.")
        if gradient is None and result.array.size != 1:
            raise RuntimeError(f"a walk starts at one number, and this tensor has shape {result.shape}: give a gradient of that shape.")
        self.result = result
        self.names = {id(parameter): name for name, parameter in model.named_parameters()} if model is not None else {}
        self.modules = [path for path, _ in model.named_modules()] if model is not None else []
        self.steps: list[Step] = []
        self.position = 0
        self._handed: Array | None = None
        start = array_module(result.array).ones_like(result.array) if gradient is None else gradient.array
        self._delivered: list[tuple[Any, Array]] = []
        self.deliver(gradient_target(result), start)
        self._delivered.clear()

    # --- moving ---------------------------------------------------------------------------------------

    @property
    def current(self) -> Step | None:
        """The last step before the present position; None at the start."""
        return self.steps[self.position - 1] if self.position else None

    @property
    def at_end(self) -> bool:
        """Whether no node is pending."""
        return self.position == len(self.steps) and not self.queue

    def forward(self) -> Step | None:
        """Make the next step; None at the end.

        Raises:
            RuntimeError: if what the op saved was freed or overwritten.
        """
        if self.position < len(self.steps):
            self.position += 1
        elif self.queue:
            self._delivered.clear()
            self._handed = None
            node, dys, _ = self.step(retain_graph=True)
            arguments = [argument for argument, parent in enumerate(node.parents) if parent is not None]
            deliveries = tuple(
                Delivery(argument, target, self.name_of(target), dx)
                for argument, (target, dx) in zip(arguments, self._delivered, strict=True)
            )
            waiting = tuple(node for _, node in heapq.nsmallest(SHOWN, self.queue, key=lambda entry: entry[0]))
            self.steps.append(Step(len(self.steps), node, tuple(dy for dy in dys if dy is not None), deliveries, self._handed, waiting))
            self.position += 1
        else:
            return None
        return self.current

    def back(self) -> Step | None:
        """Undo the last step; returns the one before it, None at the start."""
        self.position = max(0, self.position - 1)
        return self.current

    def rewind(self) -> None:
        """Back to the start."""
        self.position = 0

    def until(self, place: str | Condition) -> Step | None:
        """Go forward to the next step for which ``place`` is true. If there is none, go to the end and return None.

        Args:
            place: the name of an op (``softmax``), the path of a module (``h.2.attn``) or of a parameter (``wte.weight``), ``not finite``
                (see `Step.introduces_non_finite`), ``norm > 10`` (or ``<``), or a function of a `Step`.

        Raises:
            ValueError: for any other text; the message has the most similar names.
        """
        condition = self._condition(place) if isinstance(place, str) else place
        while (step := self.forward()) is not None:
            if condition(step):
                return step
        return None

    def __iter__(self) -> Iterator[Step]:
        """All steps from here to the end."""
        while (step := self.forward()) is not None:
            yield step

    # --- gradients ------------------------------------------------------------------------------------

    def gradients(self) -> dict[str, Array]:
        """The gradient of each parameter up to here, by name; leaves without a name are numbered: "leaf 0", "leaf 1", …"""
        found: dict[int, tuple[str, Array]] = {}
        for step in self.steps[: self.position]:
            for delivery in step.deliveries:
                if isinstance(delivery.target, tuple):
                    continue
                key = id(delivery.target)
                name = self.names.get(key) or (found[key][0] if key in found else f"leaf {len(found)}")
                found[key] = (name, delivery.dx if key not in found else found[key][1] + delivery.dx)
        return dict(found.values())

    def name_of(self, target: Any) -> str:
        """A parameter's name, an op's, or "a leaf"."""
        return target[0].name if isinstance(target, tuple) else self.names.get(id(target), "a leaf")

    # --- differences to BackwardPass: nothing outside of the walk is changed --------------------------

    def deliver(self, target: Any, dx: Array) -> None:
        self._delivered.append((target, dx))
        super().deliver(target, dx)

    def take(self, parent: Parent | None) -> Array | None:
        self._handed = super().take(parent)
        return self._handed

    def accumulate(self, leaf: Variable, dx: Array) -> None:
        """Leave the gradient of the leaf unchanged; `gradients` adds up those of the walk."""

    def gradient_buffers(self, parents: list[Parent | None], can_add: bool = False) -> tuple[Array | None, ...]:
        return (None,) * len(parents)

    # --- places ---------------------------------------------------------------------------------------

    def _condition(self, place: str) -> Condition:
        text = place.strip()
        if text.lower() in ("not finite", "nan", "inf"):
            return lambda step: step.introduces_non_finite
        if match := re.fullmatch(r"norm\s*([<>])\s*(\S+)", text):
            sign, limit = match[1], _number(match[2])
            return lambda step: step.norm > limit if sign == ">" else step.norm < limit
        if text in self.names.values():
            return lambda step: any(delivery.name == text for delivery in step.deliveries)
        if text and text in self.modules:
            return lambda step: step.site is not None and _is_within(step.site.module, text)
        if text in REGISTRY:
            return lambda step: step.op == text
        known = [*self.names.values(), *filter(None, self.modules), *REGISTRY, "not finite", "norm > 1"]
        near = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"{place!r} is no op, module, parameter or condition (not finite, norm > 10).{meant}")


def walk(result: Tensor | Callable[[], Tensor], gradient: Tensor | None = None, model: Module | None = None) -> Walk:
    """A `Walk` from a loss; or from a function that computes a loss, which then runs under `trace`, so that each step has its line.

    Raises:
        RuntimeError: as `Walk`.
    """
    if not isinstance(result, Tensor):
        with trace(model):
            result = result()
    return Walk(result, gradient, model)


def _is_within(module: str | None, path: str) -> bool:
    return module is not None and (module == path or module.startswith(path + ".") or not path)


def _are_finite(arrays: Iterable[Any]) -> bool:
    return all(bool(array_module(a).isfinite(a).all()) for a in arrays if hasattr(a, "dtype") and is_floating(a.dtype))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"a norm is compared with a number, got {text!r}.") from None
