"""Find the op that produced the first number that is not finite.

A loss of nan does not say where the nan began: everything computed from a nan is nan. So the step is made once more, slowly: one share of
the batch after the other, with every op watched. The first op that returns a number that is not finite is named, with the module that it
ran in and with its arguments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import numpy as np

from gpt.errors import fail
from gpt.model import LanguageModel
from tensorlite import Tensor
from tensorlite.backend import array_module
from tensorlite.nn import Module
from tensorlite.op import Pair, observe
from tensorlite.random import use_generator

Share = tuple[tuple[Tensor, ...], np.random.Generator]  # what the model is called with, and the random numbers that it draws


def fail_not_finite(model: LanguageModel, loss: float, gradient_norm: float, step: int, shares: Iterable[Share] = ()) -> NoReturn:
    """End a run whose loss or gradient is not finite, with the op that is to blame.

    Args:
        shares: what was computed in the step that went wrong; without any, only the parameters are examined.

    Raises:
        UserError: always.
    """
    what = f"the gradient became {gradient_norm} long" if math.isfinite(loss) else f"the loss became {loss}"
    finding = find_first_not_finite(model, shares)
    fail(f"{what} at step {step}: {finding}. Try a smaller learning rate, more warmup steps, or gradient clipping.")


def find_first_not_finite(model: LanguageModel, shares: Iterable[Share]) -> str:
    """Run ``shares`` forward and backward; return a clause that names the first op whose output is not finite."""
    where = _ModulePath(model)
    try:
        with np.errstate(all="ignore"), where, observe(functools.partial(_watched, where=where)):
            for tensors, stream in shares:
                with use_generator(stream):
                    _, loss = model(*tensors)
                    loss.backward()
    except _FoundError as found:
        return str(found)
    finally:
        model.zero_grad()
    for name, parameter in model.named_parameters():
        if broken := _count_not_finite(parameter.array):
            return f"{broken} in the parameter {name} are not finite, since an earlier step"
    return "made once more, the same step has finite numbers everywhere"


class _FoundError(Exception):
    """Ends the search. The message is the finding."""


class _ModulePath:
    """Inside its ``with`` block, knows which module is running."""

    def __init__(self, model: Module) -> None:
        self.model = model
        self.parameters = {id(parameter.array): name for name, parameter in model.named_parameters()}
        self.names: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for name, module in self.model.named_modules():
            self._stack.enter_context(_with_name(module, name, self.names))

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def __str__(self) -> str:
        return next((f" in {name}" for name in reversed(self.names) if name), "")


@contextmanager
def _with_name(module: Module, name: str, names: list[str]) -> Iterator[None]:
    """Inside the ``with`` block, the name of ``module`` is the last of ``names`` while its forward runs."""
    forward = module.forward

    def forward_with_name(*args: Any, **options: Any) -> Any:
        names.append(name)
        try:
            return forward(*args, **options)
        finally:
            names.pop()

    object.__setattr__(module, "forward", forward_with_name)  # of this one object; the class keeps its own
    try:
        yield
    finally:
        object.__delattr__(module, "forward")


def _watched(name: str, pair: Pair, where: _ModulePath) -> Pair:
    """``pair``, with a check of what it returns."""
    place = str(where)  # backward runs after the module's forward has ended

    def forward(*arrays: Any, **options: Any) -> tuple[Any, Any]:
        y, saved = pair.forward(*arrays, **options)
        _check(f"{name}{place}", y, arrays, where.parameters)
        return y, saved

    def backward(dy: Any, *saved_and_needs: Any) -> Any:
        dxs = pair.backward(dy, *saved_and_needs)
        _check(f"the backward of {name}{place}", dxs, dy if isinstance(dy, tuple) else (dy,), {})
        return dxs

    # functools.wraps keeps the signature, so that a backward that takes ``needs`` still gets it
    return Pair(pair.name, forward, functools.wraps(pair.backward)(backward))


def _check(what: str, result: Any, arguments: tuple[Any, ...], names: dict[int, str]) -> None:
    """Raise _FoundError if any number of ``result`` is not finite."""
    outputs = result if isinstance(result, tuple) else (result,)
    broken = next((found for array in outputs if (found := _count_not_finite(array))), None)
    if broken is None:
        return
    for number, array in enumerate(arguments):
        if found := _count_not_finite(array):
            source = f"the parameter {names[id(array)]}" if id(array) in names else f"its argument {number}"
            raise _FoundError(f"the first op whose output is not finite is {what} ({broken}), and {source} has {found} that are not")
    largest = max((float(abs(array).max()) for array in arguments if _is_floating(array) and array.size), default=0.0)
    raise _FoundError(f"the first op whose output is not finite is {what} ({broken}), made from finite ones up to {largest:.3g}")


def _count_not_finite(array: Any) -> str | None:
    """How many numbers of ``array`` are nan or infinite, in words; None if none is."""
    if not _is_floating(array):
        return None
    xp = array_module(array)
    count = int((~xp.isfinite(array)).sum())
    return f"{count:,} of {array.size:,} numbers" if count else None


def _is_floating(array: Any) -> bool:
    return hasattr(array, "dtype") and array.dtype.kind == "f"
