"""Lay a matrix out in memory so that its product with a single vector is fast.

    y = W x        W (out, in)

A new token takes one row through the model, so all its products are of this kind, and each reads its matrix once. BLAS has two loops
for them. If the rows of W are contiguous, it takes the dot product of each row with x. If the columns are, it adds each column, times a
number of x, to y. What lies together is read in one go, so the loop is faster whose runs are longer: that along the longer side
of W. With (49152, 576) numbers in float32, columns take two thirds of the time of rows; with (576, 1536) it is the other way round.

A product with two to 128 rows is up to a third slower with contiguous columns under OpenBLAS's kernels for AVX-512, and faster under
those for AVX2. So a server that writes many texts at once leaves its matrices as they are.

OpenBLAS gives the product of a small matrix with a vector to one thread, which reads with half the speed of the memory. A matrix that is a
little too small is therefore put before some rows of zeros (`pad_for_two_threads`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data.cores import available_cores
from tensorlite import nn
from tensorlite.backend import Array, array_module

_ONE_THREAD_BELOW = 115_200 * 4  # numbers in the matrix: OpenBLAS, interface/gemv.c, with its GEMM_MULTITHREAD_THRESHOLD of 4
_MOST_ROWS = 1.5  # with the zeros, of those without
_ROWS_AT_ONCE = 256  # while a matrix is transposed: a cache line of each stays in the core's cache until all of it is read


def longer_side_contiguous(matrix: Array) -> Array:
    """The same matrix (rows, columns), or a copy, in which neighbours along its longer side are neighbours in memory."""
    rows, columns = matrix.shape
    xp = array_module(matrix)
    return xp.asfortranarray(matrix) if rows > columns else xp.ascontiguousarray(matrix)


def order_for_one_text(model: Any) -> Any:
    """``model``, which has just been loaded and is not to be trained, with the matrices that its decoder reads in the faster order.

    Those are the head, and in Llama's family the layers of a block; a decoder of `gpt.model` has copies of these. Only arrays on the CPU
    are changed.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and (model.config.model == "llama" or layer is model.lm_head):
            weight = layer.weight.array
            if isinstance(weight, np.ndarray) and weight.flags.c_contiguous:
                layer.weight.array = pad_for_two_threads(order_for_a_vector(weight))
    return model


def order_for_a_vector(matrix: np.ndarray) -> np.ndarray:
    """The same numbers (rows, columns), in the same memory: with contiguous columns if there are at least twice as many rows.

    With fewer rows two threads gain nothing from that: with (960, 576), Llama's c_attn in SmolLM2, both orders take the same time.
    """
    rows, columns = matrix.shape
    if rows < 2 * columns:
        return matrix
    before, after = matrix.copy(), matrix.reshape(columns, rows)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        after[:, part] = before[part].T
    return after.T


def pad_for_two_threads(matrix: np.ndarray) -> np.ndarray:
    """The same numbers (rows, columns), with rows of zeros behind them if the product with a vector then takes two threads, and that pays.

    It pays up to half as many rows more: two cores read these in less time than one reads the matrix alone. For (576, 576), Llama's
    c_proj in SmolLM2, it saves a quarter. What is returned is a view without the zeros; `with_padding` finds them.
    """
    rows, columns = matrix.shape
    needed = -(-_ONE_THREAD_BELOW // columns)
    if not rows < needed <= _MOST_ROWS * rows or not matrix.flags.c_contiguous or available_cores() < 2:
        return matrix
    padded = np.zeros((needed, columns), matrix.dtype)
    padded[:rows] = matrix
    return padded[:rows]


def with_padding(matrix: Any) -> Any:
    """``matrix`` with the rows that `pad_for_two_threads` has put behind it, if it has; the product has as many numbers more."""
    base = matrix.base if isinstance(matrix, np.ndarray) else None
    if base is None or base.ndim != 2 or base.shape[1] != matrix.shape[1] or base.ctypes.data != matrix.ctypes.data:
        return matrix
    is_padding = len(base) <= _MOST_ROWS * len(matrix) and not base[len(matrix) :].any()  # and not a larger matrix
    return base if is_padding and base.flags.c_contiguous and matrix.flags.c_contiguous else matrix
