"""gradcheck itself: what it accepts, what it refuses, and what it says about each kind of mistake."""

import re

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.op import REGISTRY, Op
from tensorlite.testing import GradientError, gradcheck
from tensorlite.testing.diagnosis import Evidence, diagnose


@pytest.fixture
def make_op():
    """Makes ops that are forgotten after the test."""
    names = set(REGISTRY)
    yield lambda forward, backward, name="planted": Op(forward, backward, name)
    for name in set(REGISTRY) - names:
        del REGISTRY[name]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def message(fn, *inputs, **options):
    with pytest.raises(GradientError) as failure:
        gradcheck(fn, inputs, **options)
    return str(failure.value)


# --- what is right passes -------------------------------------------------------------------------------


def test_the_report_says_how_close_it_was():
    report = gradcheck(lambda x, w: (x @ w).tanh(), [normal(3, 4), normal(4, 2)])
    assert 0 < report.worst < 1e-9
    assert report.where.startswith("input ")
    assert report.compared == 12 + 8


def test_tensors_arrays_and_constants_may_be_mixed():
    ids, mask = np.array([2, 0, 2]), tl.tensor([True, False, True])

    def fn(x, ids, mask, power):
        return tl.where(mask, (x[ids] ** power).sum(1), 0.0)

    assert gradcheck(fn, [tl.tensor(normal(3, 2)), ids, mask, 2]).compared == 6


def test_tuples_and_outputs_without_gradients():
    gradcheck(lambda x: x.max(1), [normal(3, 4)])  # values and indices
    gradcheck(lambda x: [x.exp(), x > 0, x.sum()], [normal(3)])


def test_an_input_that_is_not_used_has_the_gradient_zero():
    gradcheck(lambda x, y: x * 2, [normal(3), normal(2)])


def test_empty_and_0d_inputs():
    assert gradcheck(lambda x, y: (x.sum() * y).exp(), [normal(0, 3), np.asarray(0.3)]).compared == 1


def test_large_inputs_are_checked_along_directions():
    report = gradcheck(lambda x: (x * x.mean(0)).sin(), [normal(100, 50)])
    assert report.compared < 100
    assert report.worst < 1e-9


def test_inputs_and_their_gradients_are_left_alone():
    x = tl.tensor(normal(3), requires_grad=True)
    before = x.array.copy()
    gradcheck(lambda x: x * x, [x])
    assert x.grad is None
    np.testing.assert_array_equal(x.array, before)


# --- what cannot be checked is refused ------------------------------------------------------------------


def test_float32_is_refused():
    with pytest.raises(TypeError, match=r"input 1 \(w\) is float32; differences of rounded numbers prove nothing"):
        gradcheck(lambda x, w: x * w, [normal(2), normal(2).astype("float32")])


def test_nothing_to_check_is_refused():
    with pytest.raises(ValueError, match="none of the inputs is floating point"):
        gradcheck(lambda n: n, [np.arange(3)])
    with pytest.raises(ValueError, match="no output of fn is floating point"):
        gradcheck(lambda x: x > 0, [normal(3)])


def test_a_random_function_is_refused():
    with pytest.raises(ValueError, match=r"two different results .* seed its random numbers"):
        gradcheck(tl.nn.functional.dropout, [normal(50)])


# --- what is wrong is named -----------------------------------------------------------------------------


def double(factor):
    """An op y = 2x whose backward is off by a factor."""
    return lambda x: (2 * x, None), lambda dy, saved: 2 * factor * dy


def test_the_message_names_op_input_index_and_both_numbers(make_op):
    def backward(dy, saved):
        dbias = dy.sum(axis=0)
        dbias[2] += 1
        return dy, dbias

    text = message(make_op(lambda x, bias: (x + bias, None), backward, "shift"), normal(3, 4), normal(4))
    assert "the gradient of shift is wrong for input 1 (bias): at index (2,) backward says" in text
    one, other = (float(re.search(f"{who} says? ([-+.e0-9]+[0-9])", text)[1]) for who in ("backward", "differences"))
    assert abs(one - other - 1) < 1e-6
    assert "1 of 4 numbers differ" in text
    assert "at 2 of 4 along axis 0" in text


@pytest.mark.parametrize(
    "factor, says",
    [
        (-1, "the wrong sign"),
        (2, "a factor of 2 (2)."),
        (0.5, "a factor of 0.5 (1/2)."),
        (-2, "a factor of -2 (-2)."),
        (1 / 5, "1/5, and 5 is a length of an axis): a mean where a sum belongs?"),
        (15, "15, and 15 is a number of elements): a sum where a mean belongs?"),
        (5**0.5, "√5, and 5 is a length of an axis): a scale of 1/√n that was left out?"),
        (1.2345, "a constant factor of 1.2345."),
        (0, "zero everywhere"),
        (np.nan, "15 of 15 numbers of the gradient are NaN"),
    ],
)
@pytest.mark.parametrize("max_jacobian", [1024, 1], ids=["elements", "directions"])
def test_factors(factor, says, max_jacobian, make_op):
    text = message(make_op(*double(factor)), normal(3, 5), max_jacobian=max_jacobian)
    if max_jacobian == 1 and np.isnan(factor):
        says = "NaN"
    assert says in text


