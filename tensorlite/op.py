"""An op: two plain functions on arrays, and a name.

    def square_forward(x):          -> y, saved
    def square_backward(dy, saved): -> dx
    square = Op(square_forward, square_backward)

The two functions are the *book*: written to be read, and right for every input. An op may also have
faster pairs, registered by `tensorlite.kernels`; `choose_pair` takes the first that supports the arguments.
A pair is replaced as a whole, because only the backward that belongs to a forward can read its `saved`.

`Op.__call__` is the only place where tensors become arrays and arrays tensors. It unwraps the tensors, chooses
a pair, runs its forward, leaves a node on the tape, and wraps the result.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from tensorlite.backend import device_of
from tensorlite.context import contextmanager
from tensorlite.tape import Node, Parent, gradient_target, is_grad_enabled
from tensorlite.tensor import Tensor, is_floating, is_half

REGISTRY: dict[str, Op] = {}  # every op by name, in the order of the book's pages

_observer: Callable[[str, Pair], Pair] | None = None  # see `observe`
_mode = os.environ.get("TENSORLITE_KERNELS", "fast")
if _mode not in ("fast", "book"):
    raise ValueError(f"TENSORLITE_KERNELS={_mode!r}: it is 'fast' (the default) or 'book'.")


@dataclass(frozen=True)
class Pair:
    """A forward and the backward that reads what it saved.

    Attributes:
        name: where it comes from: ``book``, ``cpu`` or ``cuda``.
        forward: ``(*arrays, **options) -> (y, saved)``; ``y`` is an array, or a tuple of them.
        backward: ``(dy, saved) -> dx``, or a tuple with one gradient for each leading argument of
            ``forward``, None where there is none. For several outputs ``dy`` is a tuple. It may have more parameters:
            - ``needs_grad``: for each argument, whether its gradient will be used. Other gradients need not be computed.
            - ``out``: for each argument, an array for its gradient (a view of an optimizer's flat buffer), or None. A gradient
              that is written there and returned need not be copied.
            - ``add``: for each argument, whether its array in ``out`` holds an earlier gradient, to which this one must be added.
              For a backward without this parameter, ``out`` has None there.
            - ``accumulated``: the gradient of the first argument that has already arrived from other ops, or None. Backward returns
              its sum with its own gradient, in one pass over the memory instead of two.
        supports: takes the arguments of ``forward``, and returns whether this pair can run on them.
    """

    name: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., Any]
    supports: Callable[..., bool] = lambda *arrays, **options: True
    takes_needs_grad: bool = field(init=False)
    takes_out: bool = field(init=False)
    takes_add: bool = field(init=False)
    takes_accumulated: bool = field(init=False)

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.backward).parameters
        object.__setattr__(self, "takes_needs_grad", "needs_grad" in parameters)
        object.__setattr__(self, "takes_out", "out" in parameters)
        object.__setattr__(self, "takes_add", "add" in parameters)
        object.__setattr__(self, "takes_accumulated", "accumulated" in parameters)


class Op:
    """A differentiable function of tensors; see the module's docstring.

    Args:
        forward, backward: the book pair.
        name: defaults to the forward's name without ``_forward``.
        in_float32: the book computes half precisions in float32 and rounds its results once. Every op that adds many numbers or
            takes several steps does so. With a rounding after each step, a float16 x² would overflow from 256 on, and the
            probabilities of a bfloat16 softmax of 1000 scores would sum to 3.9.

    Raises:
        ValueError: if an op of that name exists.
    """

    def __init__(
        self, forward: Callable[..., Any], backward: Callable[..., Any], name: str | None = None, in_float32: bool = False
    ) -> None:
        self.name = self.__name__ = name or forward.__name__.removesuffix("_forward")
        if self.name in REGISTRY:
            raise ValueError(f"there is an op named {self.name!r} already.")
        self.book = Pair("book", forward, backward)
        self.in_float32 = in_float32
        self.faster: list[Pair] = []
        self.__doc__ = forward.__doc__
        self.__module__ = forward.__module__
        self.__signature__ = inspect.signature(forward)
        REGISTRY[self.name] = self

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run on tensors (or plain arrays and numbers, which are constants); returns tensors.

        Raises:
            RuntimeError: if the tensors are not all on one device.
            TypeError: for arguments that the op does not take.
        """
        if options and any(isinstance(value, Tensor) for value in options.values()):
            args, options = self._bind(args, options)  # F.linear(x, weight=w): its position decides where its gradient is
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        arrays = [arg.array if isinstance(arg, Tensor) else arg for arg in args]
        if len(tensors) > 1:
            self._check_devices(tensors)

        try:
            pair = choose_pair(self, arrays, options)
            if _observer:
                pair = _observer(self.name, pair)
            y, saved = pair.forward(*arrays, **options)
        except TypeError:
            self._bind(args, options)  # if the arguments do not fit the signature, this raises a message that names the op
            raise
        returns_tuple = isinstance(y, tuple)
        outputs = [Tensor(array) for array in (y if returns_tuple else (y,))]
        for output in outputs:
            _share_version(output, tensors)

        if is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            node = Node(
                self.name,
                pair,
                saved,
                parents=[_parent(arg) if isinstance(arg, Tensor) and arg.requires_grad else None for arg in args],
                outputs=[(output.array.shape, output.array.dtype) for output in outputs],
                returns_tuple=returns_tuple,
                versions=[(tensor.version, tensor.version.count) for tensor in (*tensors, *outputs)],
            )
            for position, output in enumerate(outputs):
                if is_floating(output.array.dtype):
                    output.source = (node, position)
                    output.requires_grad = True
        return tuple(outputs) if returns_tuple else outputs[0]

    def _bind(self, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            bound = self.__signature__.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{self.name}(): {error}; it takes {self.name}{self._parameters()}.") from None
        bound.apply_defaults()
        return bound.args, bound.kwargs

    def _parameters(self) -> str:
        """The parameters and their defaults, without annotations."""
        plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in self.__signature__.parameters.values()]
        return str(inspect.Signature(plain))

    def _check_devices(self, tensors: list[Tensor]) -> None:
        if len({type(tensor.array) for tensor in tensors}) > 1:
            places = ", ".join(str(device_of(tensor.array)) for tensor in tensors)
            raise RuntimeError(f"{self.name} got tensors on different devices ({places}): move them with .to(device) first.")

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Make an op usable as a method: with ``Tensor.sum = sum``, ``x.sum(dim=1)`` is ``sum(x, dim=1)``."""
        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> Any:
        """A copy, and what pickle makes of it, is this op: a model may keep one as its activation."""
        return _find_op, (self.__module__, self.name)

    def __repr__(self) -> str:
        return f"<op {self.name}: {', '.join([pair.name for pair in self.faster] + ['book'])}>"


def _find_op(module: str, name: str) -> Op:
    importlib.import_module(module)
    return REGISTRY[name]


def register(op: Op, pair: Pair) -> None:
    """Add ``pair`` to the faster pairs of ``op``. The pair that was registered last is tried first."""
    op.faster.insert(0, pair)


def choose_pair(op: Op, arrays: list[Any], options: dict[str, Any]) -> Pair:
    """The pair to run: the first faster one that supports the arguments, or else the book's."""
    if _mode == "fast":
        for pair in op.faster:
            if pair.supports(*arrays, **options):
                return pair
    if op.in_float32:
        for x in arrays:
            if getattr(x, "itemsize", 0) == 2 and is_half(x.dtype):  # the size is the faster test
                return _in_float32(op.book)
    return op.book


def _in_float32(pair: Pair) -> Pair:
    """``pair``, with half precisions converted to float32 before it, and its results converted back after it.

    If the dtypes differ, the result is float32, as in any promotion.
    """

    def wide(x: Any) -> Any:
        return x.astype("float32") if hasattr(x, "dtype") and is_half(x.dtype) else x

    def forward(*arrays: Any, **options: Any) -> tuple[Any, Any]:
        dtypes = [getattr(x, "dtype", None) for x in arrays]
        floating = {dtype for dtype in dtypes if dtype is not None and is_floating(dtype)}
        y, saved = pair.forward(*map(wide, arrays), **options)
        return y.astype(floating.pop()) if len(floating) == 1 else y, (saved, dtypes)

    def backward(dy: Any, saved: Any, needs_grad: tuple[bool, ...]) -> tuple[Any, ...]:
        saved, dtypes = saved
        dx = pair.backward(wide(dy), saved, needs_grad) if pair.takes_needs_grad else pair.backward(wide(dy), saved)
        dxs = dx if isinstance(dx, tuple) else (dx,)
        return tuple(dx if dx is None else dx.astype(dtype) for dx, dtype in zip(dxs, dtypes, strict=False))

    return Pair(pair.name, forward, backward)


def kernel_mode() -> str:
    """``fast`` or ``book``: see `use_kernels`."""
    return _mode


def use_kernels(mode: str) -> Any:
    """``with use_kernels("book"):`` runs only pairs of the book; ``"fast"`` allows the faster pairs again.

    It is also a decorator. The environment variable TENSORLITE_KERNELS sets the mode outside of such blocks.

    Raises:
        ValueError: for another mode.
    """
    if mode not in ("fast", "book"):
        raise ValueError(f"unknown kernels {mode!r}: it is 'fast' or 'book'.")
    return _using_kernels(mode)


@contextmanager
def _using_kernels(mode: str) -> Iterator[None]:
    global _mode
    previous, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = previous


@contextmanager
def observe(observer: Callable[[str, Pair], Pair]) -> Iterator[None]:
    """Inside the ``with`` block, in all threads, ops run ``observer(name, pair)`` instead of the pair that was chosen.

    The observer returns a pair that wraps the given one. A node keeps the pair that ran, so the backward is observed as well.
    `tensorlite.profile` measures ops in this way.
    """
    global _observer
    previous, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = previous


def kernel_table(name: str | None = None) -> dict[str, list[str]]:
    """For each op with a faster pair, the pairs in the order in which they are tried; the book is last.

    Args:
        name: list only faster pairs of this name: ``cpu``, which run on NumPy arrays, or ``cuda``, which run on CuPy arrays.
    """
    table = {}
    for op in REGISTRY.values():
        faster = [pair.name for pair in op.faster if name in (None, pair.name)]
        if faster:
            table[op.name] = (faster if _mode == "fast" else []) + ["book"]
    return table


def _parent(tensor: Tensor) -> Parent:
    """The target of the gradient of ``tensor``, and the shape and dtype that this gradient must have."""
    # only after a write in place can the tensor have lost its place on the tape
    target = gradient_target(tensor) if tensor.version.last_writer else tensor.source or tensor
    return target, tensor.array.shape, tensor.array.dtype


def _share_version(output: Tensor, tensors: list[Tensor]) -> None:
    """Give an output that shares the memory of an input, such as a view, the version counter of that input."""
    owner = output.array if output.array.base is None else output.array.base
    for tensor in tensors:
        if tensor.array is owner or tensor.array.base is owner:
            output.version = tensor.version
            tensor.version.is_shared = True
            return


__all__ = ["REGISTRY", "Op", "Pair", "choose_pair", "kernel_mode", "kernel_table", "observe", "register", "use_kernels"]
