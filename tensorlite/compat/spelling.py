"""Keywords that have several names in torch, or that add a second op. The pages of the book accept one name each.

x.sum(axis=0, keepdims=True)      dim, keepdim
x.mean(dtype=tl.float64)          x.to(dtype).mean()
tl.add(x, y, alpha=2)             x + 2 * y
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from tensorlite import creation
from tensorlite.ops import arithmetic, extremum, indexing, reduction, shape, softmax
from tensorlite.tensor import Tensor

Function = Callable[..., Any]

_OURS = {"axis": "dim", "keepdims": "keepdim"}
_FIRST = ("input", "self")  # torch's names of the first argument, whatever ours is


def spelled(function: Function, *also: str) -> Function:
    """``function``, which then accepts torch's keywords as well.

    Args:
        also: any of these: ``dtype``, to which the first argument is converted; ``alpha``, which multiplies the second one; and names of
            arguments that are positional here, ``dims`` or ``size``.
    """

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if options:
            options = {_OURS.get(name, name): value for name, value in options.items()}
            for name in _FIRST:
                if name in options:
                    args = (options.pop(name), *args)
            for name in also:
                if name in options:
                    args = _taken(name, options.pop(name), args, options)
            if options.get("correction", 0) is None:
                del options["correction"]
        return function(*args, **options)

    return call


def with_torch_keywords(function: Any) -> Any:
    """`spelled(function)` for a function of a tensor; any other object unchanged."""
    if isinstance(function, type | property) or not callable(function) or "x" not in inspect.signature(function).parameters:
        return function
    return spelled(function, *(("dtype",) if getattr(function, "__name__", "") == "cumprod" else ()))


def _taken(name: str, value: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments, with the value of one more keyword."""
    if name == "dtype":
        return args if value is None else (args[0].to(dtype=value), *args[1:])
    if name == "alpha":
        other = args[1] if len(args) > 1 else options.pop("other")
        return args[0], other if value == 1 else other * value
    return (*args, value)


def where(condition: Tensor, input: Any = None, other: Any = None) -> Any:
    """``input`` where the condition is True, else ``other``. For a condition alone the indices where it is True, a tensor for each axis."""
    if input is None and other is None:
        from tensorlite.compat.questions import nonzero

        return nonzero(condition, as_tuple=True)
    return indexing.where(condition, input, other)


def zeros_like(x: Tensor, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of the shape, dtype and device of ``x``."""
    return creation.zeros_like(x.detach().to(device=device), dtype, requires_grad)


def ones_like(x: Tensor, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of the shape, dtype and device of ``x``."""
    return creation.ones_like(x.detach().to(device=device), dtype, requires_grad)


_AXES = (
    *(spelled(function, "dtype") for function in (reduction.sum, reduction.mean, reduction.prod, reduction.cumsum)),
    *(spelled(function, "dtype") for function in (softmax.softmax, softmax.log_softmax)),
    *(spelled(function) for function in (reduction.var, reduction.std, reduction.logsumexp, reduction.all, reduction.any)),
    *(spelled(function) for function in (extremum.amax, extremum.amin, extremum.max, extremum.min, extremum.argmax, extremum.argmin)),
    *(spelled(function) for function in (shape.squeeze, shape.unsqueeze, shape.split, shape.chunk, shape.unbind)),
    *(spelled(function) for function in (indexing.index_select, indexing.gather)),
    *(spelled(function, "dims") for function in (shape.flip, shape.permute)),
    *(spelled(function, "alpha") for function in (arithmetic.add, arithmetic.sub)),
)
METHODS = {function.__name__: function for function in _AXES}
FUNCTIONS = METHODS | {
    "where": where,
    "zeros_like": zeros_like,
    "ones_like": ones_like,
    "cat": spelled(shape.cat),
    "stack": spelled(shape.stack),
    **{make.__name__: spelled(make, "size") for make in (creation.zeros, creation.ones, creation.rand, creation.randn)},
}
