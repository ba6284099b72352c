"""A rule: a plain function on arrays that is written to be read, and the faster ones that may run in its place.

    @Rule
    def adamw_update(p, g, m, v, …): …           the book's

    adamw_update.register(update, supports)      what a kernel does when it is imported

It is for the optimizers what a pair is for an op (`tensorlite.op`), without a backward. Nothing here knows a kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

from tensorlite.op import kernel_mode

P = ParamSpec("P")
R = TypeVar("R")


class Rule(Generic[P, R]):
    """Calls the first faster function that supports the arguments, or else the book's; ``TENSORLITE_KERNELS=book`` always the book's."""

    def __init__(self, book: Callable[P, R]) -> None:
        self.book = book
        self.faster: list[tuple[Callable[P, R], Callable[P, bool]]] = []
        functools.update_wrapper(self, book)

    def __call__(self, *args: P.args, **options: P.kwargs) -> R:
        return self.choose(*args, **options)(*args, **options)

    def register(self, function: Callable[P, R], supports: Callable[P, bool]) -> None:
        """Offer a faster ``function`` for the arguments of which ``supports`` says that it takes them; the last one is asked first."""
        self.faster.insert(0, (function, supports))

    def choose(self, *args: P.args, **options: P.kwargs) -> Callable[P, R]:
        """What will run."""
        if kernel_mode() == "fast":
            for function, supports in self.faster:
                if supports(*args, **options):
                    return function
        return self.book


__all__ = ["Rule"]
