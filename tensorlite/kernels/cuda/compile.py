"""From a `.cu` file beside this one to a function that can be launched.

CuPy compiles the source with NVRTC at its first use, for the present GPU, and keeps the result on disk
(``~/.cupy/kernel_cache``). Variants, such as the dtype, are macros of the source:

    layernorm = kernel("layernorm.cu", "layernorm_forward", In="float32", Out="bfloat16")
    layernorm(grid=rows, block=256, args=(x, weight, bias, y, mean, inverse_std, C, eps))
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module

FOLDER = Path(__file__).parent
OPTIONS = ("--std=c++17",)
TYPES = ("float32", "float16", "bfloat16")  # what kernels store: names of dtypes, and of types in common.cuh
STATIC_SHARED = 48 * 1024  # bytes of shared memory that a block can have without a special request


def source(file: str) -> str:
    """The text of a `.cu` file, in which our own headers replace their ``#include`` lines."""
    seen: set[str] = set()

    def inline(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = (FOLDER / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
        return re.sub(r'^#include "([\w.]+)"\n', lambda match: inline(match[1]), text, flags=re.MULTILINE)

    return inline(file)


def macros(defines: dict[str, Any]) -> tuple[str, ...]:
    """The compiler's options that define these macros, in alphabetical order."""
    return tuple(f"-D{name}={value}" for name, value in sorted(defines.items()))


class Kernel:
    """One ``__global__`` function; see `kernel`.

    A call takes arrays, numbers and None (a null pointer). An int is passed as a C ``int``, a float as a ``float``, and a NumPy scalar
    in its own type. Arrays are passed as addresses, so they must be contiguous, or the kernel must know their layout.
    """

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, grid: int | tuple[int, ...], block: int, args: Sequence[Any], shared_bytes: int = 0) -> None:
        """Queue the kernel on the current stream.

        Args:
            grid: the number of blocks. An empty grid is not launched, because CUDA refuses it.
            block: threads in a block, a multiple of 32.
            shared_bytes: dynamic shared memory for each block.
        """
        grid = grid if isinstance(grid, tuple) else (grid,)
        if 0 in grid:
            return
        if shared_bytes > STATIC_SHARED:  # more needs a request, and is taken from the L1 cache
            self._function.max_dynamic_shared_size_bytes = shared_bytes
        self._function(grid, (block,), tuple(map(_argument, args)), shared_mem=shared_bytes)


@functools.cache
def kernel(file: str, name: str, **defines: Any) -> Kernel:
    """The function ``name`` of ``file``, compiled with these macros. The file is compiled once for all its functions."""
    return Kernel(_module(file, macros(defines)).get_function(name))


@functools.cache
def _module(file: str, defines: tuple[str, ...]) -> Any:
    cupy = importlib.import_module("cupy")
    return cupy.RawModule(code=source(file), options=(*OPTIONS, *defines), backend="nvrtc")


def clear_cache() -> None:
    """Forget the compiled kernels: for tests, which replace CuPy by another module."""
    kernel.cache_clear()
    _module.cache_clear()


def _argument(value: Any) -> Any:
    if value is None:
        return np.uintp(0)
    if isinstance(value, int):
        return np.int32(value)
    if isinstance(value, float):
        return np.float32(value)
    return value


def on_gpu(*arrays: Array | None, types: Sequence[str] = TYPES) -> bool:
    """Whether all arrays that are not None are CuPy's, contiguous in row-major order, and of one of these dtypes."""
    return all(x is None or (is_cupy(x) and x.flags.c_contiguous and x.dtype.name in types) for x in arrays)


def is_cupy(x: Any) -> bool:
    """Whether ``x`` is an array on a GPU."""
    return hasattr(x, "flags") and array_module(x) is not np


__all__ = ["TYPES", "Kernel", "clear_cache", "is_cupy", "kernel", "macros", "on_gpu", "source"]
