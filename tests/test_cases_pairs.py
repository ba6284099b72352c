"""Every faster pair for NumPy arrays against the book, on every case whose arguments it supports.

Those for CuPy's arrays are in test_kernels_cuda_cases.py.
"""

import functools
from unittest import mock

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import op as op_module
from tensorlite.op import REGISTRY
from tensorlite.testing import assert_pairs_agree
from tensorlite.testing.pairs import RTOL
from tests.cases import all_cases
from tests.compare import leaves_of, run_ours, worst_error

PAIRS = [(op.name, pair.name) for op in REGISTRY.values() for pair in op.faster if pair.name != "cuda"]
PRECISIONS = {"float64": (np.float64, 1e-10), "float32": (np.float32, 2e-5)}  # and the error allowed, relative to the largest number


def calls_of(case):
    """(op, arrays, options) of every call of an op with a faster pair that the case makes."""
    choose_pair, calls = op_module.choose_pair, []

    def note_and_choose(op, arrays, options):
        if op.faster:
            calls.append((op, arrays, options))
        return choose_pair(op, arrays, options)

    with mock.patch.object(op_module, "choose_pair", note_and_choose):
        case.call(tl, *leaves_of(case.draw()))
    return calls


def check_pairs(case, name=None):
    """All faster pairs of the ops that the case calls, or of the op of this name, against the book."""
    for op, arrays, options in calls_of(case):
        for dtype, rtol in (("float64", None), ("float32", max(RTOL["float32"], case.float32))):
            if name in (None, op.name):
                assert_pairs_agree(op, *arrays, dtypes=[dtype], rtol=rtol, **options)


@functools.cache
def users():
    """(op, pair) -> the cases whose arguments that pair supports. Only they say something about it."""
    found = {pair: [] for pair in PAIRS}
    for case in all_cases():
        for op, arrays, options in calls_of(case):
            for pair in op.faster:
                known = found.get((op.name, pair.name), [case])
                if case not in known and pair.supports(*arrays, **options):
                    known.append(case)
    return found


@pytest.mark.parametrize("op, pair", PAIRS, ids=map(" ".join, PAIRS))
def test_a_pair_agrees_with_the_book_on_all_arguments_it_supports(op, pair):
    """The very arrays that the op gets in the case, in both precisions, laid out in odd ways, with random cotangents."""
    assert users()[op, pair], f"no case has arguments that the pair {pair} of {op} supports"
    for case in users()[op, pair]:
        check_pairs(case, op)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("op, pair", PAIRS, ids=map(" ".join, PAIRS))
def test_a_case_gives_the_same_with_the_pair_and_by_the_book_alone(op, pair, precision):
    """Through the tape: what the case returns, and the gradients of all its inputs."""
    dtype, allowed = PRECISIONS[precision]
    for case in users()[op, pair]:
        arrays = case.draw(dtype=dtype)
        fast = run_ours(case.call, arrays)
        with op_module.use_kernels("book"):
            book = run_ours(case.call, arrays)
        error, where = worst_error(fast, book)
        assert error <= max(allowed, case.float32 if precision == "float32" else 0), f"{case.name}: {where} differs by {error:.2g}"
