"""Shape: the same elements in another arrangement.

Every op on this page moves elements and computes nothing. An element of x moves to some position in y, and its
gradient is at that same position in dy. So the backward moves it back: the inverse of a reshape is the reshape to
the old shape, that of a permutation is the inverse permutation, and concatenating and splitting are inverses of
each other. Only an element that was *copied* (expand, repeat) has several gradients, and they are added.

Where NumPy allows it, y is a view: it shares the memory of x and costs nothing.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tensorlite.backend import Array, Device, array_module, device_of
from tensorlite.op import Op
from tensorlite.ops.axes import normalize_axes, normalize_axis
from tensorlite.ops.broadcasting import result_dtype, unbroadcast
from tensorlite.ops.summation import sum_of
from tensorlite.tensor import Tensor

# --- the same order, other axes -------------------------------------------------------------------------


def reshape_forward(x: Array, shape: tuple[int, ...]) -> tuple[Array, Any]:
    """y has the elements of x in the same (row-major) order, in a new shape. One length may be -1, for what remains.

    A view where the strides of x allow it, otherwise a copy.

    Raises: ValueError if the number of elements differs.
    Source: equals torch.reshape.
    """
    return x.reshape(_filled("reshape", x.shape, shape)), x.shape


def reshape_backward(dy: Array, saved: Any) -> Array:
    """The order is the same, so dy only needs the old shape."""
    return dy.reshape(saved)


def view_forward(x: Array, shape: tuple[int, ...]) -> tuple[Array, Any]:
    """`reshape`, but y always shares the memory of x.

    Raises: ValueError if the number of elements differs, or if only a copy could have that shape.
    Source: equals torch.Tensor.view.
    """
    y = x.reshape(_filled("view", x.shape, shape))
    if x.size and not array_module(x).may_share_memory(x, y):
        raise ValueError(
            f"view: the elements of {x.shape} lie in memory in an order (strides {x.strides}) that {y.shape} cannot show "
            "without a copy: use reshape()."
        )
    return y, x.shape


_reshape = Op(reshape_forward, reshape_backward)
_view = Op(view_forward, reshape_backward)


def reshape(x: Tensor, *shape: Any) -> Tensor:
    """``reshape(x, (2, -1))`` or ``x.reshape(2, -1)``."""
    return _reshape(x, _integers(shape))


def view(x: Tensor, *shape: Any) -> Tensor:
    """``x.view(2, -1)``: shares the memory of x, or raises."""
    return _view(x, _integers(shape))


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Merge the axes from ``start_dim`` to ``end_dim``, both included, into one."""
    first, last = normalize_axis("flatten", start_dim, x.ndim), normalize_axis("flatten", end_dim, x.ndim)
    if first > last:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim} in a tensor of shape {x.shape}.")
    return _reshape(x, (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]))


def unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Split one axis into several of lengths ``sizes``; the inverse of `flatten`."""
    d = normalize_axis("unflatten", dim, x.ndim)
    return _reshape(x, (*x.shape[:d], *_filled("unflatten", x.shape[d : d + 1], _integers((sizes,))), *x.shape[d + 1 :]))


def squeeze(x: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Drop the axes of length 1: all of them, or those of ``dim`` that are (the others stay, as in torch)."""
    dropped = [d for d in (range(x.ndim) if dim is None else _axes("squeeze", dim, x.ndim)) if x.shape[d] == 1]
    return _reshape(x, tuple(n for d, n in enumerate(x.shape) if d not in dropped))


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """Insert an axis of length 1 so that it becomes axis ``dim``."""
    d = normalize_axis("unsqueeze", dim, x.ndim + 1)
    return _reshape(x, (*x.shape[:d], 1, *x.shape[d:]))


# --- the same axes, another order -----------------------------------------------------------------------


