"""Run the CUDA kernels on the CPU, without a GPU: the very `.cu` source, compiled by the host compiler.

`runner.h` beside this file gives CUDA's words their meaning in plain C++: every thread of a block is a fibre, and barriers,
shared memory, warp shuffles and atomics do what they do on a GPU, but in an order that can be chosen. A program whose
result depends on that order has a race.

    module = load(source, ("-DReal=float32",))
    module.launch("scale", grid=(4,), block=(64,), args=(address, np.int32(256), np.float32(2)))

Pointers are addresses (of NumPy arrays: ``x.ctypes.data``), all other arguments NumPy scalars of exactly the type that
the kernel declares: a mistake there is silent on a GPU, and an error here.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

RUNNER = Path(__file__).with_name("runner.h")
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(')
FLAGS = (
    "-std=c++17",
    "-O1",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-U_FORTIFY_SOURCE",
    "-ftrivial-auto-var-init=pattern",
    "-fno-strict-aliasing",
    "-fsanitize=alignment",  # a trap where an address is not a multiple of what its type asks for
    "-fsanitize-undefined-trap-on-error",
)
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter", "-Wno-unused-function", "-Wno-clobbered")
KINDS = {"i": np.int32, "u": np.uint32, "l": np.int64, "f": np.float32}
STATIC_LIMIT = 48 * 1024  # bytes of shared memory that a launch may use without asking for more

UNTOUCHED = 0xA5  # a byte that no kernel has written

_NO_ACCESS = 0  # PROT_NONE
_libc = ctypes.CDLL(None, use_errno=True)
_lock = threading.Lock()  # the runner has one set of fibres


class KernelError(RuntimeError):
    """A kernel did what it must not: the message says which thread, and what."""


class CompileError(RuntimeError):
    """The host compiler refuses the source; the message is the compiler's."""


class Module:
    """A compiled `.cu` file; see `load`.

    Attributes:
        kernels: the names of its ``__global__`` functions.
        order: who goes first: ``ascending``, ``descending``, or ``shuffled``; for threads, and for blocks.
    """

    def __init__(self, library: Path, kernels: tuple[str, ...]) -> None:
        self._library = ctypes.CDLL(str(library))
        self.kernels = kernels
        self.order = "ascending"
        self._library.cuda_on_cpu_launch.restype = ctypes.c_char_p
        self._library.cuda_on_cpu_kinds.restype = ctypes.c_char_p

    def launch(self, name: str, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[object, ...], shared_mem: int = 0) -> None:
        """Run a kernel to its end.

        Raises:
            KernelError: for a name, arguments or sizes that do not fit, and for what a thread did wrong.
        """
        if name not in self.kernels:
            raise KernelError(f"there is no kernel {name!r}; there are {', '.join(self.kernels)}.")
        number = self.kernels.index(name)
        kinds = self._library.cuda_on_cpu_kinds(number).decode()
        if len(args) != len(kinds):
            raise KernelError(f"{name} takes {len(kinds)} arguments, got {len(args)}.")
        holders = [_holder(name, i, kind, value) for i, (kind, value) in enumerate(zip(kinds, args, strict=True))]
        pointers = (ctypes.c_void_p * len(holders))(*(ctypes.addressof(holder) for holder in holders))
        grid3, block3 = ((ctypes.c_uint * 3)(*(*size, 1, 1)[:3]) for size in (grid, block))
        order = self._order_of(int(np.prod(block)))
        with _lock:
            message = self._library.cuda_on_cpu_launch(
                number, pointers, grid3, block3, ctypes.c_size_t(shared_mem), order.ctypes, self.order == "descending"
            )
        if message:
            raise KernelError(f"{name}: {message.decode()}.")

    def _order_of(self, threads: int) -> np.ndarray:
        ascending = np.arange(threads, dtype=np.int32)
        if self.order == "shuffled":
            return np.random.default_rng(0).permutation(ascending)
        return ascending if self.order == "ascending" else ascending[::-1].copy()


