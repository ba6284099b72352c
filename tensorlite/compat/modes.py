"""Switches of the tape and streams of random numbers, under torch's names."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite import random
from tensorlite.tape import enable_grad, is_grad_enabled, no_grad


class inference_mode(no_grad):
    """The same as ``no_grad``; ``inference_mode(False)`` records. Its results may be used on a later tape, which torch forbids."""

    def __new__(cls, mode: Any = True) -> Any:
        """A block; or, for ``@inference_mode`` without brackets, the decorated function."""
        if callable(mode):
            return cls()(mode)
        return object.__new__(cls) if mode else enable_grad()

    def __init__(self, mode: bool = True) -> None:
        super().__init__()


class set_grad_enabled:
    """Turn recording on or off: at once, and in a ``with`` block until its end.

    with set_grad_enabled(train): …
    """

    def __init__(self, mode: bool) -> None:
        self._previous = is_grad_enabled()
        self._block = enable_grad() if mode else no_grad()
        self._block.__enter__()

    def __enter__(self) -> None:
        """It holds already."""

    def __exit__(self, *exception: object) -> None:
        self._block.__exit__(*exception)


class Generator(np.random.Generator):
    """A stream of random numbers: ``g = Generator().manual_seed(0)``, for the argument ``generator`` of random functions.

    The numbers differ from torch's. They are the same on every platform and for both devices.
    """

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__(np.random.SFC64())
        self._seed = 0

    def manual_seed(self, seed: int) -> Generator:
        """Restart from ``seed``; returns the generator."""
        self.bit_generator.state = random.make_generator(seed).bit_generator.state
        self._seed = seed
        return self

    def initial_seed(self) -> int:
        """The last seed given."""
        return self._seed

    def get_state(self) -> Any:
        """For `set_state`."""
        return self.bit_generator.state

    def set_state(self, state: Any) -> Generator:
        """Continue from the state that `get_state` returned."""
        self.bit_generator.state = state
        return self


def get_rng_state() -> Any:
    """The state of the calling thread's stream, for `set_rng_state`."""
    return random.default_generator().bit_generator.state


def set_rng_state(state: Any) -> None:
    """Continue the calling thread's stream from the state that `get_rng_state` returned."""
    random.default_generator().bit_generator.state = state
