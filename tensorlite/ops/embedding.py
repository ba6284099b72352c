"""The embedding: a table with one vector for each token."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.summation import accumulation_dtype


def embedding_forward(ids: Array, weight: Array, padding_idx: int | None = None) -> tuple[Array, Any]:
    """y[b, t] = weight[ids[b, t]]

    Looking a row up is a product with a one-hot row: y = onehot(ids) · weight, without the zeros.

    Shapes: ids (...) integers, weight (V, C), y (..., C).
    Saves: ids and the shape of weight. ``padding_idx`` names a row that gets no gradient.
    Raises: ValueError if weight is not (V, C); TypeError if ids are not integers; IndexError for an id that is negative or not
        below V (on the CPU only: on a GPU the check would wait for the device, and ids are checked before they go there).
    Source: equals torch.nn.functional.embedding.
    """
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight has one row for each token, (V, C), got the shape {weight.shape}.")
    check_ids("embedding", ids, len(weight))
    return weight[ids], (ids, weight.shape, padding_idx)


def embedding_backward(dy: Array, saved: Any) -> tuple[None, Array]:
    """dweight[v] = Σ dy[b, t] over all (b, t) with ids[b, t] = v

    From y = onehot(ids) · weight and the rule of the matrix product, dweight = onehot(ids)ᵀ · dy. Row v of that
    product adds up the gradients of all places where token v stands.

    In words: a token that occurs a hundred times in the batch was used a hundred times, and learns from each.
    The line that comes to mind first,
        dweight[ids] += dy
    is wrong: NumPy reads the rows, adds, and writes them back, so of a token's hundred gradients the last one
    written survives and ninety-nine are lost, silently. `add.at` performs one addition after the other.
    Rows whose token does not occur stay 0. Whole numbers have no gradient, so ids get None.

    Shapes: dy (..., C), dweight (V, C).
    """
    ids, shape, padding_idx = saved
    xp = array_module(dy)
    dweight = xp.zeros(shape, accumulation_dtype(dy.dtype))
    xp.add.at(dweight, ids.reshape(-1), dy.reshape(ids.size, shape[1]))
    if padding_idx is not None:
        dweight[padding_idx] = 0
    return None, dweight.astype(dy.dtype, copy=False)


embedding = Op(embedding_forward, embedding_backward)


def check_ids(op: str, ids: Array, size: int) -> None:
    """Refuse token ids that are no row of a table of ``size`` rows.

    Raises:
        TypeError: if they are not integers.
        IndexError: naming the smallest or largest id, where looking is free of a wait (NumPy).
    """
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{op}: token ids must be integers, got {ids.dtype}.")
    if array_module(ids) is np and ids.size and (ids.min() < 0 or ids.max() >= size):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise IndexError(f"{op}: token id {wrong} is out of range: the table has {size} rows, 0 to {size - 1}.")
