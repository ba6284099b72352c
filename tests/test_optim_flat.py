"""The flat buffer: one memory for all parameters, one for all gradients, whatever the user does in between."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite.optim import FlatParameters
from tensorlite.optim.flat import ALIGNMENT, whole_buffer


def model(dtype=None):
    tl.manual_seed(0)
    nn = tl.nn

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte = nn.Embedding(7, 5)
            self.fc = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 5))
            self.temperature = nn.Parameter(tl.ones(()))
            self.lm_head = nn.Linear(5, 7, bias=False)
            self.lm_head.weight = self.wte.weight

        def forward(self, ids):
            return self.lm_head(self.fc(self.wte(ids)) * self.temperature)

    return Tied().to(dtype=dtype)


IDS, TARGETS = np.array([1, 4, 4, 0, 6]), np.array([4, 4, 0, 6, 2])


def loss_of(m):
    return tl.nn.functional.cross_entropy(m(tl.tensor(IDS)), tl.tensor(TARGETS))


def test_values_are_kept_in_one_buffer():
    m = model()
    before = {name: p.array.copy() for name, p in m.named_parameters()}
    flat = FlatParameters(m.parameters())
    for name, p in m.named_parameters():
        np.testing.assert_array_equal(p.array, before[name])
        assert p.array.base is flat.data
        assert p.grad_buffer.base is flat.grad
        assert p.array.shape == before[name].shape
    loss_of(m).backward()
    for i, p in enumerate(m.parameters()):
        assert np.shares_memory(p.grad.array, flat.grad)
        np.testing.assert_array_equal(flat.grad[flat.slice_of(i)].reshape(p.shape), p.grad.array)
        assert flat.starts[i] * flat.data.itemsize % ALIGNMENT == 0


def test_a_tied_parameter_has_one_position_and_both_gradients():
    m = model(tl.float64)
    assert len(FlatParameters(m.parameters())) == len(list(m.parameters())) == 6
    loss_of(m).backward()
    reference = model(tl.float64)
    loss_of(reference).backward()
    np.testing.assert_array_equal(m.wte.weight.grad.array, reference.wte.weight.grad.array)
    with pytest.raises(ValueError, match="a parameter twice"):
        FlatParameters([m.wte.weight, m.lm_head.weight])


def test_gradients_accumulate_in_place_over_several_backwards():
    m, reference = model(tl.float64), model(tl.float64)
    flat = FlatParameters(m.parameters())
    for _ in range(3):
        loss_of(m).backward()
        loss_of(reference).backward()
    for p, q in zip(m.parameters(), reference.parameters(), strict=True):
        np.testing.assert_array_equal(p.grad.array, q.grad.array)
        assert p.grad.array.base is flat.grad
    assert whole_buffer(list(m.parameters())) is flat.grad


def test_whole_buffer_stands_for_the_gradients_only_when_it_holds_exactly_them():
    m = model()
    parameters = list(m.parameters())
    FlatParameters(parameters)
    loss_of(m).backward()
    assert whole_buffer(parameters) is not None
    assert whole_buffer(parameters[:-1]) is None
    parameters[0].grad = tl.zeros(*parameters[0].shape)
    assert whole_buffer(parameters) is None
    parameters[0].grad = None
    assert whole_buffer(parameters) is None


def test_refresh_copies_new_arrays_and_lists_parameters_with_a_gradient():
    m = model()
    parameters = list(m.parameters())
    flat = FlatParameters(parameters)
    assert flat.refresh() == []
    loss_of(m).backward()
    parameters[1].grad = None
    mine = tl.ones(*parameters[2].shape)
    parameters[2].grad = mine
    parameters[3].array = parameters[3].array + 1
    expected = parameters[3].array.copy()
    assert flat.refresh() == [0, 2, 3, 4, 5]
    np.testing.assert_array_equal(flat.grad[flat.slice_of(2)], 1)
    assert parameters[2].grad is mine  # the user's tensor stays the user's
    assert parameters[3].array.base is flat.data
    np.testing.assert_array_equal(parameters[3].array, expected)


def test_misshapen_data_and_gradients_are_refused_before_anything_changes():
    m = model()
    parameters = list(m.parameters())
    optimizer = tl.optim.SGD(parameters, lr=1.0)
    loss_of(m).backward()
    before = [p.array.copy() for p in parameters]
    parameters[-1].grad = tl.zeros(3)
    with pytest.raises(ValueError, match=r"has a gradient of shape \(3,\)"):
        optimizer.step()
    for p, value in zip(parameters, before, strict=True):
        np.testing.assert_array_equal(p.array, value)
    parameters[-1].grad = None
    for dtype in (np.float32, np.float64):
        parameters[0].array = np.zeros((2, 2), dtype)
        with pytest.raises(ValueError, match="was given data of shape"):
            optimizer.step()


def test_swapped_data_and_gradients_are_copied_correctly():
    a, b = tl.nn.Parameter(tl.tensor([1.0, 2.0])), tl.nn.Parameter(tl.tensor([3.0, 4.0]))
    optimizer = tl.optim.SGD([a, b], lr=1.0)
    (a * tl.tensor([10.0, 20.0])).sum().backward()
    (b * tl.tensor([30.0, 40.0])).sum().backward()
    a.array, b.array = b.array, a.array
    a.grad, b.grad = b.grad, a.grad
    optimizer.step()
    assert a.array.tolist() == [3 - 30, 4 - 40]
    assert b.array.tolist() == [1 - 10, 2 - 20]


def test_mixed_dtypes_need_a_buffer_each():
    a, b = tl.nn.Parameter(tl.ones(2)), tl.nn.Parameter(tl.ones(2, dtype=tl.float64))
    with pytest.raises(ValueError, match="one dtype and one device"):
        FlatParameters([a, b])
    with pytest.raises(ValueError, match="at least one"):
        FlatParameters([])
    optimizer = tl.optim.SGD([a, b], lr=0.5)
    a.grad, b.grad = tl.ones(2), tl.ones(2, dtype=tl.float64)
    optimizer.step()
    assert a.array.tolist() == b.array.tolist() == [0.5, 0.5]
    assert (a.dtype, b.dtype) == (tl.float32, tl.float64)


def test_training_continues_exactly_after_the_model_was_moved():
    """In float64 from the third step on, with Adam's running means carried over; as a run that started from the cast values."""
    m = model()
    optimizer = tl.optim.AdamW(m.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(m).backward()
        optimizer.step()
    state = optimizer.state_dict()
    m.to(tl.float64)
    twin = model(tl.float64)
    twin.load_state_dict(m.state_dict())
    other = tl.optim.AdamW(twin.parameters(), lr=1e-2)
    other.load_state_dict(state)
    for _ in range(3):
        for net, opt in ((m, optimizer), (twin, other)):
            opt.zero_grad()
            loss_of(net).backward()
            opt.step()
    for p, q in zip(m.parameters(), twin.parameters(), strict=True):
        assert p.dtype == tl.float64
        np.testing.assert_array_equal(p.array, q.array)


def test_two_optimizers_may_share_parameters_as_in_torch():
    values = np.random.default_rng(0).standard_normal((4, 3))
    gradients = np.random.default_rng(1).standard_normal((6, 4, 3))

    def run(t, parameter):
        one, two = t.optim.SGD([parameter], lr=0.1, momentum=0.9), t.optim.Adam([parameter], lr=0.01)
        for g in gradients:
            one.zero_grad()
            parameter.grad = t.tensor(g)
            one.step()
            two.step()
        return parameter.detach().numpy()

    ours = run(tl, tl.nn.Parameter(tl.tensor(values)))
    np.testing.assert_allclose(ours, run(torch, torch.nn.Parameter(torch.tensor(values))), rtol=1e-12, atol=1e-13)


def test_a_step_between_forward_and_backward_is_detected():
    m = model()
    optimizer = tl.optim.SGD(m.parameters(), lr=0.1)
    loss_of(m).backward()
    later = loss_of(m)
    optimizer.step()
    with pytest.raises(RuntimeError, match="in place"):
        later.backward()


def test_a_deep_copy_trains_independently():
    m = model(tl.float64)
    optimizer = tl.optim.SGD(m.parameters(), lr=0.1)
    loss_of(m).backward()
    twin = copy.deepcopy(m)
    before = [p.array.copy() for p in twin.parameters()]
    optimizer.step()
    for p, value in zip(twin.parameters(), before, strict=True):
        np.testing.assert_array_equal(p.array, value)
    optimizer.zero_grad()
    loss_of(m).backward()
    other = tl.optim.SGD(twin.parameters(), lr=0.1)
    other.zero_grad()
    loss_of(twin).backward()
    assert whole_buffer(list(twin.parameters())) is not whole_buffer(list(m.parameters()))


def test_empty_and_zero_dimensional_parameters_are_laid_out():
    shapes = [(), (0,), (3,), (2, 0), (1, 1)]
    parameters = [tl.nn.Parameter(tl.ones(shape)) for shape in shapes]
    optimizer = tl.optim.SGD(parameters, lr=0.25)
    for p in parameters:
        p.grad = tl.ones(*p.shape) if p.shape else tl.tensor(1.0)
    optimizer.step()
    for p, shape in zip(parameters, shapes, strict=True):
        assert p.shape == shape
        assert (p.array == 0.75).all()


def test_parameters_added_to_a_group_by_hand_are_refused():
    first, second = (tl.nn.Parameter(tl.ones(2)) for _ in range(2))
    for change in (lambda groups: groups[0]["params"].append(second), lambda groups: groups[0]["params"].__setitem__(0, second)):
        optimizer = tl.optim.SGD([first], lr=0.1)
        change(optimizer.param_groups)
        with pytest.raises(ValueError, match=r"others than those the optimizer has laid out: add some with add_param_group\(\)"):
            optimizer.step()
