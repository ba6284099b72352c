"""What an op hides has no gradient, whatever comes back to it: a mask selects, it does not multiply.

Every case of the table, with an infinite or nan number at one place after the other: in the cotangents, and in the inputs. Where torch's
numbers are finite, ours are the same; where torch's are not, nor are ours. The exceptions are listed, with their reasons.
"""

import functools

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite.creation import bfloat16_dtype
from tensorlite.op import use_kernels
from tensorlite.ops.masking import apply_mask
from tests.cases import all_cases
from tests.compare import cotangents, relative_error, run_ours, run_torch

BETTER = {  # finite here, and not in torch
    "amax": "torch multiplies by the mask; in max() it selects, as we do",
    "amin": "as amax",
    "cross_entropy": "a row that is ignored may hold anything",
    "dropout": "what is dropped hides an infinite number",
    "logsumexp": "a row of nothing but -inf has no gradient",
    "cumprod": "the factors before x are multiplied, and not divided out",
    "norm": "a mask selects: what is not the largest, or is 0, has no influence",
    "pow": "0 ** e is 0 for every e > 0",
    "prod": "the product of the others has nothing to do with x itself, and is 0 beside a 0",
}
LOUDER = {  # finite in torch, and not here
    "abs": "of nan: torch's sign of nan is 0",
    "cumprod": "an infinite number beside a 0: the product of the others is 0 · ∞",
    "elu": "of nan: torch takes the slope of the numbers above 0",
    "l1_loss": "as abs",
    "norm": "as abs",
    "smooth_l1_loss": "as abs",
    "prod": "an infinite number between two zeros: the product of the others is 0 · ∞",
}
OTHER = {"relu": "of nan: the gradient is 0 here, and dy in torch"}  # finite in both
# products in which what is hidden is 0 · nan; and probabilities, of which both refuse what is none
ELSEWHERE = ("attention", "causal_self_attention", "rotary_self_attention", "binary_cross_entropy")


def op_of(case):
    return case.name.partition("-")[0]


CASES = [case for case in all_cases() if op_of(case) not in ELSEWHERE and any(x.dtype.kind == "f" and x.size for x in case.draw())]


def places(size):
    return sorted({0, size // 2, size - 1}) if size else []


def changed(arrays, number, place, value):
    """The arrays, one of them with ``value`` at a place."""
    copies = [x.copy() for x in arrays]
    copies[number].reshape(-1)[place] = value
    return copies


def spoilt(outputs, seed, number, place, value):
    return changed(cotangents(outputs, seed), number, place, value)


def variants(case):
    """(inputs, how cotangents are drawn) with one number that is none."""
    arrays = case.draw()
    for value in (np.inf, -np.inf, np.nan):
        for number, y in enumerate(run_torch(case, arrays).outputs):
            for place in places(y.size) if y.dtype.kind == "f" else []:
                yield arrays, functools.partial(spoilt, number=number, place=place, value=value)
        for number, x in enumerate(arrays):
            for place in places(x.size) if x.dtype.kind == "f" else []:
                yield changed(arrays, number, place, value), cotangents


@functools.cache
def with_torch(place):
    """The inputs of a case, how cotangents are drawn, and torch's results: the same for all kernels."""
    return [(arrays, draw, run_torch(CASES[place], arrays, draw=draw)) for arrays, draw in variants(CASES[place])]


def compare(place):
    """(finite here and not in torch, the reverse, the largest error where both are finite)."""
    better, louder, worst = False, False, 0.0
    with np.errstate(all="ignore"):
        for arrays, draw, torchs in with_torch(place):
            ours = run_ours(CASES[place].call, arrays, draw=draw)
            for (_, a), (_, b) in zip(ours.named(), torchs.named(), strict=True):
                if a is not None and a.dtype.kind == "f":
                    here, there = np.isfinite(a), np.isfinite(b)
                    better |= bool((here & ~there).any())
                    louder |= bool((there & ~here).any())
                    worst = max(worst, relative_error(np.where(here & there, a, 0), np.where(here & there, b, 0)))
    return better, louder, worst


@pytest.mark.parametrize("kernels", ["book", "fast"])
@pytest.mark.parametrize("place", range(len(CASES)), ids=lambda place: CASES[place].name)
def test_infinite_and_nan_inputs_give_torchs_results(place, kernels):
    op = op_of(CASES[place])
    with use_kernels(kernels):
        better, louder, error = compare(place)
    assert op in BETTER or not better, "a number is finite that is not in torch"
    assert op in LOUDER or not louder, "a number is not finite that is in torch"
    assert op in OTHER or error <= 1e-9, f"finite numbers differ by {error:.2g}"


@pytest.mark.parametrize("op", {**BETTER, **LOUDER, **OTHER})
def test_every_listed_exception_differs_from_torch(op):
    found = [compare(place) for place, case in enumerate(CASES) if op_of(case) == op]
    assert any(better for better, _, _ in found) == (op in BETTER)
    assert any(louder for _, louder, _ in found) == (op in LOUDER)
    assert any(error > 1e-9 for _, _, error in found) == (op in OTHER)


CHAINS = {
    "relu": lambda t, x: x.relu().sqrt(),
    "clamp": lambda t, x: x.clamp(min=0).sqrt(),
    "maximum": lambda t, x: t.maximum(x, t.zeros_like(x)).sqrt(),
    "max": lambda t, x: (4 - x.max()).sqrt(),
    "x ** 0": lambda t, x: (x**0 - 1).sqrt(),
    "std of equals": lambda t, x: (x * 0).std().sqrt(),
    "where": lambda t, x: t.where(x > 0, x, t.zeros_like(x)).sqrt(),
    "masked_fill": lambda t, x: x.masked_fill(x < 0, 0).sqrt(),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_masked_square_root_has_a_finite_gradient_as_in_torch(name):
    grads = []
    for t in (tl, torch):
        x = t.tensor([-1.0, 4.0, -2.0], requires_grad=True)
        with np.errstate(divide="ignore"):
            CHAINS[name](t, x).sum().backward()
        grads.append(x.grad.numpy())
    np.testing.assert_array_equal(*grads)
    assert np.isfinite(grads[0][[0, 2]]).all()


@pytest.mark.parametrize("dtype", [np.float16, bfloat16_dtype(), np.float32, np.float64], ids=str)
def test_apply_mask_equals_where(dtype):
    x = np.array([[1.5, -2.0, np.inf, -np.inf, np.nan, -0.0]] * 3, dtype)
    chessboard = np.arange(18).reshape(3, 6) % 2 == 0
    for mask in (chessboard, chessboard[:1], chessboard[0], chessboard[:, :1], ~chessboard[:, :1]):
        for array in (x, np.asfortranarray(x), x[::-1, ::-1]):
            found = apply_mask(array, mask)
            assert found.dtype == x.dtype
            np.testing.assert_array_equal(found.astype(np.float64), np.where(mask, array.astype(np.float64), 0))
    assert apply_mask(np.array(np.nan, dtype), np.array(False)) == 0
