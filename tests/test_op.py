"""Op: the only place where tensors become arrays, and the choice of a pair."""

import inspect
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.compat import Missing
from tensorlite.op import REGISTRY, Op, Pair, choose_pair, kernel_table, register, use_kernels
from tensorlite.tape import no_grad
from tensorlite.tensor import Tensor
from tensorlite.testing import PairsDisagreeError, assert_pairs_agree


def scale_forward(x, weight=None, factor=2.0):
    """y = factor · x · weight"""
    y = factor * x if weight is None else factor * x * weight
    return y, (x, weight, factor)


def scale_backward(dy, saved):
    x, weight, factor = saved
    return (factor * dy, None) if weight is None else (factor * dy * weight, factor * dy * x)


@pytest.fixture
def make_op():
    """Makes ops that are forgotten after the test."""
    names = set(REGISTRY)
    yield lambda forward, backward, name="planted": Op(forward, backward, name)
    for name in set(REGISTRY) - names:
        del REGISTRY[name]


@pytest.fixture
def scale(make_op):
    with use_kernels("fast"):  # whatever TENSORLITE_KERNELS says
        yield make_op(scale_forward, scale_backward, "scale")


def leaf(*values):
    return Tensor(np.array(values), requires_grad=True)


def test_call_unwraps_runs_and_records(scale):
    x = leaf(1.0, 2.0)
    y = scale(x, factor=3.0)
    assert isinstance(y, Tensor)
    np.testing.assert_array_equal(y.array, [3, 6])
    assert y.requires_grad
    assert y.source[0].name == "scale"
    y.backward(Tensor(np.array([1.0, 10.0])))
    np.testing.assert_array_equal(x.grad.array, [3, 30])


def test_nothing_is_recorded_if_no_input_requires_a_gradient(scale):
    assert scale(Tensor(np.ones(2))).source is None
    with no_grad():
        y = scale(leaf(1.0))
    assert y.source is None
    assert not y.requires_grad


def test_plain_arrays_and_numbers_are_constants(make_op):
    op = make_op(lambda x, n: (x * n, n), lambda dy, n: (dy * n, None))
    x = leaf(1.0, 2.0)
    op(x, 5).backward(Tensor(np.ones(2)))
    np.testing.assert_array_equal(x.grad.array, [5, 5])
    x.grad = None
    op(x, np.array([3.0, 4.0])).backward(Tensor(np.ones(2)))
    np.testing.assert_array_equal(x.grad.array, [3, 4])


def test_a_tensor_given_by_keyword_gets_its_gradient(scale):
    x, weight = leaf(1.0, 2.0), leaf(3.0, 4.0)
    scale(x, weight=weight).backward(Tensor(np.ones(2)))
    np.testing.assert_array_equal(weight.grad.array, [2, 4])
    np.testing.assert_array_equal(x.grad.array, [6, 8])


def test_several_outputs_receive_a_tuple(make_op):
    seen = []
    op = make_op(lambda x: ((x, 2 * x), None), lambda dy, _: (seen.append(dy), dy[0] + 2 * dy[1])[1])
    x = leaf(1.0)
    first, second = op(x)
    second.backward(Tensor(np.array([5.0])))
    assert [d.tolist() for d in seen[0]] == [[0.0], [5.0]]  # zeros stand in for the output nobody used
    np.testing.assert_array_equal(x.grad.array, [10])
    assert first.requires_grad


def test_integer_outputs_take_no_part_in_gradients(make_op):
    op = make_op(lambda x: ((x * 2, x.astype(np.int64)), None), lambda dy, _: dy[0] * 2)
    values, whole = op(leaf(1.5))
    assert values.requires_grad
    assert not whole.requires_grad


def test_backward_gets_needs_grad(make_op):
    asked = []

    def backward(dy, saved, needs_grad=(True, True)):
        asked.append(needs_grad)
        return tuple(dy if need else None for need in needs_grad)

    op = make_op(lambda a, b: (a + b, None), backward)
    op(leaf(1.0), Tensor(np.ones(1))).backward()
    op(Tensor(np.ones(1)), leaf(1.0)).backward()
    op(leaf(1.0), leaf(1.0)).backward()
    assert asked == [(True, False), (False, True), (True, True)]


def test_a_gradient_that_is_missing_or_misshapen_is_refused(make_op):
    missing = make_op(lambda a, b: (a + b, None), lambda dy, _: (dy, None), "missing")
    with pytest.raises(RuntimeError, match="missing has no gradient for its argument 1"):
        missing(leaf(1.0), leaf(1.0)).backward()
    misshapen = make_op(lambda a: (a.sum(), None), lambda dy, _: dy, "misshapen")
    with pytest.raises(RuntimeError, match=r"misshapen returned a gradient of shape \(\) for argument 0, whose shape is \(2,\)"):
        misshapen(leaf(1.0, 2.0)).backward()


