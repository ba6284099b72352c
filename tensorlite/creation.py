"""Creation of tensors: the only place where a device and a dtype are named.

Random tensors are drawn on the CPU and then copied to the device, so a seed gives the same numbers on both.
"""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

from tensorlite import random
from tensorlite.backend import Device, array_module, device_of
from tensorlite.tensor import Tensor, is_floating

float64, float32, float16 = np.dtype("float64"), np.dtype("float32"), np.dtype("float16")
int64, int32, uint16, uint8 = np.dtype("int64"), np.dtype("int32"), np.dtype("uint16"), np.dtype("uint8")
bool_ = np.dtype("bool")
long = int64


def bfloat16_dtype() -> Any:
    """``tensorlite.bfloat16``: NumPy has no such type of its own, the small package ml_dtypes adds it.

    Raises:
        ImportError: if ml_dtypes is not installed.
    """
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("bfloat16 needs ml_dtypes: pip install 'tensorlite[bfloat16]'.") from error
    return np.dtype(ml_dtypes.bfloat16)


def tensor(data: Any, dtype: Any = None, device: Device | str | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor with a *copy* of ``data``: a number, nested lists, an array or another tensor.

    Args:
        dtype: by default that of an array or tensor; Python floats become float32, Python ints int64.
        device: by default that of an array or tensor, or else the CPU.
        requires_grad: ask for gradients with respect to this tensor.

    Raises:
        TypeError: for text, None and everything else that is not a number of at most 64 bits.
    """
    if isinstance(data, Tensor):
        data = data.array
    if dtype is None and not hasattr(data, "dtype"):
        dtype = _dtype_of_numbers(data)
    if device is None:
        device = device_of(data)
    array = Device(device).asarray(data, dtype)
    if array is data or getattr(array, "base", None) is not None:
        array = array.copy()
    return Tensor(array, requires_grad)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor that shares the memory of ``array``: a change to one is a change to both.

    Raises:
        TypeError: for anything but a NumPy array.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy() takes a NumPy array, got {type(array).__name__}; use tensor() for other data.")
    return Tensor.wrap(array)


def zeros(*shape: Any, dtype: Any = None, device: Device | str = "numpy", requires_grad: bool = False) -> Tensor:
    """A tensor of zeros: ``zeros(2, 3)`` or ``zeros((2, 3))``. On a CPU it takes no memory until something else is written to it."""
    dtype = _dtype_of_numbers(0.0) if dtype is None else dtype
    return Tensor(Device(device).asarray(np.zeros(_shape(shape), dtype)), requires_grad)


def ones(*shape: Any, dtype: Any = None, device: Device | str = "numpy", requires_grad: bool = False) -> Tensor:
    """A tensor of ones: ``ones(2, 3)`` or ``ones((2, 3))``."""
    return full(_shape(shape), 1.0, dtype=dtype, device=device, requires_grad=requires_grad)


def full(shape: Any, fill_value: float, dtype: Any = None, device: Device | str = "numpy", requires_grad: bool = False) -> Tensor:
    """A tensor in which every element is ``fill_value``; its dtype defaults to that of the value, as in torch."""
    dtype = _dtype_of_numbers(fill_value) if dtype is None else dtype
    return Tensor(Device(device).asarray(np.full(_shape((shape,)), fill_value, dtype)), requires_grad)


def zeros_like(x: Tensor, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of the shape, dtype and device of ``x``."""
    return Tensor(array_module(x.array).zeros_like(x.array, dtype=dtype), requires_grad)


def ones_like(x: Tensor, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of the shape, dtype and device of ``x``."""
    return Tensor(array_module(x.array).ones_like(x.array, dtype=dtype), requires_grad)


def arange(
    start: float, end: float | None = None, step: float = 1, dtype: Any = None, device: Device | str = "numpy", requires_grad: bool = False
) -> Tensor:
    """``start, start + step, …`` up to but without ``end``; ``arange(n)`` counts from 0."""
    if end is None:
        start, end = 0, start
    dtype = _dtype_of_numbers([start, end, step]) if dtype is None else dtype
    return Tensor(Device(device).asarray(np.arange(start, end, step), dtype), requires_grad)


def rand(
    *shape: Any,
    generator: np.random.Generator | None = None,
    dtype: Any = None,
    device: Device | str = "numpy",
    requires_grad: bool = False,
) -> Tensor:
    """Uniform on [0, 1), from ``generator`` or else the thread's stream (see `tensorlite.manual_seed`)."""
    dtype = float32 if dtype is None else np.dtype(dtype)
    # float32 draws have 24 bits; a float64 just under 1 would be rounded to 1.
    values = (generator or random.default_generator()).random(_shape(shape), dtype=np.float64 if dtype == float64 else np.float32)
    return Tensor(Device(device).asarray(values, dtype), requires_grad)


def randn(
    *shape: Any,
    generator: np.random.Generator | None = None,
    dtype: Any = None,
    device: Device | str = "numpy",
    requires_grad: bool = False,
) -> Tensor:
    """Normal with mean 0 and standard deviation 1, from ``generator`` or else the thread's stream."""
    values = (generator or random.default_generator()).standard_normal(_shape(shape))
    return Tensor(Device(device).asarray(values, float32 if dtype is None else dtype), requires_grad)


def randint(
    low: int,
    high: Any,
    size: Any = None,
    generator: np.random.Generator | None = None,
    dtype: Any = int64,
    device: Device | str = "numpy",
) -> Tensor:
    """Integers from ``low`` up to but without ``high``; ``randint(high, size)`` counts from 0."""
    if size is None:
        low, high, size = 0, low, high
    values = (generator or random.default_generator()).integers(low, high, _shape((size,)))
    return Tensor(Device(device).asarray(values, dtype))


def _shape(shape: tuple[Any, ...]) -> tuple[int, ...]:
    """Both spellings of a shape: ``(2, 3)`` and ``((2, 3),)``."""
    if len(shape) == 1 and not np.isscalar(shape[0]):
        shape = tuple(shape[0])
    if any(int(n) < 0 for n in shape):
        raise ValueError(f"a shape must not have negative lengths, got {shape}.")
    return tuple(int(n) for n in shape)


def _dtype_of_numbers(numbers: Any) -> Any:
    """torch's default for Python numbers: float32, int64 or bool; NumPy would take float64."""
    dtype = np.asarray(numbers).dtype
    if dtype.kind not in "biufcV":
        raise TypeError(f"a tensor holds numbers of at most 64 bits, got {reprlib.repr(numbers)}.")
    return float32 if is_floating(dtype) else dtype
