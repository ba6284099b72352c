"""The activation function for inference: in place, and without a derivative.

    x Φ(x) = x · ½ (1 + tanh u) = x / (1 + e⁻²ᵘ)        u = x P(x²)

On a single row a call of NumPy takes longer than its arithmetic, so there are few calls: the powers of x² go into memory that is allocated
once, and one product with the coefficients adds them up. P is that of `tensorlite.kernels.cpu.activation`, or gelu_tanh's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cpu.activation import PHI_BY_TANH
from tensorlite.op import choose_pair
from tensorlite.ops.activation import gelu

_GELU_TANH = math.sqrt(2 / math.pi), math.sqrt(2 / math.pi) * 0.044715
_TILE = 16384  # numbers at once: with all their powers they fit into a core's cache
_LIMIT = np.array(6, np.float32)  # beyond, Φ is 0 or 1 to float32, and P may be anything


def make_activation(kind: str, like: Array) -> Callable[[Array], Array]:
    """The function that applies ``kind`` (relu, gelu or gelu_tanh) in place to arrays like ``like``, and returns them."""
    if kind == "relu":
        xp = array_module(like)
        zero = xp.zeros((), like.dtype)  # with Python's own 0 the call takes twice as long
        return lambda x: xp.maximum(x, zero, out=x)
    approximate = "tanh" if kind == "gelu_tanh" else "none"
    if isinstance(like, np.ndarray) and like.dtype == np.float32:
        return Gelu(approximate)
    return lambda x: choose_pair(gelu, [x], {"approximate": approximate}).forward(x, approximate=approximate)[0]


class Gelu:
    """``gelu(x)`` writes x Φ(x) over ``x``, float32 and in row-major order, and returns it."""

    def __init__(self, approximate: str = "none") -> None:
        self.coefficients = -2 * np.array(_GELU_TANH if approximate == "tanh" else PHI_BY_TANH, np.float32)
        self.one = np.ones((), np.float32)
        self._allocate(0)

    def __call__(self, x: Array) -> Array:
        numbers = x.reshape(-1)
        for i in range(0, numbers.size, _TILE):
            self._apply_in_place(numbers[i : i + _TILE])
        return x

    def _apply_in_place(self, x: Array) -> None:
        if x.size != self.y.size:
            self._allocate(x.size)
        z, y, square = self.z, self.y, self.rows[1]
        x.clip(-_LIMIT, _LIMIT, out=z)
        np.multiply(z, z, out=square)
        for lower, higher in self.steps:
            np.multiply(lower, square, out=higher)
        self.coefficients.dot(self.powers, out=y)
        y *= z
        np.exp(y, out=y)
        y += self.one
        x /= y

    def _allocate(self, size: int) -> None:
        self.z, self.y = np.empty((2, size), np.float32)
        self.powers = np.ones((len(self.coefficients), size), np.float32)  # of z²: 1, z², z⁴, …
        self.rows = list(self.powers)
        self.steps = list(zip(self.rows[1:-1], self.rows[2:], strict=True))
