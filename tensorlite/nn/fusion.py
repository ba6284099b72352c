"""Modules that are computed together by one op where that is faster."""

from __future__ import annotations

from tensorlite.nn import functional as F
from tensorlite.nn.layers import GELU, Linear
from tensorlite.nn.module import Module
from tensorlite.tensor import Tensor


def feedforward(x: Tensor, hidden: Module, activation: Module, output: Module) -> Tensor:
    """``output(activation(hidden(x)))``; on a GPU by one op, `tensorlite.ops.feedforward`, where that computes the same.

    It does for two linear layers with gelu by tanh between them. A module with a hook, or of another class (an adapter, a
    subclass), is called itself.
    """
    has_hooks = hidden.has_hooks or activation.has_hooks or output.has_hooks
    if x.device.name == "cupy" and not has_hooks and type(hidden) is type(output) is Linear and _is_gelu_by_tanh(activation):
        return F.feedforward(x, hidden.weight, hidden.bias, output.weight, output.bias, approximate="tanh")
    return output(activation(hidden(x)))


def _is_gelu_by_tanh(activation: Module) -> bool:
    return type(activation) is GELU and activation.approximate == "tanh"


__all__ = ["feedforward"]
