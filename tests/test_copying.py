"""deepcopy and pickle of tensors, parameters, models and optimizers, beside torch."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

import tensorlite as tl

WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}
way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)

OPTIMIZERS = {
    "SGD": lambda t, groups: t.optim.SGD(groups, lr=0.1, momentum=0.9),
    "Adam": lambda t, groups: t.optim.Adam(groups, lr=0.01, amsgrad=True),
    "AdamW": lambda t, groups: t.optim.AdamW(groups, lr=0.01),
    "RMSprop": lambda t, groups: t.optim.RMSprop(groups, lr=0.01, momentum=0.9, centered=True),
}


def halved(step):
    return 0.5**step


def begin(t, make):
    rng = np.random.default_rng(0)
    model = t.nn.Sequential(t.nn.Linear(3, 4), t.nn.Tanh(), t.nn.Linear(4, 3), t.nn.Linear(3, 2))
    model[2].weight = t.nn.Parameter(t.zeros(3, 4))
    with t.no_grad():
        for p in model.parameters():
            p.copy_(t.tensor(rng.standard_normal(p.shape).astype("float32")))
    late = {"params": list(model[3].parameters()), "lr": 0.05}
    optimizer = make(t, [{"params": [*model[0].parameters(), *model[2].parameters()]}, late])
    return model, optimizer, t.optim.lr_scheduler.LambdaLR(optimizer, halved) if t is torch else t.optim.LambdaLR(optimizer, halved)


def train(t, model, optimizer, schedule, steps=3):
    x = t.tensor(np.random.default_rng(1).standard_normal((5, 3)).astype("float32"))
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        schedule.step()


def values(model):
    return [p.detach().numpy().copy() for p in model.parameters()]


@way
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_copied_model_is_trained_by_its_copied_optimizer_as_in_torch(make, way):
    trained = []
    for t in (tl, torch):
        first = begin(t, make)
        train(t, *first)
        second = way(first)
        before = values(first[0])
        train(t, *second)
        for p, value in zip(first[0].parameters(), before, strict=True):
            np.testing.assert_array_equal(p.detach().numpy(), value)  # the first model stays where it is
        trained.append(values(second[0]))
        train(t, *first)
        for p, q in zip(first[0].parameters(), second[0].parameters(), strict=True):
            np.testing.assert_array_equal(p.detach().numpy(), q.detach().numpy())  # and goes the same way, to the bit
    for ours, theirs in zip(*trained, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@way
def test_a_copy_has_its_own_flat_buffer(way):
    model, optimizer, schedule = begin(tl, OPTIMIZERS["AdamW"])
    train(tl, model, optimizer, schedule)
    model2, optimizer2, schedule2 = way((model, optimizer, schedule))
    (flat,), (flat2,) = optimizer.flats, optimizer2.flats
    assert schedule2.optimizer is optimizer2
    assert not np.shares_memory(flat.data, flat2.data)
    for p in model2.parameters():
        assert p.array.base is flat2.data
        assert p.grad_buffer.base is flat2.grad


@way
def test_a_copied_optimizer_follows_a_model_that_has_changed_its_dtype(way):
    for t in (tl, torch):
        model, optimizer, schedule = begin(t, OPTIMIZERS["SGD"])
        model[0].double()
        model2, optimizer2, _ = way((model, optimizer, schedule))
        before = values(model2)
        for p in model2.parameters():
            p.grad = t.ones_like(p)
        optimizer2.step()
        for p, value in zip(model2.parameters(), before, strict=True):
            assert np.abs(p.detach().numpy() - value).min() > 1e-3


@way
def test_a_tied_weight_stays_tied(way):
    model = tl.nn.Sequential(tl.nn.Linear(2, 2), tl.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    twin, optimizer = way((model, tl.optim.SGD(model.parameters(), lr=0.1)))
    assert twin[1].weight is twin[0].weight
    twin(tl.ones(1, 2)).sum().backward()
    before = twin[0].weight.tolist()
    optimizer.step()
    assert twin[1].weight.tolist() != before


@way
def test_a_scaler_is_copied_with_its_optimizer(way):
    _, optimizer, _ = begin(tl, OPTIMIZERS["AdamW"])
    optimizer2, scaler2 = way((optimizer, tl.optim.GradScaler(optimizer, init_scale=8.0)))
    assert scaler2.optimizer is optimizer2
    scaler2.step(tl.tensor(float("inf")))
    assert scaler2.state_dict()["scale"] == 4


def test_flat_parameters_are_copied_with_their_parameters():
    parameters = [tl.nn.Parameter(tl.ones(2)), tl.nn.Parameter(tl.zeros(3))]
    flat = tl.optim.FlatParameters(parameters)
    copied, flat2 = copy.deepcopy((parameters, flat))
    copied[0].data += 1
    assert flat2.data[:2].tolist() == [2, 2]
    assert flat.data[:2].tolist() == [1, 1]


@way
def test_a_leaf_is_copied_as_in_torch(way):
    for t in (tl, torch):
        w = t.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
        p = t.nn.Parameter(t.tensor([1.0, 2.0]), requires_grad=False)
        c = t.tensor([1, 2])
        (w * w).sum().backward()
        for one in (w, w.detach().T, p, c):
            two = way(one)
            assert type(two) is type(one)
            assert two.tolist() == one.tolist()
            assert (two.dtype, two.requires_grad, two.is_leaf) == (one.dtype, one.requires_grad, True)
            assert two.data_ptr() != one.data_ptr() if t is torch else not np.shares_memory(two.array, one.array)
        assert (way(w).grad is None) == (way is WAYS["pickle"])
        p = t.nn.Parameter(t.ones(2))
        p.grad = t.ones(2)
        assert way(p).grad is None


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: [y], lambda y: {"y": y}], ids=["itself", "in a list", "in a dict"])
def test_a_deep_copy_of_an_ops_result_is_refused(wrap):
    for t, said in ((tl, r"deepcopy of a tensor that mul computed: copy its detach\(\), or call clone\(\)"), (torch, "graph leaves")):
        y = t.ones(2, requires_grad=True) * 2
        with pytest.raises(RuntimeError, match=said):
            copy.deepcopy(wrap(y))
        assert copy.deepcopy(y.detach()).tolist() == [2, 2]


def test_an_ops_result_is_a_leaf_after_pickle_and_copy():
    for t in (tl, torch):
        y = t.ones(2, requires_grad=True) * 2
        for z in (WAYS["pickle"](y), copy.copy(y)):
            assert (z.is_leaf, z.requires_grad, z.tolist()) == (True, True, [2, 2])


def test_a_shallow_copy_shares_the_memory_and_the_count_of_writes():
    for t in (tl, torch):
        c = t.ones(2)
        copy.copy(c).add_(1)
        assert c.tolist() == [2, 2]
    w, c = tl.ones(2, requires_grad=True), tl.ones(2)
    y = (w * c).sum()
    copy.copy(c).add_(1)
    with pytest.raises(RuntimeError, match="in place"):
        y.backward()


def test_hooks_are_not_copied():
    for t in (tl, torch):
        w = t.ones(2, requires_grad=True)
        w.register_hook(lambda g: g * 2)
        twin = copy.deepcopy(w)
        (twin.sum() + w.sum()).backward()
        assert (w.grad.tolist(), twin.grad.tolist()) == ([2, 2], [1, 1])
