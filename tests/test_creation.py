"""Making tensors: types, shapes and values as torch makes them; random streams that can be repeated."""

from __future__ import annotations

import array
import threading

import numpy as np
import pytest
import torch

import tensorlite as tl

DATA = [
    *(1.5, 2, True, [1, 2], [1.0, 2], [[True, False]], [], [[]], [0, 0.5], -(2**40)),
    *(np.float64(3), np.arange(3), np.ones((2, 0), "float32")),
]


@pytest.mark.parametrize("data", DATA, ids=repr)
def test_tensor_takes_the_dtype_torch_takes(data):
    ours, theirs = tl.tensor(data), torch.tensor(data)
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
    assert ours.tolist() == theirs.tolist()


CREATIONS = {
    "zeros": lambda t: t.zeros(2, 3),
    "zeros of a tuple": lambda t: t.zeros((2, 3)),
    "zeros of nothing": lambda t: t.zeros(0, 3),
    "zeros without axes": lambda t: t.zeros(()),
    "ones": lambda t: t.ones(4),
    "ones of integers": lambda t: t.ones(4, dtype=t.int64),
    "ones, dtype None": lambda t: t.ones(4, dtype=None),
    "full": lambda t: t.full((2, 2), 7.5),
    "full of integers": lambda t: t.full((2, 2), 7),
    "full of booleans": lambda t: t.full((1,), True),
    "full in float64": lambda t: t.full((3,), 0.1, dtype=t.float64),
    "arange": lambda t: t.arange(5),
    "arange from to": lambda t: t.arange(2, 7),
    "arange with a step": lambda t: t.arange(0, 1, 0.1),
    "arange backwards": lambda t: t.arange(5, 0, -2),
    "arange of floats": lambda t: t.arange(2.5),
    "arange as floats": lambda t: t.arange(0, 4, dtype=t.float32),
    "zeros_like": lambda t: t.zeros_like(t.arange(3)),
    "zeros_like in float64": lambda t: t.zeros_like(t.arange(3), dtype=t.float64),
    "ones_like": lambda t: t.ones_like(t.zeros(2, 3)),
}


@pytest.mark.parametrize("make", CREATIONS.values(), ids=CREATIONS.keys())
def test_creation_equals_torch(make):
    ours, theirs = make(tl), make(torch)
    assert ours.shape == tuple(theirs.shape)
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert not ours.requires_grad
    assert ours.device == "numpy"


def test_tensor_copies_and_from_numpy_shares():
    array = np.arange(3.0)
    copied, shared = tl.tensor(array), tl.from_numpy(array)
    array[0] = 9
    assert copied.tolist() == [0, 1, 2]
    assert shared.tolist() == [9, 1, 2]
    shared[1] = 8
    assert array[1] == 8
    assert tl.tensor(array[::2]).array.base is None


@pytest.mark.parametrize(
    "make", [lambda a: array.array("d", a), lambda a: memoryview(np.array(a)), lambda a: np.array([a]).view(np.matrix)]
)
def test_tensor_copies_what_numpy_would_only_view(make):
    data = make([1.0, 2.0])
    x = tl.tensor(data)
    data[0] = 9
    assert x.flatten().tolist() == [1, 2]


def test_tensor_of_a_tensor_is_a_copy_off_the_tape():
    x = tl.tensor([1.0, 2.0], requires_grad=True)
    y = tl.tensor(x)
    assert not y.requires_grad
    assert not np.shares_memory(x.array, y.array)


@pytest.mark.parametrize("data", ["a", None, [1.0, None], ["1"], {}, 2**70], ids=repr)
@pytest.mark.parametrize("make", [tl.tensor, lambda data: tl.full((2,), data)], ids=["tensor", "full"])
def test_data_other_than_numbers_is_refused(make, data):
    with pytest.raises(TypeError, match="a tensor holds numbers of at most 64 bits, got "):
        make(data)


def test_from_numpy_takes_arrays_only():
    with pytest.raises(TypeError, match=r"from_numpy\(\) takes a NumPy array, got list; use tensor\(\)"):
        tl.from_numpy([1, 2])


