"""Where did the first number that is not finite come from?

A loss of nan says nothing about its origin: whatever met a nan is nan. So the step is made once more, slowly: one share of the
batch after the other, every op watched, and the first that returns something else than finite numbers is named, with the module it
ran in and with what it was given.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from gpt.model import LanguageModel
from tensorlite import Tensor
from tensorlite.backend import array_module
from tensorlite.nn import Module
from tensorlite.op import Pair, observe
from tensorlite.random import use_generator


def first_not_finite(model: LanguageModel, shares: Iterable[tuple[tuple[Tensor, ...], np.random.Generator]]) -> str:
    """Run ``shares`` forward and backward; a clause that names the first op whose output was not finite.

    Args:
        shares: what the model is called with, and the random numbers it draws; as in the step that went wrong.
    """
    where = _Path(model)
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
        if broken := _not_finite(parameter.array):
            return f"{broken} in the parameter {name} are not finite, since an earlier step"
    return "made once more, the same step has finite numbers everywhere"


class _FoundError(Exception):
    """Ends the search; the message is the finding."""


class _Path:
    """Knows, inside its ``with`` block, which module is at work."""

    def __init__(self, model: Module) -> None:
        self.model = model
        self.parameters = {id(parameter.array): name for name, parameter in model.named_parameters()}
        self.names: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for name, module in self.model.named_modules():
            self._stack.enter_context(_named(module, name, self.names))

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def __str__(self) -> str:
        return next((f" in {name}" for name in reversed(self.names) if name), "")


@contextmanager
def _named(module: Module, name: str, names: list[str]) -> Iterator[None]:
    """While ``module`` is at work, its name is the last of ``names``."""
    forward = module.forward

    def noted(*args: Any, **options: Any) -> Any:
        names.append(name)
        try:
            return forward(*args, **options)
        finally:
            names.pop()

    object.__setattr__(module, "forward", noted)  # of this one object; the class keeps its own
    try:
        yield
    finally:
        object.__delattr__(module, "forward")


def _watched(name: str, pair: Pair, where: _Path) -> Pair:
    """``pair``, with a look at what comes out of it."""
    place = str(where)  # backward runs when the module is no longer at work

    def forward(*arrays: Any, **options: Any) -> tuple[Any, Any]:
        y, saved = pair.forward(*arrays, **options)
        _look(f"{name}{place}", y, arrays, where.parameters)
        return y, saved

    def backward(dy: Any, *saved_and_needs: Any) -> Any:
        dxs = pair.backward(dy, *saved_and_needs)
        _look(f"the backward of {name}{place}", dxs, dy if isinstance(dy, tuple) else (dy,), {})
        return dxs

    # wrapped, so that a backward that asks for ``needs`` is seen to ask for it
    return Pair(pair.name, forward, functools.wraps(pair.backward)(backward))


def _look(what: str, result: Any, given: tuple[Any, ...], names: dict[int, str]) -> None:
    """Raises _FoundError if ``result`` is not finite throughout."""
    outputs = result if isinstance(result, tuple) else (result,)
    broken = next((found for array in outputs if (found := _not_finite(array))), None)
    if broken is None:
        return
    for number, array in enumerate(given):
        if found := _not_finite(array):
            source = f"the parameter {names[id(array)]}" if id(array) in names else f"its argument {number}"
            raise _FoundError(f"the first op whose output is not finite is {what} ({broken}), and {source} has {found} that are not")
    largest = max((float(abs(array).max()) for array in given if _is_floating(array) and array.size), default=0.0)
    raise _FoundError(f"the first op whose output is not finite is {what} ({broken}), made from finite ones up to {largest:.3g}")


def _not_finite(array: Any) -> str | None:
    """How many of the numbers are nan or infinite, in words; None if none is."""
    if not _is_floating(array):
        return None
    xp = array_module(array)
    count = int((~xp.isfinite(array)).sum())
    return f"{count:,} of {array.size:,} numbers" if count else None


def _is_floating(array: Any) -> bool:
    return hasattr(array, "dtype") and array.dtype.kind == "f"
