"""From scores to a choice: which token comes next."""

from __future__ import annotations

import math

import numpy as np

from gpt.errors import UserError
from tensorlite import random
from tensorlite.backend import Array, to_numpy


class DivergedError(UserError, ValueError):
    """The model's predictions are not numbers any more."""


def sample(
    logits: Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """One id from each row of logits, drawn with probability softmax(logits / temperature): (..., V) -> (...) int64.

    Drawn on the CPU, in float64 and with one uniform number a row, so a seed means the same ids on both backends.

    Args:
        temperature: below 1 keeps to the likely, above 1 dares more; 0 always takes the likeliest, of equals the first.
        top_k: draw only from the k likeliest, and from what equals the last of them. More than there are means all of
            them (`torch.topk` would refuse; a user who asks for the best 200 of 65 characters is served).
        top_p: draw only from the likeliest whose probabilities, at this temperature and after top_k, just add up to p.
        generator: where the luck comes from; without one, from the thread's stream (see `tensorlite.manual_seed`).

    Raises:
        ValueError: if an option is out of its range.
        DivergedError: if the logits leave nothing to choose from: a nan, an infinity, or nothing but -inf.
    """
    check_sampling(temperature, top_k, top_p)
    scores = to_numpy(logits).astype(np.float64)  # a copy
    best = scores.max(axis=-1, keepdims=True)
    if not np.isfinite(best).all():  # max() hands on a nan
        raise DivergedError(
            "the logits hold nan or infinity: the model has diverged in training; train again with a smaller learning rate."
        )
    if temperature == 0:
        return scores.argmax(axis=-1)
    with np.errstate(over="ignore"):  # at a tiny temperature all but the best go to -inf, as they should
        scores = (scores - best) / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        kth = np.partition(scores, -top_k, axis=-1)[..., -top_k, None]
        scores[scores < kth] = -np.inf
    p = np.exp(scores)
    if top_p is not None:
        _keep_nucleus(p, top_p)
    # A uniform number falls into each token's stretch of the running total as often as the token is likely.
    total = p.cumsum(axis=-1)
    u = (generator or random.generator()).random(total.shape[:-1])[..., None] * total[..., -1:]
    return (total <= u).sum(axis=-1)


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse what cannot be sampled with.

    Raises:
        ValueError: naming the option and the range it has.
    """
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be 0 (always the likeliest) or a positive number, got {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}; leave it out to draw from all tokens.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}.")


def _keep_nucleus(p: np.ndarray, top_p: float) -> None:
    """Set to 0 all but the likeliest of each row that are needed to reach ``top_p`` of its sum."""
    order = np.argsort(-p, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1)
    before = ranked.cumsum(axis=-1) - ranked  # what the likelier ones have gathered
    ranked[before >= top_p * p.sum(axis=-1, keepdims=True)] = 0
    np.put_along_axis(p, order, ranked, axis=-1)
