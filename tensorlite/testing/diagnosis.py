"""Find the kind of mistake that would give *this* wrong gradient.

Few kinds of mistakes are common in a backward, and each leaves a pattern in the whole gradient that one
wrong number does not show: a factor, a transpose, a difference that is constant along an axis. Every
suspect below looks for one such pattern and returns a sentence, or None. It returns a sentence only if its
explanation accounts for the entire difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

_LARGEST_JACOBIAN = 1_000_000  # numbers
_FEW = 16  # up to so many slices, each one is tried


@dataclass(frozen=True)
class Evidence:
    """The gradient by backward, the gradient by differences, and the arrays from which both were computed.

    Attributes:
        analytic, numeric: the two gradients, of the shape of x.
        x: the input.
        y, dy: the outputs and their cotangents.
        others: label -> the right gradient of each other input.
        contributions: computes, for each number of x and of the first y, what the second adds to the
            gradient of the first; x.shape + y.shape. Their sum over y is ``numeric`` if there is one output.
    """

    analytic: np.ndarray
    numeric: np.ndarray
    x: np.ndarray
    y: list[np.ndarray]
    dy: list[np.ndarray]
    contributions: Callable[[], np.ndarray]
    others: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def difference(self) -> np.ndarray:
        return self.analytic - self.numeric

    def is_explained_by(self, guess: np.ndarray) -> bool:
        """Whether the wrong gradient is ``guess``, up to a thousandth of what is wrong with it."""
        return bool(np.abs(self.analytic - guess).max() <= 1e-3 * np.abs(self.difference).max())


def diagnose(evidence: Evidence) -> str | None:
    """The first suspect's sentence, to follow "It looks like"; None if no suspect fits.

    Any explanation accounts for the entire difference of a single number, so for one number the result is None, unless it is NaN.
    """
    if evidence.analytic.size <= 1:
        return _nan(evidence)
    return next((sentence for suspect in _SUSPECTS if (sentence := suspect(evidence))), None)


def diagnose_directions(analytic: np.ndarray, numeric: np.ndarray, shapes: list[tuple[int, ...]]) -> str | None:
    """The same for slopes along random directions, which only show mistakes that are the same everywhere."""
    stand_ins = [np.empty(shape) for shape in shapes]
    evidence = Evidence(analytic, numeric, stand_ins[0], stand_ins[1:], [], lambda: np.empty(0))
    return next((sentence for suspect in (_nan, _zero, _factor) if (sentence := suspect(evidence))), None)


# --- the gradient as a whole ----------------------------------------------------------------------------


def _nan(e: Evidence) -> str | None:
    broken = int((~np.isfinite(e.analytic)).sum())
    if not broken:
        return None
    return f"a division by zero, or an overflow: {broken} of {e.analytic.size} numbers of the gradient are NaN or infinite."


def _zero(e: Evidence) -> str | None:
    if e.analytic.any():
        return None
    return "a gradient that was left out: it is zero everywhere."


def _unchanged(e: Evidence) -> str | None:
    if np.abs(e.numeric).max() > 1e-9 * np.abs(e.analytic).max():
        return None
    return "a gradient where there is none: the right one is zero everywhere, for the result does not change with this input."


def _exchanged(e: Evidence) -> str | None:
    """It is the gradient of another input."""
    for label, numeric in e.others.items():
        if numeric.shape == e.analytic.shape and e.is_explained_by(numeric):
            return f"the gradient of {label}: do two gradients stand in the wrong order, or is one computed from the wrong array?"
    return None


def _dy_left_out(e: Evidence) -> str | None:
    """The gradient for dy = 1."""
    if len(e.y) != 1 or e.x.size * e.y[0].size > _LARGEST_JACOBIAN or not e.dy or not e.dy[0].all():
        return None
    if e.is_explained_by(_sum_over_y(e, e.contributions() / e.dy[0])):
        return "dy left out: it is the gradient of the plain sum of the output, dy = 1."
    return None


def _factor(e: Evidence) -> str | None:
    """analytic = c · numeric."""
    if not e.numeric.any():
        return None
    c = float((e.analytic * e.numeric).sum() / (e.numeric * e.numeric).sum())
    if not e.is_explained_by(c * e.numeric):
        return None
    if abs(c + 1) < 1e-6:
        return "the wrong sign: it is the negative of the right gradient."
    known = _lengths(e)
    named = []
    for n in sorted({2, *known}):
        what = f", and {n} is {known[n]}" if n in known else ""
        named += [
            (n, f"{n}{what}", ": a sum where a mean belongs?" if n > 2 else ""),
            (1 / n, f"1/{n}{what}", ": a mean where a sum belongs?" if n > 2 else ""),
            (n**0.5, f"√{n}{what}", ": a scale of 1/√n that was left out?"),
            (n**-0.5, f"1/√{n}{what}", ": a scale of 1/√n too many?"),
        ]
    named += [(n * n, f"{n}², and {n} is {known[n]}", ": a product where a division belongs?") for n in sorted(known) if n > 2]
    for value, name, guess in named:
        for sign in (1, -1):
            if abs(c / (sign * value) - 1) < 1e-6:
                return f"a factor of {c:.6g} ({'-' if sign < 0 else ''}{name}){guess or '.'}"
    if np.count_nonzero(e.numeric) > 2:  # any one or two numbers could be a factor
        return f"a constant factor of {c:.6g}."
    return None


# --- the right numbers in the wrong places --------------------------------------------------------------


def _transpose(e: Evidence) -> str | None:
    """Two axes of equal length are exchanged; with different lengths the tape has refused the shape already."""
    for i in range(e.x.ndim):
        for j in range(i + 1, e.x.ndim):
            if e.x.shape[i] == e.x.shape[j] and e.is_explained_by(e.numeric.swapaxes(i, j)):
                return f"a transpose: axes {i} and {j} are exchanged."
    return None


def _moved(e: Evidence) -> str | None:
    for k in _axes(e, 2):
        if e.is_explained_by(np.flip(e.numeric, k)):
            return f"the order reversed along axis {k}."
        for shift in (1, -1):
            if e.is_explained_by(np.roll(e.numeric, shift, k)):
                return f"a shift by one along axis {k}."
    return None


# --- sums -----------------------------------------------------------------------------------------------


def _extra_sum(e: Evidence) -> str | None:
    """Every number along an axis is the sum (or mean) over that axis."""
    for k in _axes(e, 2):
        total = np.broadcast_to(e.numeric.sum(axis=k, keepdims=True), e.x.shape)
        if e.is_explained_by(total):
            return f"a sum too many: each number is the sum of the right ones over axis {k}."
        if e.is_explained_by(total / e.x.shape[k]):
            return f"a mean too many: each number is the mean of the right ones over axis {k}."
    return None


def _missing_sum(e: Evidence) -> str | None:
    """Only one slice of the output contributed, instead of the sum over all of them."""
    if len(e.y) != 1 or e.x.size * e.y[0].size > _LARGEST_JACOBIAN:
        return None
    terms = e.contributions()
    for k in range(e.x.ndim, terms.ndim):
        for i in range(terms.shape[k]) if terms.shape[k] <= _FEW else (0, terms.shape[k] - 1):
            if terms.shape[k] > 1 and e.is_explained_by(_sum_over_y(e, terms.take([i], axis=k))):
                return f"a missing sum over a broadcast axis: only slice {i} along axis {k - e.x.ndim} of the output counts."
    flat = terms.reshape(e.x.size, -1)
    if (np.count_nonzero(flat, axis=1) > 1).any():
        for which, pick in (("first", _first_nonzero), ("last", lambda rows: _first_nonzero(rows[:, ::-1]))):
            if e.is_explained_by(pick(flat).reshape(e.x.shape)):
                return (
                    f"lost repeats: where a number was used more than once, only its {which} use counts. "
                    "(dx[index] = dy and dx[index] += dy keep one; the gradients of all uses add up.)"
                )
    return None


# --- wrong in one place only ----------------------------------------------------------------------------


def _one_region(e: Evidence) -> str | None:
    wrong = np.abs(e.difference) > 1e-6 * np.abs(e.difference).max()
    for name, region in (("negative", e.x < 0), ("positive", e.x > 0)):
        if wrong[region].any() and not wrong[~region].any() and wrong.sum() > 2 and (~wrong[~region]).sum() > 2:
            return f"a mistake in one branch: the gradient is wrong only where the input is {name}."
    for k in _axes(e, 3):
        places = wrong.any(axis=tuple(i for i in range(e.x.ndim) if i != k)).nonzero()[0]
        if len(places) == 1:
            return f"a mistake at a border or a single index: all wrong numbers are at {places[0]} of {e.x.shape[k]} along axis {k}."
    return None


def _left_at_zero(e: Evidence) -> str | None:
    """The wrong numbers were never written."""
    wrong = np.abs(e.difference) > 1e-6 * np.abs(e.difference).max()
    if e.analytic[wrong].any() or not e.analytic.any():
        return None
    return f"numbers that were left at zero: {int(wrong.sum())} of {e.x.size} are 0, and all the others are right."


def _not_left_at_zero(e: Evidence) -> str | None:
    """The wrong numbers should be 0."""
    wrong = np.abs(e.difference) > 1e-6 * np.abs(e.difference).max()
    if np.abs(e.numeric[wrong]).max() > 1e-9 * np.abs(e.difference).max():
        return None
    return f"a gradient where there is none: {int(wrong.sum())} of {e.x.size} numbers should be 0, and all the others are right."


# --- a missing term -------------------------------------------------------------------------------------


def _factor_per_row(e: Evidence) -> str | None:
    """analytic = c · numeric with a different c in each row."""
    for k in _axes(e, 3):
        if np.count_nonzero(e.numeric, axis=k).max() < 3:
            continue  # any one or two numbers could be a factor
        if e.is_explained_by(_along(e.analytic, e.numeric, k)) and not _is_constant(e.difference, k, e):
            return f"a factor that is the same along axis {k} but differs between its rows: a 1/σ or 1/Σ that is missing, or there twice?"
    return None


def _constant_term(e: Evidence) -> str | None:
    """analytic - numeric is constant along an axis, as when "- mean(g)" is missing."""
    for k in reversed(list(_axes(e, 2))):
        varies = np.ptp(e.numeric, axis=k).max() > 1e-6 * np.abs(e.numeric).max()  # else any constant would explain it
        if varies and _is_constant(e.difference, k, e):
            return f'a missing term like a mean: the difference is the same along axis {k} (layernorm without "- mean(g)"?).'
    return None


def _proportional_term(e: Evidence) -> str | None:
    """Each row of analytic - numeric is a multiple of a known row: a term of rank one is missing."""
    for k in reversed(list(_axes(e, 3))):
        if np.count_nonzero(e.difference, axis=k).max() < 3:
            continue  # any one or two numbers are a multiple of others
        known = [(f'the output (softmax without "- Σ dy·y" along axis {k}?)', y) for y in e.y]
        known += [("the input (rms_norm without its second term?)", e.x)]
        known += [('the input less its mean (layernorm without "- x̂·mean(g·x̂)"?)', e.x - e.x.mean(axis=k, keepdims=True))]
        known += [("the incoming gradient: dy itself is added, or left out.", dy) for dy in e.dy]
        for name, direction in known:
            if direction.shape == e.x.shape and e.is_explained_by(e.numeric + _along(e.difference, direction, k)):
                return f"a missing term of rank one: along axis {k} the difference is a multiple of {name}"
    return None


def _factor_per_element(e: Evidence) -> str | None:
    """A factor of the chain rule is missing, or there twice; or it is the derivative of another function."""
    known = [(name, a) for name, values in (*(("output", y) for y in e.y), ("input", e.x)) for name, a in _derived(name, values)]
    for c in (1.0, -1.0, 2.0, 0.5, -2.0, -0.5):
        also = "" if c == 1 else f", and a factor of {c:g}"
        for name, values in known:
            if values.shape == e.x.shape and (values != 0).all():
                if e.is_explained_by(c * e.numeric * values):
                    return f"a factor too many, element by element: {name}{also}."
                if e.is_explained_by(c * e.numeric / values):
                    return f"a factor left out, element by element: {name}{also}."
    for dy in e.dy:
        if dy.shape == e.x.shape and e.is_explained_by(dy):
            return "dy itself: the derivative of the function is left out."
        for name, values in known:
            if dy.shape == values.shape == e.x.shape and e.is_explained_by(dy * values):
                return f"dy · ({name}): that is the derivative of another function."
    return None


_SUSPECTS = (
    _nan,
    _zero,
    _unchanged,
    _exchanged,
    _dy_left_out,
    _factor,
    _transpose,
    _moved,
    _extra_sum,
    _missing_sum,
    _one_region,
    _left_at_zero,
    _not_left_at_zero,
    _factor_per_row,
    _constant_term,
    _proportional_term,
    _factor_per_element,
)


def _axes(e: Evidence, shortest: int) -> Iterator[int]:
    """The axes of x long enough to show a pattern."""
    return (k for k, n in enumerate(e.x.shape) if n >= shortest)


def _derived(name: str, values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Expressions that are often a factor of a derivative."""
    square = values * values
    return [
        (f"the {name}", values),
        (f"1 - the {name}", 1 - values),
        (f"the {name} squared", square),
        (f"1 - the {name} squared", 1 - square),
    ]


