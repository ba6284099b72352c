"""Attention: every position asks a question, and takes a mixture of what the others answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensorlite import random
from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import broadcast_shape, require_floating, unbroadcast
from tensorlite.ops.masking import apply_mask
from tensorlite.ops.summation import sum_of


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> tuple[Array, Any]:
    """y = A · v,   A = dropout(softmax(S)),   S = scale · q · kᵀ + mask

    Row t of S holds how well the question q_t matches each key k_s; softmax makes it weights; y_t is the
    mixture of the values v_s with those weights. Over D independent numbers of variance 1 a dot product has
    variance D, so ``scale`` defaults to 1/√D: it keeps S at variance 1, where softmax is neither flat nor a
    hard choice whose gradient is 0.

    A causal mask lets position t see only positions s ≤ t: the future is not an input. Hidden places get
    S = -inf, hence weight 0. A row that sees nothing gives y = 0.

    The weights are T · S numbers, for a long text far more than q, k and v. With ``recompute`` they are not kept:
    backward asks every question again. The numbers are the same; it takes longer, and less memory.

    Shapes: q (..., T, D), k (..., S, D), v (..., S, E), y (..., T, E); leading axes (B, H) broadcast.
        mask broadcasts to (..., T, S): booleans, True where t may look at s, or numbers to be added to S.
    Saves: q, k, v, softmax(S) (..., T, S) unless ``recompute``, what dropout kept, and what S is made with.
    Raises: ValueError if the shapes do not fit, or for a mask together with ``is_causal``; RuntimeError for integers.
    Source: Vaswani et al. 2017, "Attention Is All You Need"; equals torch.nn.functional.scaled_dot_product_attention.
    """
    require_floating("attention", q, k, v)
    _check_shapes(q, k, v)
    if mask is not None and is_causal:
        raise ValueError("attention: give a mask or is_causal=True, not both.")
    scale = 1 / math.sqrt(q.shape[-1] or 1) if scale is None else float(scale)
    if is_causal:
        mask = array_module(q).tri(q.shape[-2], k.shape[-2], dtype=bool)
    p = _weights(q, k, mask, scale)
    keep, factor = None, 1.0
    weights = p
    if dropout_p:
        drawn, factor = random.dropout_mask(p.shape, dropout_p, generator)
        keep = array_module(q).asarray(drawn)
        weights = apply_mask(p, keep) * factor
    return weights @ v, (q, k, v, mask, scale, None if recompute else p, keep, factor)


def attention_backward(dy: Array, saved: Any) -> tuple[Array, Array, Array, Array | None]:
    """Four steps back: the mixture, dropout, softmax, the match.

    y = A · v is a matrix product, so        dA = dy · vᵀ        dv = Aᵀ · dy
    A = P ∘ keep · factor                    dP = dA ∘ keep · factor
    P = softmax(S), row by row               dS = P ∘ (dP - Σₛ dP ∘ P)
    S = scale · q · kᵀ + mask                dq = scale · dS · k        dk = scale · dSᵀ · q        dmask = dS

    In words: dv hands each position's gradient to the values it looked at, in proportion to how much it
    looked. dA_ts asks how much y_t would gain by looking more at s. Since the weights of a row must add up to 1,
    only gaining *more than the row's average* counts; that is the term Σ dP ∘ P of softmax. Where the mask
    hides a place, P is 0 and so is dS: nothing flows to the future, without a second mask. The scale
    appears once in S and therefore once in dq and once in dk.

    Σₛ dP ∘ P equals Σₑ dy ∘ y (put dP = dy vᵀ in and sum over s first): a sum over D instead of T numbers. The
    workshop uses it to work in tiles; here the direct form is easier to read.

    Shapes: dy (..., T, E); dq, dk, dv, dmask as their arrays.
    """
    q, k, v, mask, scale, p, keep, factor = saved
    if p is None:
        p = _weights(q, k, mask, scale)
    weights = p if keep is None else apply_mask(p, keep) * factor
    dv = weights.swapaxes(-1, -2) @ dy  # (..., S, E)
    dp = dy @ v.swapaxes(-1, -2)  # (..., T, S)
    if keep is not None:
        dp = apply_mask(dp, keep) * factor
    ds = p * (dp - sum_of(dp * p, -1, keepdims=True))
    dq = (ds @ k) * scale
    dk = (ds.swapaxes(-1, -2) @ q) * scale
    dmask = None if mask is None or mask.dtype == bool else unbroadcast(ds, mask.shape)
    return unbroadcast(dq, q.shape), unbroadcast(dk, k.shape), unbroadcast(dv, v.shape), dmask


attention = Op(attention_forward, attention_backward, in_float32=True)


def _weights(q: Array, k: Array, mask: Array | None, scale: float) -> Array:
    """softmax(S), with booleans of the mask as 0 and -inf."""
    xp = array_module(q)
    scores = (q @ k.swapaxes(-1, -2)) * scale  # (..., T, S)
    if mask is not None:
        broadcast_shape("attention with a mask", scores.shape, mask.shape)
        scores = xp.where(mask, scores, -math.inf) if mask.dtype == bool else scores + mask
    return _safe_softmax(scores)


def _safe_softmax(scores: Array) -> Array:
    """Softmax over the last axis, with 0 instead of 0/0 in a row that is -inf throughout; of no scores, none."""
    if scores.shape[-1] == 0:
        return scores
    xp = array_module(scores)
    highest = scores.max(axis=-1, keepdims=True)
    exponentials = xp.exp(scores - xp.where(xp.isfinite(highest), highest, 0))
    total = sum_of(exponentials, -1, keepdims=True)
    return exponentials / xp.where(total == 0, 1, total)


def _check_shapes(q: Array, k: Array, v: Array) -> None:
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit: they are (..., T, D), (..., S, D) and (..., S, E)."
        )
    broadcast_shape("attention", q.shape[:-2], k.shape[:-2], v.shape[:-2])
