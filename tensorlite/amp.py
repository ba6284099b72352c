"""``torch.amp``: mixed precision under torch's names. What a program with ``enabled=False``, or without a GPU, does with them runs here.

The precision of a training step is `tensorlite.precision` here, around forward *and* backward. `tensorlite.optim.GradScaler` decides on
the GPU which steps are made, and does not wait for it. The one on this page has torch's methods, and waits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from tensorlite.backend import Device, DeviceUnavailableError
from tensorlite.context import contextmanager
from tensorlite.missing import sentence
from tensorlite.optim.clip import gradients_of
from tensorlite.optim.optimizer import Optimizer
from tensorlite.tensor import Tensor


@contextmanager
def autocast(device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None) -> Iterator[None]:
    """A block, or a decorator, that changes nothing: with ``enabled=False``, or for a GPU where there is none (torch warns of it, too).

    Raises:
        NotImplementedError: otherwise, with what to write instead.
    """
    if enabled and _is_there(device_type, "autocast"):
        raise NotImplementedError(sentence("tensorlite.autocast"))
    yield


class GradScaler:
    """``torch.amp.GradScaler``: why a loss is scaled, `tensorlite.optim.scaler` explains.

        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)                     # where the gradients are clipped
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)                         # no step where a gradient is inf or nan
        scaler.update()

    Args:
        device: for a GPU where there is none, the scaler is not enabled, and a warning says so, as in torch.
        init_scale: the first scale.
        growth_factor: what the scale is multiplied with after ``growth_interval`` steps in a row that were made.
        backoff_factor: what it is multiplied with after one that was not.
        enabled: False makes a scaler that does nothing.
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self._enabled = enabled and _is_there(device, "GradScaler")
        self._scale = init_scale
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval
        self._good_steps = 0  # in a row
        self._finite: dict[int, bool] = {}  # of each optimizer whose gradients were divided since the last update

    def scale(self, outputs: Any) -> Any:
        """A tensor, or each of several, times the scale."""
        if not self._enabled:
            return outputs
        return outputs * self._scale if isinstance(outputs, Tensor) else type(outputs)(self.scale(output) for output in outputs)

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of the optimizer's parameters by the scale, in place.

        Raises:
            RuntimeError: if that was done since the last `update`.
        """
        if not self._enabled:
            return
        if id(optimizer) in self._finite:
            raise RuntimeError("GradScaler: unscale_() was called on this optimizer since the last update(); call it once a step.")
        gradients = list(gradients_of(p for group in optimizer.param_groups for p in group["params"]))
        for gradient in gradients:
            gradient *= np.asarray(1 / self._scale, gradient.dtype)
        self._finite[id(optimizer)] = all(bool((abs(gradient) < np.inf).all()) for gradient in gradients)  # False for nan, too

    def step(self, optimizer: Optimizer) -> None:
        """The optimizer's step, if all its gradients are finite; they are divided by the scale before, if that was not done."""
        if self._enabled and id(optimizer) not in self._finite:
            self.unscale_(optimizer)
        if not self._enabled or self._finite[id(optimizer)]:
            optimizer.step()

    def update(self, new_scale: float | None = None) -> None:
        """At the end of each step: the scale gets smaller, larger, or ``new_scale``.

        Raises:
            RuntimeError: if no gradients were divided since the last one.
        """
        if not self._enabled:
            return
        if new_scale is not None:
            self._scale = float(new_scale)
        elif not self._finite:
            raise RuntimeError("GradScaler: update() follows step(optimizer).")
        elif not all(self._finite.values()):
            self._scale, self._good_steps = self._scale * self.backoff_factor, 0
        else:
            self._good_steps += 1
            if self._good_steps == self.growth_interval:
                self._scale, self._good_steps = self._scale * self.growth_factor, 0
        self._finite.clear()

    def get_scale(self) -> float:
        """The scale; 1 if the scaler is not enabled."""
        return self._scale if self._enabled else 1.0

    def is_enabled(self) -> bool:
        """Whether the loss is scaled at all."""
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """As torch's; empty if the scaler is not enabled."""
        if not self._enabled:
            return {}
        factors = {name: getattr(self, name) for name in ("growth_factor", "backoff_factor", "growth_interval")}
        return {"scale": self._scale, **factors, "_growth_tracker": self._good_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`, torch's too. A scaler that is not enabled ignores it.

        Raises:
            RuntimeError: for that of a scaler that was not enabled.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError("GradScaler: the state is empty, it is that of a scaler with enabled=False.")
        self._scale, self._good_steps = state_dict["scale"], state_dict["_growth_tracker"]
        vars(self).update({name: state_dict[name] for name in ("growth_factor", "backoff_factor", "growth_interval")})


def _is_there(device: str, who: str) -> bool:
    """Whether there is such a device; a warning says so if there is not."""
    try:
        return Device(device).module is not None
    except DeviceUnavailableError:
        warnings.warn(f"{who}: there is no {device} here, so it is not enabled.", stacklevel=4)
        return False
