"""The one table of cases: every op, how it is called, and on what.

A case is written once and run everywhere: float64 gradient check, torch as oracle (the very same lambda
runs on both, with ``t`` the tensorlite or the torch module, which also proves that our names, argument
orders and defaults are torch's), every faster pair against the book, odd memory layouts, both dtypes.
For a new op, add one entry; all these checks then run on it. An op without a case fails the suite.

    Case("layernorm", lambda t, x, w, b: t.nn.functional.layer_norm(x, (8,), w, b), [normal(4, 8), normal(8), normal(8)])

The entries live in `tests/case_table/`, one file for each page of the book.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Draw = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One way to call one op.

    Attributes:
        name: unique; starts with the op's name.
        call: ``(t, *tensors) -> tensor`` or a tuple or list of them; ``t`` is `tensorlite` or `torch`.
        inputs: draws the arguments. Floating point ones get gradients and are checked, others are ids, masks, targets.
        torch_call: where torch spells it differently, its own lambda; it gets torch as ``t``.
        float32: the largest error allowed in float32, relative to the largest value of the result (see test_oracle).
        smooth: False where the case sits on a kink for central differences (it is then checked against torch only); say why.
        layouts: False where the meaning depends on the memory layout, or the inputs cannot be re-laid.
    """

    name: str
    call: Callable[..., Any]
    inputs: list[Draw]
    torch_call: Callable[..., Any] | None = None
    float32: float = 2e-6
    smooth: bool = True
    layouts: bool = True

    def draw(self, seed: int = 0, dtype: Any = np.float64) -> list[np.ndarray]:
        """Fresh arguments; floating point ones in ``dtype``."""
        rng = np.random.default_rng([seed, *self.name.encode()])
        arrays = [draw(rng) for draw in self.inputs]
        return [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]


def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> Draw:
    """Normal numbers."""
    return lambda rng: np.asarray(mean + std * rng.standard_normal(shape))


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Draw:
    """Uniform numbers on [low, high), for ops with a restricted domain."""
    return lambda rng: np.asarray(rng.uniform(low, high, shape))


def distinct(*shape: int, gap: float = 0.1) -> Draw:
    """A shuffled grid without 0: no ties and no kinks within ``gap``/2, for max, sort, relu and clamp."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        n = int(np.prod(shape))
        return rng.permutation((np.arange(n) - n // 2 + 0.5) * gap).reshape(shape)

    return draw


def integers(*shape: int, low: int = 0, high: int) -> Draw:
    """Integers in [low, high)."""
    return lambda rng: np.asarray(rng.integers(low, high, shape))


def mask(*shape: int, keep: float = 0.5) -> Draw:
    """Booleans, True with probability ``keep``."""
    return lambda rng: np.asarray(rng.random(shape) < keep)


def fixed(values: Any) -> Draw:
    """Always these values."""
    return lambda rng: np.array(values)


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """Every case of every file in ``tests/case_table``."""
    from tests import case_table

    cases: list[Case] = []
    for module in pkgutil.iter_modules(case_table.__path__):
        cases += importlib.import_module(f"tests.case_table.{module.name}").CASES
    names = [case.name for case in cases]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"case names must be unique, these are not: {sorted(repeated)}")
    return tuple(cases)
