"""Learning-rate schedules.

A schedule is a pure function of the step, which returns the factor of the learning rate. So
it can be plotted, and resumed at any step without running the steps
before. `LRScheduler` applies it to the groups of an optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tensorlite.optim.optimizer import Optimizer


def constant(step: int, factor: float = 1.0, total_steps: int = 0) -> float:
    """``factor`` for ``total_steps`` steps, then 1."""
    return factor if step < total_steps else 1.0


def linear(step: int, start_factor: float, end_factor: float, total_steps: int) -> float:
    """A straight line from ``start_factor`` to ``end_factor`` at ``total_steps``; constant from then on."""
    share = min(step, total_steps) / total_steps if total_steps > 0 else 1.0
    return start_factor + (end_factor - start_factor) * share


def cosine(step: int, total_steps: int, final_factor: float = 0.0) -> float:
    """Half a cosine, from 1 down to ``final_factor`` at ``total_steps``; constant from then on."""
    share = min(step, total_steps) / total_steps if total_steps > 0 else 1.0
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * share)) / 2


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, final_factor: float = 0.0) -> float:
    """A straight line up for ``warmup_steps``, then half a cosine down to ``final_factor`` at ``total_steps``.

    The factor of the first step, number 0, is not 0 but 1 / (warmup_steps + 1). Adam's running means are
    poor estimates in the first steps, so these steps are kept small. A small rate at the end averages the noise out.

    Source: Loshchilov, Hutter 2017, "SGDR", for the cosine; Goyal et al. 2017 for the warmup.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return cosine(step - warmup_steps, total_steps - warmup_steps, final_factor)


class LRScheduler:
    """Sets the learning rate of every group; call ``step()`` after each ``optimizer.step()``.

    The learning rate of a group when the first schedule is created is its ``initial_lr``; the schedule is relative to it. A group that is
    added later has its own learning rate at that step of the schedule, as in torch, and then follows the schedule like the others.

    Attributes:
        last_epoch: the step of the present learning rates, counted from 0 (torch's name).
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_lrs: list[float] = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = 0
        self._apply()

    def learning_rate(self, base: float, group: int) -> float:
        """The learning rate at ``last_epoch`` for a group whose initial rate is ``base``."""
        raise NotImplementedError

    def step(self) -> None:
        """Set the learning rates of the next step."""
        self._take_in_new_groups()
        self.last_epoch += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The learning rates that are set now, one for each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The present step and the initial rates. The kind of schedule is not saved: the program creates it again."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict`, and set the learning rates.

        Raises:
            ValueError: if the number of groups differs.
        """
        self._take_in_new_groups()
        base_lrs = list(state_dict["base_lrs"])
        if len(base_lrs) != len(self.base_lrs):
            raise ValueError(f"the schedule's state is for {len(base_lrs)} groups, the optimizer has {len(self.base_lrs)}.")
        self.last_epoch, self.base_lrs = int(state_dict["last_epoch"]), base_lrs
        self._apply()

    def _take_in_new_groups(self) -> None:
        """For every group that was added, compute the initial rate for which the schedule gives its present learning rate."""
        for number in range(len(self.base_lrs), len(self.optimizer.param_groups)):
            group = self.optimizer.param_groups[number]
            nothing, one = (self.learning_rate(base, number) for base in (0.0, 1.0))
            stands_at_zero = one == nothing  # then no initial rate gives its present one, which is used instead
            group.setdefault("initial_lr", group["lr"] if stands_at_zero else (group["lr"] - nothing) / (one - nothing))
            self.base_lrs.append(group["initial_lr"])

    def _apply(self) -> None:
        if len(self.optimizer.param_groups) < len(self.base_lrs):
            raise ValueError(
                f"the schedule is for {len(self.base_lrs)} parameter groups, the optimizer has {len(self.optimizer.param_groups)}."
            )
        for number, (group, base) in enumerate(zip(self.optimizer.param_groups, self.base_lrs, strict=True)):
            group["lr"] = self.learning_rate(base, number)


class LambdaLR(LRScheduler):
    """The initial learning rate times a function of the step: ``LambdaLR(optimizer, lambda step: warmup_cosine(step, 100, 2000, 0.1))``.

    Args:
        lr_lambda: one function, also for groups that are added later, or a list with one for each group.

    Attributes:
        lr_lambdas: the functions. If they were given as a list, append one here before you add a group to the optimizer.
    """

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | list[Callable[[int], float]]) -> None:
        groups = len(optimizer.param_groups)
        self._one_for_all = None if isinstance(lr_lambda, list | tuple) else lr_lambda
        self.lr_lambdas = list(lr_lambda) if isinstance(lr_lambda, list | tuple) else [lr_lambda] * groups
        if len(self.lr_lambdas) != groups:
            raise ValueError(f"LambdaLR got {len(self.lr_lambdas)} functions for {groups} parameter groups.")
        super().__init__(optimizer)

    def learning_rate(self, base: float, group: int) -> float:
        if group >= len(self.lr_lambdas):
            if self._one_for_all is None:
                groups = len(self.optimizer.param_groups)
                raise ValueError(f"LambdaLR has {len(self.lr_lambdas)} functions for {groups} parameter groups: append one to lr_lambdas.")
            self.lr_lambdas.append(self._one_for_all)
        return base * self.lr_lambdas[group](self.last_epoch)


class ConstantLR(LRScheduler):
    """``factor`` times the learning rate for ``total_iters`` steps, then the learning rate itself."""

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5) -> None:
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer)

    def learning_rate(self, base: float, group: int) -> float:
        return base * constant(self.last_epoch, self.factor, self.total_iters)


class LinearLR(LRScheduler):
    """The learning rate times a factor that goes from ``start_factor`` to ``end_factor`` in ``total_iters`` steps."""

    def __init__(self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5) -> None:
        if not 0 < start_factor <= 1 or not 0 <= end_factor <= 1:
            raise ValueError(f"LinearLR: factors are between 0 and 1, and the first not 0, got {start_factor} and {end_factor}.")
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer)

    def learning_rate(self, base: float, group: int) -> float:
        return base * linear(self.last_epoch, self.start_factor, self.end_factor, self.total_iters)


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the learning rate down to ``eta_min`` at step ``T_max``, and up again after it, as in torch."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        if T_max <= 0:
            raise ValueError(f"CosineAnnealingLR: T_max must be positive, got {T_max}.")
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def learning_rate(self, base: float, group: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * self.last_epoch / self.T_max)) / 2
