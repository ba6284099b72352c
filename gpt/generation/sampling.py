"""Sampling: from logits to the next token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt.errors import UserError
from tensorlite import random
from tensorlite.backend import Array, to_numpy

_GROUP = 64  # numbers, see `_kth_largest`


class DivergedError(UserError, ValueError):
    """The model's logits are not finite."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: divides the logits; 0 always takes the most likely token, of equals the first.
        top_k: sample only from the k most likely tokens, and from those that equal the last of them. A k above the vocabulary size means
            all tokens (`torch.topk` would raise).
        top_p: sample only from the most likely tokens whose probabilities, at this temperature and after top_k, add up to p.
        min_p: sample only from tokens at least min_p times as likely as the most likely one, at this temperature.
        repetition_penalty: above 1 makes tokens that occurred before less likely, below 1 more: their logits are divided by it
            where they are positive, and multiplied where they are negative (Keskar et al. 2019, "CTRL", section 4.1).

    Raises:
        ValueError: naming the option that is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be 0 (always the most likely token) or a positive number, got {self.temperature}.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}; leave it out to sample from all tokens.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be at least 0 and at most 1, got {self.min_p}.")
        if not 0.01 <= self.repetition_penalty <= 100:  # far outside of it, logits would overflow
            raise ValueError(f"repetition_penalty must be between 0.01 and 100 (1 for none), got {self.repetition_penalty}.")

    @property
    def keeps_all(self) -> bool:
        """Whether any token can be chosen: there is no top_k, top_p or min_p."""
        return self.top_k is None and self.top_p is None and not self.min_p

    def apply_repetition_penalty(self, scores: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
        """``scores`` after the repetition penalty; ``seen`` (..., V) says which tokens occurred before."""
        if self.repetition_penalty == 1 or seen is None:
            return scores
        return np.where(seen, np.where(scores > 0, scores / self.repetition_penalty, scores * self.repetition_penalty), scores)


def sample(
    logits: Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: np.random.Generator | None = None,
    *,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seen: np.ndarray | None = None,
) -> np.ndarray:
    """One id from each row of logits, sampled with probability softmax(logits / temperature): (..., V) -> (...) int64.

    It is sampled on the CPU, in float64 and with one uniform number a row, so a seed gives the same ids on both backends.

    Args:
        temperature, top_k, top_p, min_p, repetition_penalty: see `Sampling`.
        generator: the source of random numbers; without one, the thread's (see `tensorlite.manual_seed`).
        seen: (..., V), which tokens the penalty is for.

    Raises:
        ValueError: if an option is out of its range.
        DivergedError: if no token can be chosen: a logit is nan or infinite, or all are -inf.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    uniforms = draw_uniforms(np.shape(logits)[:-1], sampling, generator)
    return choose_tokens(logits, uniforms, sampling, seen)[0]


def draw_uniforms(
    shape: tuple[int, ...], sampling: Sampling, generator: np.random.Generator | Sequence[np.random.Generator] | None
) -> np.ndarray:
    """A uniform number for each choice, from one generator for all or one for each; greedy choices need none."""
    if sampling.temperature == 0:
        return np.zeros(shape)
    if isinstance(generator, Sequence):
        return np.array([own.random() for own in generator]).reshape(shape)
    return np.asarray((generator or random.default_generator()).random(shape))


def choose_tokens(
    logits: Array, uniforms: np.ndarray, sampling: Sampling, seen: np.ndarray | None = None, error: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The ids that ``uniforms`` select, and for each whether it would be the same if every logit were wrong by up to ``error``.

    A choice is certain unless two numbers were close: the two largest logits (when greedy), or the uniform number and the boundary
    between two tokens. How far a boundary can be off depends on the errors of the probabilities, and on the probability of the tokens of
    which top_k, top_p or min_p may keep others than here. Such tokens are mostly unlikely ones, so a choice is seldom in doubt.

    Shapes: logits (..., V), uniforms (...); ids (...) int64, certain (...) bool.
    Raises: DivergedError if no token can be chosen.
    """
    scores = to_numpy(logits)
    best = _largest(scores)
    if sampling.temperature == 0 and sampling.repetition_penalty == 1:
        return _choose_largest(scores, best, error)
    scores = scores.astype(np.float64)
    if sampling.repetition_penalty != 1:
        scores = sampling.apply_repetition_penalty(scores, seen)
        best = scores.max(axis=-1, keepdims=True)
        error *= max(sampling.repetition_penalty, 1 / sampling.repetition_penalty)
    if sampling.temperature == 0:
        return _choose_largest(scores, best, error)
    p, unsure, error = _sampling_weights(scores - best, sampling, error)
    possible = None if sampling.keeps_all else _columns_with_any(p > 0)
    if possible is not None:
        p = p[..., possible]
    # A uniform number falls into a token's interval of the cumulative sum with the token's probability.
    bounds = p.cumsum(axis=-1)
    total = bounds[..., -1:]
    u = uniforms[..., None] * total
    certain = np.ones(u.shape[:-1], bool)
    if error:
        edges = np.concatenate([np.zeros_like(total), bounds], axis=-1)  # a token that is left out here may come in before the first
        distance, moved = abs(edges - u), _moved_by(unsure[..., None], total) * math.exp(2 * error)
        if (distance <= (_cumulative_error(0.5, 1.0, error) + moved) * total).any():  # a boundary can be off by that much at most
            reach = _cumulative_error(edges, total, error) + moved * total
            certain = ~((distance <= reach) & (reach > 0)).any(axis=-1)
    ids = (bounds <= u).sum(axis=-1)
    return ids if possible is None else possible[ids], certain


def _choose_largest(scores: np.ndarray, best: np.ndarray, error: float) -> tuple[np.ndarray, np.ndarray]:
    """The greedy choice, and whether no other score is within twice the error of the largest, ``best`` (..., 1)."""
    ids = scores.argmax(axis=-1)
    if not error:
        return ids, np.ones(ids.shape, bool)
    bound = np.nextafter(best - 2 * error, -np.inf, dtype=scores.dtype)  # the difference was rounded, upwards perhaps
    return ids, (scores >= bound).sum(axis=-1) == 1


def sampling_probabilities(logits: Array, sampling: Sampling) -> np.ndarray:
    """The probability with which `sample` chooses each token: (..., V) -> (..., V) float64; without a repetition penalty.

    Raises: DivergedError if no token can be chosen.
    """
    scores = to_numpy(logits).astype(np.float64)
    best = _largest(scores)
    if sampling.temperature == 0:
        return (np.arange(scores.shape[-1]) == scores.argmax(axis=-1)[..., None]).astype(np.float64)
    p = _sampling_weights(scores - best, sampling, 0.0)[0]
    return p / p.sum(axis=-1, keepdims=True)


def _largest(scores: np.ndarray) -> np.ndarray:
    """The largest score of each row, (..., 1)."""
    best = scores.max(axis=-1, keepdims=True)
    if not np.isfinite(best).all():  # max() propagates a nan
        raise DivergedError(
            "the logits contain nan or infinity: the model has diverged in training; train again with a smaller learning rate."
        )
    return best


def _sampling_weights(scores: np.ndarray, sampling: Sampling, error: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Unnormalised probabilities after temperature, top_k, min_p and top_p; in each row the sum of those that the errors could bring in
    or out; the error after the temperature.

    ``scores``, whose largest is 0 in each row, are overwritten.
    """
    if sampling.temperature != 1:
        with np.errstate(over="ignore"):  # at a tiny one all but the largest become -inf, as they should
            scores /= sampling.temperature
    error = min(error / sampling.temperature, 100.0)  # more than that, and nothing is certain
    unsure = np.zeros(scores.shape[:-1])
    if sampling.top_k is not None and sampling.top_k < scores.shape[-1]:
        rows = scores.reshape(-1, scores.shape[-1])
        kth = np.array([_kth_largest(row, sampling.top_k) for row in rows]).reshape(*scores.shape[:-1], 1)
        unsure += _sum_of_close(scores, kth, 2 * error)
        scores[scores < kth] = -np.inf
    if sampling.min_p:
        least = math.log(sampling.min_p)
        unsure += _sum_of_close(scores, least, 2 * error, expected=0)
        scores[scores < least] = -np.inf
    if sampling.keeps_all:
        p = np.exp(scores, out=scores)
    else:
        possible, p = _columns_with_any(scores > -np.inf), np.zeros_like(scores)
        p[..., possible] = np.exp(scores[..., possible])
    if sampling.top_p is not None:
        for place in np.ndindex(unsure.shape):
            unsure[place] += _zero_outside_nucleus(p[place], sampling.top_p, error, float(unsure[place]))
    return p, unsure, error


def _kth_largest(numbers: np.ndarray, k: int) -> float:
    """The k-th largest of (V,). At least k of them reach the k-th largest maximum of a group of numbers; no smaller ones are looked at."""
    groups = len(numbers) // _GROUP
    if k <= groups:
        maxima = numbers[: groups * _GROUP].reshape(groups, _GROUP).max(axis=1)
        numbers = numbers[numbers >= np.partition(maxima, -k)[-k]]
    return float(np.partition(numbers, -k)[-k])


def _columns_with_any(mask: np.ndarray) -> np.ndarray:
    """The columns in which a row is True. After top_k few tokens are possible, and all others need no arithmetic."""
    return np.flatnonzero(mask.any(axis=tuple(range(mask.ndim - 1))))


def _cumulative_error(part: Any, total: Any, error: float) -> Any:
    """How far a cumulative sum can be off: everything in it too likely by e^error, everything after it too unlikely, or the reverse.

    The share c then becomes c e²ᵉ / (c e²ᵉ + 1 - c), which is c + c (1 - c) (e²ᵉ - 1) or less.
    """
    return math.expm1(2 * error) * part * (total - part) / total


def _moved_by(unsure: Any, total: Any) -> Any:
    """How far a share of the cumulative sum can move if numbers that add up to ``unsure`` are taken out of it or come in.

    With a coming in and r going out, of which aᵇ and rᵇ lie before the share b / t, it becomes (b + aᵇ - rᵇ) / (t + a - r). That differs
    from b / t by (a + r) / (t + a - r) or less.
    """
    with np.errstate(divide="ignore"):
        return np.where(unsure > 0, unsure / np.maximum(total - unsure, 0), 0.0)  # infinite, if nothing else is left


def _sum_of_close(scores: np.ndarray, bound: np.ndarray | float, distance: float, expected: int = 1) -> np.ndarray:
    """In each row Σ exp(score) over the scores within ``distance`` of the bound, at most; 0 if only as many as ``expected`` are there."""
    none = np.zeros(scores.shape[:-1])
    if not distance:
        return none
    with np.errstate(invalid="ignore"):  # -inf is not near -inf: neither can be drawn
        close = abs(scores - bound) <= distance
    more = close.sum(axis=-1) > expected
    if not more.any():
        return none
    numbers = np.exp(scores + distance, out=np.zeros_like(scores), where=close)
    return np.where(more, numbers.sum(axis=-1), none)


def _zero_outside_nucleus(p: np.ndarray, top_p: float, error: float, unsure: float) -> float:
    """Set to 0 all but the most likely of a row (V,) that are needed to reach ``top_p`` of its sum.

    Only numbers above (1 - top_p) / V of the sum can be needed, because the others together do not reach 1 - top_p. So only they are
    sorted.

    Args:
        unsure: the sum of numbers that may not be in the row, or be missing.

    Returns:
        the sum of those that the errors could bring in or out, or what it can be at most.
    """
    total = p.sum()
    margin = math.expm1(2 * error) * total / 4 + 2 * unsure * math.exp(2 * error)  # how far off a sum of the most likely can be
    (candidates,) = np.nonzero(p > max((1 - top_p) * total - margin, 0) / len(p) * math.exp(-2 * error))
    order = candidates[np.argsort(-p[candidates], kind="stable")]
    ranked = p[order]
    upto = ranked.cumsum()
    before = upto - ranked  # the sum of the more likely ones
    kept = before < top_p * total
    doubtful = 0.0
    if error:
        # More likely than a number are those that are larger by more than the errors, and perhaps those near it.
        surely = np.searchsorted(-ranked, -ranked * math.exp(2 * error), "left")  # how many
        perhaps = np.searchsorted(-ranked, -ranked * math.exp(-2 * error), "right")
        least, most = before[surely], upto[perhaps - 1] - ranked
        open_ = (least <= top_p * total + margin) & (most >= top_p * total - margin)
        doubtful = float(ranked[open_].sum()) * math.exp(2 * error)
    chosen = order[kept]
    weights = p[chosen]
    p[:] = 0
    p[chosen] = weights
    return doubtful
