"""``torch.optim.lr_scheduler``: the schedules of `tensorlite.optim.schedule`, and others that training a GPT does not need.

Each is a function of the step alone, so training can resume at any step. Only `ReduceLROnPlateau` depends on the loss.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any

from tensorlite.lazy import on_demand
from tensorlite.optim.optimizer import Optimizer
from tensorlite.optim.schedule import ConstantLR, CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler

__all__ = [
    "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "ExponentialLR", "LRScheduler", "LambdaLR", "LinearLR", "MultiStepLR",
    "OneCycleLR", "PolynomialLR", "ReduceLROnPlateau", "SequentialLR", "StepLR",
]  # fmt: skip

__getattr__ = on_demand("tensorlite.optim.lr_scheduler", {})


class StepLR(LRScheduler):
    """Multiplies the rate by ``gamma`` every ``step_size`` steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def learning_rate(self, base: float, group: int) -> float:
        return base * self.gamma ** (self.last_epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """Multiplies the rate by ``gamma`` at each of the steps ``milestones``."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer)

    def learning_rate(self, base: float, group: int) -> float:
        return base * self.gamma ** bisect.bisect_right(self.milestones, self.last_epoch)


class ExponentialLR(LRScheduler):
    """Multiplies the rate by ``gamma`` every step."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = gamma
        super().__init__(optimizer)

    def learning_rate(self, base: float, group: int) -> float:
        return base * self.gamma**self.last_epoch


class PolynomialLR(LRScheduler):
    """Down to 0 at step ``total_iters``, along (1 - step/total_iters)^power."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0) -> None:
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer)

    def learning_rate(self, base: float, group: int) -> float:
        return base * (1 - min(self.last_epoch, self.total_iters) / self.total_iters) ** self.power


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half a cosine down to ``eta_min`` in ``T_0`` steps, then again from the top, each time ``T_mult`` times as long.

    Source: Loshchilov, Hutter 2017, "SGDR".
    """

    def __init__(self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0) -> None:
        if T_0 <= 0 or T_mult < 1:
            raise ValueError(f"CosineAnnealingWarmRestarts: T_0 and T_mult must be at least 1, got {T_0} and {T_mult}.")
        self.T_0, self.T_mult, self.eta_min = T_0, T_mult, eta_min
        super().__init__(optimizer)

    def learning_rate(self, base: float, group: int) -> float:
        since, length = self.last_epoch, self.T_0
        if self.T_mult == 1:
            since %= length
        while since >= length:
            since, length = since - length, length * self.T_mult
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * since / length)) / 2


