"""Attention on the CPU: in blocks of scores that stay in the cache, without the scores that a causal mask hides.

The derivation is in `tensorlite.ops.attention`. This page changes the order of the work, and what is saved.

A *block* has 64 or 128 queries of a few (batch, head) pairs, and all steps from their scores to their weights. With a causal
mask no query of the block sees the keys after its last query, so the block leaves these out. In the one square on the diagonal it adds
a triangle of -inf to the scores. A text of T tokens then needs little more than T²/2 scores.

- All arrays have five axes, (B, KV, G, T, D): G heads of queries share a head of keys and values, which has a 1 in that place. In most
  models G is 1. A shared key is multiplied with the queries of its group as it is, without a copy. The sum of the gradients that the
  group sends it is one product, over the rows of all G heads.
- q, k and v are read without a copy, usually from one packed (B, T, 3, H, D) array, because BLAS accepts a row stride. In y, dq, dk
  and dv the heads of a token are neighbours, so the caller gets (B, T, C) without a copy.
- Softmax is not divided out. The pair saves exps = exp(S - shift), for a causal mask only half of it, and r = 1 / Σₛ exps of each
  row. No row of exps is divided: y = r (exps · v), and backward starts from dy' = r dy. With the row sum of softmax's gradient in
  its short form, δ = Σₑ dy' ∘ y, dS = exps ∘ (dy' · vᵀ - δ). The factor of dropout is a part of r.
- The shift is the maximum of the row and prevents an overflow of exp, which does not occur in a healthy model. A block first
  computes without it. If one of its row sums is far from 1, the block starts again with the shift. This saves two passes over the scores.
- Sums over a row are products with ones: three times as fast as ``sum``, and no less exact.
- With ``recompute`` a block keeps its shift, r, and one bit for each element of dropout's mask, and computes exps again.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite import random
from tensorlite.backend import Array
from tensorlite.op import Pair, register
from tensorlite.ops.attention import attention
from tensorlite.ops.masking import apply_mask

# Queries in a block. With many, the products are larger and faster. With few, less of the diagonal square is computed in vain, which
# matters more for a short text.
ROWS, ROWS_OF_LONG, LONG = 64, 128, 512
BLOCK_BYTES = 512 * 1024  # for the scores of a block, which has as many heads as fit
SAFE_SUM = 2.0**50  # with sums of exp from 1/SAFE_SUM to SAFE_SUM, neither they nor products with them lose digits in float32


@dataclass(slots=True)
class _Block:
    """Some queries of some heads, the keys they see, and what they save for backward.

    Attributes:
        heads: the slices of the first three axes (B, KV, G).
        rows: the slice of the queries on the fourth axis (T).
        seen: the slice of the visible keys on the fourth axis (S); it starts at the first key.
        shape: the shape of the scores, (b, kv, g, rows, seen).
        shift: what was subtracted from the scores of each row, or None.
        exps: exp(S - shift); None if backward computes it again.
        keep: dropout's mask, as booleans, or packed into bits if ``exps`` is None; None without dropout.
    """

    heads: tuple[slice, slice, slice]
    rows: slice
    seen: slice
    shape: tuple[int, int, int, int, int]
    shift: Array | None = None
    exps: Array | None = None
    keep: Array | None = None


@dataclass(slots=True)
class _Saved:
    """The arguments with exactly five axes, the output, and the blocks: one list for each group of heads."""

    q: Array  # (B, KV, G, T, D)
    k: Array  # (B, KV, 1, S, D)
    v: Array  # (B, KV, 1, S, E)
    y: Array  # (B, KV, G, T, E)
    r: Array  # (B, KV, G, T, 1), factor / Σ exps
    groups: list[list[_Block]]
    is_causal: bool
    scale: float
    factor: float  # of dropout
    shapes: tuple[tuple[int, ...], ...]  # those of q, k and v


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
) -> tuple[Array, _Saved]:
    """Block by block: scores, exp, row sums, the product with v; then r, on the rows of y."""
    shapes, dtype = (q.shape, k.shape, v.shape), q.dtype
    q, k, v = five_axes(q, k, v)
    (B, KV, G, T, D), (S, E) = q.shape, v.shape[3:]
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    reader = random.DropoutMaskReader(dropout_p, generator) if dropout_p else None
    factor = reader.factor if reader else 1.0
    y, r = _heads_inside(B, T, KV, G, E, dtype), np.empty((B, KV, G, T, 1), dtype)
    groups = _cut((B, KV, G), T, S, is_causal, BLOCK_BYTES // dtype.itemsize)

    size = max(math.prod(block.shape) for block in groups[0])
    recomputed, dropped = np.empty(size if recompute else 0, dtype), np.empty(size if reader else 0, dtype)
    ones = np.ones((S, 1), dtype)
    shifted = False  # after one block that needs the shift, all later blocks use it at once
    for blocks in groups:
        heads = blocks[0].heads
        qs, ks, vs, ys, rs = q[heads] * scale, k[heads[:2]], v[heads[:2]], y[heads], r[heads]  # a small copy, and views
        for block, keep in zip(blocks, _read_keeps(reader, blocks, S), strict=True):
            rows, seen = block.rows, block.seen
            exps = _shaped(recomputed, block.shape) if recompute else np.empty(block.shape, dtype)
            if not shifted:
                with np.errstate(over="ignore", invalid="ignore"):  # the sums are checked for inf and nan
                    sums = _exponentials(_scores(qs, ks, block, is_causal, exps), None) @ ones[seen]  # (b, kv, g, rows, 1)
                shifted = not (sums.min() > 1 / SAFE_SUM and sums.max() < SAFE_SUM)  # written so that nan is not safe
            if shifted:
                block.shift = _finite_maximum(_scores(qs, ks, block, is_causal, exps, far=True))
                sums = _exponentials(exps, block.shift) @ ones[seen]
                sums[sums == 0] = 1  # a row of only -inf gives 0, not 0/0
            np.divide(factor, sums, out=rs[..., rows, :])
            weights = exps if keep is None else np.multiply(exps, keep, out=_shaped(dropped, block.shape))
            np.matmul(weights, vs[..., seen, :], out=ys[..., rows, :])
            if recompute:
                block.keep = None if keep is None else np.packbits(keep, axis=-1)
            else:
                block.exps, block.keep = exps, keep
        ys *= rs
    return y.reshape(*shapes[0][:-1], E), _Saved(q, k, v, y, r, groups, is_causal, scale, factor, shapes)


def attention_backward(dy: Array, saved: _Saved) -> tuple[Array, ...]:
    """dq, dk and dv, in the shapes of q, k and v."""
    gradients = _gradients(saved.q.shape, saved.v.shape, saved.q.dtype)
    write_gradients(*gradients, dy.reshape(saved.y.shape), saved)
    return tuple(dx.reshape(shape) for dx, shape in zip(gradients, saved.shapes, strict=True))


def write_gradients(dq: Array, dk: Array, dv: Array, dy: Array, saved: _Saved) -> None:
    """The book's four steps for each block. A block writes its own rows of dq, and adds its part of dk and dv.

    The last block of a group comes first. It sees the most keys, so it writes dk and dv, and the others add to them.
    """
    q, k, v, y, r, dtype = saved.q, saved.k, saved.v, saved.y, saved.r, saved.q.dtype
    D, (S, E) = q.shape[4], v.shape[3:]

    first = saved.groups[0]
    size, pairs = max(math.prod(block.shape) for block in first), math.prod(first[0].shape[:2])  # of texts and heads of keys
    scores, recomputed, dropped = np.empty(size, dtype), np.empty(size, dtype), np.empty(size, dtype)
    part = np.empty(pairs * S * max(D, E), dtype)
    for blocks in saved.groups:
        heads = blocks[0].heads
        qs, ks, vs = q[heads] * saved.scale, k[heads[:2]], v[heads[:2]]
        dqs, dks, dvs = dq[heads], dk[heads[:2]], dv[heads[:2]]
        dys = dy[heads] * r[heads]  # dy', (b, kv, g, T, E)
        delta = np.vecdot(dys, y[heads])[..., None]  # (b, kv, g, T, 1)
        if saved.factor > 1:
            delta /= saved.factor  # the factor is in dy' and in y
        for block in reversed(blocks):
            rows, seen, exps, keep = block.rows, block.seen, block.exps, block.keep
            if exps is None:
                exps = _scores(qs, ks, block, saved.is_causal, _shaped(recomputed, block.shape), far=block.shift is not None)
                _exponentials(exps, block.shift)
                keep = None if keep is None else np.unpackbits(keep, axis=-1, count=block.shape[-1])
            ds = np.matmul(dys[..., rows, :], vs[..., seen, :].swapaxes(-1, -2), out=_shaped(scores, block.shape))
            weights = exps
            if keep is not None:
                weights = np.multiply(exps, keep, out=_shaped(dropped, block.shape))
                ds *= keep
            ds -= delta[..., rows, :]
            ds *= exps
            np.matmul(ds, ks[..., seen, :], out=dqs[..., rows, :])
            is_first = block is blocks[-1] and heads[2].start == 0  # of those that see these keys
            _add_product(ds, qs[..., rows, :], dks, is_first, part)
            _add_product(weights, dys[..., rows, :], dvs, is_first, part)
        dqs *= saved.scale


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
    """NumPy arrays of one dtype and of shapes that fit without broadcasting, but for keys that a group shares; no mask but the causal
    one; at least two visible keys.

    In a matrix product a hidden nan becomes 0 · nan = nan in every row: here in the rows of a block, in the book in all rows. Which rows
    become nan must not depend on the size of a block. So the book takes arrays with nan where a block does not have all keys, or where
    dropout hides some.

    A single key has the weight 1 for any score, so dq and dk are 0. The book's form gives that exactly, dS = E ∘ (dy' · vᵀ - δ) only up
    to rounding.
    """
    return (
        mask is None
        and all(isinstance(x, np.ndarray) and x.ndim >= 2 and x.size > 0 for x in (q, k, v))
        and q.dtype in (np.float32, np.float64)
        and q.dtype == k.dtype == v.dtype
        and k.shape[:-2] == v.shape[:-2]
        and (q.shape[:-2] == k.shape[:-2] or (*q.shape[:-3], 1) == k.shape[:-2])
        and q.shape[-1] == k.shape[-1]
        and k.shape[-2] == v.shape[-2]
        and k.shape[-2] > 1
        and (q.shape[-2] > 1 or not is_causal)
        and ((not dropout_p and (not is_causal or k.shape[-2] <= q.shape[-2] <= ROWS)) or are_finite(q, k, v))
    )


def takes_heads_of(qkv: Array, dropout_p: float) -> bool:
    """Whether the heads of one array (B, T, ...) can be read in place: contiguous NumPy arrays of at least two tokens. `supports` says why
    nan matters."""
    return (
        isinstance(qkv, np.ndarray)
        and qkv.dtype in (np.float32, np.float64)
        and qkv.ndim == 3
        and qkv.flags.c_contiguous
        and qkv.size > 0
        and qkv.shape[1] > 1
        and ((not dropout_p and qkv.shape[1] <= ROWS) or are_finite(qkv))
    )


def are_finite(*arrays: Array) -> bool:
    """Whether the sums are finite, so that there is no nan and no ∞. If only a sum overflows, the book runs, which is right, too."""
    return all(math.isfinite(np.add.reduce(x, axis=None)) for x in arrays)


register(attention, Pair("cpu", attention_forward, attention_backward, supports))


def _cut(heads: tuple[int, int, int], T: int, S: int, is_causal: bool, limit: int) -> list[list[_Block]]:
    """The blocks, in the order of their scores in memory, as one list for each group of heads.

    A group has some of the heads that share a key, or all that share some keys of one text, or all of some texts: as many as a block
    of ``limit`` scores allows, but at least one.
    """
    B, KV, G = heads
    step = min(T, ROWS if T <= LONG else ROWS_OF_LONG)
    rows = _slices(T, step)
    pairs = max(1, limit // (step * S))
    texts, keys, queries = min(max(1, pairs // (KV * G)), B), _even_part(KV, pairs // G), _even_part(G, pairs)
    seen = [slice(0, min(r.stop, S) if is_causal else S) for r in rows]
    groups = []
    for where in itertools.product(_slices(B, texts), _slices(KV, keys), _slices(G, queries)):
        b, kv, g = (part.stop - part.start for part in where)
        groups.append([_Block(where, r, s, (b, kv, g, r.stop - r.start, s.stop)) for r, s in zip(rows, seen, strict=True)])
    return groups


def _even_part(length: int, most: int) -> int:
    """At most ``most`` of ``length``, but at least one, so that the parts are even: 3 + 3, not 5 + 1."""
    return -(-length // -(-length // max(1, most)))


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _read_keeps(reader: random.DropoutMaskReader | None, blocks: list[_Block], S: int) -> Iterator[Array | None]:
    """Dropout's mask for each block of a group: the numbers that the book draws, in its order, hidden elements included.

    That order is head by head. One head, or one block of all rows, can be read block by block. Otherwise a group is read as a
    whole, which is at most a million elements, because long texts are split into groups of one head.
    """
    heads = blocks[0].shape[:3]
    if reader is None:
        yield from [None] * len(blocks)
    elif math.prod(heads) == 1 or len(blocks) == 1:
        for block in blocks:
            yield reader.read((*block.shape[:4], S))[..., block.seen]
    else:
        whole = reader.read((*heads, blocks[-1].rows.stop, S))
        for block in blocks:
            yield whole[..., block.rows, block.seen]


def _scores(q: Array, k: Array, block: _Block, is_causal: bool, out: Array, far: bool = False) -> Array:
    """q kᵀ of the block into ``out``, with -inf above the diagonal; with ``far``, also where a score there overflowed."""
    np.matmul(q[..., block.rows, :], k[..., block.seen, :].swapaxes(-1, -2), out=out)
    if is_causal:
        square = out[..., block.rows.start :]
        triangle = _triangle(out.dtype)[: square.shape[-2], : square.shape[-1]]
        if far:
            square[...] = apply_mask(square, triangle == 0)  # ∞ - ∞ is nan
        square += triangle
    return out


def _exponentials(scores: Array, shift: Array | None) -> Array:
    """exp(S - shift), written over S."""
    if shift is not None:
        scores -= shift
    return np.exp(scores, out=scores)


@functools.cache
def _triangle(dtype: Any) -> Array:
    """-inf above the diagonal, 0 elsewhere; a constant."""
    triangle = np.triu(np.full((ROWS_OF_LONG, ROWS_OF_LONG), -np.inf, dtype), 1)
    triangle.flags.writeable = False
    return triangle


def _finite_maximum(scores: Array) -> Array:
    """The largest score of each row; 0 where it is not finite."""
    highest = scores.max(axis=-1, keepdims=True)
    highest[~np.isfinite(highest)] = 0
    return highest


def _add_product(a: Array, b: Array, total: Array, is_first: bool, part: Array) -> None:
    """total += Σ aᵀ · b over the heads that share a key, for the first rows of total. The first time it is written instead.

    Shapes: a (b, kv, g, rows, seen), b (b, kv, g, rows, D), total (b, kv, 1, S, D).
    """
    seen, D = a.shape[-1], b.shape[-1]
    a, b = (x.reshape(*x.shape[:2], 1, -1, x.shape[-1]) for x in (a, b))  # the rows of all g heads, one below the other
    if is_first:
        np.matmul(a.swapaxes(-1, -2), b, out=total[..., :seen, :])
        total[..., seen:, :] = 0  # keys that no query sees
    else:
        total[..., :seen, :] += np.matmul(a.swapaxes(-1, -2), b, out=_shaped(part, (*total.shape[:3], seen, D)))


def five_axes(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """(..., T, D) as (B, KV, G, T, D); G is 1 unless the heads on the axis before T share a key."""
    if q.shape[:-2] == k.shape[:-2]:
        q, k, v = (x[..., None, :, :] for x in (q, k, v))
    q, k, v = (x.reshape((1,) * (5 - x.ndim) + x.shape) if x.ndim < 5 else x.reshape(-1, *x.shape[-4:]) for x in (q, k, v))
    return q, k, v


def _shaped(buffer: Array, shape: tuple[int, ...]) -> Array:
    """The beginning of a flat buffer as an array of ``shape``."""
    return buffer[: math.prod(shape)].reshape(shape)


def _heads_inside(B: int, T: int, KV: int, G: int, D: int, dtype: Any) -> Array:
    """A (B, KV, G, T, D) array that lies in memory as (B, T, KV, G, D)."""
    return np.empty((B, T, KV, G, D), dtype).transpose(0, 2, 3, 1, 4)


def _gradients(q: tuple[int, ...], v: tuple[int, ...], dtype: Any) -> tuple[Array, Array, Array]:
    """Empty dq, dk and dv. If their shapes are equal, they are three parts of one array (B, T, 3, H, D), as q, k and v usually are."""
    (B, KV, G, T, D), (S, E) = q, v[3:]
    if q != v:
        return _heads_inside(B, T, KV, G, D, dtype), _heads_inside(B, S, KV, 1, D, dtype), _heads_inside(B, S, KV, 1, E, dtype)
    dq, dk, dv = np.empty((B, T, 3, KV, D), dtype).transpose(2, 0, 3, 1, 4)[:, :, :, None]
    return dq, dk, dv