def test_name_doc_and_signature_are_the_forwards(scale):
    assert scale.__doc__ == scale_forward.__doc__
    assert list(scale.__signature__.parameters) == ["x", "weight", "factor"]
    assert repr(scale) == "<op scale: book>"
    assert REGISTRY["scale"] is scale


def test_two_ops_of_one_name_are_refused(scale, make_op):
    with pytest.raises(ValueError, match="an op named 'scale' already"):
        make_op(scale_forward, scale_backward, "scale")


def test_an_op_can_be_a_method(scale):
    class WithMethod(Tensor):
        __slots__ = ()
        scaled = scale

    assert WithMethod.scaled is scale
    np.testing.assert_array_equal(WithMethod(np.ones(2)).scaled(factor=7.0).array, [7, 7])


# --- faster pairs ---------------------------------------------------------------------------------------


def only_vectors(x, weight=None, factor=2.0):
    return x.ndim == 1


@pytest.fixture
def fast(scale):
    pair = Pair("cpu", scale_forward, scale_backward, supports=only_vectors)
    register(scale, pair)
    return pair


def test_a_faster_pair_runs_where_it_supports_the_arguments(scale, fast):
    assert choose_pair(scale, [np.ones(2)], {}) is fast
    assert choose_pair(scale, [np.ones((2, 2))], {}) is scale.book
    assert choose_pair(scale, [np.ones(2)], {"factor": 1.0}) is fast
    assert repr(scale) == "<op scale: cpu, book>"


def test_the_pair_registered_last_is_tried_first(scale, fast):
    faster = Pair("cuda", scale_forward, scale_backward, supports=only_vectors)
    register(scale, faster)
    assert choose_pair(scale, [np.ones(2)], {}) is faster
    assert kernel_table()["scale"] == ["cuda", "cpu", "book"]


def test_use_kernels_switches_and_restores(scale, fast):
    with use_kernels("book"):
        assert choose_pair(scale, [np.ones(2)], {}) is scale.book
        assert kernel_table()["scale"] == ["book"]
        with use_kernels("fast"):
            assert choose_pair(scale, [np.ones(2)], {}) is fast
        assert choose_pair(scale, [np.ones(2)], {}) is scale.book
    assert choose_pair(scale, [np.ones(2)], {}) is fast


def test_use_kernels_restores_after_an_error(scale, fast):
    with pytest.raises(ZeroDivisionError), use_kernels("book"):
        1 / 0  # noqa: B018
    assert choose_pair(scale, [np.ones(2)], {}) is fast


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match="'quick': it is 'fast' or 'book'"), use_kernels("quick"):
        pass


@pytest.mark.parametrize("value, expected", [("book", "book"), ("fast", "fast"), ("quick", "it is 'fast' (the default) or 'book'")])
def test_the_environment_variable(value, expected):
    code = "import tensorlite.op as op; print(op._mode)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TENSORLITE_KERNELS": value}, capture_output=True, text=True, check=False
    )
    assert expected in done.stdout + done.stderr
    assert (done.returncode == 0) is (value != "quick")


def test_the_forward_and_backward_of_one_pair_belong_together(scale):
    """The mode at the time of backward does not matter: saved is read by the pair that wrote it."""
    ran = []
    register(scale, Pair("cpu", lambda x: (2 * x, "its own"), lambda dy, saved: (ran.append(saved), 2 * dy)[1]))
    y = scale(leaf(1.0))
    with use_kernels("book"):
        y.backward()
    assert ran == ["its own"]


# --- assert_pairs_agree ---------------------------------------------------------------------------------


def test_pairs_that_agree_are_reported(scale, fast):
    report = assert_pairs_agree(scale, np.arange(3.0), np.arange(3.0), factor=3.0, dtypes=("float32", "float64"))
    assert report.ran == ("cpu float32", "cpu float64")
    assert report.worst == 0
    assert assert_pairs_agree(scale, np.ones((2, 2))).skipped == ("cpu float64",)


def register_variant(op, forward=scale_forward, backward=scale_backward):
    register(op, Pair("cpu", forward, backward))


def test_pairs_that_differ_are_named(scale):
    register_variant(scale, backward=lambda dy, saved: (scale_backward(dy, saved)[0], 3 * dy * saved[0]))
    with pytest.raises(PairsDisagreeError, match=r"scale: gradient 1 of the cpu pair differs from the book in float64: at index \(2,\)"):
        assert_pairs_agree(scale, np.array([0.1, 0.2, 3.0]), np.ones(3))


