"""Choosing the next token: the distribution that comes out, temperature, top_k, top_p, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tensorlite as tl
from gpt.generation.sampling import _kth_largest, sample

LOGITS = np.array([0.3, -1.0, 2.0, 0.0, 1.1])


class Fixed:
    """A generator whose uniform numbers are known."""

    def __init__(self, *uniforms: float) -> None:
        self.uniforms = np.array(uniforms)

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.uniforms.reshape(shape)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max())
    return p / p.sum()


def chi_square(logits: np.ndarray, p: np.ndarray, draws: int = 50_000, **options) -> float:
    """How far 50,000 draws are from what they should be; tokens with p = 0 must not come at all."""
    ids = sample(np.tile(logits, (draws, 1)), generator=np.random.default_rng(0), **options)
    counts = np.bincount(ids, minlength=len(logits))
    assert not counts[p == 0].any()
    expected = draws * p[p > 0]
    return float(((counts[p > 0] - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_distribution_is_the_softmax(temperature: float) -> None:
    assert chi_square(LOGITS, softmax(LOGITS / temperature), temperature=temperature) < 18.5  # 4 degrees of freedom, 0.1%


def test_the_check_on_the_distribution_can_fail() -> None:
    assert chi_square(LOGITS, softmax(LOGITS / 1.05)) > 18.5


def test_top_k_draws_from_the_k_most_likely() -> None:
    p = np.where(np.isin(np.arange(5), [2, 4]), softmax(LOGITS), 0)
    assert chi_square(LOGITS, p / p.sum(), top_k=2) < 10.8  # 1 degree of freedom, 0.1%


def test_top_p_draws_from_the_nucleus() -> None:
    p = softmax(LOGITS)  # in order of likelihood: 0.55, 0.22, 0.10, 0.07, 0.03
    kept = np.where(np.isin(np.arange(5), [2, 4, 0]), p, 0)
    kept /= kept.sum()
    assert chi_square(LOGITS, kept, top_p=0.85) < 13.8  # 2 degrees of freedom, 0.1%


def test_exact_ids_from_known_uniforms() -> None:
    logits = np.log([0.1, 0.2, 0.3, 0.4])
    uniforms = [0.0, 0.09, 0.11, 0.29, 0.31, 0.59, 0.61, 0.9999]
    ids = sample(np.tile(logits, (8, 1)), generator=Fixed(*uniforms))
    assert ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert ids.dtype == np.int64


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf])
    for uniform, token in ((0.0, 1), (0.4999, 1), (0.5, 3), (np.nextafter(1, 0), 3)):
        assert sample(logits, generator=Fixed(uniform)) == token


@given(arrays(np.float64, (3, 17), elements=st.floats(-50, 50)), st.floats(0, 1, exclude_max=True))
def test_a_uniform_just_below_one_gives_an_id_in_the_vocabulary(logits: np.ndarray, uniform: float) -> None:
    for u in (uniform, np.nextafter(1, 0)):
        ids = sample(logits, generator=Fixed(u, u, u))
        assert ((ids >= 0) & (ids < 17)).all()


def test_temperature_zero_is_greedy_and_draws_nothing() -> None:
    logits = np.array([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    assert sample(logits, temperature=0).tolist() == [1, 0]  # of equals the first
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    sample(logits, temperature=0, generator=rng)
    assert rng.bit_generator.state == before


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e-30])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    assert sample(LOGITS, temperature, generator=Fixed(0.99)) == 2


def test_a_repetition_penalty_that_would_overflow_is_refused() -> None:
    seen = np.ones(3, bool)
    for penalty in (0.01, 100):
        assert sample(np.array([-1e4, 1e4, 1.0]), generator=Fixed(0.5), repetition_penalty=penalty, seen=seen) == 1
    for penalty in (5e-324, 0.0099, 101, 1e308, np.inf, np.nan):
        with pytest.raises(ValueError, match="repetition_penalty must be between"):
            sample(np.zeros(3), repetition_penalty=penalty, seen=seen)


def test_a_huge_temperature_is_uniform() -> None:
    assert sample(np.array([-1e4, 0.0]), 1e300, generator=Fixed(0.49)) == 0


def test_large_logits_do_not_overflow() -> None:
    assert sample(np.array([1e4, 1e4 - 1, -1e300]), generator=Fixed(0.72)) == 0
    assert sample(np.array([1e4, 1e4 - 1, -1e300]), generator=Fixed(0.74)) == 1


def test_top_k_larger_than_the_vocabulary_keeps_all() -> None:
    expected = sample(np.tile(LOGITS, (100, 1)), generator=np.random.default_rng(1))
    for k in (5, 6, 200):
        np.testing.assert_array_equal(sample(np.tile(LOGITS, (100, 1)), top_k=k, generator=np.random.default_rng(1)), expected)


def test_top_k_keeps_all_ties_with_the_last() -> None:
    ids = sample(np.tile([1.0, 2.0, 1.0, 0.0], (1000, 1)), top_k=2, generator=np.random.default_rng(0))
    assert set(ids.tolist()) == {0, 1, 2}


def test_the_kth_largest_of_many_numbers_is_found_among_few() -> None:
    """In more numbers than there are in a group, also with ties, -inf, and a rest that fills no group."""
    rng = np.random.default_rng(0)
    for size in (1, 63, 64, 200, 1000):
        ties, few = rng.integers(4, size=size).astype(float), np.where(rng.random(size) < 0.9, -np.inf, 1.0)
        for numbers in (rng.standard_normal(size), ties, few):
            for k in {1, 2, size // 64, size // 2, size} - {0}:
                if k <= size:
                    assert _kth_largest(numbers, k) == np.sort(numbers)[-k], (size, k)


def test_top_k_one_and_a_tiny_top_p_are_greedy() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 11))
    for options in ({"top_k": 1}, {"top_p": 1e-9}):
        np.testing.assert_array_equal(sample(logits, generator=np.random.default_rng(0), **options), logits.argmax(-1))


def test_top_p_is_counted_row_by_row_after_top_k() -> None:
    logits = np.log([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]])
    ids = sample(np.repeat(logits, 2000, axis=0), top_k=3, top_p=0.6, generator=np.random.default_rng(0))
    assert set(ids[:2000].tolist()) == {0, 1}  # 0.4 / 0.9 is below 0.6, 0.7 / 0.9 is above
    assert set(ids[2000:].tolist()) == {3}


@pytest.mark.parametrize("shape", [(7,), (1, 7), (4, 7), (2, 3, 7)])
def test_shapes(shape: tuple[int, ...]) -> None:
    for temperature in (0, 1):
        ids = sample(np.zeros(shape), temperature)
        assert np.shape(ids) == shape[:-1]
        assert ids.dtype == np.int64


def test_the_logits_are_not_written_to() -> None:
    logits = LOGITS.copy()
    logits.setflags(write=False)
    sample(logits, 0.5, top_k=2, top_p=0.5)
    np.testing.assert_array_equal(logits, LOGITS)


def test_without_a_generator_the_threads_generator_is_used() -> None:
    logits = np.tile(LOGITS, (20, 1))
    tl.manual_seed(3)
    first = sample(logits)
    tl.manual_seed(3)
    np.testing.assert_array_equal(sample(logits), first)
    np.testing.assert_array_equal(sample(logits.astype(np.float32), generator=tl.manual_seed(3)), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature must be 0 .* got -1"),
        ({"temperature": float("nan")}, "temperature must be 0 .* got nan"),
        ({"temperature": float("inf")}, "temperature must be 0 .* got inf"),
        ({"top_k": 0}, "top_k must be at least 1, got 0; leave it out"),
        ({"top_k": -5}, "top_k must be at least 1, got -5"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1, got nan"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(LOGITS, **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_invalid_logits_are_refused(bad: float, temperature: float) -> None:
    with pytest.raises(ValueError, match="nan or infinity"):
        sample(np.array([0.0, bad, 1.0]), temperature)
    with pytest.raises(ValueError, match="nan or infinity"):
        sample(np.full(3, -np.inf), temperature)
