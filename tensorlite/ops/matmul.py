"""Matrix products, and why each gradient has the transpose that it has."""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array
from tensorlite.op import Op
from tensorlite.ops.broadcasting import broadcast_shape, promote, unbroadcast


def matmul_forward(a: Array, b: Array) -> tuple[Array, Any]:
    """y = a · b,   yᵢₖ = Σⱼ aᵢⱼ bⱼₖ

    With more than two axes, the leading ones are a batch and broadcast. A vector on the left is treated as a row,
    one on the right as a column; that axis of length 1 is then removed from y.

    Shapes: a (..., n, m), b (..., m, p), y (..., n, p); also a (m,) or b (m,).
    Saves: a, b.
    Raises: ValueError if the inner lengths differ, the batch axes do not broadcast, or an operand is 0-d; RuntimeError for
        two operands of bools.
    Source: equals torch.matmul.
    """
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: both operands need at least one axis, got shapes {a.shape} and {b.shape}; use * for numbers.")
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else -1]:
        raise ValueError(f"matmul: the inner lengths of {a.shape} and {b.shape} differ: the last axis of a must match the rows of b.")
    broadcast_shape("matmul", a.shape[:-2], b.shape[:-2])
    a, b = promote(a, b)
    if a.dtype.kind == "b":
        raise RuntimeError("matmul: both operands are bool, for which NumPy returns bools, not sums: convert one with .to(int64).")
    return a @ b, (a, b)


def matmul_backward(dy: Array, saved: Any, needs_grad: tuple[bool, ...] = (True, True)) -> tuple[Array | None, Array | None]:
    """da = dy · bᵀ,   db = aᵀ · dy

    aᵢⱼ appears in yᵢₖ = Σⱼ aᵢⱼ bⱼₖ for every k, each time with the factor bⱼₖ. So
        daᵢⱼ = Σₖ dyᵢₖ bⱼₖ,   and likewise   dbⱼₖ = Σᵢ aᵢⱼ dyᵢₖ.

    The shapes alone give the same result: dy is (n, p), b is (m, p), da must be (n, m), and dy · bᵀ is the only
    product of the two that fits. The gradient is summed over the batch axes along which an operand was repeated.
    """
    a, b = saved
    row = a[None, :] if a.ndim == 1 else a  # (..., n, m)
    column = b[:, None] if b.ndim == 1 else b  # (..., m, p)
    if b.ndim == 1:
        dy = dy[..., None]
    if a.ndim == 1:
        dy = dy[..., None, :]  # now (..., n, p) in every case
    da = unbroadcast(dy @ column.swapaxes(-1, -2), row.shape).reshape(a.shape) if needs_grad[0] else None
    db = unbroadcast(row.swapaxes(-1, -2) @ dy, column.shape).reshape(b.shape) if needs_grad[1] else None
    return da, db


matmul = Op(matmul_forward, matmul_backward, in_float32=True)


def mm(input: Any, mat2: Any) -> Any:
    """The product of two matrices; `matmul` that takes nothing else.

    Raises:
        ValueError: unless both have two axes.
    """
    _check_ndim("mm", 2, input, mat2)
    return matmul(input, mat2)


def bmm(input: Any, mat2: Any) -> Any:
    """The products of two equally long lists of matrices, (B, n, m) and (B, m, p); no broadcasting.

    Raises:
        ValueError: unless both have three axes and the same B.
    """
    _check_ndim("bmm", 3, input, mat2)
    if input.shape[0] != mat2.shape[0]:
        raise ValueError(f"bmm: the batches of {input.shape} and {mat2.shape} differ; matmul broadcasts them.")
    return matmul(input, mat2)


def _check_ndim(op: str, ndim: int, a: Any, b: Any) -> None:
    if a.ndim != ndim or b.ndim != ndim:
        raise ValueError(f"{op}: both operands need {ndim} axes, got shapes {a.shape} and {b.shape}.")
