"""The stand-in's ndarray: a NumPy array that behaves like CuPy's, and refuses what CuPy's refuses."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.standin import machine as state
from tests.standin.machine import poison

IMPLICIT = "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."


_owners: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by the id of the NumPy array that they wrap


class ndarray:
    """Wraps a NumPy array, ``_a``; is none, and refuses to be taken for one."""

    __slots__ = ("__weakref__", "_a", "_base", "_device")
    __hash__ = None  # type: ignore[assignment]
    __array_priority__ = 100

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C") -> None:
        made = np.empty(shape, dtype, order)
        state.machine.adopt(made)
        poison(made)
        self._a, self._base, self._device = made, None, state.machine.device
        _owners[id(made)] = self
        self._watch()

    @classmethod
    def of(cls, array: np.ndarray) -> ndarray:
        """A wrapper for memory that the machine knows; for an array that owns its memory always the same one."""
        if id(array) in _owners:
            return _owners[id(array)]
        self = cls.__new__(cls)
        owner = state.owner_of(array)
        self._a, self._base = array, None if owner is array else cls.of(owner)
        self._device = state.machine.device if self._base is None else self._base._device
        if owner is array:
            _owners[id(array)] = self
            self._watch()
        return self

    def _watch(self) -> None:
        """Under capture, note when the memory is free again: the graph keeps the NumPy array, but nobody has this one."""
        if state.machine.graph is not None:
            weakref.finalize(self, state.machine.freed_in_capture, state.machine.graph, self._a).atexit = False

    # --- what it refuses --------------------------------------------------------------------------------

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(IMPLICIT)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """numpy.add(x, y) of CuPy arrays runs CuPy's add, as in CuPy; anything mixed is refused there."""
        from tests.standin import library

        function = library.function(ufunc.__name__)
        if method == "__call__":
            return function(*inputs, **kwargs)
        return getattr(function, method)(*inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from tests.standin import library

        return library.function(function.__name__)(*args, **kwargs)

    # --- what it knows ----------------------------------------------------------------------------------

    shape = property(lambda self: self._a.shape, lambda self, value: setattr(self._a, "shape", value))
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    itemsize = property(lambda self: self._a.itemsize)
    nbytes = property(lambda self: self._a.nbytes)
    strides = property(lambda self: self._a.strides)
    T = property(lambda self: ndarray.of(self._a.T))

    @property
    def device(self) -> Any:
        from tests.standin import library

        return library.Device(self._device)

    @property
    def flags(self) -> Any:
        flags = self._a.flags
        return SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=self._a.base is None)

    @property
    def base(self) -> Any:
        """The array whose memory this is a view of: always the same object, as in CuPy."""
        return self._base

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self._a.ctypes.data, device_id=self._device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        strides = None if self._a.flags.c_contiguous else self._a.strides
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False), "strides": strides, "version": 3}

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Iterator[ndarray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"stand-in for cupy.ndarray, {self.dtype} {self.shape}"

    # --- what the host reads ----------------------------------------------------------------------------

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        state.machine.read("get()")
        if out is not None:
            np.copyto(out, self._a)
            return out
        return self._a.copy(order)

    def item(self, *args: int) -> Any:
        state.machine.read("item()")
        return self._a.item(*args)

    def tolist(self) -> Any:
        state.machine.read("tolist()")
        return self._a.tolist()

    def __float__(self) -> float:
        state.machine.read("float()")
        return float(self._a)

    def __int__(self) -> int:
        state.machine.read("int()")
        return int(self._a)

    def __index__(self) -> int:
        state.machine.read("an index")
        return operator.index(self._a)

    def __bool__(self) -> bool:
        state.machine.read("bool()")
        return bool(self._a)

    def set(self, array: np.ndarray, stream: Any = None) -> None:
        """From the host; both arrays must look alike."""
        if not isinstance(array, np.ndarray) or array.dtype != self.dtype or array.shape != self.shape:
            raise TypeError(f"set() takes a NumPy array of {self.dtype} {self.shape}.")
        state.machine.refuse_under_capture()
        np.copyto(self._a, array)

    # --- parts ------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> ndarray:
        plain = index(key, self.shape)
        if has_mask(plain):
            state.machine.read("selecting by a mask")
        a = self._a  # what is noted in a graph must not keep this object alive
        look_up = lambda: a[index(key, a.shape)]  # noqa: E731 - the index as it is then
        return ndarray.of(state.machine.compute("getitem", look_up, *parts(plain)))

    def __setitem__(self, key: Any, value: Any) -> None:
        plain, source = index(key, self.shape), unwrap(value, "setting items")
        if has_mask(plain) and isinstance(source, np.ndarray) and source.ndim:
            state.machine.read("setting many values by a mask")
        a = self._a
        state.machine.note("setitem", [source], [a[plain]])
        state.machine.write("setitem", lambda: a.__setitem__(index(key, a.shape), source))

    def fill(self, value: Any) -> None:
        a = self._a
        state.machine.note("fill", [], [a])
        state.machine.write("fill", lambda: a.fill(value))

    def scatter_add(self, key: Any, value: Any) -> None:
        source = unwrap(value, "scatter_add")
        state.machine.note("scatter_add", [self._a, source], [self._a])
        a = self._a
        state.machine.write("scatter_add", lambda: np.add.at(a, index(key, a.shape), source))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in METHODS:
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r} in this stand-in")

        def method(*args: Any, **kwargs: Any) -> Any:
            a, out = self._a, kwargs.get("out")  # this holds `self` until there is a result, and what is noted in a graph does not
            plain = unwrap(args, name), unwrap(kwargs, name)
            if out is not None:
                state.machine.note(name, [a, *plain[0]], [out._a])
                state.machine.write(name, lambda: getattr(a, name)(*plain[0], **plain[1]))
                return out
            return wrap(state.machine.compute(name, lambda: getattr(a, name)(*plain[0], **plain[1]), a, *plain[0]))

        return method


