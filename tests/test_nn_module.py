"""Module: registration by assignment, the walks over parameters, saving and loading; torch is the reference."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import tensorlite as tl


def build(t):
    """A small model with a shared weight, a buffer, a missing bias and nested lists; the same code for both libraries."""
    nn = t.nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1 = nn.LayerNorm(6)
            self.fc = nn.Linear(6, 6, bias=False)
            self.scale = nn.Parameter(t.ones(()))
            self.register_buffer("seen", t.zeros(3))
            self.register_buffer("scratch", t.zeros(2), persistent=False)

        def forward(self, x):
            return x + self.fc(self.ln_1(x)) * self.scale

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte = nn.Embedding(5, 6)
            self.h = nn.ModuleList([Block(), Block()])
            self.mlp = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Dropout(0.0))
            self.lm_head = nn.Linear(6, 5, bias=False)
            self.lm_head.weight = self.wte.weight

        def forward(self, ids):
            x = self.wte(ids)
            for block in self.h:
                x = block(x)
            return self.lm_head(self.mlp(x))

    return Model()


def pair():
    """Our model with the values of torch's, both in float64."""
    theirs = build(torch).double()
    ours = build(tl).to(tl.float64)
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    return ours, theirs


def names(named):
    return [name for name, _ in named]


def test_the_walks_find_the_same_names_in_the_same_order_as_torch():
    ours, theirs = build(tl), build(torch)
    assert names(ours.named_parameters()) == names(theirs.named_parameters())
    assert names(ours.named_parameters(remove_duplicate=False)) == names(theirs.named_parameters(remove_duplicate=False))
    assert names(ours.named_parameters("p")) == names(theirs.named_parameters("p"))
    assert names(ours.named_parameters(recurse=False)) == names(theirs.named_parameters(recurse=False))
    assert names(ours.named_buffers()) == names(theirs.named_buffers())
    assert names(ours.named_modules()) == names(theirs.named_modules())
    assert names(ours.named_children()) == names(theirs.named_children())
    assert names(ours.state_dict().items()) == names(theirs.state_dict().items())
    assert [type(m).__name__ for m in ours.modules()] == [type(m).__name__ for m in theirs.modules()]


def test_a_shared_parameter_is_listed_once_and_saved_under_both_names():
    model = build(tl)
    listed = list(model.parameters())
    assert len({id(p) for p in listed}) == len(listed)
    state = model.state_dict()
    assert np.shares_memory(state["wte.weight"].array, state["lm_head.weight"].array)


def test_values_and_gradients_equal_torchs_after_loading_its_state_dict():
    ours, theirs = pair()
    ids = np.random.default_rng(0).integers(0, 5, (3, 4))
    y, y_torch = ours(tl.tensor(ids)), theirs(torch.tensor(ids))
    np.testing.assert_allclose(y.detach().numpy(), y_torch.detach().numpy(), rtol=1e-11, atol=1e-12)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    y.backward(tl.tensor(dy))
    y_torch.backward(torch.tensor(dy))
    reference = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        np.testing.assert_allclose(p.grad.numpy(), reference[name].grad.numpy(), rtol=1e-10, atol=1e-12, err_msg=name)


def test_the_repr_is_torchs():
    assert repr(build(tl)) == repr(build(torch))


def test_state_dict_shares_memory_and_loading_keeps_it():
    model = build(tl)
    arrays = {name: p.array for name, p in model.named_parameters()}
    state = model.state_dict()
    assert not any(value.requires_grad for value in state.values())
    changed = {name: value.array + 1 for name, value in state.items()}
    model.load_state_dict(changed)
    for name, p in model.named_parameters():
        assert p.array is arrays[name]
        np.testing.assert_array_equal(p.array, changed[name])


def test_a_round_trip_restores_every_value():
    one, two = build(tl), build(tl)
    two.load_state_dict(one.state_dict())
    for name, value in one.state_dict().items():
        np.testing.assert_array_equal(two.state_dict()[name].array, value.array)