class OneCycleLR(LRScheduler):
    """Up from max_lr / div_factor to ``max_lr`` in the first ``pct_start`` of ``total_steps``, then down to a far smaller rate.

    Args:
        total_steps: the length of the schedule; or give ``epochs`` and ``steps_per_epoch``.
        anneal_strategy: ``cos`` or ``linear``.
        cycle_momentum: vary the momentum in the opposite direction, from ``max_momentum`` down to ``base_momentum`` and up again: SGD's
            ``momentum``, Adam's first beta.
        three_phase: after the top, down to max_lr / div_factor in as many steps as it took to come up, and only then further.

    Source: Smith, Topin 2017, "Super-convergence".
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        if total_steps is None and (epochs is None or steps_per_epoch is None):
            raise ValueError("OneCycleLR: give total_steps, or epochs and steps_per_epoch.")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"OneCycleLR: anneal_strategy is 'cos' or 'linear', got {anneal_strategy!r}.")
        self.total_steps = total_steps if total_steps is not None else (epochs or 0) * (steps_per_epoch or 0)
        self.pct_start, self.anneal_strategy = pct_start, anneal_strategy
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        self.cycle_momentum, self.three_phase = cycle_momentum, three_phase
        groups = optimizer.param_groups
        if cycle_momentum and not any("momentum" in group or "betas" in group for group in groups):
            raise ValueError("OneCycleLR: this optimizer has no momentum; pass cycle_momentum=False.")
        for group, most in zip(groups, _one_each(max_lr, len(groups)), strict=True):
            group["initial_lr"] = most / div_factor
        self.base_momentum, self.max_momentum = (_one_each(value, len(groups)) for value in (base_momentum, max_momentum))
        super().__init__(optimizer)

    def learning_rate(self, base: float, group: int) -> float:
        """The learning rate at ``last_epoch`` for a group that began with ``base``; its momentum is set, too."""
        last = self.total_steps - 1
        if self.last_epoch > last:
            raise ValueError(f"OneCycleLR: it has {self.total_steps} steps, and this is step {self.last_epoch + 1}.")
        top = self.pct_start * self.total_steps - 1  # the learning rate is highest
        most, least = base * self.div_factor, base / self.final_div_factor
        rates, ends = [base, most, least], [0.0, top, last]
        if self.three_phase:
            rates, ends = [base, most, base, least], [0.0, top, 2 * top, last]
        if self.cycle_momentum:
            options = self.optimizer.param_groups[group]
            which = min(group, len(self.max_momentum) - 1)  # a group that was added later does as the last of the first ones
            high, low = self.max_momentum[which], self.base_momentum[which]
            momentum = self._along(ends, [high, low, high, high])
            options.update({"betas": (momentum, *options["betas"][1:])} if "betas" in options else {"momentum": momentum})
        return self._along(ends, rates)

    def _along(self, ends: list[float], values: list[float]) -> float:
        """At the step ``ends[i]`` the number ``values[i]``; between two of them on the way from one to the next."""
        phase = next(i for i in range(1, len(ends)) if self.last_epoch <= ends[i])
        start, end = ends[phase - 1], ends[phase]
        return self._between(values[phase - 1], values[phase], (self.last_epoch - start) / (end - start) if end > start else 1.0)

    def _between(self, start: float, end: float, share: float) -> float:
        return start + (end - start) * (share if self.anneal_strategy == "linear" else (1 - math.cos(math.pi * share)) / 2)


def _one_each(value: float | Sequence[float], groups: int) -> Sequence[float]:
    """One value for each group.

    Raises:
        ValueError: for another number of them.
    """
    values = value if isinstance(value, Sequence) else [value] * groups
    if len(values) != groups:
        raise ValueError(f"OneCycleLR: {groups} groups need one value or as many, got {len(values)}.")
    return values


class SequentialLR(LRScheduler):
    """One schedule after the other: the next one begins, at its own step 0, at each of the ``milestones``."""

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int]) -> None:
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(f"SequentialLR: {len(schedulers)} schedules need one milestone less, got {len(milestones)}.")
        self.schedulers, self.milestones = list(schedulers), list(milestones)
        super().__init__(optimizer)

    def learning_rate(self, base: float, group: int) -> float:
        number = bisect.bisect_right(self.milestones, self.last_epoch)
        scheduler = self.schedulers[number]
        scheduler.last_epoch = self.last_epoch - (self.milestones[number - 1] if number else 0)
        return scheduler.learning_rate(base, group)


class ReduceLROnPlateau:
    """Multiplies the rate by ``factor`` when a metric has not improved for more than ``patience`` steps: call ``step(loss)``.

    Args:
        mode: ``min`` for a loss, ``max`` for an accuracy.
        threshold: the smallest change that counts as an improvement, relative (``threshold_mode`` "rel") or absolute ("abs").
        cooldown: steps after a reduction in which nothing is counted.
        min_lr: the smallest rate; one number, or one for each group.
        eps: the rate is not changed by this much or less.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs") or not 0 <= factor < 1:
            raise ValueError(
                "ReduceLROnPlateau: mode is 'min' or 'max', threshold_mode 'rel' or 'abs' and factor below 1, "
                f"got {mode!r}, {threshold_mode!r} and {factor}."
            )
        self.optimizer = optimizer
        self.mode, self.factor, self.patience, self.threshold, self.threshold_mode = mode, factor, patience, threshold, threshold_mode
        self.cooldown, self.min_lr, self.eps = cooldown, min_lr, eps
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0

    def step(self, metrics: Any) -> None:
        """Compare ``metrics`` with the best so far, and reduce the rates if it is time."""
        now = float(metrics)
        self.last_epoch += 1
        if self._is_better(now):
            self.best, self.num_bad_epochs = now, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown_counter - 1, 0
        if self.num_bad_epochs > self.patience:
            self._reduce()
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def get_last_lr(self) -> list[float]:
        """The learning rates that are set now, one for each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {name: getattr(self, name) for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        vars(self).update({name: state_dict[name] for name in self.state_dict()})

    def _is_better(self, now: float) -> bool:
        sign = 1 if self.mode == "min" else -1
        margin = self.threshold if self.threshold_mode == "abs" else self.threshold * self.best * sign
        return sign * now < sign * self.best - margin if math.isfinite(self.best) else sign * now < sign * self.best

    def _reduce(self) -> None:
        groups = self.optimizer.param_groups
        least = self.min_lr if isinstance(self.min_lr, Sequence) else [self.min_lr] * len(groups)
        for group, floor in zip(groups, least, strict=True):
            reduced = max(group["lr"] * self.factor, floor)
            if group["lr"] - reduced > self.eps:
                group["lr"] = reduced
