"""Attention on the CPU: blocks of scores that stay in the cache, and none of those that a causal mask hides.

The mathematics is told in `tensorlite.ops.attention`; this page changes the order of the work, and what is saved.

A *block* owns 64 or 128 queries of a few (batch, head) pairs, and all they do from scores to weights. With a causal mask
the keys behind its last query are hidden from all of them: the block leaves those out, and hides the rest, in the one
square on the diagonal, under a triangle of -inf. A text of T tokens thereby costs little more than T²/2 scores.

- q, k and v are read where they lie, as a rule in one packed (B, T, 3, H, D) array: BLAS takes a row stride. y, dq, dk
  and dv are laid out so that the heads of a token are neighbours again: the caller's way back to (B, T, C) is free.
- Softmax stays a fraction. Saved are exps = exp(S - shift), of a causal text only half, and r = 1 / Σₛ exps of each row. No row
  of exps is ever divided: y = r (exps · v), and backward starts from dy' = r dy. With the row sum of softmax's gradient in
  its short form, δ = Σₑ dy' ∘ y, this leaves dS = exps ∘ (dy' · vᵀ - δ). The factor of dropout is a part of r.
- The shift, the maximum of the row, guards exp against overflow; in a healthy model there is nothing to guard. A block tries
  without it, looks at its row sums, and starts again with it if one of them is far from 1: two passes over the scores less.
- Sums over a row are products with ones: three times as fast as ``sum``, and not less exact.
- With ``recompute`` a block keeps its shift, r, and one bit for each place that dropout decided about, and makes exps again.
"""

from __future__ import annotations

import functools
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

# Queries in a block. Many make large products, which run faster; few leave less of the diagonal square to be computed for nothing.
# On a short text the second weighs more.
ROWS, ROWS_OF_LONG, LONG = 64, 128, 512
BLOCK_BYTES = 512 * 1024  # for the scores of a block; it takes as many heads as fit
SAFE_SUM = 2.0**50  # sums of exp from 1/SAFE_SUM to SAFE_SUM have lost nothing, and products with them lose nothing in float32


@dataclass(slots=True)
class _Block:
    """Some queries of some heads, the keys they see, and what they leave for backward.

    Attributes:
        heads: where the heads are on the first two axes (B, H).
        rows: where the queries are on the third axis (T).
        seen: where the keys they see are on the third axis (S): from the first one on.
        shape: of the scores, (b, h, rows, seen).
        shift: what was subtracted from the scores of each row; None for nothing.
        exps: exp(S - shift); None if backward is to make it again.
        keep: what dropout kept, as booleans, or packed into bits if ``exps`` is None; None without dropout.
    """

    heads: tuple[slice, slice]
    rows: slice
    seen: slice
    shape: tuple[int, int, int, int]
    shift: Array | None = None
    exps: Array | None = None
    keep: Array | None = None


