"""``with`` blocks that are decorators as well, of generator functions too.

    with no_grad():                @no_grad()                 @no_grad
        evaluate()                 def evaluate(): …          def batches(): yield …

contextlib has such decorators, but around a generator function they do nothing: to call one only makes the generator, and the
block is over before its body begins. Here the block is entered each time the body goes on, and left at each ``yield``, so that
what the caller does in between is not inside of it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


class ContextDecorator:
    """The base of a ``with`` block that may stand before a function. `clone` makes another block of the same kind."""

    def clone(self) -> AbstractContextManager[Any]:
        """A block for one call: a decorated function may call itself, and run in many threads."""
        raise NotImplementedError

    def __call__(self, function: Function) -> Function:
        """``function``, inside of such a block.

        Raises:
            TypeError: for what is no function, and for an async one: while it waits, others would run inside of the block.
        """
        if not callable(function):
            raise TypeError(f"a decorator takes a function, got {type(function).__name__}.")
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function.__name__} is async and cannot be decorated so: write the with block inside, where nothing is awaited."
            )
        if inspect.isgeneratorfunction(function):

            def inside(*args: Any, **options: Any) -> Any:
                return _run_in_blocks(function(*args, **options), self.clone)

        else:

            def inside(*args: Any, **options: Any) -> Any:
                with self.clone():
                    return function(*args, **options)

        return functools.wraps(function)(inside)  # type: ignore[return-value]


def _run_in_blocks(generator: Generator[Any, Any, Any], block: Callable[[], AbstractContextManager[Any]]) -> Generator[Any, Any, Any]:
    """``generator``, whose body runs inside of blocks: whatever the caller sends, throws or closes is handed on."""
    resume: Callable[[], Any] = functools.partial(next, generator)
    while True:
        try:
            with block():
                value = resume()
        except StopIteration as end:
            return end.value
        try:
            sent = yield value
        except GeneratorExit:
            with block():
                generator.close()
            raise
        except BaseException as error:  # noqa: BLE001 - it is handed on
            resume = functools.partial(generator.throw, error)
        else:
            resume = functools.partial(generator.send, sent)


class _Context(ContextDecorator):
    """What a function under `contextmanager` returns."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self.clone = make  # type: ignore[method-assign]
        self._entered: list[AbstractContextManager[Any]] = []

    def __enter__(self) -> Any:
        self._entered.append(self.clone())
        return self._entered[-1].__enter__()

    def __exit__(self, *exception: Any) -> Any:
        return self._entered.pop().__exit__(*exception)


def contextmanager(function: Callable[P, Iterator[T]]) -> Callable[P, Any]:
    """As `contextlib.contextmanager`, for a block that may be entered again, and may decorate generator functions."""
    manager = contextlib.contextmanager(function)

    @functools.wraps(function)
    def make(*args: P.args, **options: P.kwargs) -> _Context:
        return _Context(functools.partial(manager, *args, **options))

    return make


__all__ = ["ContextDecorator", "contextmanager"]
