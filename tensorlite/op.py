"""An op: two plain functions on arrays, and a name.

    def square_forward(x):          -> y, saved
    def square_backward(dy, saved): -> dx
    square = Op(square_forward, square_backward)

The two functions are the *book*: written to be read, and right on every input. An op may also have
faster pairs, registered by `tensorlite.kernels`; `choose_pair` takes the first that supports the arguments.
A pair is replaced as a whole, because only the backward that belongs to a forward can read its `saved`.

Calling an op is the one doorway between tensors and arrays: unwrap the tensors, choose a pair, run its
forward, leave a node on the tape, wrap the result.
"""

from __future__ import annotations

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
            ``forward``, None where there is none. For several outputs ``dy`` is a tuple. A backward
            with a third parameter, ``needs_grad``, is told which of them will be used, so that it can leave out the rest.
            One with a fourth, ``out``, is told for each an array to write it into and to return (a view of an optimizer's
            flat buffer), or None: what is written there need not be copied there.
            One that asks for ``accumulated`` is told the gradient that has arrived for the first argument from elsewhere, or None, and
            returns for it the sum of that and its own: one pass over the memory instead of two.
        supports: takes what ``forward`` takes, and says whether this pair can run on it.
    """

    name: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., Any]
    supports: Callable[..., bool] = lambda *arrays, **options: True
    takes_needs_grad: bool = field(init=False)
    takes_out: bool = field(init=False)
    takes_accumulated: bool = field(init=False)

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.backward).parameters
        object.__setattr__(self, "takes_needs_grad", "needs_grad" in parameters)
        object.__setattr__(self, "takes_out", "out" in parameters)
        object.__setattr__(self, "takes_accumulated", "accumulated" in parameters)


class Op:
    """A differentiable function of tensors; see the module's docstring.

    Args:
        forward, backward: the book pair.
        name: defaults to the forward's name without ``_forward``.
        in_float32: the book computes half precisions in float32, and rounds its results once. So says every op that adds many
            numbers or takes several steps: rounded after each, a float16 x² overflows from 256 on, and a bfloat16 softmax of 1000
            scores adds up to 3.9.

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
            self._bind(args, options)  # if it is the arguments that do not fit, the message names the op and not its parts
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
        """The parameters and their defaults, as a user writes them."""
        plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in self.__signature__.parameters.values()]
        return str(inspect.Signature(plain))

    def _check_devices(self, tensors: list[Tensor]) -> None:
        if len({type(tensor.array) for tensor in tensors}) > 1:
            places = ", ".join(str(device_of(tensor.array)) for tensor in tensors)
            raise RuntimeError(f"{self.name} got tensors on different devices ({places}): move them with .to(device) first.")

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Lets an op be a method: ``Tensor.sum = sum`` makes ``x.sum(dim=1)`` mean ``sum(x, dim=1)``."""
        return self if instance is None else MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<op {self.name}: {', '.join([pair.name for pair in self.faster] + ['book'])}>"


def register(op: Op, pair: Pair) -> None:
    """Offer ``pair`` as a faster way to run ``op``; the last one registered is asked first."""
    op.faster.insert(0, pair)


def choose_pair(op: Op, arrays: list[Any], options: dict[str, Any]) -> Pair:
    """The pair that will run: the first faster one that supports the arguments, or else the book's."""
    if _mode == "fast":
        for pair in op.faster:
            if pair.supports(*arrays, **options):
                return pair
    if op.in_float32:
        for x in arrays:
            if getattr(x, "itemsize", 0) == 2 and is_half(x.dtype):  # two bytes: the quicker question
                return _in_float32(op.book)
    return op.book


def _in_float32(pair: Pair) -> Pair:
    """``pair`` with float32 in the place of half precisions on the way in, and the half precision again on the way out.

    Among types that differ, float32 wins, as in any promotion.
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
    """``with use_kernels("book"):`` runs everything through the book; ``"fast"`` allows the faster pairs again.

    It may also decorate a function. The environment variable TENSORLITE_KERNELS sets what holds outside.

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
    """Inside the ``with`` block, in all threads, what runs is ``observer(name, pair)``: the pair that was chosen, with something around it.

    A node keeps the pair that ran, so the backward is observed as well. `tensorlite.profile` measures ops in this way.
    """
    global _observer
    previous, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = previous


def kernel_table(name: str | None = None) -> dict[str, list[str]]:
    """For each op with a faster pair, the pairs in the order in which they are asked; the book comes last.

    Args:
        name: count only the faster pairs of this name: ``cpu``, which run on NumPy arrays, or ``cuda``, which run on CuPy's.
    """
    table = {}
    for op in REGISTRY.values():
        faster = [pair.name for pair in op.faster if name in (None, pair.name)]
        if faster:
            table[op.name] = (faster if _mode == "fast" else []) + ["book"]
    return table


def _parent(tensor: Tensor) -> Parent:
    """Where the gradient of ``tensor`` goes, and what it must look like."""
    # only after a write in place can the tensor have lost its place on the tape
    target = gradient_target(tensor) if tensor.version.last_writer else tensor.source or tensor
    return target, tensor.array.shape, tensor.array.dtype


def _share_version(output: Tensor, tensors: list[Tensor]) -> None:
    """Let a view, or an input handed through, count in-place writes together with the tensor whose memory it shows."""
    owner = output.array if output.array.base is None else output.array.base
    for tensor in tensors:
        if tensor.array is owner or tensor.array.base is owner:
            output.version = tensor.version
            tensor.version.is_shared = True
            return


__all__ = ["REGISTRY", "Op", "Pair", "choose_pair", "kernel_mode", "kernel_table", "observe", "register", "use_kernels"]
