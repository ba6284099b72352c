"""The Tensor as an object: its attributes, how it leaves the tape, and what it refuses."""

from __future__ import annotations

import copy
import inspect
import sys
import types

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite.op import REGISTRY


def both(values, dtype="float64"):
    """The same leaf twice: ours and torch's."""
    array = np.array(values, dtype=dtype)
    return tl.tensor(array, requires_grad=True), torch.tensor(array, requires_grad=True)


def test_attributes():
    x = tl.zeros(2, 3, 4)
    assert (x.shape, x.ndim, x.dim(), x.numel(), len(x)) == ((2, 3, 4), 3, 3, 24, 2)
    assert (x.size(), x.size(1), x.size(-1)) == ((2, 3, 4), 3, 4)
    assert x.dtype == tl.float32 == np.float32
    assert x.device == "numpy"
    assert x.is_floating_point()
    assert not tl.arange(3).is_floating_point()
    assert x.is_leaf
    assert x.grad is None
    assert not x.requires_grad


def test_only_the_result_of_a_recorded_op_is_no_leaf():
    x, constant = tl.ones(2, requires_grad=True), tl.ones(2)
    assert x.is_leaf
    assert (constant * 2).is_leaf
    assert not (x * 2).is_leaf
    assert (x * constant).requires_grad
    assert not (x > 0).requires_grad


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: tl.tensor([1.0, 2.5]), "tensor([1. , 2.5])"),
        (lambda: tl.tensor([[1, 2], [3, 4]]), "tensor([[1, 2],\n        [3, 4]])"),
        (lambda: tl.tensor(1.5), "tensor(1.5)"),
        (lambda: tl.tensor(True), "tensor(True)"),
        (lambda: tl.tensor([1.0], dtype=tl.float64), "tensor([1.], dtype=float64)"),
        (lambda: tl.tensor([1.0], requires_grad=True), "tensor([1.], requires_grad=True)"),
        (lambda: tl.tensor([1.0], requires_grad=True) * 2, "tensor([2.], from=mul)"),
        (lambda: tl.tensor([1.0, 0.5], dtype=tl.bfloat16), "tensor([1. , 0.5], dtype=bfloat16)"),
        (lambda: tl.zeros(0, 2), "tensor([], size=(0, 2))"),
        (lambda: tl.arange(1000), "tensor([  0,   1,   2, ..., 997, 998, 999])"),
    ],
)
def test_repr(make, text):
    assert repr(make()) == text


@pytest.mark.parametrize("value", [2.5, 7, True])
def test_item_gives_a_python_number(value):
    x = tl.tensor([[value]])
    assert type(x.item()) is type(value)
    assert x.item() == value
    assert (float(x), int(x), bool(x)) == (float(value), int(value), bool(value))


def test_item_and_truth_need_one_element():
    with pytest.raises(ValueError, match=r"item\(\) needs a tensor of one element, this one has shape \(2,\)"):
        tl.zeros(2).item()
    with pytest.raises(ValueError, match=r"the truth value of a tensor of shape \(2,\) is ambiguous"):
        bool(tl.zeros(2))


def test_an_integer_tensor_is_an_index_and_a_floating_one_is_not():
    assert [10, 20, 30][tl.tensor(1)] == 20
    with pytest.raises(TypeError, match="only integer tensors"):
        [10, 20][tl.tensor(1.0)]


def test_a_tensor_without_axes_has_no_length():
    with pytest.raises(TypeError, match="0-dimensional"):
        len(tl.tensor(1.0))
    assert [x.item() for x in tl.arange(3)] == [0, 1, 2]


def test_numpy_shares_memory_and_refuses_tensors_on_the_tape():
    x = tl.tensor([1.0, 2.0])
    x.numpy()[0] = 5
    assert x.tolist() == [5, 2]
    np.testing.assert_array_equal(np.asarray(x), [5, 2])
    x.requires_grad_()
    with pytest.raises(RuntimeError, match=r"call detach\(\)\.numpy\(\)"):
        x.numpy()
    assert x.detach().numpy()[0] == 5


def test_detach_shares_memory_and_stops_gradients():
    x, tx = both([1.0, 2.0, 3.0])
    for leaf in (x, tx):
        (leaf * leaf.detach()).sum().backward()
    assert x.detach().is_leaf
    assert not x.detach().requires_grad
    assert np.shares_memory(x.array, x.detach().array)
    np.testing.assert_array_equal(x.grad.numpy(), tx.grad.numpy())


