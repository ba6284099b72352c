"""A value that is used twice receives two gradients, and they add up."""

import numpy as np
import pytest

import tensorlite as tl
from tests.cases import all_cases
from tests.compare import Result, backward, cotangents, flat, gradients_of, leaves_of, run_ours, worst_error

ROUNDING = 1e-12


def sums(first, second):
    """The gradients of two results, added."""
    return [None if a is None else a + b for a, b in zip(first.gradients, second.gradients, strict=True)]


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_called_twice_in_one_graph(case):
    """y and z are two calls on the same leaves: one walk over the tape brings both gradients."""
    arrays = case.draw()
    leaves = leaves_of(arrays)
    y, z = flat(case.call(tl, *leaves)), flat(case.call(tl, *leaves))
    backward(y + z, cotangents(y, 1) + cotangents(z, 2))
    check(leaves, sums(run_ours(case.call, arrays, seed=1), run_ours(case.call, arrays, seed=2)))


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_two_backward_calls_accumulate(case):
    arrays = case.draw()
    leaves = leaves_of(arrays)
    for seed in (1, 2):
        y = flat(case.call(tl, *leaves))
        backward(y, cotangents(y, seed))
    check(leaves, sums(run_ours(case.call, arrays, seed=1), run_ours(case.call, arrays, seed=2)))


def twins(case):
    """The first two floating point inputs of equal shape, or None."""
    arrays = case.draw()
    for i, a in enumerate(arrays):
        for j in range(i + 1, len(arrays)):
            if a.dtype.kind == arrays[j].dtype.kind == "f" and a.shape == arrays[j].shape:
                return i, j
    return None


@pytest.mark.parametrize("case", [case for case in all_cases() if twins(case)], ids=lambda case: case.name)
def test_same_leaf_passed_in_twice(case):
    """f(x, x) has the gradient ∂f/∂a + ∂f/∂b, where both are taken at a = b = x."""
    i, j = twins(case)
    arrays = case.draw()
    arrays[j] = arrays[i].copy()
    apart = run_ours(case.call, arrays)

    leaves = leaves_of(arrays)
    leaves[j] = leaves[i]
    y = flat(case.call(tl, *leaves))
    backward(y, cotangents(y, 0))

    both = apart.gradients[i] + apart.gradients[j]
    check([leaves[i]], [both])


def check(leaves, expected):
    error, where = worst_error(Result([], gradients_of(leaves), set()), Result([], expected, set()))
    assert error <= ROUNDING, f"{where} is off by {error:.2g} of its largest number"
    for leaf in leaves:
        assert leaf.grad is None or not np.shares_memory(leaf.grad.array, leaf.array), "a gradient shares the memory of its leaf"