def test_loading_converts_to_the_modules_dtype():
    model = tl.nn.Linear(2, 2)
    model.load_state_dict({"weight": np.ones((2, 2), np.float64), "bias": np.zeros(2, np.float16)})
    assert model.weight.dtype == tl.float32


def test_one_message_lists_all_mismatches_and_nothing_is_written():
    model = build(tl)
    before = {name: value.array.copy() for name, value in model.state_dict().items()}
    state = {name: value.array + 1 for name, value in model.state_dict().items()}
    del state["h.0.ln_1.weight"], state["h.1.seen"]
    state["old.name"] = np.zeros(1)
    state["mlp.0.bias"] = np.zeros(7)
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state)
    message = str(caught.value)
    assert "missing: h.0.ln_1.weight, h.1.seen" in message
    assert "unexpected: old.name" in message
    assert "mlp.0.bias: (7,) in the state_dict, (6,) in the module" in message
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.array, before[name])


def test_not_strict_loads_the_matching_names_and_returns_the_others():
    model = build(tl)
    missing, unexpected = model.load_state_dict({"mlp.0.bias": np.full(6, 3.0), "other": np.zeros(1)}, strict=False)
    assert "wte.weight" in missing
    assert "mlp.0.bias" not in missing
    assert unexpected == ["other"]
    np.testing.assert_array_equal(model.mlp[0].bias.array, 3.0)
    with pytest.raises(RuntimeError, match="misshapen"):
        model.load_state_dict({"mlp.0.bias": np.zeros(1)}, strict=False)


def test_loading_between_forward_and_backward_is_detected():
    model = tl.nn.Sequential(tl.nn.Linear(2, 2), tl.nn.Linear(2, 2))
    y = model(tl.ones(1, 2)).sum()
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="in place"):
        y.backward()


def test_assignment_registers_replaces_and_refuses():
    module = tl.nn.Module()
    module.x = 3
    module.x = tl.nn.Parameter(tl.ones(2))
    assert names(module.named_parameters()) == ["x"]
    assert "x" not in module.__dict__
    with pytest.raises(TypeError, match="takes a Parameter or None"):
        module.x = tl.ones(2)
    module.x = None
    assert list(module.parameters()) == []
    assert module.x is None
    module.x = tl.nn.Linear(1, 1)
    assert names(module.named_children()) == ["x"]
    assert "x" not in module._parameters
    del module.x
    with pytest.raises(AttributeError, match="has no attribute 'x'"):
        _ = module.x
    module.plain = tl.ones(2)
    assert list(module.parameters()) == []
    assert list(module.buffers()) == []


def test_a_buffer_stays_a_buffer_when_assigned():
    module = tl.nn.Module()
    module.register_buffer("running", tl.zeros(2))
    module.running = tl.ones(2)
    assert names(module.named_buffers()) == ["running"]
    with pytest.raises(TypeError, match="takes a Tensor or None"):
        module.running = 3


def test_a_missing_super_init_is_a_clear_error():
    class Forgetful(tl.nn.Module):
        def __init__(self):
            self.layer = tl.nn.Linear(1, 1)

    with pytest.raises(AttributeError, match=r"must call super\(\).__init__\(\) first"):
        Forgetful()


def test_names_with_dots_are_refused():
    with pytest.raises(KeyError, match="must not be empty or contain a dot"):
        tl.nn.Module().register_buffer("a.b", tl.zeros(1))


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match=r"Module has no forward\(\)"):
        tl.nn.Module()(1)


def test_train_and_eval_reach_every_module():
    model = build(tl)
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    model.train()
    assert all(module.training for module in model.modules())


def test_zero_grad_drops_or_zeros_gradients():
    model = tl.nn.Linear(2, 2)
    model(tl.ones(1, 2)).sum().backward()
    model.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(model.weight.grad.array, 0)
    model.zero_grad()
    assert model.weight.grad is None


