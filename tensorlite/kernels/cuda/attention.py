"""Attention on the GPU, tile by tile: no array of T x S weights exists, in forward or in backward.

The pair saves q, k, v, y, and one number for each query. attention.cu says what each thread does. This page allocates the results,
chooses the sizes of the tiles, and launches the kernels. `self_attention` launches the same kernels on the heads of one array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tensorlite import precision, random
from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import TYPES, is_cupy, kernel
from tensorlite.op import Pair, register
from tensorlite.ops.attention import attention

WARPS, THREADS = 4, 128  # of a block, as in attention.cu
LARGEST_HEAD = 128
SMALL_SHARED = {86, 89, 120, 121}  # GeForce: 100 KB of shared memory a multiprocessor, where an A100 has 164
AMPERE = 80  # compute capability 8.0


class FlashSaved(NamedTuple):
    """What backward needs of the forward."""

    launch: Launch
    q: Array
    k: Array
    v: Array
    y: Array
    log_sum: Array  # log₂ Σ exp of each row of scores


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
) -> tuple[Array, FlashSaved]:
    """y = dropout(softmax(scale · q · kᵀ)) · v. ``recompute`` changes nothing here: backward always computes the weights again."""
    xp, (T, D), S = array_module(q), q.shape[-2:], k.shape[-2]
    q, k, v = (xp.ascontiguousarray(x) for x in (q, k, v))
    number = q.size // (T * D)
    heads = Heads(number, 1, T, S, D, D, is_causal, scale, group=number // (k.size // (S * D)))
    y = xp.empty_like(q)
    launch = Launch(q, heads, dropout_p, generator)
    return y, FlashSaved(launch, q, k, v, y, launch.forward(q, k, v, y))


def attention_backward(dy: Array, saved: FlashSaved) -> tuple[Array, Array, Array]:
    """dq, dk and dv. One thread computes each number, so the order of every sum is fixed."""
    q, k, v = saved.q, saved.k, saved.v
    dq, dk, dv = (array_module(x).empty_like(x) for x in (q, k, v))
    saved.launch.backward(dy, q, k, v, saved.y, saved.log_sum, dq, dk, dv)
    return dq, dk, dv


@dataclass(frozen=True, slots=True)
class Heads:
    """The sizes of one call, and the layout of its arrays: q is (B, T, H, D), k and v are (B, S, H / group, D), or with H = 1
    (B / group, S, 1, D).

    Attributes:
        row: the distance in elements from one position of q, k and v to the next: H D, or more if they are parts of a larger array.
        scale: the factor of the scores; None for 1/√D.
        group: how many heads of queries, which are neighbours, share a head of keys and values.
    """

    B: int
    H: int
    T: int
    S: int
    D: int
    row: int
    is_causal: bool
    scale: float | None = None
    group: int = 1


class Launch:
    """The kernels of attention.cu for some heads, with the arguments that forward and backward have in common."""

    def __init__(self, q: Array, heads: Heads, dropout_p: float, generator: np.random.Generator | None) -> None:
        self.xp, self.dtype, self.heads = array_module(q), q.dtype, heads
        key, call, threshold, factor = None, 0, 0, 1.0
        if dropout_p:
            key, call = random.next_dropout_key(self.xp, generator)
            threshold, factor = random.dropout_threshold(dropout_p)
        scale = 1 / math.sqrt(heads.D) if heads.scale is None else float(heads.scale)
        sizes = (heads.T, heads.S, heads.H, heads.group, heads.row)
        self.arguments = (*sizes, scale, int(heads.is_causal), key, call, threshold, factor)
        small_shared = int(q.device.compute_capability) in SMALL_SHARED
        tf32 = precision.current() == "tf32"
        self.macros = variant(q.dtype.name, heads.D, tf32, bool(dropout_p), small_shared, grouped=heads.group > 1)

    def forward(self, q: Array, k: Array, v: Array, y: Array) -> Array:
        """Write y (B, T, H, D); return log₂ Σ exp of each row of scores, (B, H, T) with T rounded up."""
        lse = self._empty_per_query()
        self._run("forward", self.heads.T, self.heads.B * self.heads.H, (q, k, v, y, lse))
        return lse

    def backward(self, dy: Array, q: Array, k: Array, v: Array, y: Array, lse: Array, dq: Array, dk: Array, dv: Array) -> None:
        """Write dq, dk and dv, which have the layout of q, k and v."""
        heads, delta = self.heads, self._empty_per_query()
        number = heads.B * heads.H
        dy = self.xp.ascontiguousarray(dy, self.dtype)
        dy = dy if dy.data.ptr % 16 == 0 else dy.copy()  # it is read 16 bytes at a time, as q, k and v are, which `fits` has looked at
        sums = kernel("attention.cu", "attention_delta", **self.macros)
        sums(-(-delta.size * 8 // THREADS), THREADS, (dy, y, delta, heads.T, heads.H, delta.size))
        self._run("backward_q", heads.T, number, (q, k, v, dy, lse, delta, dq))
        self._run("backward_kv", heads.S, number // heads.group, (q, k, v, dy, lse, delta, dk, dv))

    def _empty_per_query(self) -> Array:
        heads = self.heads
        return self.xp.empty((heads.B, heads.H, -(-heads.T // 64) * 64), "float32")

    def _run(self, name: str, length: int, heads: int, arrays: tuple[Array, ...]) -> None:
        """Launch one kernel, with blocks for the tiles of ``length`` positions of each of ``heads`` heads."""
        prefix = name.removeprefix("backward_").upper()
        own = 16 * WARPS * self.macros[f"{prefix}_M"]
        run = kernel("attention.cu", f"attention_{name}", **self.macros)
        run(-(-length // own) * heads, THREADS, (*arrays, *self.arguments), shared_bytes(name, self.macros))


def variant(
    dtype: str, D: int, tf32: bool = False, dropout: bool = False, small_shared: bool = False, grouped: bool = False
) -> dict[str, Any]:
    """The macros of attention.cu: for each kernel M, N, BLOCKS and HELD.

    A warp computes a tile of 16 M x 8 N scores at a time, and BLOCKS blocks of such warps run on a multiprocessor. A large tile uses each
    number from shared memory often. It must fit into the registers of a thread without spills, which are 65536 / (128 BLOCKS) and at most
    255, and into 99 KB of shared memory. HELD: a warp keeps its own tile in registers, too. While one block waits or computes its softmax,
    another uses the tensor cores. With ``small_shared`` memory, half precisions in heads of up to 64 therefore get smaller tiles, unless
    they are small already because of dropout. Larger heads and float32 would lose too much by that.

    The sizes for half precisions in heads of up to 64 are the fastest of eleven sets that an H100 measured (docs/gpu.md).

    Args:
        grouped: several heads of queries share a head of keys: there are then fewer tiles of keys, so they are smaller.
    """
    half = dtype != "float32"
    if half and D <= 64 and (dropout or not small_shared):
        forward, q, kv = (2, 4, 3, 0), (2, 4, 2, 1), (1, 8, 2, 1) if grouped else (2, 4, 2, 0)
        if dropout:
            forward, q, kv = (1, 4, 4, 0), (1, 4, 4, 0), (1, 4, 3, 0)
    elif half:
        forward, q, kv = (1 if dropout else 2, 4, 1, 0), (1, 4, 1, 0), (1, 4 if D <= 64 else 2, 1, 0)
    else:
        forward, q, kv = ((2, 4, 1, 0), (1, 4, 1, 0), (1, 4, 1, 0)) if D <= 64 else ((1, 4, 1, 0), (1, 2, 1, 0), (1, 2, 1, 0))
    macros = {
        f"{kernel}_{size}": number
        for kernel, numbers in zip(("FORWARD", "Q", "KV"), (forward, q, kv), strict=True)
        for size, number in zip(("M", "N", "BLOCKS", "HELD"), numbers, strict=True)
    }
    staged = int(half or D <= 64)  # else there is no shared memory left for it
    return {"Real": dtype, "HEAD_SIZE": D, "TENSOR_CORES": int(half or tf32), "DROPOUT": int(dropout), "STAGED": staged, **macros}


def shared_bytes(name: str, macros: dict[str, Any]) -> int:
    """Bytes of shared memory in a block of attention_``name``: its own tiles, one in forward and two in backward, and four it loads."""
    prefix = name.removeprefix("backward_").upper()
    own, step = 16 * WARPS * macros[f"{prefix}_M"], 8 * macros[f"{prefix}_N"]
    itemsize = 4 if macros["Real"] == "float32" else 2
    staged = 16 * step if name == "backward_kv" and macros["STAGED"] else 0  # lse and delta of two tiles of queries
    return ((1 if name == "forward" else 2) * own + 4 * step) * row_bytes(itemsize, macros["HEAD_SIZE"]) + staged


def row_bytes(itemsize: int, D: int) -> int:
    """Bytes of a row of a tile in shared memory: a multiple of 32, and 16 more; see tiles.cuh."""
    return -(-D * itemsize // 32) * 32 + 16


def fits(*arrays: Array, D: int, scale: float | None = None, dropout_p: float = 0.0) -> bool:
    """Whether all of these kernels can run: one dtype, heads that can be read 16 bytes at a time, and an Ampere GPU or a newer one."""
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
    """No mask but the causal one; one head size for q, k and v, a multiple of 8 up to 128; no broadcasting, but for keys that a
    group of heads shares; two visible keys or more.

    A single key has the weight 1 for any score, so dq and dk are 0. dS = p (dp - delta) gives that only up to rounding.
    """
    return (
        mask is None
        and is_cupy(q)
        and all(x.ndim >= 2 for x in (q, k, v))
        and fits(q, k, v, D=q.shape[-1], scale=scale, dropout_p=dropout_p)
        and k.shape == v.shape
        and (q.shape[:-2] == k.shape[:-2] or (*q.shape[:-3], 1) == k.shape[:-2])
        and q.shape[-1] == k.shape[-1]
        and k.shape[-2] > 1
        and (q.shape[-2] > 1 or not is_causal)
        and max(q.size, k.size) < 2**31
    )


register(attention, Pair("cuda", attention_forward, attention_backward, supports))