def test_clone_copies_and_passes_gradients():
    x = tl.tensor([1.0, 2.0], requires_grad=True)
    y = x.clone()
    assert not np.shares_memory(x.array, y.array)
    y.backward(tl.tensor([3.0, 4.0]))
    assert x.grad.tolist() == [3, 4]


def test_a_leaf_can_be_copied_deeply():
    x = tl.tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    y = copy.deepcopy(x)
    assert (y.tolist(), y.grad.tolist(), y.requires_grad) == (x.tolist(), x.grad.tolist(), True)
    assert not np.shares_memory(x.array, y.array)


def test_sets_compare_tensors_by_identity():
    x, y = tl.ones(2), tl.ones(2)
    assert len({x, y, x}) == 2
    assert (x == y).tolist() == [True, True]


def test_requires_grad_():
    x = tl.ones(2)
    assert x.requires_grad_() is x
    assert x.requires_grad
    y = x * 2
    with pytest.raises(RuntimeError, match=r"cannot stop requiring a gradient: use detach\(\)"):
        y.requires_grad_(False)
    assert not x.requires_grad_(False).requires_grad
    with pytest.raises(RuntimeError, match="this one is bool"):
        (x > 0).requires_grad_()


# --- operators ------------------------------------------------------------------------------------------

OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "**": lambda a, b: a**b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_operators_with_tensors_and_numbers_on_either_side(operator):
    a, b = np.array([0.5, 2.0, 3.0]), np.array([[2.0], [3.0]])
    for number in (2, 2.0):
        for left, right in [(a, b), (a, number), (number, a)]:
            ours = operator(*(tl.tensor(v) if isinstance(v, np.ndarray) else v for v in (left, right)))
            theirs = operator(*(torch.tensor(v) if isinstance(v, np.ndarray) else v for v in (left, right)))
            assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-15)


def test_unary_operators_and_matmul():
    a = np.random.default_rng(0).standard_normal((3, 3))
    x = tl.tensor(a)
    np.testing.assert_array_equal((-x).numpy(), -a)
    np.testing.assert_array_equal(abs(x).numpy(), np.abs(a))
    np.testing.assert_allclose((x @ x).numpy(), a @ a, rtol=1e-14)
    np.testing.assert_array_equal(x.T.numpy(), a.T)
    np.testing.assert_array_equal(x.mT.numpy(), a.T)


def test_an_array_on_the_left_makes_a_tensor():
    x = tl.tensor([1.0, 2.0])
    for result in (np.array([1.0, 1.0], "float32") + x, np.float64(2) * x):
        assert isinstance(result, tl.Tensor)
        assert result.dtype == tl.float32


def test_invalid_operands_are_type_errors():
    x = tl.ones(2)
    with pytest.raises(TypeError, match=r"unsupported operand type\(s\) for \+: 'Tensor' and 'str'"):
        x + "a"
    assert (x == None) is False  # noqa: E711 - as in torch
    assert x not in ["a", None]


def test_augmented_assignment_keeps_the_tensor_and_its_gradient():
    x = tl.tensor([1.0, 2.0], requires_grad=True)
    y = x * 3
    before = y
    y += 1
    y *= y
    assert y is before
    assert before.tolist() == [16, 49]
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * (3 * np.array([1.0, 2.0]) + 1) * 3)


def test_every_method_is_the_function_of_that_name():
    from tensorlite.ops.methods import METHODS

    for page, names in METHODS.items():
        for name in names.split():
            assert inspect.unwrap(getattr(tl.Tensor, name)) is getattr(page, name), name


# --- views, dtypes, devices -----------------------------------------------------------------------------

VIEWS = {
    "view": lambda x: x.view(4, 3),
    "reshape": lambda x: x.reshape(2, 6),
    "transpose": lambda x: x.T,
    "getitem": lambda x: x[1:, ::2],
    "int": lambda x: x[0],
    "one number": lambda x: x[0, 0],
    "squeeze": lambda x: x.unsqueeze(0).squeeze(),
    "expand": lambda x: x.expand(2, 3, 4),
    "split": lambda x: x.split(2, 1)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "narrow": lambda x: x.narrow(0, 1, 1),
    "flip": lambda x: x.flip(0),
    "contiguous": lambda x: x.contiguous(),
}


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS.keys())
def test_views_share_memory(make):
    x = tl.zeros(3, 4)
    assert np.shares_memory(make(x).array, x.array)


def test_view_refuses_to_copy():
    with pytest.raises(ValueError, match=r"view: .*\(3, 2\).*\(6,\).*without a copy: use reshape\(\)"):
        tl.zeros(2, 3).T.view(6)
    assert tl.zeros(0, 3).T.view(0).shape == (0,)


