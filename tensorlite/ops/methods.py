"""The operators and methods of Tensor: what ``x + y``, ``x[i]`` and ``x.sum()`` mean.

Tensor itself knows no op. This page sets them as its methods when the package is imported. A method is the function
of the same name with the tensor as its first argument, so ``x.softmax(-1)`` is ``softmax(x, -1)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorlite.ops import activation, arithmetic, comparison, elementary, extremum, in_place, indexing, matmul, reduction, shape, softmax
from tensorlite.tensor import Tensor

METHODS: dict[Any, str] = {
    arithmetic: "add sub mul div neg pow",
    elementary: "abs exp log sqrt rsqrt square reciprocal sin cos",
    comparison: "eq ne lt le gt ge maximum minimum clamp isnan isinf isfinite logical_not logical_and logical_or",
    reduction: "sum mean var std prod logsumexp cumsum all any",
    extremum: "amax amin max min argmax argmin",
    shape: """
        reshape view flatten unflatten squeeze unsqueeze permute transpose flip roll expand broadcast_to repeat
        split chunk unbind clone contiguous to
    """,
    indexing: "select narrow index_select gather tril triu masked_fill",
    matmul: "matmul mm bmm",
    activation: "relu sigmoid tanh",
    softmax: "softmax log_softmax",
    in_place: "add_ sub_ mul_ div_ pow_ clamp_ masked_fill_ fill_ zero_ copy_",
}

OPERATORS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "__add__": arithmetic.add,
    "__sub__": arithmetic.sub,
    "__mul__": arithmetic.mul,
    "__truediv__": arithmetic.div,
    "__floordiv__": lambda x, y: arithmetic.div(x, y, rounding_mode="floor"),
    "__pow__": arithmetic.pow,
    "__matmul__": matmul.matmul,
    "__radd__": lambda x, y: arithmetic.add(y, x),
    "__rsub__": lambda x, y: arithmetic.sub(y, x),
    "__rmul__": lambda x, y: arithmetic.mul(y, x),
    "__rtruediv__": lambda x, y: arithmetic.div(y, x),
    "__rfloordiv__": lambda x, y: arithmetic.div(y, x, rounding_mode="floor"),
    "__rpow__": lambda x, y: arithmetic.pow(y, x),
    "__rmatmul__": lambda x, y: matmul.matmul(y, x),
    "__iadd__": in_place.add_,
    "__isub__": in_place.sub_,
    "__imul__": in_place.mul_,
    "__itruediv__": in_place.div_,
    "__ifloordiv__": lambda x, y: in_place.div_(x, y, rounding_mode="floor"),
    "__ipow__": in_place.pow_,
    "__eq__": comparison.eq,
    "__ne__": comparison.ne,
    "__lt__": comparison.lt,
    "__le__": comparison.le,
    "__gt__": comparison.gt,
    "__ge__": comparison.ge,
}

CASTS = {"double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32", "bool": "bool"}


_OPERANDS = (Tensor, int, float)


def _operator(function: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor, Any], Any]:
    """``function`` for tensors, arrays and numbers. For anything else Python raises its own TypeError."""

    def method(x: Tensor, y: Any) -> Any:
        return function(x, y) if isinstance(y, _OPERANDS) or hasattr(y, "dtype") else NotImplemented

    return method


def _cast(dtype: str) -> Callable[[Tensor], Tensor]:
    return lambda x: shape.to(x, dtype=dtype)


def _put(methods: dict[str, Any]) -> None:
    for name, method in methods.items():
        if "<" in getattr(method, "__qualname__", ""):
            method.__qualname__ = f"Tensor.{name}"  # the name in Python's message about a wrong argument
        setattr(Tensor, name, method)


for _page, _names in METHODS.items():
    _put({name: getattr(_page, name) for name in _names.split()})
_put({name: _operator(function) for name, function in OPERATORS.items()})
_put({name: _cast(dtype) for name, dtype in CASTS.items()})
_put(
    {
        "__getitem__": indexing.getitem,
        "__setitem__": in_place.setitem,
        "__neg__": arithmetic.neg,
        "__abs__": elementary.abs,
        "where": lambda x, condition, other: indexing.where(condition, x, other),
        "T": property(shape.plain_transpose),
        "mT": property(shape.matrix_transpose),
    }
)