def test_to_changes_dtype_of_parameters_gradients_and_buffers_in_the_same_objects():
    model = build(tl)
    model(tl.tensor([[1, 2]])).sum().backward()
    model.register_buffer("ids", tl.tensor([1, 2]))
    before = list(model.parameters())
    assert model.to(tl.float64) is model
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.dtype == tl.float64 and p.grad.dtype == tl.float64 for p in model.parameters())
    assert model.h[0].seen.dtype == tl.float64
    assert model.ids.dtype == tl.int64
    assert model.lm_head.weight is model.wte.weight
    same = model.wte.weight.array
    model.to("numpy")
    assert model.wte.weight.array is same
    with pytest.raises(TypeError, match="floating point"):
        model.to(tl.int64)
    with pytest.raises(ValueError, match="unknown device 'cuda:x'"):
        model.to("cuda:x")


def test_requires_grad_freezes_and_apply_visits_children_first():
    model = build(tl).requires_grad_(False)
    assert not model(tl.tensor([[1]])).requires_grad
    order, order_torch = [], []
    model.apply(lambda m: order.append(type(m).__name__))
    build(torch).apply(lambda m: order_torch.append(type(m).__name__))
    assert order == order_torch


def test_a_deep_copy_is_independent():
    model = build(tl)
    twin = copy.deepcopy(model)
    assert twin.lm_head.weight is twin.wte.weight
    twin.wte.weight.array[...] = 0
    assert np.abs(model.wte.weight.array).max() > 0


def test_hooks_of_parameters_see_the_gradient():
    model = tl.nn.Linear(2, 1, bias=False)
    seen = []
    handle = model.weight.register_hook(lambda g: seen.append(g.numpy().copy()))
    model(tl.ones(3, 2)).sum().backward()
    np.testing.assert_array_equal(seen, [[[3.0, 3.0]]])
    handle.remove()
    model(tl.ones(3, 2)).sum().backward()
    assert len(seen) == 1
    np.testing.assert_array_equal(model.weight.grad.array, 6)


def test_containers_can_be_indexed_sliced_and_extended():
    layers = tl.nn.ModuleList([tl.nn.Linear(1, i + 1) for i in range(3)])
    layers.append(tl.nn.Identity())
    assert len(layers) == 4
    assert layers[-1] is layers[3]
    assert [m.out_features for m in layers[:2]] == [1, 2]
    layers[0] = tl.nn.Tanh()
    assert isinstance(layers[0], tl.nn.Tanh)
    assert names(layers.named_children()) == ["0", "1", "2", "3"]
    with pytest.raises(IndexError, match="has 4 modules"):
        layers[4]
    with pytest.raises(TypeError, match="takes modules"):
        layers.append(3)
    named = tl.nn.Sequential({"first": tl.nn.Linear(1, 2), "second": tl.nn.ReLU()})
    assert names(named.named_parameters()) == ["first.weight", "first.bias"]


def test_the_repr_of_a_parameter_says_so():
    assert repr(tl.nn.Parameter(tl.ones(2))).startswith("Parameter containing:\ntensor([1., 1.]")
    assert not tl.nn.Parameter(tl.ones(2), requires_grad=False).requires_grad
    with pytest.raises(RuntimeError, match="floating point"):
        tl.nn.Parameter(tl.tensor([1]))


def test_assigned_arrays_are_the_modules_own():
    with tl.nn.init.without_drawing():
        tied = tl.nn.Sequential(tl.nn.Linear(3, 3, bias=False), tl.nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    assert not tied[0].weight.array.any(), "nothing is drawn"
    given = np.arange(9.0).reshape(3, 3)
    tied.load_state_dict({"0.weight": given, "1.weight": given}, assign=True)
    assert tied[0].weight is tied[1].weight
    assert tied[0].weight.array is given, "in its own dtype and memory"
    tied(tl.ones(1, 3, dtype=tl.float64)).sum().backward()
    assert tied[0].weight.grad.dtype == np.float64
    with pytest.raises(RuntimeError, match="misshapen: 0"):
        tied.load_state_dict({"0.weight": np.zeros(3), "1.weight": given}, assign=True)
    assert tied[0].weight.array is given
