"""The product of a few rows with their norm, bias, activation and sum, in one kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tensorlite.kernels.cuda.matvec import CURVES, MOST_ROWS, Layer, matvec
from tests.compare import relative_error
from tests.standin import machine

ORDERS = ("ascending", "descending", "shuffled")
FLOAT32 = 32 * 2.0**-24  # a number goes through a dozen roundings, and sums through one for each doubling of their length
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "swiglu": lambda x: np.split(x, 2, axis=1)[0] / (1 + np.exp(-np.split(x, 2, axis=1)[0])) * np.split(x, 2, axis=1)[1],
}


def on(xp, *arrays):
    """In float32 on the device."""
    return [None if array is None else xp.asarray(array.astype(np.float32)) for array in arrays]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 4, 1), (1, 7, 6), (3, 200, 10), (MOST_ROWS, 33, 5), (2 * MOST_ROWS + 3, 128, 4)])
@pytest.mark.parametrize(
    "parts", ["nothing", "rmsnorm", "rmsnorm, gamma, bias", "layernorm", "layernorm, gamma, beta, bias", "bias, added"]
)
def test_a_product_of_a_few_rows(rows, inputs, outputs, parts, order, any_cupy):
    machine.machine.order = order
    rng = np.random.default_rng([rows, inputs])
    shapes = {"weight": (outputs, inputs), "gamma": inputs, "beta": inputs, "bias": outputs, "added": (rows, outputs)}
    given = {name: rng.standard_normal(shape) if name in parts or name == "weight" else None for name, shape in shapes.items()}
    x = rng.standard_normal((rows, inputs)) + 3
    weight, gamma, beta, bias, added = on(any_cupy, *given.values())
    (device_x,) = on(any_cupy, x)
    norm = next((kind for kind in ("rmsnorm", "layernorm") if kind in parts), "none")
    right = device_x.get().astype(np.float64)
    if norm == "layernorm":
        right -= right.mean(axis=1, keepdims=True)
    if norm != "none":
        right /= np.sqrt((right * right).mean(axis=1, keepdims=True) + 1e-5)
    right = right * (1 if gamma is None else gamma.get()) + (0 if beta is None else beta.get())
    right = right @ weight.get().T.astype(np.float64) + (0 if bias is None else bias.get()) + (0 if added is None else added.get())
    found = matvec(device_x, Layer(weight, bias, norm, gamma, beta, 1e-5), add_to=added)
    assert added is None or found is added
    assert relative_error(found.get(), right) <= FLOAT32


def test_a_far_mean_leaves_the_digits_of_a_layernorm(any_cupy):
    """mean(x²) - mean(x)² would lose all of them: x is 4096 plus or minus 1, exactly."""
    x = 4096 + np.array([[1, -1] * 32], np.float32)
    layer = Layer(any_cupy.asarray(np.eye(64, dtype=np.float32)), norm="layernorm")
    np.testing.assert_array_equal(matvec(any_cupy.asarray(x), layer).get(), x - 4096)


@pytest.mark.parametrize("inputs", [8, 9])
@pytest.mark.parametrize("activation", CURVES)
def test_an_activation_after_the_product(activation, inputs, any_cupy):
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((2, inputs)), rng.standard_normal((10, inputs)), 3 * rng.standard_normal(10)
    device_x, *layer = on(any_cupy, x, weight, bias)
    right = ACTIVATIONS[activation](x.astype(np.float32).astype(np.float64) @ layer[0].get().T.astype(np.float64) + layer[1].get())
    found = matvec(device_x, Layer(*layer), activation)
    assert found.shape == (2, 5 if activation == "swiglu" else 10)
    assert relative_error(found.get(), right) <= FLOAT32


def test_a_gate_far_from_0_is_0_or_1(any_cupy):
    """exp(200) is infinite in float32."""
    layer = Layer(any_cupy.asarray(np.array([[-200], [200], [2], [2]], np.float32)))
    found = matvec(any_cupy.ones((1, 1), "float32"), layer, "swiglu")
    np.testing.assert_array_equal(found.get(), [[0, 400]])
