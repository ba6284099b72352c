"""Does the fast code compute what the book computes? Values and gradients, on the same arguments."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite import random
from tensorlite.backend import Array, array_module, to_numpy
from tensorlite.op import Op, Pair
from tensorlite.tensor import Tensor, is_floating

RTOL = {"float64": 1e-10, "float32": 2e-5, "float16": 2e-2, "bfloat16": 1e-1}  # relative to the largest number


class PairsDisagreeError(AssertionError):
    """A faster pair differs from the book; the message says which, where, and by how much."""


@dataclass(frozen=True)
class PairsReport:
    """The result of an `assert_pairs_agree` that passed.

    Attributes:
        ran: "pair dtype" for every pair that supports the arguments.
        skipped: the same for those that do not support them.
        worst: the largest error, relative to the largest number of the book's result.
        where: the output or gradient, the pair and the dtype of that error.
    """

    ran: tuple[str, ...]
    skipped: tuple[str, ...]
    worst: float
    where: str


def assert_pairs_agree(
    op: Op, *args: Any, dtypes: Sequence[Any] | None = None, rtol: float | None = None, seed: int = 0, **options: Any
) -> PairsReport:
    """Run every faster pair of ``op`` that supports the arguments, and the book; compare outputs and gradients.

    Each output gets its own random cotangent. Ops that draw random numbers draw the same ones in every pair.

    Args:
        op: the op; one without faster pairs passes, with an empty report.
        args, options: what the op is called with: tensors, arrays, numbers.
        dtypes: run once in each of these; by default in the dtype of the arguments.
        rtol: the largest error allowed, relative to the largest number of the result; by default `RTOL` of the dtype.
        seed: for the cotangents and for ops that draw.

    Raises:
        PairsDisagreeError: if values, gradients, shapes or dtypes differ, or an input or cotangent was written to.
    """
    given = [arg.array if isinstance(arg, Tensor) else arg for arg in args]
    options = {name: value.array if isinstance(value, Tensor) else value for name, value in options.items()}
    ran, skipped, worst, where = [], [], 0.0, ""
    for dtype in dtypes or (None,):
        arrays = [x.astype(dtype) if dtype is not None and hasattr(x, "dtype") and is_floating(x.dtype) else x for x in given]
        floats = [x.dtype for x in arrays if hasattr(x, "dtype") and is_floating(x.dtype)]
        name = np.result_type(*floats).name if floats else "float32"
        expected = _run(op, op.book, arrays, options, seed)
        for pair in op.faster:
            if not pair.supports(*arrays, **options):
                skipped.append(f"{pair.name} {name}")
                continue
            ran.append(f"{pair.name} {name}")
            found = _run(op, pair, arrays, options, seed)
            for what, right in expected.items():
                error = _compare(f"{op.name}: {what} of the {pair.name} pair in {name}", found.get(what), right)
                if not error <= (RTOL.get(name, 2e-5) if rtol is None else rtol):
                    raise PairsDisagreeError(_message(op, pair, what, name, found[what], right, error))
                if error >= worst:
                    worst, where = error, f"{what} of {pair.name} in {name}"
    return PairsReport(tuple(ran), tuple(skipped), worst, where)


def _run(op: Op, pair: Pair, arrays: list[Any], options: dict[str, Any], seed: int) -> dict[str, Array | None]:
    """Outputs and gradients by name; fails if an argument or a cotangent was written to."""
    before = [x.copy() if hasattr(x, "dtype") else x for x in arrays]
    with random.use_generator(random.make_generator(seed)):
        y, saved = pair.forward(*map(_fresh, arrays), **{name: _fresh(value) for name, value in options.items()})
    returns_tuple = isinstance(y, tuple)
    outputs = y if returns_tuple else (y,)
    rng = np.random.default_rng(seed)
    dys = [array_module(out).asarray(rng.standard_normal(out.shape)).astype(out.dtype) for out in outputs]
    kept = [dy.copy() for dy in dys]
    dy = tuple(dys) if returns_tuple else dys[0]
    needs_grad = tuple(hasattr(x, "dtype") and is_floating(x.dtype) for x in arrays)
    gradients = pair.backward(dy, saved, needs_grad) if pair.takes_needs_grad else pair.backward(dy, saved)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)

    for what, now, then in (("an argument", arrays, before), ("dy", dys, kept)):
        for a, b in zip(now, then, strict=True):
            if hasattr(a, "dtype") and not np.array_equal(to_numpy(a), to_numpy(b), equal_nan=is_floating(a.dtype)):
                raise PairsDisagreeError(f"{op.name}: the {pair.name} pair wrote to {what}; a pair may only write to arrays it made.")
    results: dict[str, Array | None] = {f"output {i}": out for i, out in enumerate(outputs)}
    for i, needed in enumerate(needs_grad):
        if needed:
            results[f"gradient {i}"] = gradients[i] if i < len(gradients) else None
    return results


def _fresh(value: Any) -> Any:
    """A generator among the arguments is copied, so that every pair draws the same numbers from it."""
    return copy.deepcopy(value) if isinstance(value, np.random.Generator) else value


def _compare(what: str, found: Array | None, right: Array | None) -> float:
    """The largest error relative to the largest number; shapes and dtypes must be the same."""
    if found is None or right is None:
        if found is not right:
            raise PairsDisagreeError(f"{what} is {'missing' if found is None else 'there, but the book has none'}.")
        return 0.0
    if found.shape != right.shape or found.dtype != right.dtype:
        raise PairsDisagreeError(f"{what} is {found.dtype} {found.shape}, the book's is {right.dtype} {right.shape}.")
    errors, scale = _errors(found, right)
    return float(errors.max(initial=0) / scale)


def _errors(found: Array, right: Array) -> tuple[np.ndarray, float]:
    a, b = to_numpy(found).astype(np.float64), to_numpy(right).astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))  # also where both are infinite
    with np.errstate(invalid="ignore"):
        errors = np.where(same, 0, np.nan_to_num(np.abs(a - b), nan=np.inf))
    finite = np.abs(b[np.isfinite(b)])
    return errors, float(finite.max(initial=0)) or 1.0


def _message(op: Op, pair: Pair, what: str, dtype: str, found: Any, right: Any, error: float) -> str:
    errors, _ = _errors(found, right)
    index = tuple(int(i) for i in np.unravel_index(errors.argmax(), errors.shape))
    return (
        f"{op.name}: {what} of the {pair.name} pair differs from the book in {dtype}: at index {index} it is "
        f"{float(found[index]):.8g}, the book says {float(right[index]):.8g} (error {error:.2g} of the largest number)."
    )
