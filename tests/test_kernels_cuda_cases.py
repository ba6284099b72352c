"""Every CUDA pair over the whole table of cases: on the CPU behind the stand-in for CuPy, and on a GPU where there is one.

The case is called once with NumPy arrays, and whatever ops it uses, each goes through its CUDA pair on the very arguments it got: in
float32 and in both half precisions. The truth is the book's page on the same numbers in float64.
"""

from __future__ import annotations

import functools
from unittest import mock

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import op as op_module
from tensorlite import random
from tensorlite.backend import to_numpy
from tensorlite.creation import bfloat16_dtype
from tensorlite.op import REGISTRY
from tensorlite.precision import use_precision
from tensorlite.tensor import is_floating
from tests.cases import all_cases
from tests.compare import leaves_of, relative_error

DTYPES = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}  # and the error allowed, relative to the largest number
# Parameters: float32 in any precision.
MASTERS = {"layernorm": (1, 2), "rmsnorm": (1,), "linear": (1, 2), "embedding": (1,), "feedforward": (1, 2, 3, 4)}
# Not to be compared so: dropout draws other bits than the book, and add takes two types at once.
ELSEWHERE = {"dropout": "test_kernels_cuda_dropout.py", "add": "test_kernels_cuda_arithmetic.py"}


def cuda_pair(op):
    return next((pair for pair in op.faster if pair.name == "cuda"), None)


def run_cuda_pairs(case, cupy, dtype, record=lambda *what: None, only=None):
    """Compares with the book, the op of this name alone if one is given; returns the names of those whose CUDA pair took the arguments."""
    choose_pair, ran = op_module.choose_pair, set()

    def check_and_choose(op, arrays, options):
        pair = cuda_pair(op)
        if (
            pair
            and op.name not in ELSEWHERE
            and only in (None, op.name)
            and not any(isinstance(value, np.ndarray) for value in options.values())
        ):
            given = [
                cupy.asarray(rounded(x, "float32" if i in MASTERS.get(op.name, ()) else dtype)) if isinstance(x, np.ndarray) else x
                for i, x in enumerate(arrays)
            ]
            with use_precision(dtype):
                if pair.supports(*given, **options):
                    ran.add(op.name)
                    record("cuda pair", (op.name, dtype, compare(op, pair, given, options, case, dtype)))
        return choose_pair(op, arrays, options)

    with mock.patch.object(op_module, "choose_pair", check_and_choose):
        case.call(tl, *leaves_of(case.draw()))
    return ran


def rounded(x, dtype):
    """``x`` in the type that is meant; ids and masks stay what they are."""
    return x.astype(bfloat16_dtype() if dtype == "bfloat16" else dtype) if is_floating(x.dtype) else x


def compare(op, pair, given, options, case, dtype):
    """The largest error of outputs and gradients; fails where it is too large."""
    exact = [to_numpy(x).astype(np.float64) if hasattr(x, "dtype") and is_floating(x.dtype) else x for x in given]
    exact = [to_numpy(x) if hasattr(x, "dtype") else x for x in exact]
    kept = [to_numpy(x).copy() if hasattr(x, "dtype") else x for x in given]
    xp = tl.backend.array_module(next(x for x in given if hasattr(x, "dtype")))
    with random.use_generator(random.make_generator(0)):
        right, right_saved = op.book.forward(*exact, **options)
    with random.use_generator(random.make_generator(0)):
        y, saved = pair.forward(*given, **options)
    ys, rights = (out if isinstance(out, tuple) else (out,) for out in (y, right))
    rng = np.random.default_rng(0)
    dys = [rounded(np.asarray(rng.standard_normal(out.shape)), out.dtype.name) for out in ys]
    needs_grad = tuple(hasattr(x, "dtype") and is_floating(x.dtype) for x in given)
    found = backward(pair, [xp.asarray(dy) for dy in dys], saved, needs_grad, isinstance(y, tuple))
    expected = backward(op.book, [dy.astype(np.float64) for dy in dys], right_saved, needs_grad, isinstance(y, tuple))

    worst, allowed = 0.0, max(DTYPES[dtype], case.float32)
    for i, (out, exact_out) in enumerate(zip(ys, rights, strict=True)):
        worst = max(worst, check(f"output {i}", out, exact_out, allowed))
    for i, needed in enumerate(needs_grad):
        if needed:
            assert found[i].dtype == given[i].dtype, f"gradient {i} of {op.name} is {found[i].dtype}, the argument {given[i].dtype}"
            worst = max(worst, check(f"gradient {i}", found[i], expected[i], allowed))
    for x, before in zip(given, kept, strict=True):
        assert not hasattr(x, "dtype") or np.array_equal(to_numpy(x), before, equal_nan=is_floating(x.dtype)), (
            f"{op.name} wrote to an argument"
        )
    return worst


def backward(pair, dys, saved, needs_grad, several):
    dy = tuple(dys) if several else dys[0]
    gradients = pair.backward(dy, saved, needs_grad) if pair.takes_needs_grad else pair.backward(dy, saved)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return (*gradients, *(None for _ in range(len(needs_grad) - len(gradients))))


def check(what, found, right, allowed):
    error = relative_error(to_numpy(found).astype(np.float64), np.asarray(right))
    assert error <= allowed, f"{what} is off by {error:.2g} of its largest number"
    return error


PAIRS = sorted({op.name for op in REGISTRY.values() if cuda_pair(op)} - set(ELSEWHERE))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_a_cuda_pair_agrees_with_the_book_on_all_arguments_it_supports(name, dtype, any_cupy, record_property):
    ran = [case.name for case in cases_with(name) if name in run_cuda_pairs(case, any_cupy, dtype, record_property, only=name)]
    assert ran, f"no case has arguments that the CUDA pair of {name} supports in {dtype}"


def cases_with(name):
    """The cases that call this op."""
    return [case for case in all_cases() if name in ops_of_cases()[case.name]]


@functools.cache
def ops_of_cases():
    """The name of a case -> the names of the ops that it calls."""
    choose_pair, seen = op_module.choose_pair, {}

    def note_and_choose(op, arrays, options):
        called.add(op.name)
        return choose_pair(op, arrays, options)

    with mock.patch.object(op_module, "choose_pair", note_and_choose):
        for case in all_cases():
            called = seen[case.name] = set()
            case.call(tl, *leaves_of(case.draw()))
    return seen
