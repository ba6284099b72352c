"""Context managers that are also decorators, for generator functions too.

    with no_grad():                @no_grad()                 @no_grad
        evaluate()                 def evaluate(): …          def batches(): yield …

contextlib has such decorators, but on a generator function they have no effect: the call only creates the generator, and the
block ends before its body begins. Here the block is entered each time the body resumes, and left at each ``yield``, so
what the caller does in between runs outside the block.
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
    """The base class of context managers that are also decorators."""

    def clone(self) -> AbstractContextManager[Any]:
        """A new context manager of the same kind, for one call. A decorated function may call itself, and run in several threads."""
        raise NotImplementedError

    def __call__(self, function: Function) -> Function:
        """``function``, which then runs inside such a block.

        Raises:
            TypeError: if it is not a function, or an async one: while it waits, other code would run inside the block.
        """
        if not callable(function):
            raise TypeError(f"a decorator takes a function, got {type(function).__name__}.")
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function.__name__} is async and cannot be decorated: write the with block inside it, around code that does not await."
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
    """Run the body of ``generator`` inside blocks. What the caller sends or throws, and a close, are passed on."""
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
        except BaseException as error:  # noqa: BLE001 - it is passed on
            resume = functools.partial(generator.throw, error)
        else:
            resume = functools.partial(generator.send, sent)


class _Context(ContextDecorator):
    """The context manager that a function decorated with `contextmanager` returns."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self.clone = make  # type: ignore[method-assign]
        self._entered: list[AbstractContextManager[Any]] = []

    def __enter__(self) -> Any:
        self._entered.append(self.clone())
        return self._entered[-1].__enter__()

    def __exit__(self, *exception: Any) -> Any:
        return self._entered.pop().__exit__(*exception)


def contextmanager(function: Callable[P, Iterator[T]]) -> Callable[P, Any]:
    """As `contextlib.contextmanager`, but the result can be entered several times, and can decorate generator functions."""
    manager = contextlib.contextmanager(function)

    @functools.wraps(function)
    def make(*args: P.args, **options: P.kwargs) -> _Context:
        manager(*args, **options)  # refuses wrong arguments in this line of the caller's, and not where the block is entered
        return _Context(functools.partial(manager, *args, **options))

    return make


__all__ = ["ContextDecorator", "contextmanager"]