def _is_constant(d: np.ndarray, axis: int, e: Evidence) -> bool:
    return e.is_explained_by(e.numeric + np.broadcast_to(d.mean(axis=axis, keepdims=True), d.shape))


def _lengths(e: Evidence) -> dict[int, str]:
    """The possible numbers of terms in a sum, and what each of them is."""
    arrays = (e.x, *e.y, *e.others.values())
    return (
        {a.size: "a number of elements" for a in arrays if a.size > 1}
        | {a.size // a.shape[-1]: "a number of rows" for a in arrays if a.ndim > 1 and a.size and a.size > a.shape[-1]}
        | {n: "a length of an axis" for a in arrays for n in a.shape if n > 1}
    )


def _along(a: np.ndarray, direction: np.ndarray, axis: int) -> np.ndarray:
    """The part of each row of ``a`` that points along the same row of ``direction``."""
    length = (direction * direction).sum(axis=axis, keepdims=True)
    return direction * (a * direction).sum(axis=axis, keepdims=True) / np.where(length == 0, 1, length)


def _sum_over_y(e: Evidence, terms: np.ndarray) -> np.ndarray:
    return terms.sum(axis=tuple(range(e.x.ndim, terms.ndim)))


def _first_nonzero(rows: np.ndarray) -> np.ndarray:
    return rows[np.arange(len(rows)), (rows != 0).argmax(axis=1)]
