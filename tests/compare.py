"""Run a case on tensorlite and on torch, and compare the results.

Every output gets its own random cotangent, the same on both sides. Whatever runs here is watched: ops
get read-only arrays and must leave them alone, and gradients must have the dtype and shape of their inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

import tensorlite as tl
from tensorlite import op as op_module
from tensorlite.op import REGISTRY, Op, Pair
from tensorlite.tensor import Tensor
from tests.cases import Case

FLOOR = 1e-6  # results whose largest number is smaller count as if it were this: a gradient may be zero but for rounding


class ContractError(AssertionError):
    """An op broke one of the house rules."""


@dataclasses.dataclass
class Result:
    """What a call returned, and the gradients of its floating point inputs under random cotangents."""

    outputs: list[np.ndarray]
    gradients: list[np.ndarray | None]  # one for each input; None for ids and masks
    seen: set[str]  # the ops that ran

    def named(self) -> Iterator[tuple[str, np.ndarray | None]]:
        yield from ((f"output {i}", y) for i, y in enumerate(self.outputs))
        yield from ((f"gradient of input {i}", dx) for i, dx in enumerate(self.gradients))


# --- running --------------------------------------------------------------------------------------------


def run_ours(
    call: Callable[..., Any],
    arrays: list[np.ndarray],
    seed: int = 0,
    layout: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    draw: Callable[[list[Any], int], list[np.ndarray]] | None = None,
) -> Result:
    """``call(tl, *tensors)`` forward and backward; ``layout`` lays the cotangents out in memory, ``draw`` makes others."""
    leaves = leaves_of(arrays)
    with watch() as seen:
        outputs = flat(call(tl, *leaves))
        backward(outputs, [layout(dy) for dy in (draw or cotangents)(outputs, seed)])
    return Result([y.array for y in outputs], gradients_of(leaves), seen)


def run_torch(
    case: Case, arrays: list[np.ndarray], seed: int = 0, draw: Callable[[list[Any], int], list[np.ndarray]] | None = None
) -> Result:
    """The same on torch."""
    leaves = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in arrays]
    outputs = flat((case.torch_call or case.call)(torch, *leaves))
    dys = [torch.tensor(dy) for dy in (draw or cotangents)(outputs, seed)]
    wanted = [(y, dy) for y, dy in zip(outputs, dys, strict=True) if y.requires_grad]
    if wanted:
        torch.autograd.backward([y for y, _ in wanted], [dy for _, dy in wanted])
    gradients = [
        None if not x.requires_grad else np.zeros_like(array) if x.grad is None else x.grad.numpy()
        for x, array in zip(leaves, arrays, strict=True)
    ]
    return Result([y.detach().resolve_neg().numpy() for y in outputs], gradients, set())


def leaves_of(arrays: list[np.ndarray]) -> list[Tensor]:
    """Tensors over read-only views; the floating point ones ask for gradients."""
    return [Tensor(read_only(x), requires_grad=x.dtype.kind == "f") for x in arrays]


def gradients_of(leaves: list[Tensor]) -> list[np.ndarray | None]:
    """A leaf that nothing depends on has the gradient zero."""
    return [None if not x.requires_grad else np.zeros_like(x.array) if x.grad is None else x.grad.array for x in leaves]


def cotangents(outputs: list[Any], seed: int) -> list[np.ndarray]:
    """Random numbers of each output's shape and type, from its shape alone: torch's outputs get the same."""
    rng = np.random.default_rng(seed)
    dtypes = [np.dtype(str(y.dtype).removeprefix("torch.")) for y in outputs]
    return [
        np.asarray(rng.standard_normal(tuple(y.shape))).astype(d if d.kind == "f" else "f8") for y, d in zip(outputs, dtypes, strict=True)
    ]


def backward(outputs: list[Tensor], dys: list[np.ndarray]) -> None:
    """Send every output its cotangent, all in one walk over the tape."""
    wanted = [(y, read_only(dy)) for y, dy in zip(outputs, dys, strict=True) if y.requires_grad]
    if len(wanted) == 1:
        wanted[0][0].backward(Tensor(wanted[0][1]))
    elif wanted:
        _weighted_sum(*(part for pair in wanted for part in pair)).backward()


def _weighted_sum_forward(*pairs: np.ndarray) -> tuple[np.ndarray, Any]:
    return np.asarray(0.0), pairs  # its value is of no interest


def _weighted_sum_backward(dy: np.ndarray, pairs: Any) -> tuple[np.ndarray | None, ...]:
    return tuple(None if i % 2 else pairs[i + 1] for i in range(len(pairs)))


_weighted_sum = Op(_weighted_sum_forward, _weighted_sum_backward, "weighted_sum_of_outputs")
del REGISTRY[_weighted_sum.name]  # the tests' own tool, not an op of the library


def flat(outputs: Any) -> list[Any]:
    """One output or several, as a list."""
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


def read_only(x: np.ndarray) -> np.ndarray:
    """A view that cannot be written to."""
    x = np.asarray(x).view()
    x.flags.writeable = False
    return x


# --- the house rules ------------------------------------------------------------------------------------


@contextlib.contextmanager
def watch() -> Iterator[set[str]]:
    """Hold every op that runs inside the block to the contract; yields the names of those that ran.

    Arrays and cotangents are never written to, gradients have the shape and dtype of what they belong to,
    and backward returns the same a second time: it has not spoilt what forward saved.
    """
    seen: set[str] = set()
    choose_pair = op_module.choose_pair

    def choose_watched(op: Op, arrays: list[Any], options: dict[str, Any]) -> Pair:
        pair = choose_pair(op, arrays, options)
        if op is _weighted_sum:
            return pair
        seen.add(op.name)
        return _watched(op.name, pair)

    with mock.patch.object(op_module, "choose_pair", choose_watched):
        yield seen


def _watched(name: str, pair: Pair) -> Pair:
    given: list[Any] = []
    before: list[Any] = []

    @functools.wraps(pair.forward)
    def forward(*arrays: Any, **options: Any) -> tuple[Any, Any]:
        given[:] = arrays
        before[:] = [x.copy() if isinstance(x, np.ndarray) else x for x in arrays]
        result = pair.forward(*(read_only(x) if isinstance(x, np.ndarray) else x for x in arrays), **options)
        _check_untouched(f"{name} forward", given, before)
        return result

    @functools.wraps(pair.backward)  # the signature counts: it says whether backward asks for `needs_grad`
    def backward(dy: Any, saved: Any, *needs_grad: Any) -> tuple[Any, ...]:
        dys = dy if isinstance(dy, tuple) else (dy,)
        kept = [d.copy() for d in dys]
        locked = tuple(read_only(d) for d in dys) if isinstance(dy, tuple) else read_only(dy)
        first, second = (_as_tuple(pair.backward(locked, saved, *needs_grad)) for _ in range(2))
        _check_untouched(f"{name} backward", [*given, *dys], [*before, *kept])
        for i, (x, dx, again) in enumerate(zip(given, first, second, strict=False)):
            if dx is None or not isinstance(x, np.ndarray) or x.dtype.kind != "f":
                continue
            if dx.dtype != x.dtype or dx.shape != x.shape:
                raise ContractError(f"{name}: argument {i} is {x.dtype} {x.shape}, its gradient {dx.dtype} {dx.shape}.")
            if not np.array_equal(dx, again, equal_nan=True):
                raise ContractError(f"{name}: backward gives another gradient for argument {i} when it runs a second time.")
        return first

    return dataclasses.replace(pair, forward=forward, backward=backward)


def _check_untouched(what: str, now: list[Any], before: list[Any]) -> None:
    for x, kept in zip(now, before, strict=True):
        if isinstance(x, np.ndarray) and not np.array_equal(x, kept, equal_nan=x.dtype.kind == "f"):
            raise ContractError(f"{what} wrote to an array that it was given.")


def _as_tuple(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)


# --- comparing ------------------------------------------------------------------------------------------


def relative_error(found: np.ndarray, right: np.ndarray) -> float:
    """The largest error, relative to the largest number; infinite where shapes differ, or only one is NaN or infinite."""
    if found.shape != right.shape:
        return np.inf
    if right.dtype.kind != "f":
        return 0.0 if np.array_equal(found, right) else np.inf
    a, b = found.astype(np.float64), right.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        errors = np.where(same, 0, np.nan_to_num(np.abs(a - b), nan=np.inf))
    scale = np.abs(b[np.isfinite(b)]).max(initial=FLOOR)
    return float(errors.max(initial=0) / scale)


def worst_error(found: Result, right: Result) -> tuple[float, str]:
    """The largest relative error over all outputs and gradients, and where it is."""
    assert len(found.outputs) == len(right.outputs), f"{len(found.outputs)} outputs instead of {len(right.outputs)}"
    errors = []
    for (what, a), (_, b) in zip(found.named(), right.named(), strict=True):
        assert (a is None) == (b is None), f"{what}: a gradient on one side only"
        if a is not None and b is not None:
            errors.append((relative_error(a, b), what))
    return max(errors, default=(0.0, "nothing"))
