"""Attention: every position compares its query with all keys, and returns the weighted mean of their values."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tensorlite import random
from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import broadcast_shape, require_floating, unbroadcast
from tensorlite.ops.masking import apply_mask
from tensorlite.ops.summation import sum_of


class AttentionSaved(NamedTuple):
    """What backward needs of the forward."""

    q: Array  # (..., T, D)
    k: Array  # (..., S, D)
    v: Array  # (..., S, E)
    mask: Array | None
    scale: float
    probabilities: Array | None  # softmax(S), (..., T, S); None with ``recompute``
    keep: Array | None  # of dropout, (..., T, S)
    factor: float  # 1 / (1 - dropout_p)


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
) -> tuple[Array, AttentionSaved]:
    """y = A · v,   A = dropout(softmax(S)),   S = scale · q · kᵀ + mask

    Row t of the scores S says how well the query q_t matches each key k_s. Softmax turns the row into weights, and
    y_t is the mean of the values v_s with these weights. A dot product of D independent numbers of variance 1 has
    variance D, so ``scale`` defaults to 1/√D. S then has variance 1, where softmax is neither flat nor a hard
    choice whose gradient is 0.

    With a causal mask, position t sees only positions s ≤ t. A masked score is -inf, so its weight is 0. A row
    in which every score is masked gives y = 0.

    The weights are T · S numbers, for a long text far more than q, k and v. With ``recompute`` they are not kept, and
    backward computes them again: the same numbers, in more time and less memory.

    Shapes: q (..., T, D), k (..., S, D), v (..., S, E), y (..., T, E); leading axes (B, H) broadcast.
        mask broadcasts to (..., T, S): booleans, True where t may see s, or numbers that are added to S.
    Saves: q, k, v, softmax(S) unless ``recompute``, dropout's mask, and what S is computed with.
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
    return weights @ v, AttentionSaved(q, k, v, mask, scale, None if recompute else p, keep, factor)


def attention_backward(dy: Array, saved: AttentionSaved) -> tuple[Array, Array, Array, Array | None]:
    """Four steps back: the weighted mean, dropout, softmax, the scores.

    y = A · v is a matrix product, so        dA = dy · vᵀ        dv = Aᵀ · dy
    A = P ∘ keep · factor                    dP = dA ∘ keep · factor
    P = softmax(S), row by row               dS = P ∘ (dP - Σₛ dP ∘ P)
    S = scale · q · kᵀ + mask                dq = scale · dS · k        dk = scale · dSᵀ · q        dmask = dS

    In words: dv gives each value the gradients of the positions that used it, in proportion to their weights.
    dA_ts says how much the objective grows with the weight of s in y_t. The weights of a row sum to 1, so only the
    difference from the row's mean counts; that mean is the term Σ dP ∘ P of softmax. Where the mask hides a score,
    P is 0 and so is dS: no gradient reaches a later position, and backward needs no mask. The scale appears once
    in S, and therefore once in dq and once in dk.

    Σₛ dP ∘ P equals Σₑ dy ∘ y (insert dP = dy vᵀ and sum over s first): a sum over E instead of S numbers. The
    workshop uses it to compute in tiles; the direct form here is easier to read.

    Shapes: dy (..., T, E); dq, dk, dv, dmask as their arrays.
    """
    q, k, v, mask, scale, keep, factor = saved.q, saved.k, saved.v, saved.mask, saved.scale, saved.keep, saved.factor
    p = _weights(q, k, mask, scale) if saved.probabilities is None else saved.probabilities
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
    """softmax(S). A boolean mask sets scores to -inf; another one is added to them."""
    xp = array_module(q)
    scores = (q @ k.swapaxes(-1, -2)) * scale  # (..., T, S)
    if mask is not None:
        broadcast_shape("attention with a mask", scores.shape, mask.shape)
        scores = xp.where(mask, scores, -math.inf) if mask.dtype == bool else scores + mask
    return _safe_softmax(scores)


def _safe_softmax(scores: Array) -> Array:
    """Softmax over the last axis. A row of only -inf gives 0, not 0/0; an empty axis stays empty."""
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
