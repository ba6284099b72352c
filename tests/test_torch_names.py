"""The names that programs written for torch use: each beside torch, where there is something to compare."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite import compat
from tests.patience import PATIENCE


def same(ours, theirs):
    if isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)
    elif isinstance(theirs, torch.Tensor):
        assert ours.shape == tuple(theirs.shape)
        assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
        np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=1e-6, atol=1e-7)
    else:
        assert ours == theirs or (ours != ours and theirs != theirs)


MADE = {
    "linspace": lambda t: (t.linspace(0, 1, 5), t.linspace(3, -2, 4, dtype=t.float64), t.linspace(1, 2, steps=1), t.linspace(0, 1, 0)),
    "logspace": lambda t: (t.logspace(-2, 2, 5), t.logspace(0, 3, steps=4, base=2.0)),
    "eye": lambda t: (t.eye(3), t.eye(2, 3), t.eye(2, dtype=t.int64)),
    "full_like": lambda t: (t.full_like(t.ones(2), 7), t.full_like(t.arange(2), 7), t.full_like(t.arange(2), 0.5, dtype=t.float32)),
    "new": lambda t: (t.ones(1).new_zeros(2, 3), t.arange(2).new_ones((2,)), t.ones(1).new_full((2,), 3), t.ones(1).new_tensor([1, 2])),
    "LongTensor": lambda t: (t.LongTensor([1, 2]), t.FloatTensor([[1, 2]]), t.BoolTensor([1, 0]), t.DoubleTensor([1]), t.IntTensor([3])),
    "as_tensor": lambda t: (t.as_tensor([1.0, 2.0]), t.as_tensor(np.arange(3)), t.as_tensor(np.arange(3), dtype=t.float32)),
    "randint-bounds": lambda t: (
        t.randint(1, (3,)),
        t.randint(5, 6, (2, 2)),
        t.randint(high=1, size=(2,)) if t is torch else tl.randint(1, (2,)),
    ),
    "size=": lambda t: (t.zeros(size=(2, 3)), t.ones(size=(2,))),
    "numbers": lambda t: (t.inf, t.pi, t.nan, t.e),
    "types": lambda t: tuple(t.ones(1).type(d) for d in (t.float, t.double, t.half, t.int, t.short, t.bool, t.int8, t.int16, t.long)),
    "type": lambda t: (t.ones(1).type(), t.arange(1).type(), t.ones(1).type(t.LongTensor), t.ones(1).type("torch.DoubleTensor")),
    "casts": lambda t: (t.ones(1).short(), t.ones(1).byte(), t.ones(1).char(), t.arange(2).type_as(t.ones(1))),
    "questions": lambda t: (
        *(t.allclose(t.ones(2), t.ones(2) + 1e-9), t.allclose(t.ones(2), t.zeros(2)), t.equal(t.ones(2), t.ones(2))),
        *(t.equal(t.ones(2), t.ones(3)), t.is_tensor(t.ones(1)), t.is_tensor([1]), t.numel(t.ones(2, 3)), t.ones(2, 3).nelement()),
        *(t.ones(2).is_contiguous(), t.ones(2, 3).t().is_contiguous(), t.ones(2, 3).stride(), t.ones(2, 3).t().stride(0)),
        *(t.ones(2).element_size(), t.ones(2).is_complex(), 3 in t.arange(5), 7 in t.arange(5), t.ones(2, 3).ndimension()),
        *(t.is_floating_point(t.ones(1)), t.ones(2).nbytes, t.ones(2).itemsize),
    ),
    "unique": lambda t: (t.unique(t.tensor([[1, 2], [1, 2], [0, 5]]), dim=0), t.tensor([3, 1, 3]).unique(return_counts=True)),
    "bincount of weights": lambda t: (t.bincount(t.tensor([0, 1, 1]), weights=t.tensor([0.5, 1.0, 2.0])),),
    "nonzero of a number": lambda t: (t.tensor(3).nonzero(), t.tensor(0).nonzero(), t.zeros(2, 0).nonzero()),
    "format": lambda t: (f"{t.tensor(1.23456):.3f}", f"{t.tensor(3)}", f"{t.tensor(2.5)}", f"{t.tensor(7):>5d}"),
    "topk of none": lambda t: (*t.arange(3).topk(0), *t.ones(2, 3).topk(3)),
    "addcmul by names": lambda t: (t.addcmul(t.ones(2), tensor1=t.ones(2) * 3, tensor2=t.ones(2) * 4, value=0.5),),
    "circular, at one end": lambda t: tuple(t.nn.functional.pad(t.ones(1, 1, 3).cumsum(2), p, mode="circular") for p in [(2, 0), (0, 2)]),
    "addmm by names": lambda t: (t.addmm(t.ones(2), mat1=t.ones(2, 3), mat2=t.ones(3, 2), beta=0.5, alpha=2),),
    "grad_fn": lambda t: (t.ones(1).grad_fn, (t.ones(1, requires_grad=True) * 2).grad_fn is None, t.ones(1, requires_grad=True).is_leaf),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_it_equals_torchs(make):
    same(make(tl), make(torch))


def test_empty_tensors_are_zeros():
    assert tl.empty(2, 3).tolist() == [[0] * 3] * 2
    assert tl.empty((2,), dtype=tl.int64).dtype == tl.int64
    assert tl.empty_like(tl.arange(3)).tolist() == [0, 0, 0]
    for size in [(2,), (2, 3), ((2, 3),)]:
        assert tl.ones(1).new_empty(*size).tolist() == torch.zeros(*size).tolist()


def test_a_draw_that_is_rounded_up_to_the_total_takes_the_last_weight_above_0():
    class Highest(np.random.Generator):
        def random(self, size):
            return np.ones(size)

    stream = Highest(np.random.PCG64(0))
    weights = tl.tensor([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    assert tl.multinomial(weights, 1, generator=stream).tolist() == [[1], [0], [2]]


@pytest.mark.parametrize("dtype, limit", [("float32", 2**24), ("float64", 2**53), ("float16", 2**11), ("int8", 127), ("int64", 2**63 - 1)])
def test_random_without_limits_draws_integers_that_the_dtype_holds(dtype, limit):
    """As torch: up to 2 to the number of digits of a floating type, below which all integers are exact."""
    x = tl.zeros(3000, dtype=getattr(tl, dtype)).random_().numpy().astype(np.float64)
    assert (x == np.floor(x)).all()
    assert 0 <= x.min() < 0.01 * limit
    assert 0.99 * limit < x.max() <= limit


def test_a_format_of_several_numbers_is_refused_as_in_torch():
    for t in (tl, torch):
        with pytest.raises(TypeError):
            f"{t.ones(2):.2f}"
    assert f"{tl.ones(2)}" == str(tl.ones(2))


# --- random numbers -------------------------------------------------------------------------------------

DRAWS = {
    "rand_like": lambda t, g: t.rand_like(t.zeros(2000)),
    "randn_like": lambda t, g: t.randn_like(t.zeros(2000, dtype=t.float64)),
    "randperm": lambda t, g: t.randperm(2000, generator=g),
    "bernoulli": lambda t, g: t.bernoulli(t.full((2000,), 0.3), generator=g),
    "normal": lambda t, g: t.normal(1.0, 2.0, (2000,), generator=g),
    "normal of tensors": lambda t, g: t.normal(t.zeros(2000), t.ones(2000), generator=g),
    "normal_": lambda t, g: t.zeros(2000).normal_(1, 2, generator=g),
    "uniform_": lambda t, g: t.zeros(2000).uniform_(-1, 3, generator=g),
    "bernoulli_": lambda t, g: t.zeros(2000).bernoulli_(0.3, generator=g),
    "exponential_": lambda t, g: t.zeros(2000).exponential_(2.0, generator=g),
    "random_": lambda t, g: t.zeros(2000, dtype=t.int64).random_(3, 9, generator=g),
    "multinomial": lambda t, g: t.multinomial(t.tensor([0.0, 1.0, 3.0]), 2000, replacement=True, generator=g),
    "multinomial of rows": lambda t, g: t.multinomial(t.tensor([[0.0, 2.0, 6.0]] * 2000), 1, generator=g),
    "multinomial without replacement": lambda t, g: t.multinomial(t.tensor([[1.0, 0.0, 4.0]] * 2000), 2, generator=g)[:, 0],
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_random_numbers_have_torchs_type_mean_and_deviation_and_are_repeatable(draw):
    """The mean of 2000 draws is within 5 of its standard deviations in both; the numbers themselves differ."""
    ours = draw(tl, tl.Generator().manual_seed(7))
    theirs = draw(torch, torch.Generator().manual_seed(7))
    assert ours.shape == tuple(theirs.shape)
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
    a, b = ours.numpy().astype(float), theirs.numpy().astype(float)
    assert abs(a.mean() - b.mean()) <= 10 * max(b.std(), 1e-9) / math.sqrt(a.size)
    assert 0.8 < a.std() / b.std() < 1.25
    if "like" not in draw.__code__.co_names[0]:
        np.testing.assert_array_equal(ours.numpy(), draw(tl, tl.Generator().manual_seed(7)).numpy())


def test_multinomial_never_draws_a_weight_of_0_or_a_position_twice():
    g = tl.Generator().manual_seed(0)
    weights = tl.tensor([0.0, 1.0, 0.0, 1e-30, 5.0, 0.0])
    assert set(tl.multinomial(weights, 500, replacement=True, generator=g).tolist()) <= {1, 3, 4}
    for _ in range(50):
        assert sorted(tl.multinomial(weights, 3, generator=g).tolist()) == [1, 3, 4]


@pytest.mark.parametrize(
    ("weights", "n", "said"),
    [
        ([-1.0, 2.0], 1, "finite and at least 0"),
        ([0.0, 0.0], 1, "one of each row above 0"),
        ([math.nan, 1.0], 1, "finite"),
        ([math.inf, 1.0], 1, "finite"),
        ([1.0, 1.0], 3, "3 samples without replacement"),
    ],
)
def test_impossible_draws_are_refused_as_in_torch(weights, n, said):
    for t in (tl, torch):
        with pytest.raises(RuntimeError, match=said if t is tl else None):
            t.multinomial(t.tensor(weights), n)


def test_more_samples_than_weights_above_0_are_refused():
    with pytest.raises(RuntimeError, match="2 samples without replacement from 1 weights above 0"):  # torch draws positions of weight 0
        tl.multinomial(tl.tensor([0.0, 1.0]), 2)


def test_bernoulli_refuses_numbers_that_are_not_probabilities():
    for t in (tl, torch):
        with pytest.raises((ValueError, RuntimeError)):
            t.bernoulli(t.tensor([1.5]))


def test_a_generator_is_seeded_saved_and_restored():
    for t in (tl, torch):
        g = t.Generator().manual_seed(3)
        assert g.initial_seed() == 3
        state = g.get_state()
        first = t.rand(4, generator=g).tolist()
        assert first != t.rand(4, generator=g).tolist()
        g.set_state(state)
        assert first == t.rand(4, generator=g).tolist()
        t.manual_seed(5)
        state = t.get_rng_state()
        first = t.rand(4).tolist()
        t.set_rng_state(state)
        assert first == t.rand(4).tolist()


# --- switches -------------------------------------------------------------------------------------------


def recording(t):
    return (t.ones(1, requires_grad=True) * 2).requires_grad


def test_the_switches_of_the_tape_work_as_in_torch():
    for t in (tl, torch):
        with t.inference_mode():
            assert not recording(t)
            with t.enable_grad() if t is tl else t.inference_mode(False):
                assert recording(t)
        with t.inference_mode(mode=False):
            assert recording(t)
        for decorator in (t.inference_mode(), t.inference_mode):
            assert not decorator(recording)(t)
        with t.set_grad_enabled(False):
            assert not recording(t)
            with t.set_grad_enabled(True):
                assert recording(t)
            assert not recording(t)
        assert recording(t)
        t.set_grad_enabled(False)
        assert not recording(t)
        t.set_grad_enabled(True)
        assert recording(t)


# --- where the names come from --------------------------------------------------------------------------


@pytest.mark.parametrize("name", compat.names())
def test_every_name_in_the_table_exists(name):
    assert getattr(tl, name) is not None
    assert name in dir(tl)


@pytest.mark.parametrize("name", [token.partition("=")[0] for names in compat.METHODS.values() for token in names.split()])
def test_every_method_in_the_table_exists(name):
    assert getattr(tl.Tensor, name) is not None
    assert type(vars(tl.Tensor)[name]).__name__ != "Later"  # the first use has replaced it


def test_torch_has_all_of_these_names():
    assert not [name for name in compat.names() if not hasattr(torch, name) and name not in ("utils", "parallel")]
    methods = [token.partition("=")[0] for names in compat.METHODS.values() for token in names.split()]
    ours_alone = {"tril_", "triu_"}
    assert not [name for name in methods if not hasattr(torch.Tensor, name) and name not in {*ours_alone, "logsigmoid"}]


def test_importing_tensorlite_imports_no_compat_page():
    program = "import sys, tensorlite as tl; print(*[m for m in sys.modules if m.startswith('tensorlite')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    loaded = set(done.stdout.split())
    lazy = {page for table in (compat.FUNCTIONS, compat.METHODS) for page in table} - {"tensorlite"}
    assert not lazy & loaded
    assert not {"tensorlite.cuda", "tensorlite.utils", "tensorlite.nn.further_layers", "tensorlite.optim.lr_scheduler"} & loaded


# --- functions of NumPy ---------------------------------------------------------------------------------

OF_NUMPY = {
    "a tensor": lambda t, x: np.exp(x),
    "two": lambda t, x: np.multiply(x, x),
    "a tensor and an array": lambda t, x: np.maximum(x, np.float32([[2.0, 2.0]])),
    "a number": lambda t, x: np.float32(2.0) * x,
    "of no axes": lambda t, x: np.sqrt(t.tensor(4.0)),
}


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of torch's, which takes NumPy 1's arguments
@pytest.mark.parametrize("compute", OF_NUMPY.values(), ids=OF_NUMPY)
def test_a_function_of_numpy_takes_a_tensor_and_returns_one_as_in_torch(compute):
    same(compute(tl, tl.tensor([[1.0, 2.0], [3.0, 4.0]])), compute(torch, torch.tensor([[1.0, 2.0], [3.0, 4.0]])))


def test_a_function_of_numpy_refuses_a_tensor_that_requires_a_gradient():
    for t in (tl, torch):
        with pytest.raises(RuntimeError, match="requires"):
            np.exp(t.ones(2, requires_grad=True))
