"""Writing in place: ``x += y``, ``x.add_(y)``, ``x.zero_()``, ``x[i] = y``, under torch's names.

Inside ``no_grad``, and wherever nothing wants a gradient, the result is written to the memory of x. Every array on that memory changes
too: views, and the flat buffer in which a parameter lies. The write is counted (`tensorlite.tape.VersionCounter`), so a backward that
needs the old values raises an error instead of using the new ones.

Where the tape records, x becomes the result of the op, and the gradient flows on to the old x:

    h = w * 2;  h *= 3          dh is multiplied by 3, then by 2

If no other tensor has ever shared the memory of x, x takes the new array of the op, as ``h = h * 3`` would, and what an earlier op has
saved stays unchanged. Otherwise the result is written to the shared memory. The other tensors then show values that the tape has no
record of for them, so a gradient through one of them raises an error (`tensorlite.tape.gradient_target`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from tensorlite.backend import Array, device_of
from tensorlite.index import resolve_index
from tensorlite.ops import arithmetic, comparison, indexing, shape
from tensorlite.ops.broadcasting import broadcast_shape, promote
from tensorlite.tape import is_grad_enabled
from tensorlite.tensor import AFTER_ALL_HOOKS, Tensor, is_floating, unwrap


def add_(x: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """x ← x + alpha · other; also ``x += other``."""
    return _arithmetic("add_", arithmetic.add, operator.iadd, x, other if alpha == 1 else other * alpha)


def sub_(x: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """x ← x - alpha · other; also ``x -= other``."""
    return _arithmetic("sub_", arithmetic.sub, operator.isub, x, other if alpha == 1 else other * alpha)


def mul_(x: Tensor, other: Any) -> Tensor:
    """x ← x · other; also ``x *= other``."""
    return _arithmetic("mul_", arithmetic.mul, operator.imul, x, other)


def div_(x: Tensor, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """x ← x / other, rounded as `div` rounds; also ``x /= other``, and ``x //= other`` for "floor"."""
    if rounding_mode is None and is_floating(x.dtype):
        return _arithmetic("div_", arithmetic.div, operator.itruediv, x, other)
    return change("div_", arithmetic.div, x, other, rounding_mode=rounding_mode)


def pow_(x: Tensor, exponent: Any) -> Tensor:
    """x ← x ** exponent; also ``x **= exponent``."""
    return change("pow_", arithmetic.pow, x, exponent)


