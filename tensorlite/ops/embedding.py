"""The embedding: a table with one row, a vector, for each token."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.summation import accumulation_dtype


class EmbeddingSaved(NamedTuple):
    """What backward needs of the forward."""

    ids: Array  # (...)
    shape: tuple[int, int]  # of weight: (V, C)
    padding_idx: int | None


def embedding_forward(ids: Array, weight: Array, padding_idx: int | None = None) -> tuple[Array, EmbeddingSaved]:
    """y[b, t] = weight[ids[b, t]]

    A look-up is a matrix product with one-hot rows, y = onehot(ids) · weight, that skips the zeros.

    Shapes: ids (...) integers, weight (V, C), y (..., C).
    Saves: ids and the shape of weight. ``padding_idx`` names a row that gets no gradient.
    Raises: ValueError if weight is not (V, C); TypeError if ids are not integers; IndexError for an id that is negative or not
        below V. The last check runs on the CPU only: on a GPU it would wait for the device, so ids are checked before they are
        copied there.
    Source: equals torch.nn.functional.embedding.
    """
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight has one row for each token, (V, C), got the shape {weight.shape}.")
    check_ids("embedding", ids, len(weight))
    return weight[ids], EmbeddingSaved(ids, weight.shape, padding_idx)


def embedding_backward(dy: Array, saved: EmbeddingSaved) -> tuple[None, Array]:
    """dweight[v] = Σ dy[b, t] over all (b, t) with ids[b, t] = v

    From y = onehot(ids) · weight and the rule of the matrix product, dweight = onehot(ids)ᵀ · dy. Row v of that
    product adds up the gradients of all positions of token v.

    In words: a token that occurs a hundred times in the batch was used a hundred times, and its row receives the
    gradient of each use. The obvious line
        dweight[ids] += dy
    is wrong. NumPy reads the rows once, adds, and writes them back, so of a token's hundred gradients only the last
    one written survives; ninety-nine are lost without an error. `add.at` performs one addition after the other.
    The row of a token that does not occur stays 0. Integers have no gradient, so ids get None.

    Shapes: dy (..., C), dweight (V, C).
    """
    xp = array_module(dy)
    V, C = saved.shape
    dweight = xp.zeros((V, C), accumulation_dtype(dy.dtype))
    xp.add.at(dweight, saved.ids.reshape(-1), dy.reshape(saved.ids.size, C))
    if saved.padding_idx is not None:
        dweight[saved.padding_idx] = 0
    return None, dweight.astype(dy.dtype, copy=False)


embedding = Op(embedding_forward, embedding_backward)


def check_ids(op: str, ids: Array, size: int) -> None:
    """Refuse token ids that are no row of a table of ``size`` rows.

    Raises:
        TypeError: if they are not integers.
        IndexError: for NumPy arrays, naming the smallest or largest id. CuPy arrays are not read: that would wait for the device.
    """
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{op}: token ids must be integers, got {ids.dtype}.")
    if array_module(ids) is np and ids.size and (ids.min() < 0 or ids.max() >= size):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise IndexError(f"{op}: token id {wrong} is out of range: the table has {size} rows, 0 to {size - 1}.")