# Methods that NumPy's arrays share with CuPy's, and that do not wait for the device.
METHODS = frozenset(
    [
        "all",
        "any",
        "argmax",
        "argmin",
        "argpartition",
        "argsort",
        "astype",
        "clip",
        "conj",
        "copy",
        "cumprod",
        "cumsum",
        "diagonal",
        "dot",
        "flatten",
        "max",
        "mean",
        "min",
        "prod",
        "ravel",
        "repeat",
        "reshape",
        "round",
        "searchsorted",
        "squeeze",
        "std",
        "sum",
        "swapaxes",
        "take",
        "trace",
        "transpose",
        "var",
        "view",
    ]
)


def _operators() -> None:
    """The arithmetic of CuPy's arrays, each by the function of that name."""
    from tests.standin import library

    names = {
        "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide", "mod": "remainder",
        "pow": "power", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift",
        "rshift": "right_shift",
    }  # fmt: skip
    compared = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal"}
    single = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}

    def binary(name: str) -> Callable[[Any, Any], Any]:
        return library.function(name)

    def reflected(name: str) -> Callable[[Any, Any], Any]:
        return lambda self, other: library.function(name)(other, self)

    def in_place(name: str) -> Callable[[Any, Any], Any]:
        return lambda self, other: library.function(name)(self, other, out=self)

    def unary(name: str) -> Callable[[Any], Any]:
        return library.function(name)

    for short, name in names.items():
        setattr(ndarray, f"__{short}__", binary(name))
        setattr(ndarray, f"__r{short}__", reflected(name))
        setattr(ndarray, f"__i{short}__", in_place(name))
    for short, name in compared.items():
        setattr(ndarray, f"__{short}__", binary(name))
    for short, name in single.items():
        setattr(ndarray, f"__{short}__", unary(name))


def unwrap(value: Any, where: str) -> Any:
    """What NumPy computes with; a NumPy array among the arguments is refused, as CuPy does."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type <class 'numpy.ndarray'> in {where}: bring it to the device first.")
    if isinstance(value, tuple | list):
        return type(value)(unwrap(part, where) for part in value)
    if isinstance(value, dict):
        return {name: unwrap(part, where) for name, part in value.items()}
    return value


def wrap(value: Any) -> Any:
    """Arrays as stand-ins, also in tuples and lists."""
    if isinstance(value, tuple | list):
        return type(value)(map(wrap, value))
    return ndarray.of(value) if isinstance(value, np.ndarray) else value


def index(key: Any, shape: tuple[int, ...]) -> Any:
    """An index for NumPy. Integers out of range wrap around in an index array: CuPy does not raise there."""
    parts = key if isinstance(key, tuple) else (key,)
    plain, axis = [], 0
    spread = len(shape) - sum(part is not None and part is not Ellipsis for part in parts)
    for part in parts:
        if isinstance(part, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'> as an index: bring it to the device first.")
        if isinstance(part, list):
            raise IndexError("CuPy takes no list as an index.")
        if isinstance(part, ndarray):
            array = part._a
            if array.dtype.kind == "b":
                axis += array.ndim - 1
            elif axis < len(shape) and shape[axis]:
                array = array % shape[axis]
            plain.append(array)
        else:
            plain.append(part)
        axis += spread if part is Ellipsis else part is not None
    return tuple(plain) if isinstance(key, tuple) else plain[0]


def parts(plain: Any) -> tuple[Any, ...]:
    """The parts of an index."""
    return plain if isinstance(plain, tuple) else (plain,)


def has_mask(plain: Any) -> bool:
    return any(isinstance(part, np.ndarray) and part.dtype.kind == "b" for part in parts(plain))
