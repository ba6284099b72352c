"""The modules of the stand-in: `cupy`, `cupyx`, `cupy.cuda` and what is below them.

A function has the name that it has in CuPy and does what NumPy's function of that name does. Which names there are is read off the real
CuPy, which imports without a driver: code that uses another name fails here as it would there.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from tests import cuda_on_cpu
from tests.cuda_on_cpu import KERNEL
from tests.cuda_variants import THREADS, dynamic_shared
from tests.standin import cublas, nccl
from tests.standin import machine as state
from tests.standin.array import ndarray, unwrap, wrap
from tests.standin.machine import CUDARuntimeError, Graph, MemoryPool, OutOfMemoryError

# These look at values to know the shape of their result.
WAITING = frozenset(["nonzero", "flatnonzero", "argwhere", "unique", "compress", "extract", "array_equiv", "trim_zeros", "bincount"])
BY_CUBLAS = frozenset(["matmul", "dot", "tensordot", "inner", "vdot"])  # through CuPy's wrappers, which refuse under capture
JOINING = frozenset(["concatenate", "stack", "hstack", "vstack", "dstack", "column_stack"])
# What takes or gives no array: the same object in both libraries.
SHARED = frozenset(["broadcast_shapes", "can_cast", "promote_types", "result_type", "min_scalar_type", "common_type"])


@functools.cache
def function(name: str) -> Any:
    """CuPy's function or ufunc of this name.

    Raises:
        AttributeError: if CuPy has none.
    """
    if name not in names_of("cupy"):
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    theirs = getattr(np, name, None)
    if theirs is None:
        raise AttributeError(f"CuPy has {name!r}, the stand-in has not: add it to tests/standin/library.py")
    if name in SHARED:
        return lambda *args, **kwargs: theirs(*(arg.dtype if isinstance(arg, ndarray) else arg for arg in args), **kwargs)

    @functools.wraps(theirs)
    def call(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        plain, options = unwrap(args, name), unwrap(kwargs, name)
        if name in WAITING or (name == "where" and len(args) == 1):
            state.machine.read(name)
        if name == "matmul":
            _check_matmul(*args)
        if name in BY_CUBLAS:
            cublas.setStream(1, 0)
        if name in JOINING and len(plain[0]) > 8:
            state.machine.refuse_under_capture()  # CuPy tells one kernel where they all are, by an array of addresses from the host
        if name in ("take", "put_along_axis", "take_along_axis"):
            do = lambda *args, **kwargs: theirs(*_wrapped(name, args, kwargs), **kwargs)  # noqa: E731 - of the indices when it is done
        else:
            do = theirs
        if name in ("put_along_axis", "copyto", "fill_diagonal", "place", "putmask", "put"):
            state.machine.note(name, plain[1:], plain[:1])
            state.machine.write(name, lambda: do(*plain, **options))
            return None
        if out is not None:
            target = unwrap(out, name)
            state.machine.note(name, plain, [target])
            state.machine.write(name, lambda: do(*plain, out=target, **options))
            return out
        return wrap(state.machine.compute(name, lambda: do(*plain, **options), *_read_by(name, plain)))

    if isinstance(theirs, np.ufunc):
        for method in ("reduce", "accumulate", "outer", "reduceat"):
            setattr(call, method, _ufunc_method(name, method))

        def at(a: ndarray, key: Any, *values: Any) -> None:
            plain = unwrap((key, *values), f"{name}.at")
            state.machine.write(f"{name}.at", lambda: theirs.at(a._a, *plain))
            state.machine.note(f"{name}.at", [a._a, *plain], [a._a])

        call.at = at  # type: ignore[attr-defined]
    return call


def _read_by(name: str, plain: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arrays among the arguments of a function that are read as a whole."""
    if name in JOINING:
        return tuple(plain[0])
    return plain[1:] if name in state.GATHERING else plain


def _ufunc_method(name: str, method: str) -> Callable[..., Any]:
    theirs = getattr(getattr(np, name), method)

    def call(*args: Any, **kwargs: Any) -> Any:
        plain, options = unwrap(args, name), unwrap(kwargs, name)
        return wrap(state.machine.compute(f"{name}.{method}", lambda: theirs(*plain, **options), *plain))

    return call


