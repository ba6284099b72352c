"""RMSprop: the gradient of each number is divided by its root mean square over the last steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.optim.optimizer import Optimizer
from tensorlite.tensor import Tensor


def rmsprop_update(
    p: Array,
    g: Array,
    v: Array,
    mean: Array | None,
    velocity: Array | None,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
) -> None:
    """p ← p - lr · g / (√v + eps),   v ← alpha · v + (1 - alpha) · g²,   g + weight_decay · p in place of g

    √v is the size that this number's gradient had over the last 1/(1 - alpha) steps, so g/√v is near ±1: whether gradients are 1e-6 or 1e6,
    a number moves by about lr. Adam adds momentum, and corrects v for its start at 0.

    With ``mean``, a running mean of g, v - mean² is used instead of v: the variance of the gradient. With momentum
    p moves along velocity ← momentum · velocity + g / (√v + eps).

    Shapes: all alike; p, v, mean and velocity are changed in place.
    Source: Hinton, Srivastava, Swersky 2012, lecture 6 of "Neural Networks for Machine Learning"; equals torch.optim.RMSprop.
    """
    if weight_decay:
        g = g + weight_decay * p
    v *= alpha
    v += (1 - alpha) * g * g
    square = v
    if mean is not None:
        mean += (1 - alpha) * (g - mean)
        square = v - mean * mean
    direction = g / (array_module(p).sqrt(square) + eps)
    if velocity is not None:
        velocity *= momentum
        velocity += direction
        direction = velocity
    p -= lr * direction


class RMSprop(Optimizer):
    """See `rmsprop_update` for the rule.

    Args:
        params: parameters or groups, see `Optimizer`.
        centered: divide by the standard deviation of the gradient instead of its size.
        maximize: maximize the objective instead of minimizing it.
    """

    arrays = ("square_avg", "grad_avg", "momentum_buffer")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum, "centered": centered}
        super().__init__(params, {**options, "maximize": maximize})

    def check_options(self, options: dict[str, Any]) -> None:
        for name in ("lr", "alpha", "eps", "weight_decay", "momentum"):
            if not options[name] >= 0:
                raise ValueError(f"RMSprop: {name} must not be negative, got {options[name]}.")

    def arrays_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        kept = (True, group["centered"], group["momentum"] > 0)
        return tuple(name for name, wanted in zip(self.arrays, kept, strict=True) if wanted)

    def update(self, group: dict[str, Any], step: int, p: Array, g: Array, *state: Array) -> None:
        g = -g if group["maximize"] else g
        by_name = dict(zip(self.arrays_of(group), state, strict=True))
        v, mean, velocity = (by_name.get(name) for name in self.arrays)
        assert v is not None
        rmsprop_update(p, g, v, mean, velocity, group["lr"], group["alpha"], group["eps"], group["weight_decay"], group["momentum"])
