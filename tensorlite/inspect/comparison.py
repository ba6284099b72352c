"""Check the gradient of one step: the same op, on the same arguments, is computed in other ways.

- the book: its pair, on the same arguments in float64;
- central differences of the book's forward, along random directions, which use no backward.

Both are compared with the gradients of the step. `study` adds torch.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite import random
from tensorlite.backend import array_module, to_numpy
from tensorlite.inspect.walk import Step
from tensorlite.op import REGISTRY, Pair
from tensorlite.tensor import is_floating

DIRECTIONS = 4
STEP_LENGTH = 2.0**-12  # as in `tensorlite.testing.gradcheck`, with Richardson's combination of two


@dataclass(frozen=True)
class Comparison:
    """One argument's gradient, computed in one other way.

    Attributes:
        way: "book", "differences" or "torch".
        argument: of the op, counted from 0.
        ours, other: the numbers that differ most: of the gradient itself, or slopes along a direction.
        error: their difference, relative to the largest number of the other gradient, or of the slopes.
    """

    way: str
    argument: int
    ours: float
    other: float
    error: float

    @classmethod
    def at_worst(cls, way: str, argument: int, ours: np.ndarray, other: np.ndarray) -> Comparison:
        """Compare two arrays at the index where they differ most."""
        errors = np.abs(ours - other)
        place = np.unravel_index(int(np.nan_to_num(errors, nan=np.inf).argmax()), errors.shape) if errors.size else ()
        scale = float(np.abs(other).max(initial=0)) or 1.0
        return cls(way, argument, float(ours[place]), float(other[place]), float(errors[place]) / scale)


def compare(step: Step, seed: int = 0) -> list[Comparison]:
    """Compare the gradients of `step` with the same gradients computed in two other ways. Random ops draw the same numbers again.

    Args:
        seed: of the random directions.

    Raises:
        RuntimeError: if the step's arguments are not known, because no `trace` was on.
    """
    if step.call is None:
        raise RuntimeError(f"the arguments of {step.op} are not known: run the model inside `with inspect.trace(model):`.")
    wide = [_wide(x) for x in step.call.arrays]
    options = {name: _wide(value) for name, value in step.call.options.items()}
    pair = REGISTRY[step.op].book
    forward = functools.partial(_forward, pair, step.call.generator)
    y, saved = forward(wide, options)
    dy = tuple(map(_wide, step.dy)) if isinstance(y, tuple) else _wide(step.dy[0])
    needs = tuple(parent is not None for parent in step.node.parents)
    expected = pair.backward(dy, saved, needs) if pair.takes_needs_grad else pair.backward(dy, saved)
    expected = expected if isinstance(expected, tuple) else (expected,)
    rng = np.random.default_rng(seed)
    found = []
    for delivery in step.deliveries:
        ours, book = to_numpy(step.own_gradient(delivery)), to_numpy(expected[delivery.argument])
        found.append(Comparison.at_worst("book", delivery.argument, ours, book))
        found.append(_differences(forward, wide, options, dy, delivery.argument, ours, rng))
    return found


def _wide(x: Any) -> Any:
    return x.astype("float64") if hasattr(x, "dtype") and hasattr(x, "astype") and is_floating(x.dtype) else x


def _forward(pair: Pair, generator: np.random.Generator, arrays: list[Any], options: dict[str, Any]) -> tuple[Any, Any]:
    with random.use_generator(copy.deepcopy(generator)):
        return pair.forward(*map(_fresh, arrays), **{name: _fresh(value) for name, value in options.items()})


def _fresh(value: Any) -> Any:
    """A generator is copied, so that each call draws the same numbers."""
    return copy.deepcopy(value) if isinstance(value, np.random.Generator) else value


def _differences(
    forward: Callable[..., tuple[Any, Any]],
    arrays: list[Any],
    options: dict[str, Any],
    dy: Any,
    position: int,
    ours: np.ndarray,
    rng: np.random.Generator,
) -> Comparison:
    """Compare the slopes of Σ dy·y along random directions of one argument with the slopes by the gradient."""
    x = arrays[position]
    xp = array_module(x)
    said, measured = np.zeros(DIRECTIONS), np.zeros(DIRECTIONS)
    for i in range(DIRECTIONS):
        direction = rng.standard_normal(x.shape)

        def objective(h: float, direction: np.ndarray = direction) -> float:
            moved = [*arrays[:position], x + h * xp.asarray(direction), *arrays[position + 1 :]]
            y = forward(moved, options)[0]
            pairs = zip(y, dy, strict=True) if isinstance(y, tuple) else ((y, dy),)
            return sum(float((one * weight).sum()) for one, weight in pairs)

        near, far = ((objective(h) - objective(-h)) / (2 * h) for h in (STEP_LENGTH, 2 * STEP_LENGTH))
        said[i], measured[i] = float((ours * direction).sum()), (4 * near - far) / 3
    return Comparison.at_worst("differences", position, said, measured)
