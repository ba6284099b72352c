"""gradcheck itself: what it accepts, what it refuses, and what it says about each kind of mistake."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.op import REGISTRY, Op
from tensorlite.testing import GradientError, compare_with_differences, gradcheck
from tensorlite.testing.diagnosis import Evidence, diagnose
from tests.patience import PATIENCE


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


def test_the_report_has_the_largest_error():
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


def test_inputs_and_their_gradients_are_not_changed():
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


def test_a_factor_per_row_is_found_where_only_two_rows_have_a_gradient(make_op):
    """Along axis 0 any two numbers are a multiple of any others; along axis 1 five numbers have one factor."""
    op = make_op(*wrong_places(lambda dx: dx * np.arange(2, 7)[:, None]))
    assert "the same along axis 1 but differs between its rows" in message(op, normal(5, 5), normal(5, 5) * (np.arange(5) < 2)[:, None])


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


def test_dy_left_out_and_gradients_exchanged(make_op):
    plain = make_op(lambda x: (np.exp(x).sum(axis=1), x), lambda dy, x: np.exp(x))
    assert "dy left out: it is the gradient of the plain sum" in message(plain, normal(3, 4))
    exchanged = make_op(lambda a, b: (a * b, (a, b)), lambda dy, saved: (dy * saved[0], dy * saved[1]), "exchanged")
    text = message(exchanged, normal(3), normal(3, seed=1))
    assert "looks like the gradient of input 1 (b)" in text or "looks like the gradient of input 0 (a)" in text


def test_derivatives_of_other_functions(make_op):
    sigmoid = make_op(lambda x: (1 / (1 + np.exp(-x)),) * 2, lambda dy, y: dy * y)
    assert "a factor left out, element by element: 1 - the output" in message(sigmoid, normal(6))
    cube = make_op(lambda x: (x * x * x, x), lambda dy, x: dy * x * x, "cube")
    assert "a constant factor of 0.333333" in message(cube, normal(6))
    half = make_op(lambda x: (x * x, x), lambda dy, x: dy * x * x, "half")
    assert "a factor too many, element by element: the input, and a factor of 0.5" in message(half, normal(6))
    sine = make_op(lambda x: (np.sin(x), x), lambda dy, x: dy * x, "sine")
    assert "dy · (the input): that is the derivative of another function" in message(sine, normal(6))


def test_a_gradient_where_there_is_none(make_op):
    """As a softmax over a single number has, for which any factor of anything would do."""
    one = make_op(lambda x: (x / x, x), lambda dy, x: dy * x)
    assert "looks like a gradient where there is none: the right one is zero everywhere" in message(one, normal(3, 1))


def test_numbers_that_should_be_zero(make_op):
    clipped = make_op(lambda x: (x.clip(-0.5, 0.5), x), lambda dy, x: dy)
    assert "a gradient where there is none: 6 of 15 numbers should be 0" in message(clipped, np.linspace(-0.8, 0.8, 15).reshape(3, 5))


def test_numbers_that_were_left_at_zero(make_op):
    def backward(dy, saved):
        dx = np.zeros_like(dy)
        dx[1, 2:], dx[0, :2] = 2 * dy[1, 2:], 2 * dy[0, :2]
        return dx

    assert "numbers that were left at zero: 10 of 15 are 0" in message(make_op(lambda x: (2 * x, None), backward), normal(3, 5))


def test_constants_and_factors_without_evidence_are_not_diagnosed(make_op):
    """The gradient of a row's sum is constant along the row, and any other constant would look like a missing mean."""
    first = make_op(lambda x: (x.sum(axis=1), x.shape), lambda dy, shape: np.full(shape, dy[0]))
    assert "looks like" not in message(first, normal(3, 4))
    winner = make_op(lambda x: (x.max(axis=1), x), lambda dy, x: (x == x.max(axis=1, keepdims=True)) * dy[::-1, None], "winner")
    assert "looks like" not in message(winner, normal(3, 4))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_single_number_gets_no_diagnosis(shape, make_op):
    """Any factor would explain it."""
    assert "looks like" not in message(make_op(*double(2)), normal(*shape))
    assert "looks like" not in message(make_op(lambda x: (np.exp(x), None), lambda dy, saved: dy, "no derivative"), normal(*shape))
    assert "are NaN" in message(make_op(*double(np.nan), "broken"), normal(*shape))


def test_plain_functions_are_compared_without_an_op():
    x, w = normal(3, 4), normal(4)
    right = compare_with_differences(lambda x, w: np.sin(x) * w, lambda dy: (dy * w * np.cos(x), (dy * np.sin(x)).sum(axis=0)), [x, w])
    assert right == []
    (wrong,) = compare_with_differences(lambda x, w: x * w, lambda dy: (dy * w, (dy * x).mean(axis=0)), [x, w])
    assert (wrong.label, wrong.position, wrong.wrong, wrong.size) == ("input 1 (w)", 1, 4, 4)
    assert wrong.looks_like.startswith("a factor of 0.333333 (1/3")
    assert abs(3 * wrong.backward - wrong.differences) < 1e-9
    left_out, other = compare_with_differences(lambda x, w: x * w, lambda dy: (None,), [x, w])
    assert "it is zero everywhere" in left_out.looks_like
    assert "it is zero everywhere" in other.looks_like


FAILING = """
import numpy as np
import tensorlite as tl
from tensorlite.op import Op
from tensorlite.testing import gradcheck

def halve_forward(x):
    return x / 2, None

def halve_backward(dy, saved):
    return dy

halve = Op(halve_forward, halve_backward)

def test_halve():
    gradcheck(halve, [np.arange(1.0, 7.0).reshape(2, 3)])
"""


def test_a_failure_in_pytest_is_short_and_named_at_the_end(tmp_path):
    (tmp_path / "test_halve.py").write_text(FAILING)
    (tmp_path / "conftest.py").write_text(
        "from tests.conftest import pytest_runtest_makereport\n"
        "from tests.summary import summary\n"
        "def pytest_terminal_summary(terminalreporter):\n"
        "    print(*summary(terminalreporter), sep='\\n')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "COLUMNS": "80"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "gradcheck.py" not in done.stdout.partition("short test summary")[0].replace("tensorlite.testing.gradcheck.Grad", "")
    assert len(done.stdout.splitlines()) < 25
    lines = done.stdout.splitlines()
    assert "test_halve: the gradient of halve is wrong for input 0 (x): a factor of 2 (2, and 2 is a length of an axis)." in lines
    (failed,) = [line for line in lines if line.startswith("FAILED")]
    assert failed.startswith("FAILED test_halve.py::test_halve - a factor of 2 (2, and")


def test_a_kink_is_not_reported_as_a_wrong_gradient():
    text = message(tl.relu, np.array([-1.0, 0.0, 2.0]))
    assert "a kink or a jump of the function itself at this point" in text


def test_without_a_matching_pattern_there_is_no_diagnosis(make_op):
    noise = normal(5, 5, seed=9)
    text = message(make_op(*wrong_places(lambda dx: dx + noise)), normal(5, 5), normal(5, 5, seed=1))
    assert "looks like" not in text


def test_a_diagnosis_must_explain_the_whole_difference():
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
