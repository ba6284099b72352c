"""The Tensor: an array that remembers how it was computed.

This file holds no mathematics. A Tensor is its array (``array``), its gradient (``grad``) and its place
on the tape (``source``). Everything that computes is an op (`tensorlite.op`, `tensorlite.ops`), and the
operators and methods, ``x + y`` or ``x.sum()``, are put on this class by `tensorlite.ops.methods`.
"""

from __future__ import annotations

import copy
import itertools
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorlite import tape
from tensorlite.backend import Array, Device, array_module, device_of, to_numpy

_hook_numbers = itertools.count()
AFTER_ALL_HOOKS = sys.maxsize  # the number of retain_grad's hook: it runs last, and a second call replaces it


class Tensor:
    """An n-dimensional array with a gradient. Use `tensorlite.tensor` to make one from numbers.

    Attributes:
        array: the NumPy or CuPy array. The tape does not notice a write to it; it does notice ``x[i] = value`` and ``x += y``.
        grad: a Tensor of the same shape, or None before the first ``backward()``.
        requires_grad: whether this tensor gets a gradient, or passes one on to the tensors it was computed from.
        source: (node, output position) on the tape; None for a leaf.
        grad_buffer: for a leaf, the array to which its gradient is written (a view of an optimizer's flat buffer), or None.
    """

    __slots__ = ("__weakref__", "_hooks", "array", "grad", "grad_buffer", "requires_grad", "source", "version")
    __array_priority__ = 1000  # makes ``ndarray + Tensor`` ask Tensor.__radd__ instead of looping over elements

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            data = data.array
        if type(data) is not np.ndarray and array_module(data) is np:
            data = np.asarray(data)
        self.array: Array = data
        self.grad: Tensor | None = None
        self.grad_buffer: Array | None = None
        self.source: tuple[tape.Node, int] | None = None
        self.version = tape.VersionCounter()
        self._hooks: dict[int, tape.Hook] | None = None
        self.requires_grad = False
        if requires_grad:
            self.requires_grad_()

    @staticmethod
    def wrap(array: Array) -> Tensor:
        """A plain Tensor that shares the memory of ``array``."""
        return Tensor(array)

    # --- what it is ---------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def dtype(self) -> Any:
        """A NumPy dtype, on both devices; it equals ``tensorlite.float32`` and the like."""
        return self.array.dtype

    @property
    def device(self) -> Device:
        return device_of(self.array)

    @property
    def is_leaf(self) -> bool:
        """Whether this tensor was created by the user, not by an op. Its gradient is kept in ``grad``."""
        return self.source is None

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the length of one axis."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return self.array.size

    def is_floating_point(self) -> bool:
        return is_floating(self.dtype)

    # --- leaving the tape ---------------------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array; on the CPU it shares memory with the tensor.

        Raises:
            RuntimeError: if the tensor requires a gradient, because the tape would not notice writes to the array.
        """
        if self.requires_grad:
            raise RuntimeError("numpy() on a tensor that requires a gradient: call detach().numpy().")
        return to_numpy(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def item(self) -> int | float | bool:
        """The value of a tensor with one element, as a Python number. On a GPU this waits for the device.

        Raises:
            ValueError: if there is more or less than one element.
        """
        if self.array.size != 1:
            raise ValueError(f"item() needs a tensor of one element, this one has shape {self.shape}.")
        return self.array.item()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        return self.array.tolist()

    def detach(self) -> Tensor:
        """A tensor on the same memory that is not on the tape."""
        out = Tensor.wrap(self.array)
        out.version = self.version
        self.version.is_shared = True
        return out

    @property
    def data(self) -> Tensor:
        """A tensor on the same memory that is not on the tape. Writes through it are not counted, so `detach` is safer.

        ``x.data = value`` gives x the memory of another tensor, which may have another shape and dtype, as in torch; or that of an
        array of the same dtype. An optimizer copies the values into its own memory at its next step.

        Raises:
            TypeError: for a value that is neither tensor nor array, and for an array of another dtype.
            RuntimeError: for integers and booleans, if the tensor requires a gradient.
        """
        self.version.is_shared = True
        return Tensor.wrap(self.array)

    @data.setter
    def data(self, value: Tensor | Array) -> None:
        array = unwrap(value)
        if not (isinstance(array, np.ndarray) or array_module(array) is not np):
            raise TypeError(f"data takes a tensor or an array, got {type(value).__name__}; fill_(number) writes one number everywhere.")
        if self.requires_grad and not is_floating(array.dtype):
            raise RuntimeError(f"a tensor that requires a gradient takes floating point data, got {array.dtype}.")
        if array.dtype != self.dtype and not isinstance(value, Tensor):  # NumPy makes float64 arrays where none was meant
            raise TypeError(
                f"the data of a {self.dtype} tensor takes an array of that dtype, got {array.dtype}: "
                f"convert it with .astype({self.dtype.name!r}), or assign a tensor to change the dtype."
            )
        self.array = array

    # --- gradients ----------------------------------------------------------------------------------

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set whether this leaf gets gradients; returns the tensor itself.

        Raises:
            RuntimeError: for integers and booleans, which have no gradient, and for a tensor that an op computed.
        """
        if requires_grad and not self.is_floating_point():
            raise RuntimeError(f"only floating point tensors can require a gradient, this one is {self.dtype}.")
        if not requires_grad and self.source is not None:
            raise RuntimeError("a tensor that an op computed cannot stop requiring a gradient: use detach().")
        self.requires_grad = requires_grad
        if self.source is None:
            self.version.shows_leaf = requires_grad
        return self

    def backward(self, gradient: Tensor | None = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Add the gradient of this tensor with respect to every leaf into ``leaf.grad``.

        Args:
            gradient: the gradient of the objective with respect to this tensor, of the same shape. For a tensor of one
                element it defaults to 1.
            retain_graph: keep what the forward saved, so that backward can run again.

        Raises:
            RuntimeError: for several elements without ``gradient``, for a tensor without history, for a gradient of
                another shape, and for a second call after the tape was freed.
            NotImplementedError: for ``create_graph``: the backward functions are not themselves recorded.
        """
        if create_graph:
            raise NotImplementedError("create_graph=True: tensorlite's backward functions are plain array code and are not recorded.")
        if not self.requires_grad:
            raise RuntimeError("backward() on a tensor that does not require a gradient, and was not computed from one that does.")
        if gradient is None:
            if self.array.size != 1:
                raise RuntimeError(
                    f"backward() on a tensor of shape {self.shape} needs a gradient of that shape; "
                    "reduce it to one number first, with mean() or sum()."
                )
            dy = array_module(self.array).ones_like(self.array)
        else:
            if gradient.shape != self.shape:
                raise RuntimeError(f"backward() got a gradient of shape {gradient.shape} for a tensor of shape {self.shape}.")
            dy = gradient.array.astype(self.dtype, copy=False)
        tape.backward(self, dy, retain_graph)

    def retain_grad(self) -> None:
        """Also keep the gradient of a tensor that an op computed in ``grad``, as for a leaf."""
        if not self.requires_grad:
            raise RuntimeError("retain_grad() on a tensor that does not require a gradient.")
        if self.source is None:
            return
        me = weakref.ref(self)  # without a reference from the tape to this tensor

        def keep(dy: Array) -> None:
            tensor = me()
            if tensor is not None:
                tensor.grad = Tensor.wrap(dy.copy() if tensor.grad is None else tensor.grad.array + dy)

        node, position = self.source
        node.hooks_of(position)[AFTER_ALL_HOOKS] = keep

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call ``hook(grad)`` when the gradient of this tensor is complete; what it returns replaces the gradient.

        Returns:
            A handle whose ``remove()`` removes the hook.
        """
        if not self.requires_grad:
            raise RuntimeError("register_hook() on a tensor that does not require a gradient.")

        def on_arrays(dy: Array) -> Array | None:
            replaced = hook(Tensor.wrap(dy))
            return None if replaced is None else replaced.array

        number = next(_hook_numbers)
        if self.source is None:
            self._hooks = hooks = self._hooks or {}
        else:
            node, position = self.source
            hooks = node.hooks_of(position)
        hooks[number] = on_arrays
        return RemovableHandle(hooks, number)

    @property
    def hooks(self) -> dict[int, tape.Hook]:
        """The hooks of a leaf (those of a computed tensor belong to its node)."""
        return self._hooks or {}

    # --- as a Python object -------------------------------------------------------------------------

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-dimensional tensor.")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-dimensional tensor.")
        return iter(self.unbind())  # one op for all elements

    def __bool__(self) -> bool:
        if self.array.size != 1:
            raise ValueError(f"the truth value of a tensor of shape {self.shape} is ambiguous: use .any() or .all().")
        return bool(self.array)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.array.dtype.kind not in "iub":
            raise TypeError(f"only integer tensors of one element can be an index, this one is {self.dtype}.")
        return int(self.item())

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A leaf with its own memory and gradient. Hooks and the gradient buffer are not copied.

        Raises:
            RuntimeError: for a tensor that an op computed, as in torch, because the copy would have no history.
        """
        if self.source is not None:
            raise RuntimeError(f"deepcopy of a tensor that {self.source[0].name} computed: copy its detach(), or call clone().")
        twin = _rebuild(type(self), self.array.copy(order="K"), self.requires_grad)
        twin.grad = copy.deepcopy(self.grad, memo)
        return twin

    def __copy__(self) -> Tensor:
        """A leaf on the same memory."""
        twin = _rebuild(type(self), self.array, self.requires_grad)
        twin.version = self.version
        self.version.is_shared = True
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle keeps the values and ``requires_grad``."""
        return _rebuild, (type(self), self.array, self.requires_grad)

    __hash__ = object.__hash__  # == compares elements, so sets and dicts use identity

    def __repr__(self) -> str:
        shown = to_numpy(self.array).astype(np.float32) if self.dtype.name == "bfloat16" else to_numpy(self.array)
        values = np.array2string(shown, precision=4, separator=", ", prefix="tensor(", threshold=200, edgeitems=3)
        parts = [values]
        if self.array.size == 0 and self.ndim > 1:
            parts.append(f"size={self.shape}")  # the brackets do not show it
        if self.dtype not in (np.float32, np.int64, np.bool_):
            parts.append(f"dtype={self.dtype}")
        if array_module(self.array) is not np:
            parts.append(f"device='{self.device}'")
        if self.source is not None:
            parts.append(f"from={self.source[0].name}")
        elif self.requires_grad:
            parts.append("requires_grad=True")
        return f"tensor({', '.join(parts)})"

    if TYPE_CHECKING:  # the methods that tensorlite.ops.methods adds, for the type checker only

        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...
        def __neg__(self) -> Tensor: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...


class RemovableHandle:
    """The handle that `Tensor.register_hook` returns."""

    def __init__(self, hooks: dict[int, tape.Hook], number: int) -> None:
        self._hooks, self._number = hooks, number

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        self._hooks.pop(self._number, None)


def _rebuild(kind: type[Tensor], array: Array, requires_grad: bool) -> Tensor:
    """A leaf of the class ``kind``, without a call of its own __init__."""
    twin = kind.__new__(kind)
    Tensor.__init__(twin, array, requires_grad)
    return twin


def unwrap(x: Any) -> Any:
    """Arrays instead of tensors, also inside tuples and lists (as in an index)."""
    if isinstance(x, Tensor):
        return x.array
    if isinstance(x, tuple | list):
        return type(x)(unwrap(item) for item in x)
    return x


def is_half(dtype: Any) -> bool:
    """Whether ``dtype`` is float16 or bfloat16."""
    return dtype.itemsize == 2 and is_floating(dtype)


def is_floating(dtype: Any) -> bool:
    """Whether ``dtype`` is a floating point type. For NumPy bfloat16 is none, here it is one."""
    return dtype.kind == "f" or dtype.name == "bfloat16"
