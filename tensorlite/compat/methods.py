"""Methods that have no function: device, type, memory layout, and new tensors like this one."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite import creation
from tensorlite.backend import Device, array_module, device_of
from tensorlite.ops.comparison import eq
from tensorlite.ops.rounding import remainder
from tensorlite.ops.shape import to
from tensorlite.tensor import Tensor

# --- where and what -------------------------------------------------------------------------------------


def cpu(x: Tensor) -> Tensor:
    """x on the CPU; x itself if it is there."""
    return to(x, device="cpu")


def cuda(x: Tensor, device: Device | str | int | None = None, non_blocking: bool = False) -> Tensor:
    """x on a GPU; x itself if it is there."""
    return to(x, device="cuda" if device is None else device)


def pin_memory(x: Tensor) -> Tensor:
    """x itself: copies to the GPU need no pinned memory here."""
    return x


_TYPES = {
    "float32": "FloatTensor", "float64": "DoubleTensor", "float16": "HalfTensor", "bfloat16": "BFloat16Tensor", "int64": "LongTensor",
    "int32": "IntTensor", "int16": "ShortTensor", "int8": "CharTensor", "uint8": "ByteTensor", "bool": "BoolTensor",
}  # fmt: skip


def type(x: Tensor, dtype: Any = None) -> Any:
    """torch's name of the type of x, ``"torch.FloatTensor"``; or x converted to a dtype or to a type of such a name."""
    if dtype is None:
        return f"torch.{'' if device_of(x.array).name == 'numpy' else 'cuda.'}{_TYPES.get(x.dtype.name, x.dtype.name)}"
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", "")
    named = [known for known, kind in _TYPES.items() if kind == name.rpartition(".")[2]]
    return to(x, np.dtype(named[0]) if named else dtype)


def _grad_fn(x: Tensor) -> Any:
    """The node on the tape that computed x (`tensorlite.tape.Node`); None for a leaf."""
    return None if x.source is None else x.source[0]


def _is_cuda(x: Tensor) -> bool:
    """Whether x is on a GPU."""
    return array_module(x.array) is not np


def _nbytes(x: Tensor) -> int:
    """Bytes of all numbers."""
    return x.array.nbytes


def _itemsize(x: Tensor) -> int:
    """Bytes of one number."""
    return x.array.itemsize


grad_fn, is_cuda, nbytes, itemsize = property(_grad_fn), property(_is_cuda), property(_nbytes), property(_itemsize)


def element_size(x: Tensor) -> int:
    """Bytes of one number."""
    return x.array.itemsize


def nelement(x: Tensor) -> int:
    """How many numbers there are."""
    return x.array.size


def ndimension(x: Tensor) -> int:
    """How many axes there are."""
    return x.array.ndim


def is_complex(x: Tensor) -> bool:
    """No: no tensor here is."""
    return False


def stride(x: Tensor, dim: int | None = None) -> Any:
    """The distance in memory between neighbours along each axis, in elements."""
    strides = tuple(n // x.array.itemsize for n in x.array.strides)
    return strides if dim is None else strides[dim]


def data_ptr(x: Tensor) -> int:
    """The address of the first number."""
    return x.array.ctypes.data if array_module(x.array) is np else x.array.data.ptr


def is_contiguous(x: Tensor) -> bool:
    """Whether the numbers lie in memory in row-major order."""
    return bool(x.array.flags.c_contiguous)


def detach_(x: Tensor) -> Tensor:
    """Take x itself off the tape; returns it."""
    x.source, x.requires_grad = None, False
    return x


# --- converted ------------------------------------------------------------------------------------------


def short(x: Tensor) -> Tensor:
    """The same as ``to(int16)``."""
    return to(x, np.dtype("int16"))


def byte(x: Tensor) -> Tensor:
    """The same as ``to(uint8)``."""
    return to(x, np.dtype("uint8"))


def char(x: Tensor) -> Tensor:
    """The same as ``to(int8)``."""
    return to(x, np.dtype("int8"))


def bfloat16(x: Tensor) -> Tensor:
    """The same as ``to(bfloat16)``."""
    return to(x, creation.bfloat16_dtype())


# --- new ones like it -----------------------------------------------------------------------------------


def new_tensor(x: Tensor, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A copy of ``data`` in the dtype and on the device of x."""
    return creation.tensor(data, x.dtype if dtype is None else dtype, x.device if device is None else Device(device), requires_grad)


def new_full(x: Tensor, size: Any, fill_value: float, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor in which every element is ``fill_value``, in the dtype and on the device of x."""
    where = x.device if device is None else Device(device)
    return creation.full(size, fill_value, dtype=x.dtype if dtype is None else dtype, device=where, requires_grad=requires_grad)


def new_zeros(x: Tensor, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros in the dtype and on the device of x."""
    return new_full(x, size[0] if len(size) == 1 else size, 0, dtype=dtype, device=device, requires_grad=requires_grad)


def new_ones(x: Tensor, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones in the dtype and on the device of x."""
    return new_full(x, size[0] if len(size) == 1 else size, 1, dtype=dtype, device=device, requires_grad=requires_grad)


def new_empty(x: Tensor, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """The same as `new_zeros`, so elements that are read before they are written are the same each time."""
    return new_full(x, size[0] if len(size) == 1 else size, 0, dtype=dtype, device=device, requires_grad=requires_grad)


# --- as Python's own numbers and containers ---------------------------------------------------------------


def formatted(x: Tensor, spec: str) -> str:
    """``f"{x:.3f}"``: a tensor of no axes is formatted like its number."""
    if x.ndim == 0:
        return format(x.item(), spec)
    if spec:
        raise TypeError(f"a tensor of shape {x.shape} cannot be written as {spec!r}: only one of no axes can, or x.item().")
    return str(x)


def mod_operator(x: Tensor, other: Any) -> Any:
    """``x % other``"""
    return remainder(x, other) if isinstance(other, Tensor | int | float) or hasattr(other, "dtype") else NotImplemented


def reflected_mod_operator(x: Tensor, other: Any) -> Any:
    """``other % x``"""
    return remainder(other, x) if isinstance(other, int | float) or hasattr(other, "dtype") else NotImplemented


def array_wrap(x: Tensor, array: Any, context: Any = None, return_scalar: bool = False) -> Tensor:
    """What NumPy asks for the result of one of its functions of numbers, ``np.exp(x)``: a tensor, as in torch.

    Raises:
        TypeError: for a tensor on a GPU.
    """
    if _is_cuda(x):
        raise TypeError("a function of NumPy takes no tensor on a GPU: take that of tensorlite, or x.cpu().")
    return Tensor(array)


def contains(x: Tensor, element: Any) -> bool:
    """``element in x``: whether one of the numbers is equal."""
    if not isinstance(element, Tensor | int | float):
        raise TypeError(f"a tensor contains numbers, not {element.__class__.__name__}.")
    return bool(eq(x, element).array.any())