@pytest.mark.parametrize("make", [tl.zeros, tl.ones, tl.rand, tl.randn])
def test_requires_grad_and_dtype_on_creation(make):
    x = make(2, 3, dtype=tl.float64, requires_grad=True)
    assert x.requires_grad
    assert x.is_leaf
    assert x.dtype == tl.float64
    assert make(2, 3).dtype == tl.float32


def test_integers_cannot_require_a_gradient():
    with pytest.raises(RuntimeError, match="only floating point tensors can require a gradient, this one is int64"):
        tl.tensor([1, 2], requires_grad=True)


def test_negative_shapes_are_refused():
    with pytest.raises(ValueError, match=r"negative lengths, got \(2, -1\)"):
        tl.zeros(2, -1)


@pytest.mark.parametrize("spec", ["numpy:1", "cpu:1", "cuda:", "cuda:x", "mps", "tpu", ""])
def test_an_unknown_device_is_refused(spec):
    with pytest.raises(ValueError, match=f"unknown device '{spec}': it is 'numpy' or 'cpu', 'cupy' or 'cuda'"):
        tl.zeros(2, device=spec)


# --- storage types --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_storage(name):
    dtype = getattr(tl, name)
    x = tl.tensor([1.0, 2.5, -3.0], dtype=dtype, requires_grad=True)
    assert x.dtype == dtype
    assert x.array.itemsize == 2
    assert x.is_floating_point()
    assert x.tolist() == [1.0, 2.5, -3.0]
    assert name in repr(x)
    y = x.to(tl.float32) * tl.tensor([1.0, 2.0, 3.0])
    y.backward(tl.tensor([1.0, 1.0, 0.5]))
    assert y.dtype == tl.float32
    assert x.grad.dtype == dtype  # the gradient of a cast is cast back
    assert x.grad.tolist() == [1.0, 2.0, 1.5]


def test_bfloat16_rounds_as_torch_does():
    values = np.random.default_rng(0).standard_normal(1000).astype("float32")
    ours = tl.tensor(values).to(tl.bfloat16).float()
    theirs = torch.tensor(values).to(torch.bfloat16).float()
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


# --- random numbers -------------------------------------------------------------------------------------


def test_a_seed_repeats_the_numbers():
    def draw():
        tl.manual_seed(3)
        return [tl.rand(2, 3).tolist(), tl.randn(4).tolist(), tl.randint(0, 10, (5,)).tolist()]

    first = draw()
    assert draw() == first
    tl.manual_seed(4)
    assert tl.rand(2, 3).tolist() != first[0]


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        tl.manual_seed(-1)


def test_random_numbers_have_the_right_mean_and_deviation():
    tl.manual_seed(0)
    uniform, normal, whole = tl.rand(10_000).numpy(), tl.randn(10_000).numpy(), tl.randint(-2, 3, (1000,))
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    finer = tl.rand(1000, dtype=tl.float64).numpy() * 2**24  # a float32 has 24 bits, a float64 more
    assert (finer != np.floor(finer)).any()
    assert abs(uniform.mean() - 0.5) < 0.02
    assert abs(normal.mean()) < 0.05
    assert abs(normal.std() - 1) < 0.05
    assert sorted(set(whole.tolist())) == [-2, -1, 0, 1, 2]
    assert whole.dtype == tl.int64


def test_generators_of_different_keys_are_independent_and_repeatable():
    a, b, again = (tl.random.make_generator(1, step, shard).random(1000) for step, shard in [(0, 1), (1, 0), (0, 1)])
    np.testing.assert_array_equal(a, again)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


def test_use_generator_restores_the_old_generator():
    tl.manual_seed(0)
    undisturbed = [tl.rand(2).tolist(), tl.rand(2).tolist()]
    tl.manual_seed(0)
    first = tl.rand(2).tolist()
    with tl.random.use_generator(tl.random.make_generator(5)):
        inside = tl.rand(2).tolist()
    assert [first, tl.rand(2).tolist()] == undisturbed
    assert inside == tl.rand(2, generator=tl.random.make_generator(5)).tolist()


def test_every_thread_has_its_own_generator():
    drawn = {}

    def work(name):
        tl.manual_seed(7)
        drawn[name] = [tl.rand(3).tolist() for _ in range(50)]

    tl.manual_seed(1)
    mine = tl.rand(3).tolist()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    tl.manual_seed(1)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tl.rand(3).tolist() == mine
    assert drawn[0] == drawn[1] == drawn[2]