def test_a_value_that_differs_is_named(scale):
    register_variant(scale, forward=lambda x, weight=None, factor=2.0: (scale_forward(x, weight, factor)[0] + 1, (x, weight, factor)))
    with pytest.raises(PairsDisagreeError, match="output 0 of the cpu pair differs"):
        assert_pairs_agree(scale, np.ones(3))


def test_another_dtype_or_a_missing_gradient_is_refused(scale):
    register_variant(scale, forward=lambda x, weight=None: (scale_forward(x.astype(np.float64), weight)[0], (x, weight, 2.0)))
    with pytest.raises(PairsDisagreeError, match=r"is float64 \(3,\), the book's is float32 \(3,\)"):
        assert_pairs_agree(scale, np.ones(3), dtypes=("float32",))
    scale.faster.clear()
    register_variant(scale, backward=lambda dy, saved: (scale_backward(dy, saved)[0], None))
    with pytest.raises(PairsDisagreeError, match="gradient 1 of the cpu pair in float64 is missing"):
        assert_pairs_agree(scale, np.ones(3), np.ones(3))


def test_a_pair_that_writes_to_its_arguments_or_dy_is_refused(scale):
    def spoil_x(x, weight=None, factor=2.0):
        result = scale_forward(x, weight, factor)
        x += 1
        return result

    def spoil_dy(dy, saved):
        result = scale_backward(dy, saved)
        dy *= 0
        return result

    register_variant(scale, forward=spoil_x)
    with pytest.raises(PairsDisagreeError, match="the cpu pair wrote to an argument"):
        assert_pairs_agree(scale, np.ones(3), np.ones(3))
    scale.faster.clear()
    register_variant(scale, backward=spoil_dy)
    with pytest.raises(PairsDisagreeError, match="the cpu pair wrote to dy"):
        assert_pairs_agree(scale, np.ones(3), np.ones(3))


# --- messages about arguments ---------------------------------------------------------------------------


def public_functions():
    """Every function and op that a user calls by name, but those that take any number of arguments."""
    places = {"tl": tl, "F": tl.nn.functional, "optim": tl.optim, "init": tl.nn.init, "Tensor": tl.Tensor}
    for place, owner in places.items():
        for name in dir(owner):
            if isinstance(inspect.getattr_static(owner, name, None), Missing):
                continue
            function = getattr(owner, name)
            if not name.startswith("_") and callable(function) and not isinstance(function, type):
                yield pytest.param(name, function, id=f"{place}.{name}")


@pytest.mark.parametrize(("name", "function"), [*public_functions()])
def test_the_error_for_a_wrong_argument_names_the_called_function(name, function):
    x = tl.ones(2, 2)
    for args, options in [((), {"nonsense": 1}), ((x,), {"nonsense": 1}), ((x, x), {"nonsense": x})]:
        with pytest.raises(TypeError) as caught:
            function(*args, **options)
        assert re.search(rf"(^|\.){name}\(\)", str(caught.value)), caught.value
        assert not re.search("_forward|supports|lambda|locals", str(caught.value)), caught.value


def test_the_error_lists_the_parameters_of_the_op():
    x = tl.ones(2, 2)
    for call, said in [
        (
            lambda: x.sum(1, keep=True),
            r"sum\(\): got an unexpected keyword argument 'keep'; it takes sum\(x, dim=None, keepdim=False\)",
        ),
        (lambda: tl.add(x, x, beta=2), r"add\(\): got an unexpected keyword argument 'beta'; it takes add\(x, other\)"),
        (x.matmul, r"matmul\(\): missing a required argument: 'b'; it takes matmul\(a, b\)"),
        (lambda: tl.exp(x, x), r"exp\(\): too many positional arguments; it takes exp\(x\)"),
        (lambda: x.float(1), r"Tensor\.float\(\) takes 1 positional argument but 2 were given"),
        (lambda: x.where(x > 0), r"Tensor\.where\(\) missing 1 required positional argument: 'other'"),
    ]:
        with pytest.raises(TypeError, match=said):
            call()


def test_a_type_error_inside_a_forward_is_not_changed(make_op):
    def strange_forward(x):
        raise TypeError("something else")

    with pytest.raises(TypeError, match=r"^something else$"):
        make_op(strange_forward, lambda dy, saved: dy)(tl.ones(1))


def test_without_ml_dtypes_bfloat16_raises_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert not hasattr(tl, "bfloat16")
    with pytest.raises(AttributeError, match="bfloat16 needs ml_dtypes: pip install"):
        tl.bfloat16  # noqa: B018
    for name in dir(tl):
        assert hasattr(tl, name)
