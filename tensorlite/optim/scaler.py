"""Loss scaling: it prevents an underflow of gradients in float16, whose smallest number is 6e-8.

The gradient of a loss that is S times as large is S times as large, at every node of the graph. So the loss is multiplied by S before
backward, the gradients in float16 are S times as large, and at the end, in float32, the parameters' gradients
are divided by S. If S is a power of two, neither the product nor the division rounds.

    S is too small      small gradients still underflow, and nothing shows it
    S is too large      large gradients overflow above 65504: an infinity appears and spreads to the parameters' gradients, which shows it

So S is kept as large as possible. When the parameters' gradients contain an infinity or a nan, the step is skipped, and S halves. When
that has not happened for `growth_interval` steps, S doubles. The first few steps find the right S and are skipped.
S stays between 2⁻¹²⁶ and 2¹²⁶, where both S and 1/S are normal numbers in float32. An S of infinity or 0 could never change again.

bfloat16 has the range of float32, and float32 needs none of this.
Source: Micikevicius et al. 2018, "Mixed precision training", section 3.2; the names and numbers are those of torch.amp.GradScaler.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module, to_numpy
from tensorlite.op import kernel_mode
from tensorlite.optim.adam import AdamW
from tensorlite.optim.clip import gradients_of
from tensorlite.optim.device_scalars import DeviceScalars
from tensorlite.optim.optimizer import Optimizer
from tensorlite.tensor import Tensor

SMALLEST, LARGEST = 2.0**-126, 2.0**126


class GradScaler:
    """Holds S, and makes or skips the steps of ``optimizer``.

        loss.backward(Tensor.wrap(scaler.scale))       # instead of dy = 1
        scaler.unscale_(model.parameters())
        norm = clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(norm)

    With AdamW on a GPU, Python reads no value: the device decides whether a step is skipped, and counts the skipped steps.

    Args:
        optimizer: the optimizer whose steps are made or skipped.
        enabled: False makes a scaler that does nothing, so that one training loop works for every precision: ``scale`` is 1, `unscale_`
            does not change the gradients, `step` and `step_with` are the optimizer's, and the state is empty.
        init_scale: the first S.
        growth_factor, backoff_factor: the factors by which S grows and shrinks.
        growth_interval: S grows after so many steps in a row without a skipped one.

    Attributes:
        scale: S, a float32 array of no axes; 1.0 if the scaler is not enabled.

    Raises:
        ValueError: for a factor, scale or interval out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if not (SMALLEST <= init_scale <= LARGEST and growth_factor > 1 and 0 < backoff_factor < 1 and growth_interval >= 1):
            raise ValueError(
                "GradScaler: init_scale must be between 2**-126 and 2**126, growth_factor above 1, backoff_factor between 0 and 1 and "
                f"growth_interval at least 1, got {init_scale}, {growth_factor}, {backoff_factor} and {growth_interval}."
            )
        self.optimizer = optimizer
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval
        self._enabled = enabled
        self.scale: Any = 1.0
        if not enabled:
            return
        xp = array_module(optimizer.flats[0].data)
        self.scale = xp.full((), init_scale, "float32")
        self._good = xp.zeros((), "int32")  # steps since S changed or a step was skipped
        self._skipped = xp.zeros((), "int32")  # skipped steps that the optimizer has counted

    @property
    def _xp(self) -> Any:
        return array_module(self.scale)

    def unscale_(self, parameters: Iterable[Tensor]) -> None:
        """Divide the gradients of ``parameters`` by S, in place."""
        if not self._enabled:
            return
        for gradient in gradients_of(parameters):
            gradient *= (1 / self.scale).astype(gradient.dtype)

    def step(self, norm: Tensor, gradient_factor: Array | None = None) -> None:
        """Make the optimizer's step if ``norm``, the norm of all gradients, is finite, or else skip it. Then update S.

        Args:
            gradient_factor: as in `Optimizer.step`.
        """
        if not self._enabled:
            self.optimizer.step(gradient_factor=gradient_factor)
            return
        if self._decides_on_device():
            scalars = self.optimizer.device_scalars()
            scalars.advance()
            self.step_with(scalars, norm, gradient_factor)
            return
        finite = self._xp.isfinite(norm.array)
        if finite:  # on a GPU this waits for the device
            self.optimizer.step(gradient_factor=gradient_factor)
        self._adjust(finite)

    def step_with(self, scalars: DeviceScalars, norm: Tensor, gradient_factor: Array | None = None) -> None:
        """`step` with the rates and step counts in ``scalars``, as `Optimizer.step_with` makes it.

        Raises:
            RuntimeError: if the optimizer's rule cannot skip a step, given as step 0: only the CUDA kernel of AdamW can.
        """
        if not self._enabled:
            self.optimizer.step_with(scalars, gradient_factor=gradient_factor)
            return
        if not self._decides_on_device():
            raise RuntimeError(f"{type(self.optimizer).__name__} cannot be held back on the device here: use GradScaler.step.")
        finite = self._xp.isfinite(norm.array)
        steps = [self._xp.where(finite, step - self._skipped, 0).astype("int32") for step in scalars.step]
        self.optimizer.step_with(scalars, steps, gradient_factor)
        self._skipped += ~finite
        self._adjust(finite)

    def finalize_step_count(self) -> None:
        """Subtract the skipped steps from the optimizer's counts. On a GPU this waits for the device.

        The same parameters must have had a gradient in all steps since the last call, as in training.
        """
        if not self._enabled:
            return
        skipped = int(self._skipped)
        self._skipped[...] = 0
        self.optimizer.subtract_steps(skipped)

    def is_enabled(self) -> bool:
        """Whether the loss is scaled."""
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """S and the steps since it changed, as JSON types; empty if the scaler is not enabled. Call `finalize_step_count` first."""
        if not self._enabled:
            return {}
        return {"scale": float(to_numpy(self.scale)), "good_steps": int(to_numpy(self._good))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`. A scaler that is not enabled ignores it.

        Raises:
            ValueError, TypeError, KeyError: if it is not a valid state.
        """
        if not self._enabled:
            return
        scale, good = float(state["scale"]), int(state["good_steps"])
        if not (SMALLEST <= scale <= LARGEST and good >= 0):
            raise ValueError(f"a loss scale is between 2**-126 and 2**126 and a number of steps not negative, got {scale} and {good}")
        self.scale[...], self._good[...], self._skipped[...] = scale, good, 0

    def _decides_on_device(self) -> bool:
        """Whether the device can skip a step without Python reading a value: AdamW's CUDA kernel does so for the step number 0."""
        flats = self.optimizer.flats
        is_known = isinstance(self.optimizer, AdamW) and all(flat.data.dtype == np.float32 for flat in flats)
        return self._xp is not np and is_known and kernel_mode() == "fast"

    def _adjust(self, finite: Array) -> None:
        """Update S and the count of good steps after a step that was made or skipped."""
        xp = self._xp
        good = xp.where(finite, self._good + 1, 0)
        grows = good == self.growth_interval
        factor = xp.where(finite, xp.where(grows, self.growth_factor, 1.0), self.backoff_factor)
        self.scale[...] = xp.clip(self.scale * factor, SMALLEST, LARGEST)  # the product is float64
        self._good[...] = xp.where(grows, 0, good)


__all__ = ["GradScaler"]
