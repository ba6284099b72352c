"""Scatter: writing is reading, the other way round.

What `indexing` calls the gradient of reading (put each number back to its place, and add where a place was read twice) is here the
forward; and so its backward is reading: each number that was written finds its gradient at the place it was written to.
"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.axes import normalize_axis
from tensorlite.ops.places import places_along
from tensorlite.ops.summation import accumulation_dtype


def scatter_forward(x: Array, dim: int, index: Array, src: Any) -> tuple[Array, Any]:
    """y = x, but where ``index`` says, along the axis ``dim``, it is ``src``. With dim = 1 of 3:

        y[i, index[i, j, k], k] = src[i, j, k]

    If a place is named several times, one of them is written: on the CPU the last.

    Shapes: index: as many axes as x, none longer than in src, nor, but along ``dim``, than in x. src may be a number.
    Saves: the places, the shapes of index and src.
    Raises: IndexError if an index is out of range; ValueError if the shapes do not fit; TypeError if src has another dtype.
    Source: equals torch.scatter.
    """
    places, values = _written("scatter", x, dim, index, src)
    y = x.copy()
    (y if y.ndim else y.reshape(1))[places] = values
    return y, (places, index.shape, getattr(src, "shape", None))


def scatter_backward(dy: Array, saved: Any) -> tuple[Array, None, None, Array | None]:
    """What was overwritten has no influence: 0. src had its influence where it was written to, and gets the gradient from there."""
    places, shape, src_shape = saved
    dx = dy.reshape(dy.shape or (1,)).copy()
    dx[places] = 0
    return dx.reshape(dy.shape), None, None, _read(dy, places, shape, src_shape)


_scatter = Op(scatter_forward, scatter_backward)


def scatter_add_forward(x: Array, dim: int, index: Array, src: Array) -> tuple[Array, Any]:
    """y = x, to which ``src`` is added where ``index`` says: y[i, index[i, j, k], k] += src[i, j, k]

    Shapes, Saves, Raises: as scatter. A place that is named several times gets all of the numbers.
    Source: equals torch.scatter_add.
    """
    places, values = _written("scatter_add", x, dim, index, src)
    y = x.astype(accumulation_dtype(x.dtype))  # a copy
    array_module(x).add.at(y if y.ndim else y.reshape(1), places, values)
    return y.astype(x.dtype, copy=False), (places, index.shape, src.shape)


def scatter_add_backward(dy: Array, saved: Any) -> tuple[Array, None, None, Array | None]:
    """A sum hands its gradient to all its terms: dx = dy, and src reads it at the places where it was added."""
    places, shape, src_shape = saved
    return dy, None, None, _read(dy, places, shape, src_shape)


scatter_add = Op(scatter_add_forward, scatter_add_backward)


def index_add_forward(x: Array, dim: int, index: Array, source: Array, alpha: float = 1) -> tuple[Array, Any]:
    """y = x, to whose slice index[i] along the axis ``dim`` slice i of alpha · source is added

    Shapes: index (k,); source as x, but of length k along ``dim``.
    Saves: the index, the axis, alpha.
    Raises: IndexError if an index is out of range; ValueError if the shapes do not fit.
    Source: equals torch.index_add.
    """
    d = normalize_axis("index_add", dim, x.ndim)
    xp = array_module(x)
    places = index.reshape(-1)
    line, added = (x, source) if x.ndim else (x.reshape(1), source.reshape(1))
    if index.ndim > 1 or added.shape != (*line.shape[:d], places.size, *line.shape[d + 1 :]):
        raise ValueError(f"index_add: index {index.shape} and source {source.shape} do not fit axis {d} of {x.shape}.")
    _check_index("index_add", index, line.shape[d])
    y = line.astype(accumulation_dtype(x.dtype))
    xp.add.at(y, (*(slice(None),) * d, places), added if alpha == 1 else alpha * added)
    return y.astype(x.dtype, copy=False).reshape(x.shape), (places, d, alpha, source.shape)


def index_add_backward(dy: Array, saved: Any) -> tuple[Array, None, None, Array]:
    """As of scatter_add, slice by slice: dx = dy, and dsource = alpha · dy at the slices that were named."""
    places, d, alpha, source_shape = saved
    dsource = (dy if dy.ndim else dy.reshape(1)).take(places, axis=d).reshape(source_shape)
    return dy, None, None, dsource if alpha == 1 else alpha * dsource


_index_add = Op(index_add_forward, index_add_backward)


def scatter(x: Any, dim: int, index: Any, src: Any = None, *, value: Any = None, reduce: str | None = None) -> Any:
    """See `scatter_forward`; a number may also be given as ``value``."""
    if reduce is not None:
        raise NotImplementedError(f"scatter: reduce={reduce!r} is not supported; scatter_add adds.")
    return _scatter(x, dim, index, value if src is None else src)


def index_add(x: Any, dim: int, index: Any, source: Any, *, alpha: float = 1) -> Any:
    """See `index_add_forward`."""
    return _index_add(x, dim, index, source, alpha)


def _written(op: str, x: Array, dim: int, index: Array, src: Any) -> tuple[tuple[Array, ...], Any]:
    """The places to be written to, and the numbers for them."""
    d = normalize_axis(op, dim, x.ndim)
    if index.dtype.kind not in "iu":
        raise TypeError(f"{op}: index must be a tensor of integers, got {index.dtype}.")
    line, look = (x if x.ndim else x.reshape(1)), (index if index.ndim else index.reshape(1))
    values = src.reshape(src.shape or 1) if hasattr(src, "shape") else src
    if index.size:
        longer = [i for i in range(min(line.ndim, look.ndim)) if i != d and look.shape[i] > line.shape[i]]
        if hasattr(values, "shape"):
            longer += [i for i in range(look.ndim) if values.ndim != look.ndim or look.shape[i] > values.shape[i]]
        if look.ndim != line.ndim or longer:
            raise ValueError(f"{op}: an index {index.shape} does not fit x {x.shape} along dim {d} and src {getattr(src, 'shape', src)}.")
        _check_index(op, look, line.shape[d])
    else:
        look = look.reshape((0,) * line.ndim)
    if hasattr(values, "shape"):
        if values.dtype != x.dtype:
            raise TypeError(f"{op}: x and src must have one dtype, got {x.dtype} and {values.dtype}.")
        values = values[tuple(slice(n) for n in look.shape)] if index.size else values.reshape(-1)[:0].reshape(look.shape)
    return places_along(look, d), values


def _read(dy: Array, places: tuple[Array, ...], shape: tuple[int, ...], src_shape: tuple[int, ...] | None) -> Array | None:
    """The gradient at the places, in the shape of src, which may reach beyond the index: nothing of that was written."""
    if src_shape is None:
        return None
    read = (dy if dy.ndim else dy.reshape(1))[places].reshape(shape)
    if shape == src_shape:
        return read
    dsrc = array_module(dy).zeros(src_shape, dy.dtype)
    if read.size:
        dsrc[tuple(slice(n) for n in shape)] = read
    return dsrc


def _check_index(op: str, index: Array, n: int) -> None:
    if index.size and (index.min() < 0 or index.max() >= n):
        raise IndexError(f"{op}: indices from {index.min()} to {index.max()} are out of range: 0 to {n - 1}.")