def permute_forward(x: Array, dims: tuple[int, ...]) -> tuple[Array, Any]:
    """Axis i of y is axis dims[i] of x; a view.

    Raises: ValueError if ``dims`` does not name every axis exactly once.
    Source: equals torch.permute.
    """
    order = tuple(normalize_axis("permute", d, x.ndim) for d in dims)
    if sorted(order) != list(range(x.ndim)):
        raise ValueError(f"permute: dims {dims} must name each of the {x.ndim} axes of {x.shape} once.")
    return x.transpose(order), order


def permute_backward(dy: Array, saved: Any) -> Array:
    """The inverse permutation: axis dims[i] of dx is axis i of dy."""
    return dy.transpose(sorted(range(dy.ndim), key=saved.__getitem__))


_permute = Op(permute_forward, permute_backward)


def permute(x: Tensor, *dims: Any) -> Tensor:
    """``permute(x, (2, 0, 1))`` or ``x.permute(2, 0, 1)``."""
    return _permute(x, _integers(dims))


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Exchange two axes; a view."""
    a, b = normalize_axis("transpose", dim0, x.ndim), normalize_axis("transpose", dim1, x.ndim)
    order = list(range(x.ndim))
    if order:  # a 0-d tensor has nothing to exchange
        order[a], order[b] = order[b], order[a]
    return _permute(x, tuple(order))


def matrix_transpose(x: Tensor) -> Tensor:
    """``x.mT``: the last two axes exchanged, whatever comes before them."""
    if x.ndim < 2:
        raise ValueError(f"mT: a tensor of shape {x.shape} is not a matrix, nor a batch of them.")
    return transpose(x, -2, -1)


def plain_transpose(x: Tensor) -> Tensor:
    """``x.T``: rows and columns of one matrix exchanged."""
    if x.ndim > 2:
        raise ValueError(f"T: a tensor of shape {x.shape} is not one matrix: use mT for a batch of them, or permute().")
    return _permute(x, tuple(reversed(range(x.ndim))))


def flip_forward(x: Array, dims: tuple[int, ...]) -> tuple[Array, Any]:
    """Reverse the axes ``dims``; a view (torch.flip copies)."""
    flipped = _axes("flip", dims, x.ndim)
    return array_module(x).flip(x, flipped), flipped


def flip_backward(dy: Array, saved: Any) -> Array:
    """To reverse twice is to change nothing, so the gradient is reversed, too."""
    return array_module(dy).flip(dy, saved)


_flip = Op(flip_forward, flip_backward)


def flip(x: Tensor, *dims: Any) -> Tensor:
    """``flip(x, (0, 1))`` or ``x.flip(0, 1)``."""
    return _flip(x, _integers(dims))


def roll_forward(x: Array, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> tuple[Array, Any]:
    """Shift along ``dims``; elements shifted past the end reappear at the start. Without ``dims``, x is treated as flat.

    Raises: ValueError if there are not as many ``shifts`` as ``dims``.
    Source: equals torch.roll.
    """
    shifts = _integers((shifts,))
    if dims is None:
        if len(shifts) != 1:
            raise ValueError(f"roll: shifts {shifts} without dims must be one number.")
        return array_module(x).roll(x, shifts[0]), (shifts[0], None)
    rolled = tuple(normalize_axis("roll", d, x.ndim) for d in _integers((dims,)))
    if len(shifts) != len(rolled):
        raise ValueError(f"roll: {len(shifts)} shifts {shifts} do not fit {len(rolled)} dims {rolled}.")
    return array_module(x).roll(x, shifts, rolled), (shifts, rolled)


def roll_backward(dy: Array, saved: Any) -> Array:
    """Shift in the other direction."""
    shifts, dims = saved
    back = -shifts if dims is None else tuple(-n for n in shifts)
    return array_module(dy).roll(dy, back, dims)


roll = Op(roll_forward, roll_backward)


# --- one element at several positions ------------------------------------------------------------------


def expand_forward(x: Array, shape: tuple[int, ...]) -> tuple[Array, Any]:
    """Repeat axes of length 1, and new ones in front, without a copy; -1 keeps a length. A read-only view.

    Raises: ValueError if an axis that is not 1 would have to change.
    Source: equals torch.Tensor.expand.
    """
    new_axes = len(shape) - x.ndim
    kept = (-1,) * new_axes + x.shape  # a new axis has no length to keep: -1 remains there, and is refused below
    target = tuple(kept[i] if n == -1 else n for i, n in enumerate(shape)) if new_axes >= 0 else shape
    if new_axes < 0 or -1 in target or any(old not in (1, n) for old, n in zip(x.shape, target[new_axes:], strict=True)):
        raise ValueError(f"expand: {x.shape} cannot become {shape}: counted from the right, lengths must be equal, or 1 in the tensor.")
    return array_module(x).broadcast_to(x, target), x.shape


def expand_backward(dy: Array, saved: Any) -> Array:
    """An element that was repeated n times has n gradients: their sum."""
    return unbroadcast(dy, saved)


_expand = Op(expand_forward, expand_backward)


def expand(x: Tensor, *shape: Any) -> Tensor:
    """``x.expand(4, -1)``: broadcasting by hand."""
    return _expand(x, _integers(shape))


def broadcast_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The same as `expand`."""
    return _expand(x, _integers((shape,)))


