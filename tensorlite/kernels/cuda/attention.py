"""Attention on the GPU, tile by tile: no array of T x S weights, neither in forward nor for backward.

Saved are q, k, v, y, and one number for each query. See attention.cu for who does what. This page makes room, chooses the sizes
of the tiles, and launches; `self_attention` beside it launches the same kernels on the heads of one array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite import precision, random
from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import TYPES, is_cupy, kernel
from tensorlite.op import Pair, register
from tensorlite.ops.attention import attention

WARPS, THREADS = 4, 128  # of a block, as in attention.cu
LARGEST_HEAD = 128
LITTLE_SHARED = {86, 89, 120, 121}  # GeForce: 100 KB of shared memory a multiprocessor, where an A100 has 164
AMPERE = 80  # compute capability 8.0


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    mask: None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> tuple[Array, Any]:
    """y = dropout(softmax(scale · q · kᵀ)) · v. There is nothing to ``recompute`` by choice: backward always does."""
    xp, (T, D), S = array_module(q), q.shape[-2:], k.shape[-2]
    q, k, v = (xp.ascontiguousarray(x) for x in (q, k, v))
    heads = Heads(q.size // (T * D), 1, T, S, D, D, is_causal, scale)
    y = xp.empty_like(q)
    launch = Launch(q, heads, dropout_p, generator)
    return y, (launch, q, k, v, y, launch.forward(q, k, v, y))


def attention_backward(dy: Array, saved: Any) -> tuple[Array, Array, Array]:
    """dq, dk and dv, each number of which has one owner."""
    launch, q, k, v, y, lse = saved
    dq, dk, dv = (array_module(x).empty_like(x) for x in (q, k, v))
    launch.backward(dy, q, k, v, y, lse, dq, dk, dv)
    return dq, dk, dv


@dataclass(frozen=True, slots=True)
class Heads:
    """What is to be computed, and how it lies in memory: q is (B, T, H, D), k and v are (B, S, H, D).

    Attributes:
        row: from a position of q, k and v to the next: H D numbers, or more if they are parts of a larger array.
        scale: of the scores; None for 1/√D.
    """

    B: int
    H: int
    T: int
    S: int
    D: int
    row: int
    is_causal: bool
    scale: float | None = None


class Launch:
    """The kernels of attention.cu for some heads, and all they are told in forward and in backward alike."""

    def __init__(self, q: Array, heads: Heads, dropout_p: float, generator: np.random.Generator | None) -> None:
        self.xp, self.dtype, self.heads = array_module(q), q.dtype, heads
        key, call, threshold, factor = None, 0, 0, 1.0
        if dropout_p:
            key, call = random.next_dropout_key(self.xp, generator)
            threshold, factor = random.dropout_threshold(dropout_p)
        scale = 1 / math.sqrt(heads.D) if heads.scale is None else float(heads.scale)
        sizes = (heads.T, heads.S, heads.H, heads.row)
        self.arguments = (*sizes, scale, int(heads.is_causal), key, call, threshold, factor)
        little_shared = int(q.device.compute_capability) in LITTLE_SHARED
        self.macros = variant(q.dtype.name, heads.D, precision.current() == "tf32", bool(dropout_p), little_shared)

    def forward(self, q: Array, k: Array, v: Array, y: Array) -> Array:
        """Writes y (B, T, H, D); returns log₂ Σ exp of each row of scores, (B, H, T) with T rounded up."""
        lse = self._a_number_for_each_query()
        self._run("forward", self.heads.T, (q, k, v, y, lse))
        return lse

    def backward(self, dy: Array, q: Array, k: Array, v: Array, y: Array, lse: Array, dq: Array, dk: Array, dv: Array) -> None:
        """Writes dq, dk and dv, which lie as q, k and v do."""
        heads, delta = self.heads, self._a_number_for_each_query()
        dy = self.xp.ascontiguousarray(dy, self.dtype)
        sums = kernel("attention.cu", "attention_delta", **self.macros)
        sums(-(-delta.size * 8 // THREADS), THREADS, (dy, y, delta, heads.T, heads.H, delta.size))
        self._run("backward_q", heads.T, (q, k, v, dy, lse, delta, dq))
        self._run("backward_kv", heads.S, (q, k, v, dy, lse, delta, dk, dv))

    def _a_number_for_each_query(self) -> Array:
        heads = self.heads
        return self.xp.empty((heads.B, heads.H, -(-heads.T // 64) * 64), "float32")

    def _run(self, name: str, length: int, arrays: tuple[Array, ...]) -> None:
        """Blocks for tiles of ``length`` positions of every head."""
        prefix = name.removeprefix("backward_").upper()
        own = 16 * WARPS * self.macros[f"{prefix}_M"]
        run = kernel("attention.cu", f"attention_{name}", **self.macros)
        run(-(-length // own) * self.heads.B * self.heads.H, THREADS, (*arrays, *self.arguments), shared_bytes(name, self.macros))


def variant(dtype: str, D: int, tf32: bool = False, dropout: bool = False, little_shared: bool = False) -> dict[str, Any]:
    """The macros of attention.cu.

    M and N say how large a part of the scores a warp makes at a time, 16 M x 8 N: large enough to use each number that is read from shared
    memory often, small enough for the 255 registers of a thread, without spills, and for 99 KB of shared memory. Two blocks should fit on a
    multiprocessor: while one waits, or works on its softmax, the other keeps the tensor cores busy. Where there is ``little_shared``
    memory, halves in heads of up to 64 are therefore cut into smaller tiles; larger heads and float32 would lose too much by it.
    """
    half = dtype != "float32"
    if half and little_shared:
        small, large = ((1 if dropout else 2, 4), (1, 4), (1, 4)), ((1 if dropout else 2, 4), (1, 4), (1, 2))
    elif half:
        small, large = ((1, 4) if dropout else (2, 8), (2, 4), (1, 8)), ((1 if dropout else 2, 4), (1, 4), (1, 2))
    else:
        small, large = ((2, 4), (1, 4), (1, 4)), ((1, 4), (1, 2), (1, 2))
    sizes = zip(("FORWARD", "Q", "KV"), small if D <= 64 else large, strict=True)
    macros = {f"{name}_{letter}": number for name, pair in sizes for letter, number in zip("MN", pair, strict=True)}
    return {"Real": dtype, "HEAD_SIZE": D, "TENSOR_CORES": int(half or tf32), "DROPOUT": int(dropout), **macros}


def shared_bytes(name: str, macros: dict[str, Any]) -> int:
    """What a block of attention_``name`` holds: its own tiles, one in forward and two in backward, and twice the two that it meets."""
    prefix = name.removeprefix("backward_").upper()
    own, step = 16 * WARPS * macros[f"{prefix}_M"], 8 * macros[f"{prefix}_N"]
    itemsize = 4 if macros["Real"] == "float32" else 2
    return ((1 if name == "forward" else 2) * own + 4 * step) * row_bytes(itemsize, macros["HEAD_SIZE"])


def row_bytes(itemsize: int, D: int) -> int:
    """A row of a tile in shared memory: whole products of 32 bytes, and 16 bytes more; see tiles.cuh."""
    return -(-D * itemsize // 32) * 32 + 16


def fits(*arrays: Array, D: int, scale: float | None = None, dropout_p: float = 0.0) -> bool:
    """What all of these kernels ask for: one type, heads that can be read 16 bytes at a time, and a GPU from Ampere on."""
    return (
        all(is_cupy(x) and x.dtype == arrays[0].dtype and x.size > 0 and x.data.ptr % 16 == 0 for x in arrays)
        and arrays[0].dtype.name in TYPES
        and 0 < D <= LARGEST_HEAD
        and D % 8 == 0
        and (scale is None or scale > 0)
        and 0 <= dropout_p <= 1
        and int(arrays[0].device.compute_capability) >= AMPERE
    )


def supports(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> bool:
    """No mask but the causal one; q, k and v of one head size, a multiple of 8 up to 128, without broadcasting; two keys to be seen.

    A single key has weight 1 whatever the scores: dq and dk are 0, which dS = p (dp - delta) gives only up to rounding.
    """
    return (
        mask is None
        and is_cupy(q)
        and all(x.ndim >= 2 for x in (q, k, v))
        and fits(q, k, v, D=q.shape[-1], scale=scale, dropout_p=dropout_p)
        and k.shape == v.shape
        and q.shape[:-2] == k.shape[:-2]
        and q.shape[-1] == k.shape[-1]
        and k.shape[-2] > 1
        and (q.shape[-2] > 1 or not is_causal)
        and max(q.size, k.size) < 2**31
    )


register(attention, Pair("cuda", attention_forward, attention_backward, supports))