@dataclass(slots=True)
class _Saved:
    """The arguments with exactly four axes, the output, and the blocks: one list for each group of heads."""

    q: Array  # (B, H, T, D)
    k: Array  # (B, H, S, D)
    v: Array  # (B, H, S, E)
    y: Array  # (B, H, T, E)
    r: Array  # (B, H, T, 1), factor / Σ exps
    groups: list[list[_Block]]
    is_causal: bool
    scale: float
    factor: float  # of dropout
    lead: tuple[int, ...]  # the leading axes as they came in


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
    lead, dtype = q.shape[:-2], q.dtype
    q, k, v = _four_axes(q), _four_axes(k), _four_axes(v)
    (B, H, T, D), (S, E) = q.shape, v.shape[2:]
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    reader = random.DropoutMaskReader(dropout_p, generator) if dropout_p else None
    factor = reader.factor if reader else 1.0
    y, r = _heads_inside(B, T, H, E, dtype), np.empty((B, H, T, 1), dtype)
    groups = _cut(B, H, T, S, is_causal, BLOCK_BYTES // dtype.itemsize)

    room = max(math.prod(block.shape) for block in groups[0])
    made_anew, dropped = np.empty(room if recompute else 0, dtype), np.empty(room if reader else 0, dtype)
    ones = np.ones((S, 1), dtype)
    shifted = False  # one block that needs a shift is reason enough for those after it to begin with one
    for blocks in groups:
        heads = blocks[0].heads
        qs, ks, vs, ys, rs = q[heads] * scale, k[heads], v[heads], y[heads], r[heads]  # the first is a small copy, the others views
        for block, keep in zip(blocks, _read_keeps(reader, blocks, S), strict=True):
            rows, seen = block.rows, block.seen
            exps = _shaped(made_anew, block.shape) if recompute else np.empty(block.shape, dtype)
            if not shifted:
                with np.errstate(over="ignore", invalid="ignore"):  # inf or nan in a sum says all that is to be known
                    sums = _exponentials(_scores(qs, ks, block, is_causal, exps), None) @ ones[seen]  # (b, h, rows, 1)
                shifted = not (sums.min() > 1 / SAFE_SUM and sums.max() < SAFE_SUM)  # so said that nan is not safe
            if shifted:
                block.shift = _finite_maximum(_scores(qs, ks, block, is_causal, exps, far=True))
                sums = _exponentials(exps, block.shift) @ ones[seen]
                sums[sums == 0] = 1  # a row that is -inf throughout gives 0, not 0/0
            np.divide(factor, sums, out=rs[:, :, rows])
            weights = exps if keep is None else np.multiply(exps, keep, out=_shaped(dropped, block.shape))
            np.matmul(weights, vs[:, :, seen], out=ys[:, :, rows])
            if recompute:
                block.keep = None if keep is None else np.packbits(keep, axis=-1)
            else:
                block.exps, block.keep = exps, keep
        ys *= rs
    return y.reshape(*lead, T, E), _Saved(q, k, v, y, r, groups, is_causal, scale, factor, lead)


def attention_backward(dy: Array, saved: _Saved) -> tuple[Array, ...]:
    """dq, dk and dv, in the shapes that came in."""
    (B, H, T, D), (S, E), dtype = saved.q.shape, saved.v.shape[2:], saved.q.dtype
    dq, dk, dv = _gradients(B, H, T, S, D, E, dtype)
    write_gradients(dq, dk, dv, _four_axes(dy), saved)
    return tuple(dx.reshape(*saved.lead, *dx.shape[2:]) for dx in (dq, dk, dv))


def write_gradients(dq: Array, dk: Array, dv: Array, dy: Array, saved: _Saved) -> None:
    """The book's four steps for each block: its rows of dq are its own, to dk and dv it adds what its queries say.

    The last block of a group goes first: it sees the most keys, so that it can write where the others have to add.
    """
    q, k, v, y, r, dtype = saved.q, saved.k, saved.v, saved.y, saved.r, saved.q.dtype
    D, (S, E) = q.shape[3], v.shape[2:]

    first = saved.groups[0]
    room, pairs = max(math.prod(block.shape) for block in first), math.prod(first[0].shape[:2])
    scores, made_anew, dropped = np.empty(room, dtype), np.empty(room, dtype), np.empty(room, dtype)
    part = np.empty(pairs * S * max(D, E), dtype)
    for blocks in saved.groups:
        heads = blocks[0].heads
        qs, ks, vs = q[heads] * saved.scale, k[heads], v[heads]
        dqs, dks, dvs = dq[heads], dk[heads], dv[heads]
        dys = dy[heads] * r[heads]  # dy', (b, h, T, E)
        delta = np.vecdot(dys, y[heads])[..., None]  # (b, h, T, 1)
        if saved.factor > 1:
            delta /= saved.factor  # it is in dy' and in y
        for block in reversed(blocks):
            rows, seen, exps, keep = block.rows, block.seen, block.exps, block.keep
            if exps is None:
                exps = _scores(qs, ks, block, saved.is_causal, _shaped(made_anew, block.shape), far=block.shift is not None)
                _exponentials(exps, block.shift)
                keep = None if keep is None else np.unpackbits(keep, axis=-1, count=block.shape[-1])
            ds = np.matmul(dys[:, :, rows], vs[:, :, seen].swapaxes(-1, -2), out=_shaped(scores, block.shape))
            weights = exps
            if keep is not None:
                weights = np.multiply(exps, keep, out=_shaped(dropped, block.shape))
                ds *= keep
            ds -= delta[:, :, rows]
            ds *= exps
            np.matmul(ds, ks[:, :, seen], out=dqs[:, :, rows])
            _add_product(ds, qs[:, :, rows], dks, block is blocks[-1], part)
            _add_product(weights, dys[:, :, rows], dvs, block is blocks[-1], part)
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
    """NumPy arrays of one dtype and of shapes that fit without broadcasting; no mask but the causal one; at least two keys to be seen.

    In a product a hidden nan is 0 · nan, and reaches every row of it: here those of a block, in the book all. Whom a nan reaches shall
    not depend on how the work is cut, so where a block does not have all keys, or dropout hides some, it is left to the book.

    A single key has weight 1 whatever the scores: dq and dk are 0, which the book's form gives exactly and dS = E ∘ (dy' · vᵀ - δ)
    only up to rounding.
    """
    return (
        mask is None
        and all(isinstance(x, np.ndarray) and x.ndim >= 2 and x.size > 0 for x in (q, k, v))
        and q.dtype in (np.float32, np.float64)
        and q.dtype == k.dtype == v.dtype
        and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
        and q.shape[-1] == k.shape[-1]
        and k.shape[-2] == v.shape[-2]
        and k.shape[-2] > 1
        and (q.shape[-2] > 1 or not is_causal)
        and ((not dropout_p and (not is_causal or k.shape[-2] <= q.shape[-2] <= ROWS)) or are_finite(q, k, v))
    )


def are_finite(*arrays: Array) -> bool:
    """Whether there is neither nan nor ∞, by the sums; a sum that overflows says no as well, and the book is right there, too."""
    return all(math.isfinite(np.add.reduce(x, axis=None)) for x in arrays)


register(attention, Pair("cpu", attention_forward, attention_backward, supports))


def _cut(B: int, H: int, T: int, S: int, is_causal: bool, limit: int) -> list[list[_Block]]:
    """The blocks, in the order of their scores in memory; those of one group of heads together.

    A group is some heads of one text, or all heads of some texts: as many as keep a block at ``limit`` scores, but at least one.
    """
    step = min(T, ROWS if T <= LONG else ROWS_OF_LONG)
    rows = [slice(start, min(start + step, T)) for start in range(0, T, step)]
    pairs = max(1, limit // (step * S))
    texts, heads = (min(pairs // H, B), H) if pairs > H else (1, -(-H // -(-H // pairs)))  # the latter evenly: 3 + 3, not 5 + 1
    groups = []
    for b in range(0, B, texts):
        for h in range(0, H, heads):
            where = (slice(b, min(b + texts, B)), slice(h, min(h + heads, H)))
            size = (where[0].stop - b, where[1].stop - h)
            seen = [slice(0, min(r.stop, S) if is_causal else S) for r in rows]
            groups.append([_Block(where, r, s, (*size, r.stop - r.start, s.stop)) for r, s in zip(rows, seen, strict=True)])
    return groups


def _read_keeps(reader: random.DropoutMaskReader | None, blocks: list[_Block], S: int) -> Iterator[Array | None]:
    """What dropout keeps of each block of a group: the numbers the book draws, in its order, hidden places included.

    That order is head by head. One head, or one block of all rows, can be read a block at a time; otherwise a group is read as a
    whole, which is no more than a million places: long texts are cut into groups of one head.
    """
    b, h = blocks[0].shape[:2]
    if reader is None:
        yield from [None] * len(blocks)
    elif b * h == 1 or len(blocks) == 1:
        for block in blocks:
            yield reader.read((*block.shape[:3], S))[..., block.seen]
    else:
        whole = reader.read((b, h, blocks[-1].rows.stop, S))
        for block in blocks:
            yield whole[:, :, block.rows, block.seen]


def _scores(q: Array, k: Array, block: _Block, is_causal: bool, out: Array, far: bool = False) -> Array:
    """q kᵀ of the block into ``out``; -inf behind the diagonal, with ``far`` also where a score has overflowed."""
    np.matmul(q[:, :, block.rows], k[:, :, block.seen].swapaxes(-1, -2), out=out)
    if is_causal:
        square = out[..., block.rows.start :]
        triangle = _triangle(out.dtype)[: square.shape[-2], : square.shape[-1]]
        if far:
            square[...] = apply_mask(square, triangle == 0)  # ∞ - ∞ is nan
        square += triangle
    return out


def _exponentials(scores: Array, shift: Array | None) -> Array:
    """exp(S - shift), in the place of S."""
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
    """total += aᵀ · b, for as many rows as aᵀ has; the first time total holds nothing yet."""
    rows = a.shape[-1]
    if is_first:
        np.matmul(a.swapaxes(-1, -2), b, out=total[:, :, :rows])
        total[:, :, rows:] = 0  # keys that nobody sees
    else:
        total[:, :, :rows] += np.matmul(a.swapaxes(-1, -2), b, out=_shaped(part, (*total.shape[:2], rows, b.shape[-1])))


def _four_axes(x: Array) -> Array:
    """(..., T, D) as (B, H, T, D)."""
    return x.reshape(-1, *x.shape[-3:]) if x.ndim > 4 else x.reshape((1,) * (4 - x.ndim) + x.shape)


def _shaped(buffer: Array, shape: tuple[int, ...]) -> Array:
    """The beginning of a flat buffer as an array of ``shape``."""
    return buffer[: math.prod(shape)].reshape(shape)


def _heads_inside(B: int, T: int, H: int, D: int, dtype: Any) -> Array:
    """A (B, H, T, D) array that lies in memory as (B, T, H, D)."""
    return np.empty((B, T, H, D), dtype).transpose(0, 2, 1, 3)


def _gradients(B: int, H: int, T: int, S: int, D: int, E: int, dtype: Any) -> tuple[Array, Array, Array]:
    """Room for dq, dk and dv: where they are equal in shape, three parts of one array (B, T, 3, H, D), as q, k and v usually are."""
    if (T, D) != (S, E):
        return _heads_inside(B, T, H, D, dtype), _heads_inside(B, S, H, D, dtype), _heads_inside(B, S, H, E, dtype)
    dq, dk, dv = np.empty((B, T, 3, H, D), dtype).transpose(2, 0, 3, 1, 4)
    return dq, dk, dv