def repeat_forward(x: Array, repeats: tuple[int, ...]) -> tuple[Array, Any]:
    """Lay ``repeats[i]`` copies of x side by side along axis i; more repeats than axes make new axes in front.

    Raises: ValueError for fewer repeats than axes, or a negative one.
    Source: equals torch.Tensor.repeat (numpy.tile, not numpy.repeat).
    """
    if len(repeats) < x.ndim or any(n < 0 for n in repeats):
        raise ValueError(f"repeat: {repeats} must give a count of at least 0 for each axis of {x.shape}.")
    return array_module(x).tile(x, repeats), (x.shape, repeats)


def repeat_backward(dy: Array, saved: Any) -> Array:
    """Split every axis into (copy, position within the copy), and sum over the copies."""
    shape, repeats = saved
    padded = (1,) * (len(repeats) - len(shape)) + shape
    split_axes = [n for pair in zip(repeats, padded, strict=True) for n in pair]  # r0 n0 r1 n1 ...
    return sum_of(dy.reshape(split_axes), tuple(range(0, 2 * len(repeats), 2))).reshape(shape)


_repeat = Op(repeat_forward, repeat_backward)


def repeat(x: Tensor, *repeats: Any) -> Tensor:
    """``x.repeat(2, 1)``: x twice, one below the other."""
    return _repeat(x, _integers(repeats))


# --- concatenating and splitting -----------------------------------------------------------------------


def cat_forward(*xs: Array, dim: int = 0) -> tuple[Array, Any]:
    """Concatenate arrays along axis ``dim``.

    Shapes: equal except along axis ``dim``. An array of shape (0,) is allowed everywhere, as in torch.
    Saves: the axis, and the shape of each.
    Raises: ValueError if there are none, or their shapes do not fit.
    Source: equals torch.cat.
    """
    if not xs:
        raise ValueError("cat: the list of tensors is empty; give at least one.")
    if any(x.ndim == 0 for x in xs):
        raise ValueError("cat: a 0-dimensional tensor has no axis to concatenate along: use stack().")
    arrays = _one_dtype(xs)
    laid = [x for x in arrays if x.shape != (0,)] or arrays
    d = normalize_axis("cat", dim, laid[0].ndim)
    for x in laid[1:]:
        if x.shape[:d] != laid[0].shape[:d] or x.shape[d + 1 :] != laid[0].shape[d + 1 :]:
            raise ValueError(f"cat: the shapes {laid[0].shape} and {x.shape} differ elsewhere than along dim {dim}.")
    return array_module(xs[0]).concatenate(laid, axis=d), (d, [x.shape for x in xs])


def cat_backward(dy: Array, saved: Any) -> tuple[Array, ...]:
    """Split dy where the arrays were joined."""
    d, shapes = saved
    pieces = _cut(dy, d, [0 if shape == (0,) else shape[d] for shape in shapes])
    return tuple(piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))


