"""The ops of a GPT as torch has them, so that a step of the walk can be compared with torch where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from tensorlite.backend import to_numpy
from tensorlite.inspect import Comparison, Step
from tensorlite.tensor import is_floating


def has_twin(step: Step) -> bool:
    """Whether torch is installed, and knows this op without random numbers."""
    if step.call is None or importlib.util.find_spec("torch") is None:
        return False
    draws = step.op == "causal_self_attention" and _dropout(*step.call.arrays[1:], **step.call.options) > 0
    return step.op in TWINS and not draws


def compare_with_torch(step: Step) -> list[Comparison]:
    """What the step delivered, beside torch's gradient of the same arguments in float64."""
    import torch

    assert step.call is not None
    arrays = [_tensor(torch, x) for x in step.call.arrays]
    wanted = [delivery.argument for delivery in step.deliveries]
    for argument in wanted:
        arrays[argument].requires_grad_()
    y = TWINS[step.op](torch, *arrays, **{name: _tensor(torch, value) for name, value in step.call.options.items()})
    y.backward(_tensor(torch, step.dy[0]))
    found = []
    for delivery in step.deliveries:
        ours, theirs = to_numpy(step.own_gradient(delivery)), arrays[delivery.argument].grad.numpy()
        found.append(Comparison.at_worst("torch", delivery.argument, ours, theirs))
    return found


def _tensor(torch: Any, x: Any) -> Any:
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        return x
    array = to_numpy(x)
    return torch.from_numpy(np.array(array, np.float64 if is_floating(array.dtype) else array.dtype))


def _dropout(n_head: int, dropout_p: float = 0.0, *rest: Any, **options: Any) -> float:
    return dropout_p


def _self_attention(torch: Any, qkv: Any, n_head: int, *rest: Any, **options: Any) -> Any:
    q, k, v = (part.unflatten(2, (n_head, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def _function(name: str) -> Callable[..., Any]:
    return lambda torch, *args, **options: getattr(torch.nn.functional, name)(*args, **options)


def _tensor_function(name: str) -> Callable[..., Any]:
    return lambda torch, *args, **options: getattr(torch, name)(*args, **options)


TWINS: dict[str, Callable[..., Any]] = {
    "linear": _function("linear"),
    "gelu": _function("gelu"),
    "relu": _function("relu"),
    "softmax": _function("softmax"),
    "log_softmax": _function("log_softmax"),
    "embedding": _function("embedding"),
    "layernorm": lambda torch, x, weight=None, bias=None, eps=1e-5: torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps),
    "cross_entropy": lambda torch, x, targets, **options: torch.nn.functional.cross_entropy(x, targets.long(), **options),
    "causal_self_attention": _self_attention,
    "add": _tensor_function("add"),
    "sub": _tensor_function("sub"),
    "mul": _tensor_function("mul"),
    "div": _tensor_function("div"),
    "matmul": _tensor_function("matmul"),
    "reshape": lambda torch, x, *shape: x.reshape(*shape),
    "transpose": lambda torch, x, *dims: x.transpose(*dims),
    "sum": lambda torch, x, dim=None, keepdim=False: x.sum() if dim is None else x.sum(dim, keepdim),
    "mean": lambda torch, x, dim=None, keepdim=False: x.mean() if dim is None else x.mean(dim, keepdim),
}
