"""Record which module, and which line of it, called an op.

The tape has only ops and arrays. While a `trace` is on, the pair that runs also stores the place that called the op, and the node
keeps it. Outside of a trace nothing is recorded, and nothing is slower.
"""

from __future__ import annotations

import copy
import linecache
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from tensorlite import random
from tensorlite.context import contextmanager
from tensorlite.nn import Module
from tensorlite.op import Pair, observe
from tensorlite.tape import Node

PACKAGE = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True)
class Site:
    """Where an op was called.

    Attributes:
        module: the path of the module, such as ``h.2.attn``; empty for the model itself, None outside of it.
        file, line: of the caller's code, outside of tensorlite.
    """

    module: str | None
    file: str
    line: int

    @property
    def code(self) -> str:
        """The line itself, without its indent; empty if the file cannot be read."""
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}"


@dataclass(frozen=True)
class Call:
    """One call of an op.

    Attributes:
        site: the place of the call.
        pair: the pair that ran.
        arrays, options: the arguments.
        generator: a copy of the thread's random generator, from before the call.
        results: what the op returned.
    """

    site: Site
    pair: Pair
    arrays: tuple[Any, ...]
    options: dict[str, Any]
    generator: np.random.Generator
    results: tuple[Any, ...]


@contextmanager
def trace(model: Module | None = None) -> Iterator[None]:
    """Inside the ``with`` block each node remembers its `Call`: its arguments, which therefore stay in memory, and its `Site`.

    Args:
        model: gives the modules their paths. Without it sites have only a file and a line.
    """
    paths = {id(module): path for path, module in model.named_modules()} if model is not None else {}

    def mark(name: str, pair: Pair) -> Pair:
        marked = copy.copy(pair)
        site = _site(sys._getframe(1), paths)

        def forward(*arrays: Any, **options: Any) -> tuple[Any, Any]:
            given = {key: _as_it_is_now(value) for key, value in options.items()}
            as_given, generator = tuple(map(_as_it_is_now, arrays)), copy.deepcopy(random.default_generator())
            y, saved = pair.forward(*arrays, **options)
            object.__setattr__(marked, "call", Call(site, pair, as_given, given, generator, y if isinstance(y, tuple) else (y,)))
            return y, saved

        object.__setattr__(marked, "forward", forward)
        return marked

    with observe(mark):
        yield


def call_of(node: Node) -> Call | None:
    """How the op of ``node`` was called; None if no `trace` was on."""
    return getattr(node.pair, "call", None)


def _as_it_is_now(value: Any) -> Any:
    """A generator is copied before it draws, so that the same numbers can be drawn again."""
    return copy.deepcopy(value) if isinstance(value, np.random.Generator) else value


def _site(frame: FrameType | None, paths: dict[int, str]) -> Site:
    """The innermost caller outside of tensorlite, and the innermost module that is running."""
    place, module = ("", 0), None
    while frame is not None:
        if not place[0] and not frame.f_code.co_filename.startswith(PACKAGE):
            place = (frame.f_code.co_filename, frame.f_lineno)
        if module is None and frame.f_code.co_name == "forward":
            module = paths.get(id(_self_of(frame)))
        if place[0] and (module is not None or not paths):
            break
        frame = frame.f_back
    return Site(module, *place)


def _self_of(frame: FrameType) -> Any:
    names = frame.f_code.co_varnames
    return frame.f_locals.get(names[0]) if names else None