_cat = Op(cat_forward, cat_backward)


def cat(tensors: Iterable[Tensor], dim: int = 0) -> Tensor:
    """``cat([x, y], dim=1)``."""
    return _cat(*tensors, dim=dim)


def stack_forward(*xs: Array, dim: int = 0) -> tuple[Array, Any]:
    """Put arrays of one shape side by side along a new axis ``dim``.

    Raises: ValueError if there are none, or their shapes differ.
    Source: equals torch.stack.
    """
    if not xs:
        raise ValueError("stack: the list of tensors is empty; give at least one.")
    for x in xs[1:]:
        if x.shape != xs[0].shape:
            raise ValueError(f"stack: the shapes {xs[0].shape} and {x.shape} differ; only cat() takes different lengths.")
    d = normalize_axis("stack", dim, xs[0].ndim + 1)
    return array_module(xs[0]).stack(_one_dtype(xs), axis=d), d


def stack_backward(dy: Array, saved: Any) -> tuple[Array, ...]:
    """Slice i of dy belongs to argument i."""
    return _slices(dy, saved)


_stack = Op(stack_forward, stack_backward)


def stack(tensors: Iterable[Tensor], dim: int = 0) -> Tensor:
    """``stack([x, y])``: a new first axis of length 2."""
    return _stack(*tensors, dim=dim)


def split_forward(x: Array, split_size: int | Sequence[int], dim: int = 0) -> tuple[tuple[Array, ...], Any]:
    """Split x along axis ``dim`` into views: pieces of length ``split_size`` (the last may be shorter), or of the lengths listed.

    Raises: ValueError if the lengths do not add up to that of the axis, or are negative.
    Source: equals torch.split.
    """
    d = _real_axis("split", dim, x.shape)
    n = x.shape[d]
    if isinstance(split_size, int):
        if split_size < 0 or (split_size == 0 and n > 0):
            raise ValueError(f"split: pieces of length {split_size} cannot split axis {d} of {x.shape}: give a length of at least 1.")
        lengths = [min(split_size, n - start) for start in range(0, n, split_size or 1)] or [0]
    else:
        lengths = list(_integers((split_size,)))
        if sum(lengths) != n or any(length < 0 for length in lengths):
            raise ValueError(f"split: lengths {lengths} must be at least 0 and add up to {n}, the length of axis {d} of {x.shape}.")
    return _cut(x, d, lengths), d


def split_backward(dy: tuple[Array, ...], saved: Any) -> Array:
    """Concatenate. The gradient of a piece that was not used arrives as zeros."""
    return array_module(dy[0]).concatenate(dy, axis=saved)


split = Op(split_forward, split_backward)


def chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Split into at most ``chunks`` pieces of one length, ceil(n / chunks); the last may be shorter."""
    if chunks < 1:
        raise ValueError(f"chunk: the number of chunks must be at least 1, got {chunks}.")
    n = x.shape[_real_axis("chunk", dim, x.shape)]
    if n == 0:
        return split(x, [0] * chunks, dim)
    return split(x, math.ceil(n / chunks), dim)


def unbind_forward(x: Array, dim: int = 0) -> tuple[tuple[Array, ...], Any]:
    """Split x along axis ``dim`` into one view, without that axis, for each of its positions.

    Source: equals torch.unbind.
    """
    d = _real_axis("unbind", dim, x.shape)
    return _slices(x, d), (d, x.shape, x.dtype, array_module(x))


def unbind_backward(dy: tuple[Array, ...], saved: Any) -> Array:
    """Stack the gradients of the views."""
    d, shape, dtype, xp = saved
    return xp.stack(dy, axis=d) if dy else xp.zeros(shape, dtype)


unbind = Op(unbind_forward, unbind_backward)


# --- another place in memory, another type --------------------------------------------------------------


def clone_forward(x: Array) -> tuple[Array, Any]:
    """A copy, in row-major order; the gradient passes through."""
    return x.copy(), None


def clone_backward(dy: Array, saved: Any) -> Array:
    """∂y/∂x = 1."""
    return dy


clone = Op(clone_forward, clone_backward)


def contiguous(x: Tensor) -> Tensor:
    """The tensor itself if it lies in memory in row-major order, else a copy that does."""
    return x if x.array.flags.c_contiguous else clone(x)


def to_forward(x: Array, dtype: Any, device: Device) -> tuple[Array, Any]:
    """x in another dtype, on another device, or both."""
    return device.asarray(x, dtype), (x.dtype, device_of(x))


def to_backward(dy: Array, saved: Any) -> Array:
    """The gradient is converted back to the dtype of x, and copied back to the device of x."""
    dtype, device = saved
    return device.asarray(dy, dtype)


_to = Op(to_forward, to_backward)


def to(
    x: Tensor, *targets: Any, dtype: Any = None, device: Device | str | int | None = None, non_blocking: bool = False, copy: bool = False
) -> Tensor:
    """``x.to(dtype)``, ``x.to(device)``, ``x.to(device, dtype)`` or ``x.to(other)``; x itself if nothing changes, unless ``copy``.

    Args:
        non_blocking: torch's; a copy to the GPU waits for what the host still has to write, whatever is said here.
    """
    for target in targets:
        if isinstance(target, Tensor):
            dtype, device = target.dtype, target.device
        elif isinstance(target, str | int | Device):
            device = target
        else:
            dtype = target
    new_dtype = x.dtype if dtype is None else np.dtype(dtype)
    new_device = x.device if device is None else Device(device)
    if (new_dtype, new_device) == (x.dtype, x.device):
        return clone(x) if copy else x
    return _to(x, new_dtype, new_device)


# --- helpers --------------------------------------------------------------------------------------------


def _integers(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """Both spellings of several integers: ``(2, 3)`` and ``((2, 3),)``."""
    if len(arguments) == 1 and isinstance(arguments[0], tuple | list):
        arguments = tuple(arguments[0])
    return tuple(operator.index(n) for n in arguments)


def _axes(op: str, dim: Any, ndim: int) -> tuple[int, ...]:
    """`normalize_axes` for ops in which an empty ``dim`` means no axis. In reductions it means every axis."""
    return normalize_axes(op, dim, ndim) if dim != () and dim != [] else ()


def _real_axis(op: str, dim: int, shape: tuple[int, ...]) -> int:
    if not shape:
        raise ValueError(f"{op}: a 0-dimensional tensor has no axis to split along.")
    return normalize_axis(op, dim, len(shape))


def _filled(op: str, old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """``new`` with its -1 replaced by the length that leaves the number of elements unchanged."""
    size, known = math.prod(old), math.prod(n for n in new if n != -1)
    if new.count(-1) == 1 and known and size % known == 0:
        return tuple(size // known if n == -1 else n for n in new)
    if -1 in new or known != size or any(n < 0 for n in new):
        raise ValueError(f"{op}: the {size} element(s) of {old} do not fit the shape {new}.")
    return new


def _one_dtype(xs: tuple[Array, ...]) -> list[Array]:
    dtype = result_dtype(*xs)
    return [x.astype(dtype, copy=False) for x in xs]


def _cut(x: Array, d: int, lengths: Sequence[int]) -> tuple[Array, ...]:
    """Views of consecutive pieces of axis ``d``."""
    before, stops = (slice(None),) * d, itertools.accumulate(lengths)
    return tuple(x[(*before, slice(stop - length, stop))] for length, stop in zip(lengths, stops, strict=True))


def _slices(x: Array, d: int) -> tuple[Array, ...]:
    """Views of x at every position of axis ``d``; the Ellipsis keeps a 0-d slice an array."""
    return tuple(x[(*(slice(None),) * d, i, ...)] for i in range(x.shape[d]))