def _check_matmul(a: Any, b: Any) -> None:
    """CuPy 14 multiplies stacks of matrices in few types."""
    if max(getattr(a, "ndim", 0), getattr(b, "ndim", 0)) > 2 and "bfloat16" in (a.dtype.name, b.dtype.name):
        raise TypeError("CuPy's matmul takes no bfloat16 with more than two axes.")


def _wrapped(name: str, plain: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    """Indices out of range wrap around instead of raising."""
    array, indices, *rest = plain
    axis = options.get("axis", rest[-1] if rest else None)
    length = array.shape[axis] if axis is not None and array.ndim else array.size
    return (array, np.asarray(indices) % max(1, length), *rest)


@functools.cache
def names_of(module: str) -> frozenset[str]:
    """The names that the real module has."""
    found = REAL
    for part in module.split(".")[1:]:
        found = getattr(found, part)
    return frozenset(dir(found))


def _real() -> Any:
    import cupy

    if cupy.__dict__.get("is_stand_in"):
        raise RuntimeError("the stand-in is installed already.")
    return cupy


REAL = _real()  # CuPy itself, imported once before any stand-in takes its name


# --- arrays out of nothing, or out of the host's memory ----------------------------------------------------


def array(obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", subok: bool = False, ndmin: int = 0) -> ndarray:
    """A new array from the host's memory or the device's."""
    if isinstance(obj, ndarray):
        source = obj._a
        return wrap(state.machine.compute("array", lambda: np.array(source, dtype=dtype, copy=True, order=order, ndmin=ndmin), source))
    if isinstance(obj, tuple | list) and any(isinstance(part, ndarray) for part in obj):
        return function("stack")([array(part, dtype) for part in obj])
    if isinstance(obj, np.ndarray):
        state.machine.refuse_under_capture()  # memory of the host that is not pinned
    return wrap(state.machine.compute("array", lambda: np.array(obj, dtype=dtype, copy=True, order=order, ndmin=ndmin)))


def asarray(a: Any, dtype: Any = None, order: str | None = None, *, blocking: bool = False) -> ndarray:
    """``a`` itself where it will do."""
    fits = dtype is None or np.dtype(dtype) == getattr(a, "dtype", None)  # numpy.dtype(None) is float64: not to be compared with
    if isinstance(a, ndarray) and fits and (order != "C" or a.flags.c_contiguous):
        return a
    return array(a, dtype, order=order or "K")


def ascontiguousarray(a: ndarray, dtype: Any = None) -> ndarray:
    """In row-major order; like NumPy's it gives an array without axes an axis (seen in CuPy 14.2 on a GPU)."""
    found = asarray(a, dtype, order="C")
    return found.reshape(1) if found.ndim == 0 else found


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    """To the host."""
    return a.get(order=order, out=out) if isinstance(a, ndarray) else np.asarray(a, order=order)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Memory with poison in it."""
    return ndarray(shape, dtype, order=order)


def empty_like(prototype: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    """The same, laid out as another array."""
    laid_out = np.empty_like(unwrap(prototype, "empty_like"), dtype=dtype, order=order, shape=shape)
    state.machine.adopt(laid_out)
    state.poison(laid_out)
    return ndarray.of(laid_out)


def _made(name: str) -> Callable[..., ndarray]:
    def make(*args: Any, **kwargs: Any) -> ndarray:
        plain, options = unwrap(args, name), unwrap(kwargs, name)
        return wrap(state.machine.compute(name, lambda: getattr(np, name)(*plain, **options)))

    return make


def get_array_module(*args: Any) -> Any:
    """CuPy if any argument is its array."""
    import sys

    return sys.modules["cupy"] if any(isinstance(arg, ndarray) for arg in args) else np


# --- kernels of ours -------------------------------------------------------------------------------------


LARGEST_GRID = (2**31 - 1, 65535, 65535)  # CUDA C++ Programming Guide, table of technical specifications


class RawModule:
    """A .cu file; it is compiled for the CPU by `tests.cuda_on_cpu`."""

    def __init__(
        self, code: str | None = None, *, path: str | None = None, options: tuple[str, ...] = (), backend: str = "nvrtc", **kwargs: Any
    ) -> None:
        if code is None or backend != "nvrtc" or not isinstance(options, tuple):
            raise TypeError("the stand-in takes RawModule(code=..., options=(...), backend='nvrtc').")
        self._module = cuda_on_cpu.load(code, options) if state.machine.computes else None
        self._parameters = {name: parameters(listed) for name, listed in SIGNATURE.findall(code)}
        defines = dict(option[2:].split("=") for option in options if option.startswith("-D"))
        self._defines = {name: int(value) if value.isdigit() else value for name, value in defines.items()}

    def get_function(self, name: str) -> RawKernel:
        """One of its kernels."""
        if name not in self._parameters:
            raise ValueError(f"named symbol not found: {name}")
        most = (THREADS[name], dynamic_shared(name, self._defines)) if name in THREADS else (1024, 227 * 1024)
        return RawKernel(self._module, name, self._parameters[name], *most)


SIGNATURE = re.compile(KERNEL.pattern + r"([^)]*)\)")
# What these write they have read before; and these read no more of an array than they write.
UPDATED = {"adamw": ("p", "m", "v", "v_max"), "scale": ("g",)}


def parameters(listed: str) -> dict[str, str]:
    """The parameters of a kernel from its source: by name, whether they are ``read``, ``written`` or a ``number``."""
    words = [re.findall(r"\w+|\*", one) for one in listed.split(",") if one.strip()]
    return {word[-1]: "number" if "*" not in word else "read" if "const" in word else "written" for word in words}


class RawKernel:
    """A kernel, called with a grid, a block and arguments whose types are those of the source."""

    def __init__(
        self, module: cuda_on_cpu.Module | None, name: str, parameters: dict[str, str], most_threads: int, most_shared: int
    ) -> None:
        self._module, self.name, self._parameters = module, name, parameters
        self._most_threads, self._most_shared = most_threads, most_shared
        self.max_dynamic_shared_size_bytes = cuda_on_cpu.STATIC_LIMIT

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0) -> None:
        if not all(isinstance(size, tuple) for size in (grid, block)) or any(n < 1 for n in (*grid, *block)):
            raise ValueError(f"invalid launch of {self.name}: grid {grid}, block {block}")
        if any(n > most for n, most in zip(grid, LARGEST_GRID, strict=False)):
            raise state.CUDARuntimeError(1)  # cudaErrorInvalidValue
        if int(np.prod(block)) > self._most_threads or shared_mem > self._most_shared:
            raise AssertionError(
                f"{self.name} is launched with {block} threads and {shared_mem} bytes of shared memory, more than the table of "
                "variants says and the compile test has checked."
            )
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise ValueError(f"{self.name} asks for {shared_mem} bytes of shared memory; max_dynamic_shared_size_bytes was not raised.")
        arrays = [arg for arg in args if isinstance(arg, ndarray)]
        for given in arrays:
            if given.nbytes:
                state.machine.check_range(f"{self.name}", given.data.ptr, 1)
        args = tuple(arg._a if isinstance(arg, ndarray) else arg for arg in args)  # what is noted in a graph must not keep arrays alive
        blocks = {found for given in arrays if (found := state.machine.block_of(given.data.ptr))}

        def run() -> None:
            assert self._module is not None
            self._module.order = state.machine.order
            with cuda_on_cpu.fenced(blocks, at_end=self._module.order != "descending") as there:
                plain = tuple((there(arg.ctypes.data) if arg.nbytes else 0) if isinstance(arg, np.ndarray) else arg for arg in args)
                self._module.launch(self.name, grid, block, plain, shared_mem)

        state.machine.launches.append(self.name)
        self._note(args)
        state.machine.write(self.name, run)

    def _note(self, args: tuple[Any, ...]) -> None:
        named = dict(zip(self._parameters, args, strict=True))
        written = {name for name, use in self._parameters.items() if use == "written"}
        read = {name for name, use in self._parameters.items() if use == "read"} | set(UPDATED.get(self.name, ()))
        facts = {name: arg.shape if isinstance(arg, np.ndarray) else getattr(arg, "item", lambda: None)() for name, arg in named.items()}
        if self.name == "embedding_backward" and facts["add"]:
            named["dweight"], read = named["dy"], read | {"dweight"}  # at most so many of its rows
        sides = ([named[name] for name in sorted(names)] for names in (read, written))
        state.machine.note(self.name, *sides, arguments=facts)


# --- streams, graphs, devices ------------------------------------------------------------------------------


class Stream:
    """A queue of work; here all work is done at once, except while it captures."""

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None) -> None:
        self.is_non_blocking = non_blocking
        self.ptr = 0 if null else id(self)
        self._before: list[Stream] = []

    def __enter__(self) -> Stream:
        self._before.append(_stream[-1])
        _stream.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        _stream.pop()

    def use(self) -> Stream:
        _stream[-1] = self
        return self

    def synchronize(self) -> None:
        state.machine.refuse_under_capture()

    def begin_capture(self, mode: Any = None) -> None:
        if self.ptr == 0:
            raise CUDARuntimeError(900)  # the null stream cannot capture
        state.machine.refuse_under_capture()
        if _stream[-1] is not self:
            raise RuntimeError("what is captured must run on the stream that captures: use it as the current one.")
        state.machine.graph = Graph(self.ptr)

    def end_capture(self) -> Graph:
        graph, state.machine.graph = state.machine.graph, None
        if graph is None:
            raise RuntimeError("end_capture without begin_capture")
        return graph

    def is_capturing(self) -> bool:
        return state.machine.graph is not None

    def record(self, event: Any = None) -> Any:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Any) -> None:
        """Everything before is done."""


class Event:
    """A point in a stream."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.time = 0.0

    done = property(lambda self: state.machine.is_done)

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        state.machine.refuse_under_capture()


class Device:
    """One of the GPUs that the machine pretends to have."""

    def __init__(self, device: Any = None) -> None:
        self.id = state.machine.device if device is None else int(device)
        if self.id >= state.machine.devices:
            raise CUDARuntimeError(101)

    def __enter__(self) -> Device:
        self._before, state.machine.device = state.machine.device, self.id
        return self

    def __exit__(self, *error: Any) -> None:
        state.machine.device = self._before

    def __int__(self) -> int:
        return self.id

    def use(self) -> None:
        state.machine.device = self.id

    def synchronize(self) -> None:
        state.machine.refuse_under_capture()

    compute_capability = property(lambda self: "".join(map(str, state.machine.compute_capability)))
    mem_info = property(lambda self: _memory_info())
    pci_bus_id = property(lambda self: f"0000:{self.id:02x}:00.0")


_stream: list[Stream] = [Stream(null=True)]


def _memory_info() -> tuple[int, int]:
    return state.machine.memory - state.machine.default_pool.total_bytes(), state.machine.memory


@contextlib.contextmanager
def using_allocator(allocator: Callable[[int], Any] | None = None) -> Iterator[None]:
    """Take memory from another pool for a while."""
    state.machine.allocators.append(allocator or state.machine.default_pool.malloc)
    try:
        yield
    finally:
        state.machine.allocators.pop()


def _device_count() -> int:
    if not state.machine.present:
        raise CUDARuntimeError(100)
    if state.machine.driver < 12000:
        raise CUDARuntimeError(35)
    return state.machine.devices


def _is_available() -> bool:
    """As in CuPy: no driver or no GPU is False, anything else is raised."""
    return state.machine.present and _device_count() > 0


def _properties(device: int = 0) -> dict[str, Any]:
    major, minor = state.machine.compute_capability
    return {"name": b"stand-in", "major": major, "minor": minor, "totalGlobalMem": state.machine.memory, "multiProcessorCount": 132}


# --- the modules -----------------------------------------------------------------------------------------


class _Module(ModuleType):
    """A module with the real one's names: ours if we have it, a constant of the real one, or an error that says which is missing."""

    def __init__(self, name: str, ours: dict[str, Any], fallback: Callable[[str], Any] | None = None) -> None:
        super().__init__(name)
        self.__dict__.update(ours, is_stand_in=True)
        self.__path__: list[str] = []  # so that `import cupy.cuda` looks into sys.modules
        self._fallback = fallback

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if self._fallback:
            return self._fallback(name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}, or the stand-in has not: see tests/standin/library.py")


def _from_numpy(name: str) -> Any:
    """Constants and types are NumPy's; functions are made on the way."""
    if name not in names_of("cupy"):
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    theirs = getattr(np, name, None)
    if theirs is None or callable(theirs):
        return theirs if inspect.isclass(theirs) and name != "ndarray" else function(name)
    if isinstance(theirs, ModuleType):
        raise AttributeError(f"the stand-in has no cupy.{name}: add it to tests/standin/library.py")
    return theirs


def _constant(real: Any) -> Callable[[str], Any]:
    def look_up(name: str) -> Any:
        value = getattr(real, name)
        if not isinstance(value, int):
            raise AttributeError(f"{real.__name__} has {name!r}, the stand-in has not: add it to tests/standin/library.py")
        return value

    return look_up


def modules() -> dict[str, ModuleType]:
    """All of them, by the names under which Python finds them."""
    runtime = _Module(
        "cupy.cuda.runtime",
        {
            "CUDARuntimeError": CUDARuntimeError,
            "getDeviceCount": _device_count,
            "getDevice": lambda: state.machine.device,
            "setDevice": lambda device: Device(device).use(),
            "getDeviceProperties": _properties,
            "driverGetVersion": lambda: state.machine.driver,
            "runtimeGetVersion": lambda: 12090,
            "memGetInfo": _memory_info,
            "deviceSynchronize": state.machine.refuse_under_capture,
        },
        _constant(REAL.cuda.runtime),
    )
    blas = _Module("cupy_backends.cuda.libs.cublas", {name: value for name, value in vars(cublas).items() if not name.startswith("_")})
    handle = {"get_cublas_handle": lambda: 1}
    device = _Module("cupy.cuda.device", {"Device": Device, **handle})
    memory = _Module("cupy.cuda.memory", {"OutOfMemoryError": OutOfMemoryError, "MemoryPool": MemoryPool})
    cuda = _Module(
        "cupy.cuda",
        {
            "runtime": runtime, "cublas": blas, "device": device, "memory": memory, "Device": Device, "Stream": Stream, "Event": Event,
            "Graph": Graph, "MemoryPool": MemoryPool, "using_allocator": using_allocator, "is_available": _is_available,
            "get_current_stream": lambda device_id=-1: _stream[-1], "set_allocator": _set_allocator,
            "get_elapsed_time": lambda start, end: 1000 * (end.time - start.time), **handle,
        },
    )  # fmt: skip
    made = {name: _made(name) for name in ("zeros", "ones", "full", "arange", "eye", "zeros_like", "ones_like", "full_like", "tri")}
    cupy = _Module(
        "cupy",
        {
            "__version__": REAL.__version__, "ndarray": ndarray, "cuda": cuda, "array": array, "asarray": asarray, "asnumpy": asnumpy,
            "ascontiguousarray": ascontiguousarray, "empty": empty, "empty_like": empty_like, "get_array_module": get_array_module,
            "RawModule": RawModule, "RawKernel": RawKernel, "get_default_memory_pool": lambda: state.machine.default_pool, **made,
        },
        _from_numpy,
    )  # fmt: skip
    cupyx = _Module("cupyx", {"scatter_add": lambda a, key, value: a.scatter_add(key, value)})
    libs = _Module("cupy_backends.cuda.libs", {"cublas": blas})
    return {
        "cupy": cupy, "cupyx": cupyx, "cupy.cuda": cuda, "cupy.cuda.runtime": runtime, "cupy.cuda.cublas": blas, "cupy.cuda.device": device,
        "cupy.cuda.memory": memory, "cupy_backends.cuda.libs": libs, "cupy_backends.cuda.libs.cublas": blas,
        "cupy_backends.cuda.api.runtime": runtime, "cupy.cuda.nccl": _Module("cupy.cuda.nccl", nccl.NAMES),
    }  # fmt: skip


def _set_allocator(allocator: Callable[[int], Any] | None = None) -> None:
    state.machine.allocators[-1] = allocator or state.machine.default_pool.malloc
