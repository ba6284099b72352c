"""A rule: a plain function on arrays that is written to be read, and faster functions that may replace it.

    @Rule
    def adamw_update(p, g, m, v, …): …           the book's

    adamw_update.register(update, supports)      a kernel does this when it is imported

A rule is to an optimizer what a pair is to an op (`tensorlite.op`), but has no backward. This file knows no kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

from tensorlite.op import kernel_mode

P = ParamSpec("P")
R = TypeVar("R")


class Rule(Generic[P, R]):
    """Calls the first faster function that supports the arguments, or the book's; with ``TENSORLITE_KERNELS=book`` always the book's."""

    def __init__(self, book: Callable[P, R]) -> None:
        self.book = book
        self.faster: list[tuple[Callable[P, R], Callable[P, bool]]] = []
        functools.update_wrapper(self, book)

    def __call__(self, *args: P.args, **options: P.kwargs) -> R:
        return self.choose(*args, **options)(*args, **options)

    def register(self, function: Callable[P, R], supports: Callable[P, bool]) -> None:
        """Add a faster ``function`` for the arguments for which ``supports`` returns True. The function registered last is tried first."""
        self.faster.insert(0, (function, supports))

    def choose(self, *args: P.args, **options: P.kwargs) -> Callable[P, R]:
        """What will run."""
        if kernel_mode() == "fast":
            for function, supports in self.faster:
                if supports(*args, **options):
                    return function
        return self.book


__all__ = ["Rule"]
