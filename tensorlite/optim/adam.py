"""Adam and AdamW: each number has its own step size, which follows from the size of its gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.optim.optimizer import Optimizer
from tensorlite.optim.rule import Rule
from tensorlite.tensor import Tensor


def adam_update(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    v_max: Array | None = None,
) -> None:
    """p ← p - lr · m̂ / (√v̂ + eps)

        m ← β₁ m + (1 - β₁) g          m̂ = m / (1 - β₁ᵗ)
        v ← β₂ v + (1 - β₂) g²         v̂ = v / (1 - β₂ᵗ)

    m is a running mean of the gradient over about 1/(1 - β₁) steps, v of its square over 1/(1 - β₂). So
    √v̂ is how large this number's gradient usually is, and m̂/√v̂ lies between -1 and 1: near ±1 when the
    gradients agree, near 0 when they are noise. A number moves by at most about lr, whether its gradients are
    1e-6 or 1e6: scaling the loss changes nothing.

    The hats correct a bias. m begins at 0. Unrolled, after t steps m = (1 - β₁) Σ β₁ᵗ⁻ⁱ gᵢ, and its weights sum to
    (1 - β₁)(1 + β₁ + … + β₁ᵗ⁻¹) = 1 - β₁ᵗ instead of 1. The division by that makes m̂ a weighted mean from the first
    step on, where it is g. The same holds for v. eps stands outside the root and only prevents a division by 0. Inside, as
    √(v̂ + eps), it would act like gradients of √eps = 1e-4, and slow down every number with smaller ones.

    AMSGrad (``v_max``) divides by the largest v so far, so that the step size of a number never grows again.

    Shapes: all alike; p, m, v and v_max are changed in place.
    Source: Kingma, Ba 2015, "Adam"; Reddi, Kale, Kumar 2018 for v_max; equals torch.optim.Adam.
    """
    beta1, beta2 = betas
    m += (1 - beta1) * (g - m)
    v *= beta2
    v += (1 - beta2) * g * g
    xp = array_module(p)
    if v_max is not None:
        xp.maximum(v_max, v, out=v_max)
        v = v_max
    size = xp.sqrt(v)  # √v̂ + eps, in steps that reuse the array
    size /= math.sqrt(1 - beta2**step)
    size += eps
    p -= (lr / (1 - beta1**step)) * m / size


@Rule
def adamw_update(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    v_max: Array | None = None,
    factor: Array | None = None,
    rounded: Array | None = None,
) -> None:
    """p ← (1 - lr · weight_decay) · p, then `adam_update`

    The gradient of a penalty weight_decay/2 · |p|² is weight_decay · p. If it is added to g, as in plain gradient
    descent, it is divided by √v as well. Numbers with large gradients then decay little, and numbers with small
    gradients decay much, whatever weight_decay is. AdamW *decouples* the decay: it acts on
    p directly, and every number shrinks by the same share.

    ``factor``, of no axes, multiplies the gradient (`clip_factor`). ``rounded`` is an array of the shape of p and of another dtype: the
    new p is written there, too.

    Source: Loshchilov, Hutter 2019, "Decoupled Weight Decay Regularization"; equals torch.optim.AdamW.
    """
    if factor is not None:
        g = g * factor
    if weight_decay:
        p *= 1 - lr * weight_decay
    adam_update(p, g, m, v, step, lr, betas, eps, v_max)
    if rounded is not None:
        rounded[...] = p


class Adam(Optimizer):
    """Adam, with weight decay as part of the gradient; see `adam_update` for the rule.

    Args:
        params: parameters or groups, see `Optimizer`.
        betas: the decay factors of the running means of the gradient and of its square.
        amsgrad: divide by the largest running mean of squares so far.
        maximize: maximize the objective instead of minimizing it.
    """

    arrays = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # m, v and v_max, under torch's names

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad, "maximize": maximize}
        super().__init__(params, options)

    def check_options(self, options: dict[str, Any]) -> None:
        check_adam_options(type(self).__name__, options)

    def arrays_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.arrays if group["amsgrad"] else self.arrays[:2]

    def update(self, group: dict[str, Any], step: int, p: Array, g: Array, *state: Array) -> None:
        g = -g if group["maximize"] else g
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
        m, v, v_max = (*state, None)[:3]
        adam_update(p, g, m, v, step, group["lr"], group["betas"], group["eps"], v_max)


class AdamW(Adam):
    """Adam with decoupled weight decay; see `adamw_update` for the rule, and `Adam` for the arguments."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)

    def update(self, group: dict[str, Any], step: int, p: Array, g: Array, *state: Array) -> None:
        _adamw(group, step, p, g, state)

    def update_and_round(
        self, group: dict[str, Any], step: int, p: Array, g: Array, *state: Array, factor: Array | None, rounded: Array | None
    ) -> None:
        if type(self).update is AdamW.update:
            _adamw(group, step, p, g, state, factor, rounded)
        else:  # a subclass with a rule of its own
            super().update_and_round(group, step, p, g, *state, factor=factor, rounded=rounded)


def check_adam_options(name: str, options: dict[str, Any]) -> None:
    """Raise a ValueError, in the name of the optimizer, for a number out of range."""
    for option in ("lr", "eps", "weight_decay"):
        if not options[option] >= 0:
            raise ValueError(f"{name}: {option} must not be negative, got {options[option]}.")
    if len(options["betas"]) != 2 or not all(0 <= beta < 1 for beta in options["betas"]):
        raise ValueError(f"{name}: betas are two numbers from 0 up to but without 1, got {options['betas']}.")


def _adamw(
    group: dict[str, Any],
    step: int,
    p: Array,
    g: Array,
    state: Sequence[Array],
    factor: Array | None = None,
    rounded: Array | None = None,
) -> None:
    g = -g if group["maximize"] else g
    m, v, v_max = (*state, None)[:3]
    adamw_update(p, g, m, v, step, group["lr"], group["betas"], group["eps"], group["weight_decay"], v_max, factor, rounded)