def test_directions_find_the_wrong_element(make_op):
    def backward(dy, saved):
        dx = 2 * dy
        dx[30, 7] *= 1.001
        return dx

    text = message(make_op(lambda x: (2 * x, None), backward), normal(60, 20), max_jacobian=100)
    assert "at index (30, 7)" in text
    assert "looks like" not in text  # along directions there is nothing else to see, so nothing else is said


def wrong_places(change):
    """y = x · w, with the right gradient moved to other places."""
    return lambda x, w: (x * w, (x, w)), lambda dy, saved: (change(dy * saved[1]), dy * saved[0])


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda dx: dx.T, "a transpose: axes 0 and 1 are exchanged"),
        (lambda dx: dx[::-1], "reversed along axis 0"),
        (lambda dx: np.roll(dx, 1, axis=1), "a shift by one along axis 1"),
        (
            lambda dx: np.broadcast_to(dx.sum(axis=1, keepdims=True), dx.shape),
            "a sum too many: each number is the sum of the right ones over axis 1",
        ),
        (lambda dx: np.broadcast_to(dx.mean(axis=0), dx.shape), "a mean too many: each number is the mean of the right ones over axis 0"),
        (lambda dx: dx - dx.mean(axis=1, keepdims=True), "the difference is the same along axis 1"),
        (lambda dx: dx * np.arange(1, 6)[:, None], "the same along axis 1 but differs between its rows"),
        (lambda dx: dx * (np.arange(5) < 4), "all wrong numbers are at 4 of 5 along axis 1"),
    ],
)
def test_wrong_places_and_terms(change, says, make_op):
    assert says in message(make_op(*wrong_places(change)), normal(5, 5), normal(5, 5, seed=1))


def test_element_by_element(make_op):
    text = message(make_op(lambda x: (np.exp(x), None), lambda dy, saved: dy), normal(6))
    assert "a factor left out, element by element: the output" in text
    text = message(make_op(lambda x: (x * x * x, x), lambda dy, x: 3 * x * x * x * dy, "cube"), normal(6))
    assert "a factor too many, element by element: the input" in text
    text = message(make_op(lambda x: (np.sin(x), None), lambda dy, saved: dy, "sine"), normal(6))
    assert "dy itself: the derivative of the function is left out" in text


def test_one_branch(make_op):
    leaky = make_op(lambda x: (np.where(x > 0, x, 0.1 * x), x), lambda dy, x: dy * (x > 0))
    assert "wrong only where the input is negative" in message(leaky, normal(12))


def test_a_sum_over_rows_that_was_left_out(make_op):
    first_row = make_op(lambda x, b: (x + b, None), lambda dy, saved: (dy, dy[0]), "shift")
    assert "a missing sum over a broadcast axis: only slice 0 along axis 0" in message(first_row, normal(3, 4), normal(4))
    unsummed = make_op(lambda x, b: (x + b, None), lambda dy, saved: (dy, dy), "unsummed")
    text = message(unsummed, normal(3, 4), normal(4))
    assert "the backward of unsummed failed" in text
    assert "the sum over a broadcast axis" in text


@pytest.mark.parametrize("which", ["first", "last"])
def test_lost_repeats(which, make_op):
    def backward(dy, saved):
        shape, ids = saved
        dx = np.zeros(shape)
        order = slice(None) if which == "last" else slice(None, None, -1)
        dx[ids[order]] = dy[order]
        return dx, None

    lookup = make_op(lambda x, ids: (x[ids], (x.shape, ids)), backward)
    assert f"lost repeats: where a number was used more than once, only its {which} use counts" in message(
        lookup, normal(4, 2), np.array([1, 3, 1, 0, 1, 3])
    )


def test_a_kink_is_not_blamed_on_the_gradient():
    text = message(tl.relu, np.array([-1.0, 0.0, 2.0]))
    assert "a kink or a jump of the function itself at this point" in text


def test_nothing_is_said_when_nothing_fits(make_op):
    noise = normal(5, 5, seed=9)
    text = message(make_op(*wrong_places(lambda dx: dx + noise)), normal(5, 5), normal(5, 5, seed=1))
    assert "looks like" not in text


def test_a_suspect_must_account_for_the_whole_difference():
    """A factor of 2 and one number that is wrong besides: that is not a factor of 2."""
    right, x = normal(4, 5), normal(4, 5, seed=1)
    wrong = 2 * right
    wrong[1, 1] += 0.5
    assert diagnose(Evidence(wrong, right, x, [], [], lambda: x)) is None


def test_all_wrong_inputs_are_listed(make_op):
    product = make_op(lambda a, b: (a * b, (a, b)), lambda dy, saved: (dy * saved[0], dy * saved[1]))
    assert "Also wrong: input" in message(product, normal(3), normal(3, seed=1))


def test_a_lambda_is_named_by_the_op_it_ends_in(make_op):
    op = make_op(*double(3), "double")
    assert "the gradient of a function ending in double is wrong for input 0 (x)" in message(lambda x: op(2 * x), normal(3))