def load(source: str, options: tuple[str, ...] = ()) -> Module:
    """Compile CUDA source (with its own headers already inlined) for this machine's CPU; the same source only once.

    Args:
        options: those of NVRTC; ``-D…`` are handed to the host compiler, others mean nothing to it.

    Raises:
        CompileError: with the compiler's words, or if there is no C++ compiler.
    """
    return _load(source, tuple(option for option in options if option.startswith("-D")))


@functools.cache
def _load(source: str, defines: tuple[str, ...]) -> Module:
    kernels = tuple(KERNEL.findall(source))
    if not kernels:
        raise CompileError('the source has no kernel: a function that begins with extern "C" __global__ void.')
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise CompileError(f"running kernels on the CPU needs a C++ compiler, and {compiler!r} is not here: install g++, or set CXX.")
    table = "".join(f"    {{Launcher<{name}>::run, Launcher<{name}>::kinds()}},\n" for name in kernels)
    program = f'#include "{RUNNER}"\n{source}\n' + "namespace cuda_on_cpu {\nconst Entry kernels[] = {\n" + table + "};\n}\n"
    key = hashlib.sha256("\0".join((RUNNER.read_text(), program, compiler, *defines, *FLAGS, *WARNINGS)).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"cuda-on-cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(
            dir=folder
        ) as scratch:  # several test processes may compile the same at once: the rename is atomic
            made = Path(scratch) / "kernel.so"
            command = [compiler, *FLAGS, *WARNINGS, *defines, "-x", "c++", "-", "-o", str(made)]
            done = subprocess.run(command, input=program, capture_output=True, text=True)
            if done.returncode:
                raise CompileError(done.stderr)
            made.replace(library)
    return Module(library, kernels)


@contextlib.contextmanager
def fenced(blocks: Iterable[tuple[int, int]], at_end: bool = True) -> Iterator[Callable[[int], int]]:
    """Lets a kernel work on copies of some memory, each beside a page that nobody may touch; afterwards they are copied back.

    Args:
        blocks: address and size of each, without overlap.
        at_end: the page is right behind the copy, else right before it. (Up to a multiple of 16 bytes: kernels read as many at once.)

    Yields:
        Where an address within one of the blocks now is.

    Raises:
        KernelError: afterwards, if something was written between the end of a copy and the next multiple of 16 bytes.
    """
    copies: dict[tuple[int, int], tuple[int, mmap.mmap]] = {}
    for start, size in set(blocks):
        room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = mmap.mmap(-1, room + 2 * mmap.PAGESIZE)
        first = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        for fence in (first, first + mmap.PAGESIZE + room):
            if _libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(mmap.PAGESIZE), _NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect")
        copy = first + mmap.PAGESIZE + (room - -(-size // 16) * 16 if at_end else 0)
        ctypes.memset(copy, UNTOUCHED, -(-size // 16) * 16)
        ctypes.memmove(copy, start, size)
        copies[start, size] = copy, pages

    def there(address: int) -> int:
        start, size = next((start, size) for start, size in copies if start <= address < start + size)
        return copies[start, size][0] + address - start

    yield there
    for (start, size), (copy, _) in copies.items():
        behind = ctypes.string_at(copy + size, -size % 16)
        if behind.strip(bytes([UNTOUCHED])):
            raise KernelError(f"{len(behind)} bytes behind an array of {size} bytes were written to.")
        ctypes.memmove(start, copy, size)


def _holder(name: str, position: int, kind: str, value: object) -> ctypes._SimpleCData:
    """``value`` in memory as the kernel expects it."""
    where = f"{name}, argument {position}"
    if kind == "p":
        if not isinstance(value, int | np.uintp):
            raise KernelError(f"{where} is a pointer, got {value!r}.")
        return ctypes.c_void_p(int(value))
    if kind not in KINDS:
        raise KernelError(f"{where} has a type that is not used here: int, unsigned, long long, float and pointers are.")
    if type(value) is not KINDS[kind]:
        raise KernelError(f"{where} must be a numpy.{KINDS[kind].__name__}, got {value!r} of type {type(value).__name__}.")
    return np.ctypeslib.as_ctypes_type(KINDS[kind])(value.item())


__all__ = ["CompileError", "KernelError", "Module", "fenced", "load"]
