"""Gradient descent, with momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tensorlite.backend import Array
from tensorlite.optim.optimizer import Optimizer
from tensorlite.tensor import Tensor


def sgd_update(
    p: Array,
    g: Array,
    velocity: Array | None,
    step: int,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None:
    """p ← p - lr · v,   v ← momentum · v + (1 - dampening) · g,   g + weight_decay · p in place of g

    To first order the objective changes by g · Δp. For a given length of Δp this is smallest in the direction -g.
    Momentum adds up the gradients of many steps. In a narrow valley they alternate across it and
    cancel in v, but add up along it, to 1 / (1 - momentum) times a single gradient.

    Nesterov's momentum looks one step ahead: p will move by momentum · v in any case, so the step is g + momentum · v.
    Weight decay is the gradient of weight_decay/2 · |p|², which moves p towards 0.
    The first step has no earlier v and uses g without dampening.

    Shapes: p, g, velocity alike; p and velocity are changed in place. velocity may be None where momentum is 0.
    Source: Polyak 1964; Sutskever et al. 2013; equals torch.optim.SGD.
    """
    if weight_decay:
        g = g + weight_decay * p
    if momentum and velocity is not None:
        if step == 1:
            velocity[...] = g
        else:
            velocity *= momentum
            velocity += (1 - dampening) * g
        g = g + momentum * velocity if nesterov else velocity
    p -= lr * g


class SGD(Optimizer):
    """Gradient descent; see `sgd_update` for the rule.

    Args:
        params: parameters or groups, see `Optimizer`.
        maximize: maximize the objective instead of minimizing it.
    """

    arrays = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, {**options, "maximize": maximize})

    def check_options(self, options: dict[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            if not options[name] >= 0:
                raise ValueError(f"SGD: {name} must not be negative, got {options[name]}.")
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            given = f"momentum {options['momentum']} and dampening {options['dampening']}"
            raise ValueError(f"SGD: nesterov needs momentum > 0 and dampening 0, got {given}.")

    def arrays_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.arrays if group["momentum"] else ()

    def update(self, group: dict[str, Any], step: int, p: Array, g: Array, *state: Array) -> None:
        g = -g if group["maximize"] else g
        velocity = state[0] if state else None
        sgd_update(p, g, velocity, step, group["lr"], group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"])