def test_to_converts_dtypes_and_returns_the_tensor_itself_if_nothing_changes():
    x = tl.tensor([1.5, -2.5])
    assert x.to(tl.float32) is x
    assert x.to("numpy") is x
    assert x.float() is x
    for dtype in (
        x.double().dtype,
        x.to("numpy", tl.float64).dtype,
        x.to(dtype=tl.float64).dtype,
        x.to(tl.zeros(1, dtype=tl.float64)).dtype,
    ):
        assert dtype == tl.float64
    assert x.long().tolist() == [1, -2]
    assert [x.half().dtype, x.int().dtype, x.bool().dtype] == [tl.float16, tl.int32, tl.bool_]
    assert not x.requires_grad_().long().requires_grad


def test_the_gradient_of_a_cast_is_cast_back():
    x = tl.tensor([1.0, 2.0], requires_grad=True)
    (x.double() * tl.tensor([1.0, 3.0], dtype=tl.float64)).sum().backward()
    assert x.grad.dtype == tl.float32
    assert x.grad.tolist() == [1, 3]


class FakeGpuArray:
    """Stands in for an array in GPU memory, where there is none."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.base, self.device = None, types.SimpleNamespace(id=1)


def test_tensors_on_different_devices_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(ndarray=FakeGpuArray))
    here, there = tl.ones(2), tl.Tensor(FakeGpuArray(np.ones(2)))
    assert there.device == "cupy:1"
    with pytest.raises(RuntimeError, match=r"add got tensors on different devices \(numpy, cupy:1\): move them with \.to\(device\)"):
        here + there


# --- what is refused ------------------------------------------------------------------------------------

ERRORS = [
    (lambda: tl.zeros(2, 3).reshape(4, 2), ValueError, r"reshape: the 6 element\(s\) of \(2, 3\) do not fit the shape \(4, 2\)"),
    (lambda: tl.zeros(2, 3).reshape(-1, 4), ValueError, r"reshape: .*\(2, 3\).*\(-1, 4\)"),
    (lambda: tl.zeros(2, 3).view(-1, -1), ValueError, r"view: .*\(2, 3\).*\(-1, -1\)"),
    (lambda: tl.zeros(0, 3).view(-1, 0), ValueError, r"view: .*\(0, 3\).*\(-1, 0\)"),
    (lambda: tl.zeros(2, 3).flatten(1, 0), ValueError, "start_dim 1 comes after end_dim 0"),
    (lambda: tl.zeros(2, 3).unflatten(1, (2, 2)), ValueError, r"unflatten: .*\(3,\).*\(2, 2\)"),
    (lambda: tl.zeros(2, 3).permute(0, 0), ValueError, r"permute: dims \(0, 0\).*\(2, 3\)"),
    (lambda: tl.zeros(2, 3).transpose(0, 2), IndexError, "transpose: dim 2 does not exist in a tensor with 2 axes"),
    (lambda: tl.zeros(2, 3, 4).T, ValueError, r"T: .*\(2, 3, 4\).*use mT"),
    (lambda: tl.zeros(2).mT, ValueError, r"mT: .*\(2,\)"),
    (lambda: tl.zeros(2, 3).expand(2, 4), ValueError, r"expand: \(2, 3\) cannot become \(2, 4\)"),
    (lambda: tl.zeros(2, 3).expand(-1, 2, 3), ValueError, r"expand: \(2, 3\) cannot become \(-1, 2, 3\)"),
    (lambda: tl.zeros(2, 3).expand(3), ValueError, r"expand: \(2, 3\) cannot become \(3,\)"),
    (lambda: tl.zeros(2, 3).repeat(2), ValueError, r"repeat: \(2,\).*\(2, 3\)"),
    (lambda: tl.zeros(2, 3).roll((1, 2), 0), ValueError, "roll: 2 shifts"),
    (lambda: tl.cat([]), ValueError, "cat: .*empty"),
    (lambda: tl.cat([tl.zeros(2, 3), tl.zeros(3, 2)]), ValueError, r"cat: the shapes \(2, 3\) and \(3, 2\) differ"),
    (lambda: tl.cat([tl.tensor(1.0)]), ValueError, r"cat: a 0-dimensional .*use stack\(\)"),
    (lambda: tl.stack([tl.zeros(2), tl.zeros(3)]), ValueError, r"stack: the shapes \(2,\) and \(3,\) differ"),
    (lambda: tl.zeros(5).split([2, 2]), ValueError, r"split: lengths \[2, 2\] must .* add up to 5"),
    (lambda: tl.zeros(5).split(0), ValueError, "split: pieces of length 0"),
    (lambda: tl.zeros(5).chunk(0), ValueError, "chunk: .*at least 1, got 0"),
    (lambda: tl.bincount(tl.tensor([2, -1])), ValueError, r"bincount: it counts integers of at least 0 in one row, got int64 \(2,\)"),
    (lambda: tl.tensor(1.0).unbind(), ValueError, "unbind: a 0-dimensional tensor"),
    (lambda: tl.zeros(2, 3)[2], IndexError, "index 2 is out of bounds for axis 0 with size 2"),
    (lambda: tl.zeros(2, 3)[0, 0, 0], IndexError, "too many indices"),
    (lambda: tl.zeros(2, 3)[:, [0, 3]], IndexError, r"indices from 0 to 3 are out of range for axis 1 of \(2, 3\): -3 to 2"),
    (lambda: tl.zeros(2, 3)[[0], :, [0]], IndexError, r"too many indices: 3 for a tensor of shape \(2, 3\)"),
    (lambda: tl.zeros(2, 3)[tl.ones(3) > 0], IndexError, r"mask of shape \(3,\) does not fit the axes it masks, \(2,\)"),
    (lambda: tl.zeros(2, 3)[tl.ones(2)], IndexError, "an index must hold integers or booleans"),
    (lambda: tl.zeros(2, 3)["a"], IndexError, "an index must hold integers or booleans"),
    (lambda: tl.zeros(2, 3).narrow(1, 2, 2), IndexError, r"narrow: 2 positions from 2 do not lie within axis 1 of \(2, 3\)"),
    (lambda: tl.zeros(2, 3).index_select(1, tl.tensor([0, -1])), IndexError, "index_select: indices from -1 to 0 are out of range"),
    (lambda: tl.zeros(2, 3).index_select(1, tl.ones(1)), TypeError, "index_select: index must be a tensor of integers, got float32"),
    (lambda: tl.zeros(2, 3).gather(1, tl.tensor([[0, 3]])), IndexError, "gather: indices from 0 to 3 are out of range"),
    (lambda: tl.zeros(2, 3).gather(1, tl.tensor([0])), ValueError, r"gather: the index \(1,\).*\(2, 3\)"),
    (lambda: tl.zeros(2, 3).gather(1, tl.zeros(3, 1, dtype=tl.int64)), ValueError, r"gather: the index \(3, 1\).*\(2, 3\)"),
    (lambda: tl.zeros(2, 3).gather(1, [[0]]), TypeError, "gather: index must be a tensor of integers, got list"),
    (lambda: tl.where(True, tl.ones(2), 0.0), TypeError, "where: condition must be a tensor of booleans, got bool"),
    (lambda: iter(tl.tensor(1.0)), TypeError, "iteration over a 0-dimensional tensor"),
    (lambda: tl.zeros(3).tril(), ValueError, r"tril: .*\(3,\)"),
    (lambda: tl.zeros(2, 3).masked_fill(tl.ones(2) > 0, 1), ValueError, r"masked_fill: the shapes \(2, 3\) and \(2,\) do not broadcast"),
    (lambda: tl.zeros(2, 3).masked_fill(tl.ones(2, 3), 1), TypeError, "masked_fill: mask must be a tensor of booleans, got float32"),
    (lambda: tl.arange(3).masked_fill(tl.ones(3) > 0, 0.5), TypeError, "masked_fill: the value 0.5 does not fit a tensor of int64"),
    (lambda: tl.where(tl.ones(2) > 0, tl.zeros(3), 0.0), ValueError, r"where: the shapes \(2,\) and \(3,\)"),
]


def test_one_chunk_is_all():
    (whole,) = tl.arange(5).chunk(1)
    assert whole.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("call, error, message", ERRORS, ids=[message[:50] for *_, message in ERRORS])
def test_bad_arguments_get_one_clear_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_every_op_is_named_in_its_errors():
    for name, op in REGISTRY.items():
        assert op.name == name
        assert name in repr(op)
        assert op.__doc__, f"{name} has no docstring"


def test_einsum_sums_by_matrix_products(monkeypatch):
    """NumPy's own einsum, which knows no BLAS, only sees what is not summed."""
    whole, equations = np.einsum, []
    monkeypatch.setattr(
        np, "einsum", lambda equation, *arrays, **options: equations.append(equation) or whole(equation, *arrays, **options)
    )
    q, k, v = (tl.randn(2, 2, 5, 4, requires_grad=True) for _ in range(3))
    tl.einsum("bhtd,bhsd,bhse->bhte", q, k, v).sum().backward()
    assert equations == []