def clamp_(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """x ← x limited to [min, max]."""
    return change("clamp_", comparison.clamp, x, min, max)


def masked_fill_(x: Tensor, mask: Any, value: Any) -> Tensor:
    """x ← value where the mask is True."""
    return change("masked_fill_", indexing.masked_fill, x, mask, value)


def fill_(x: Tensor, value: Any) -> Tensor:
    """x ← value everywhere: a number, or a tensor of no axes. The old values get the gradient 0."""
    if getattr(value, "shape", ()) != ():
        raise ValueError(f"fill_ takes one number, or a tensor of no axes, got shape {value.shape}; copy_ takes more.")
    return assign("fill_", x, value)


def zero_(x: Tensor) -> Tensor:
    """x ← 0 everywhere. The old values get the gradient 0."""
    return assign("zero_", x, 0)


def copy_(x: Tensor, source: Any) -> Tensor:
    """x ← source, in the dtype and on the device of x. The gradient flows to ``source``, and the old values get 0."""
    return assign("copy_", x, source)


def setitem(x: Tensor, index: Any, value: Any) -> None:
    """``x[index] = value``. Refused for tensors on the tape, because a backward may need their old values."""
    if x.requires_grad and is_grad_enabled():
        raise RuntimeError(
            "writing in place to a tensor that requires a gradient would make its gradient wrong: "
            "use where() or masked_fill(), or write inside no_grad()."
        )
    if _is_recorded(value):
        raise RuntimeError(
            "a value that requires a gradient is written into a tensor that would not pass the gradient on: "
            "use where(), cat() or stack(), or write value.detach()."
        )
    array, index = _writable("x[i] = value", x), unwrap(index)
    basic, advanced, _ = resolve_index(array, index if isinstance(index, tuple) else (index,))
    if advanced is None:
        array[basic] = unwrap(value)
    else:
        array[basic][advanced] = unwrap(value)
    x.version.increment(array)


# --- shared code ----------------------------------------------------------------------------------------


def _arithmetic(name: str, op: Callable[..., Tensor], inplace: Callable[[Any, Any], Any], x: Tensor, other: Any) -> Tensor:
    """`change`, but without a temporary array where dtype and shape stay the same: ``inplace`` is NumPy's ``+=``."""
    if not _is_recorded(x, other) and (type(other) in (int, float) or (isinstance(other, Tensor) and type(other.array) is type(x.array))):
        a, b = promote(_writable(name, x), unwrap(other))
        if a is x.array:
            _check_shape(name, x, getattr(b, "shape", ()))
            inplace(a, b)
            x.version.increment(a)
            return x
    return change(name, op, x, other)


def change(name: str, op: Callable[..., Tensor], x: Tensor, *args: Any, **options: Any) -> Tensor:
    """x ← op(x, …)"""
    if _is_recorded(x, *args):
        return _record(name, op, x, *args, **options)
    array = _writable(name, x)
    y = op(x, *args, **options)
    _check_fits(name, x, y)
    array[...] = y.array
    x.version.increment(array)
    return x


def assign(name: str, x: Tensor, source: Any) -> Tensor:
    """x ← source, converted to the dtype of x."""
    if isinstance(source, Tensor):
        source = shape.to(source, x.dtype, x.device)
    elif hasattr(source, "dtype"):
        source = device_of(x.array).asarray(source, x.dtype)
    elif not isinstance(source, int | float):
        raise TypeError(f"{name} takes a tensor, an array or a number, got {type(source).__name__}.")
    if _is_recorded(x, source):
        return _record(name, _replaced, x, source)
    array = _writable(name, x)
    _check_shape(name, x, getattr(source, "shape", ()))
    array[...] = unwrap(source)
    x.version.increment(array)
    return x


def _record(name: str, op: Callable[..., Tensor], x: Tensor, *args: Any, **options: Any) -> Tensor:
    """x ← op(x, …) on the tape; see the top of this page."""
    _check_recordable(name, x)
    is_alone = x.source is not None and not x.version.is_shared
    old = x if is_alone else _copy(x)  # the op may save its input, and the memory of x changes
    y = op(*(old if arg is x else arg for arg in (x, *args)), **options)
    _check_fits(name, x, y)
    y = shape.to(y, x.dtype)
    assert y.source is not None
    retains = _forget_retained(x)
    if is_alone:
        x.array, x.version = y.array, y.version
    else:
        _writable(name, x)[...] = y.array
        x.version.increment(x.array)
        x.version.last_writer = y.source[0].number
    x.source, x.requires_grad = y.source, True
    if retains:
        x.retain_grad()
    return x


def _replaced(x: Tensor, value: Any) -> Tensor:
    """``value`` in the shape of x, and a gradient of 0 for x."""
    return indexing.where(device_of(x.array).asarray(False), x, value)


def _copy(x: Tensor) -> Tensor:
    """x with its own memory, at the same place on the tape."""
    old = Tensor.wrap(x.array.copy())
    old.source, old.requires_grad = x.source, x.requires_grad
    return old


def _forget_retained(x: Tensor) -> bool:
    """Whether x retains its gradient (`Tensor.retain_grad`). The hook is removed from the node that x leaves."""
    if x.source is None or not x.source[0].hooks:
        return False
    node, position = x.source
    return node.hooks_of(position).pop(AFTER_ALL_HOOKS, None) is not None


def _is_recorded(*operands: Any) -> bool:
    return is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in operands)


# --- checks ---------------------------------------------------------------------------------------------


def _check_recordable(name: str, x: Tensor) -> None:
    if x.source is None and x.requires_grad:
        raise RuntimeError(f"{name} on a leaf that requires a gradient: write to it inside no_grad(), or change a clone().")
    if x.version.is_shared and x.version.shows_leaf:
        raise RuntimeError(f"{name} on a view of a leaf that requires a gradient: write to it inside no_grad(), or change a clone().")
    if x.version.is_shared and x.source is None:
        raise RuntimeError(
            f"{name} with a value that requires a gradient, on a tensor that shares its memory with others: "
            "they would not pass the gradient on; make a new tensor, as x = x + value does, or change a clone()."
        )


def _check_fits(name: str, x: Tensor, y: Tensor) -> None:
    """The result must have the shape of x, and a dtype that x can hold: bool < integer < floating point."""
    _check_shape(name, x, y.shape)
    if _kind(y.dtype) > _kind(x.dtype):
        raise RuntimeError(f"{name}: the result is {y.dtype}, which a tensor of {x.dtype} cannot hold; convert it first, x.to(dtype).")


def _check_shape(name: str, x: Tensor, other: tuple[int, ...]) -> None:
    if other not in ((), x.shape) and broadcast_shape(name, x.shape, other) != x.shape:
        raise ValueError(f"{name}: a tensor of shape {x.shape} cannot grow to hold {broadcast_shape(name, x.shape, other)}.")


def _kind(dtype: Any) -> int:
    return 2 if is_floating(dtype) else 0 if dtype.kind == "b" else 1


def _writable(name: str, x: Tensor) -> Array:
    """The array of x, after a check that it is writeable and no two elements share memory."""
    array = x.array
    if any(stride == 0 and n > 1 for stride, n in zip(array.strides, array.shape, strict=True)):
        raise RuntimeError(f"{name}: several elements of this tensor share one place in memory, as expand() makes it; change a clone().")
    if not getattr(array.flags, "writeable", True):
        raise RuntimeError(f"{name}: this tensor shows memory that is read-only; change a clone().")
    return array
