"""The activations of a model that only predicts, against the pages of the book."""

import numpy as np
import pytest

from gpt.generation.activation import _TILE, Gelu, make_activation
from tensorlite.ops.activation import gelu_forward, relu_forward

NUMBERS = np.concatenate([np.linspace(-9, 9, 3001), [0, -0.0, 1e-30, 50, -50, 1e4, -1e4, 1e30, -1e30]])


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_equals_the_books(approximate):
    x = NUMBERS.astype(np.float32)
    expected, _ = gelu_forward(x.astype(np.float64), approximate)
    found = Gelu(approximate)(x.copy())
    assert found.dtype == np.float32
    assert abs(found - expected)[abs(x) < 10].max() < 1e-6
    np.testing.assert_allclose(found[x > 10], expected[x > 10], rtol=1e-6)
    assert (abs(found[x < -10]) <= 1e-9 * abs(x[x < -10])).all()


def test_gelu_in_many_tiles_of_unequal_size():
    gelu = Gelu()
    for size in (1, 5, _TILE, 2 * _TILE + 7, 5):
        x = np.random.default_rng(size).standard_normal((size, 1)).astype(np.float32)
        over = x.copy()
        assert gelu(over) is over
        np.testing.assert_allclose(over, gelu_forward(x)[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_the_activation_of_a_config(kind, dtype, tolerance):
    x = NUMBERS[:3001].astype(dtype)
    approximate = "tanh" if kind == "gelu_tanh" else "none"
    expected = relu_forward(x)[0] if kind == "relu" else gelu_forward(x, approximate)[0]
    found = make_activation(kind, x)(x.copy())
    assert found.dtype == dtype
    assert abs(found - expected).max() < tolerance


def test_nan_stays_nan():
    assert np.isnan(Gelu()(np.array([np.nan, 1], np.float32))).tolist() == [True, False]
