"""``torch.nn.utils``: gradient clipping, and parameters as one vector."""

from __future__ import annotations

from collections.abc import Iterable

from tensorlite.lazy import on_demand
from tensorlite.ops.shape import cat
from tensorlite.optim.clip import clip_grad_norm_, clip_grad_value_
from tensorlite.tensor import Tensor

__all__ = ["clip_grad_norm_", "clip_grad_value_", "parameters_to_vector", "vector_to_parameters"]

__getattr__ = on_demand("tensorlite.nn.utils", {})


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters end to end."""
    return cat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """The inverse of `parameters_to_vector`: copy the numbers into the parameters."""
    start = 0
    for p in parameters:
        p.data.copy_(vec.detach()[start : start + p.numel()].reshape(p.shape))
        start += p.numel()
