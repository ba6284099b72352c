"""A faster pair refuses what the book refuses, in the same words; and a nan reaches the same numbers in both.

Every call of the table that a CPU pair takes, with one argument after the other changed: its axes, lengths and type, or one number in it.
"""

import copy
from unittest import mock

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite import op as op_module
from tensorlite import random
from tensorlite.op import use_kernels
from tests.cases import all_cases
from tests.compare import leaves_of, run_ours


def calls_of(case):
    """(op, arguments, options) of every call in which a CPU pair is chosen."""
    choose_pair, calls = op_module.choose_pair, []

    def recorded(op, arrays, options):
        pair = choose_pair(op, arrays, options)
        if pair is not op.book:
            calls.append((op, list(arrays), dict(options)))
        return pair

    with mock.patch.object(op_module, "choose_pair", recorded):
        case.call(tl, *leaves_of(case.draw()))
    return calls


CASES = [case for case in all_cases() if calls_of(case)]


def others(arguments, options):
    """What a caller might get wrong: (in words, arguments, options)."""
    for name, value in options.items():
        for wrong in [-0.5, 1.5] if isinstance(value, float) else ["other"] if isinstance(value, str) else []:
            yield f"{name}={wrong}", arguments, {**options, name: wrong}
    for i, x in enumerate(arguments):
        changed = {}
        if isinstance(x, int) and not isinstance(x, bool):
            changed = {str(n): n for n in (-1, 0, 3)}
        elif isinstance(x, np.ndarray):
            changed = {"an axis more": x[None], "an axis behind": x[..., None]}
            changed |= {"an axis less": x[0]} if x.ndim and len(x) else {}
            changed |= {f"twice as long along axis {axis}": np.concatenate((x, x), axis) for axis in range(x.ndim)}
            changed |= {f"empty along axis {axis}": np.take(x, [], axis) for axis in range(x.ndim)}
            changed |= {dtype: x.astype(dtype) for dtype in ("bool", "int64", "float32", "float64") if x.dtype != dtype}
        for what, y in changed.items():
            yield f"argument {i}: {what}", [*arguments[:i], y, *arguments[i + 1 :]], options


def outcome(pair, arguments, options):
    """None if forward and backward run; else where, which error, and its words."""
    try:
        with random.use_generator(random.make_generator(0)), np.errstate(all="ignore"):
            y, saved = pair.forward(*copy.deepcopy(arguments), **copy.deepcopy(options))
    except (TypeError, ValueError, IndexError) as error:
        return "forward", type(error), str(error)
    try:
        with np.errstate(all="ignore"):
            pair.backward(np.ones_like(y), saved)
    except (TypeError, ValueError, IndexError) as error:
        return "backward", type(error), str(error)
    return None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_faster_pair_refuses_what_the_book_refuses(case):
    for op, arguments, options in calls_of(case):
        for what, changed, changed_options in others(arguments, options):
            pair = op_module.choose_pair(op, changed, changed_options)
            if pair is not op.book:
                found, right = outcome(pair, changed, changed_options), outcome(op.book, changed, changed_options)
                assert found == right, f"{op.name}, {what}"
                assert found is None or found[0] == "forward", f"{op.name}, {what}: refused in backward only, where nobody can tell why"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_nan_reaches_the_same_numbers_in_a_pair_and_in_the_book(case):
    arrays = case.draw()
    for i, x in enumerate(arrays):
        for place in {0, x.size // 2, x.size - 1} if x.size and x.dtype.kind == "f" else ():
            for value in (np.nan, np.inf):
                changed = [y.copy() for y in arrays]
                changed[i].reshape(-1)[place] = value
                found = []
                for kernels in ("book", "fast"):
                    with use_kernels(kernels), np.errstate(all="ignore"):
                        found.append(run_ours(case.call, changed))
                for (what, a), (_, b) in zip(*(result.named() for result in found), strict=True):
                    if a is not None and a.dtype.kind == "f":
                        assert np.array_equal(np.isfinite(a), np.isfinite(b)), f"{value} in input {i} at {place}: {what}"


@pytest.mark.parametrize("kernels", ["book", "fast"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200], ids=str)
@pytest.mark.parametrize("T", [5, 70])
def test_a_hidden_key_is_seen_by_no_earlier_query(kernels, value, T):
    """1e200 is finite, but its scores are not. torch says the same."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.uniform(0.5, 1, (1, 2, T, 4)) for _ in range(3))
    k[..., -1, 0] = value
    q *= 1e150 if value == 1e200 else 1
    k[..., :-1, :] *= 1e-150 if value == 1e200 else 1
    with use_kernels(kernels), np.errstate(all="ignore"):
        y = tl.nn.functional.scaled_dot_product_attention(*(tl.tensor(x) for x in (q, k, v)), is_causal=True).array
    right = torch.nn.functional.scaled_dot_product_attention(*map(torch.tensor, (q, k, v)), is_causal=True).numpy()
    assert np.isfinite(y[..., :-1, :]).all()
    np.testing.assert_allclose(y[..., :-1, :], right[..., :-1, :], rtol=1e-12)


def test_embedding_refuses_a_weight_that_is_not_a_matrix():
    for kernels in ("book", "fast"):
        for shape in ((5, 4, 1), (5,)):
            with use_kernels(kernels), pytest.raises(ValueError, match="embedding: weight has one row for each token"):
                tl.nn.functional.embedding(tl.tensor([0, 1]), tl.zeros(*shape))
