"""SGD, Adam, AdamW and RMSprop against torch's, number by number, in float64."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite.optim import optimizer as optimizer_page
from tensorlite.optim.adam import adam_update, adamw_update
from tensorlite.optim.sgd import sgd_update

SHAPES = [(4, 3), (), (5,), (2, 3, 2), (1,)]
STEPS = 50

RULES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05, "nesterov": True, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "dampening": 0.1, "weight_decay": 0.05, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3}),
    ("Adam", {"lr": 0.02, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.02, "amsgrad": True}),
    ("Adam", {"lr": 0.02, "amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"lr": 0.0, "betas": (0.0, 0.0)}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.0}),
    ("AdamW", {"lr": 0.02, "amsgrad": True, "weight_decay": 0.3, "maximize": True}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.02, "momentum": 0.8}),
    ("RMSprop", {"lr": 0.02, "centered": True}),
    ("RMSprop", {"lr": 0.02, "centered": True, "momentum": 0.5, "weight_decay": 0.1, "maximize": True}),
]
each_rule = pytest.mark.parametrize(("name", "options"), RULES, ids=[f"{name}-{options}" for name, options in RULES])


def parameters(t, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [t.nn.Parameter(t.tensor(rng.standard_normal(shape).astype(dtype))) for shape in SHAPES]


def gradient(step, number):
    """Some small, some large, now and then 0."""
    rng = np.random.default_rng([step, number])
    return np.asarray(rng.standard_normal(SHAPES[number]) * 10.0 ** rng.integers(-3, 2) * (rng.random(SHAPES[number]) < 0.9))


def run(t, optimizer, params, steps, missing=lambda step, number: False):
    for step in steps:
        optimizer.zero_grad()
        for number, p in enumerate(params):
            p.grad = None if missing(step, number) else t.tensor(gradient(step, number))
        optimizer.step()


def same(ours, theirs, tolerance=1e-12):
    for number, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(p.array, q.detach().numpy(), rtol=tolerance, atol=tolerance, err_msg=f"parameter {number}")


@each_rule
def test_fifty_steps_equal_torchs(name, options):
    ours, theirs = parameters(tl), parameters(torch)
    run(tl, getattr(tl.optim, name)(ours, **options), ours, range(STEPS))
    run(torch, getattr(torch.optim, name)(theirs, **options), theirs, range(STEPS))
    same(ours, theirs)


@each_rule
def test_parameters_without_a_gradient_are_left_out_of_that_step(name, options):
    """Each has its own number of steps then, and Adam's correction depends on it."""

    def missing(step, number):
        return (step + number) % 3 == 0 or (number == 2 and step < 20) or number == 4

    ours, theirs = parameters(tl), parameters(torch)
    run(tl, getattr(tl.optim, name)(ours, **options), ours, range(STEPS), missing)
    run(torch, getattr(torch.optim, name)(theirs, **options), theirs, range(STEPS), missing)
    same(ours, theirs)


@each_rule
def test_groups_have_their_own_options(name, options):
    def grouped(params):
        return [{"params": params[3:], "lr": 0.03}, {"params": params[:3], "weight_decay": 0.2}]

    ours, theirs = parameters(tl), parameters(torch)
    run(tl, getattr(tl.optim, name)(grouped(ours), **options), ours, range(STEPS))
    run(torch, getattr(torch.optim, name)(grouped(theirs), **options), theirs, range(STEPS))
    same(ours, theirs)


@each_rule
def test_a_group_added_later_is_trained(name, options):
    def train(t, params):
        optimizer = getattr(t.optim, name)(params[:2], **options)
        run(t, optimizer, params[:2], range(5))
        optimizer.add_param_group({"params": params[2:], "lr": 0.01})
        run(t, optimizer, params, range(5, 15))

    ours, theirs = parameters(tl), parameters(torch)
    train(tl, ours)
    train(torch, theirs)
    same(ours, theirs)


@each_rule
def test_a_saved_run_continues_bit_by_bit(name, options):
    straight, resumed = parameters(tl), parameters(tl)
    run(tl, getattr(tl.optim, name)(straight, **options), straight, range(STEPS))

    first = getattr(tl.optim, name)(resumed, **options)
    run(tl, first, resumed, range(20), missing=lambda step, number: False)
    state = first.state_dict()
    snapshot = json.dumps(state, default=lambda array: array.tolist())
    fresh = [tl.nn.Parameter(tl.tensor(p.array)) for p in resumed]
    run(tl, first, resumed, range(3))  # what happens later does not reach into the snapshot
    assert json.dumps(state, default=lambda array: array.tolist()) == snapshot

    second = getattr(tl.optim, name)(fresh, lr=123.0)
    second.load_state_dict(state)
    run(tl, second, fresh, range(20, STEPS))
    for p, q in zip(straight, fresh, strict=True):
        np.testing.assert_array_equal(p.array, q.array)
    through_json = getattr(tl.optim, name)([tl.nn.Parameter(tl.tensor(p.array)) for p in resumed], lr=1.0)
    through_json.load_state_dict(json.loads(snapshot))
    assert through_json.state_dict()["state"].keys() == state["state"].keys()


@each_rule
def test_torchs_own_state_dict_can_be_loaded(name, options):
    ours, theirs = parameters(tl), parameters(torch)
    reference = getattr(torch.optim, name)(theirs, **options)
    run(torch, reference, theirs, range(10))
    for p, q in zip(ours, theirs, strict=True):
        p.array[...] = q.detach().numpy()
    optimizer = getattr(tl.optim, name)(ours, **options)
    state = reference.state_dict()
    known = set(optimizer.defaults) | {"params"}
    state["param_groups"] = [{k: v for k, v in group.items() if k in known} for group in state["param_groups"]]
    optimizer.load_state_dict(state)
    run(tl, optimizer, ours, range(10, 20))
    run(torch, reference, theirs, range(10, 20))
    same(ours, theirs)


@each_rule
def test_the_size_of_the_tiles_does_not_change_the_result(name, options, monkeypatch):
    whole, tiled = parameters(tl), parameters(tl)
    run(tl, getattr(tl.optim, name)(whole, **options), whole, range(10))
    monkeypatch.setattr(optimizer_page, "TILE", 5)
    run(tl, getattr(tl.optim, name)(tiled, **options), tiled, range(10))
    for p, q in zip(whole, tiled, strict=True):
        np.testing.assert_array_equal(p.array, q.array)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_float32_stays_float32_and_agrees_up_to_rounding(name):
    ours, theirs = parameters(tl, np.float32), parameters(torch, np.float32)
    optimizer, reference = getattr(tl.optim, name)(ours, lr=0.01), getattr(torch.optim, name)(theirs, lr=0.01)
    for step in range(STEPS):
        for number, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            g = gradient(step, number).astype(np.float32)
            p.grad, q.grad = tl.tensor(g), torch.tensor(g)
        optimizer.step()
        reference.step()
    assert all(p.dtype == tl.float32 for p in ours)
    assert all(array.dtype == np.float32 for entry in optimizer.state_dict()["state"].values() for k, array in entry.items() if k != "step")
    same(ours, theirs, 5e-6)


def test_gradients_are_not_changed_by_a_step():
    for name, options in RULES:
        params = parameters(tl)
        optimizer = getattr(tl.optim, name)(params, **options)
        grads = [tl.tensor(gradient(0, number)) for number in range(len(params))]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()
        for number, (p, g) in enumerate(zip(params, grads, strict=True)):
            assert p.grad is g
            np.testing.assert_array_equal(g.array, gradient(0, number))


def test_the_update_functions_by_hand():
    """One number, two steps of each, computed here from the formulas in their docstrings."""
    p, v = np.array([1.0]), np.zeros(1)
    sgd_update(p, np.array([0.5]), v, 1, lr=0.1, momentum=0.9)
    sgd_update(p, np.array([0.25]), v, 2, lr=0.1, momentum=0.9)
    assert p == pytest.approx(1 - 0.1 * 0.5 - 0.1 * (0.9 * 0.5 + 0.25), rel=1e-15)

    p, m, v = np.array([1.0]), np.zeros(1), np.zeros(1)
    adam_update(p, np.array([3.0]), m, v, 1, 0.1, (0.9, 0.99), 1e-8)
    assert p == pytest.approx(1 - 0.1 * 3 / (3 + 1e-8), rel=1e-14)  # the first step is lr, whatever the gradient
    m_hat, v_hat = (0.9 * 0.3 + 0.1 * -1) / (1 - 0.81), (0.99 * 0.09 + 0.01) / (1 - 0.99**2)
    expected = p[0] * (1 - 0.1 * 0.5) - 0.1 * m_hat / (v_hat**0.5 + 1e-8)
    adamw_update(p, np.array([-1.0]), m, v, 2, 0.1, (0.9, 0.99), 1e-8, 0.5)
    assert p == pytest.approx(expected, rel=1e-13)


def test_a_step_reduces_the_loss_and_counts_a_write():
    w = tl.nn.Parameter(tl.tensor([3.0, -2.0]))
    frozen = tl.nn.Parameter(tl.ones(2))
    optimizer = tl.optim.SGD([w, frozen], lr=0.1)
    versions = w.version.count, frozen.version.count

    def closure():
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    first = optimizer.step(closure).item()
    assert (w.version.count, frozen.version.count) == (versions[0] + 1, versions[1])
    assert optimizer.step(closure).item() < first


def test_zero_grad_drops_or_zeros_gradients():
    w = tl.nn.Parameter(tl.ones(2))
    optimizer = tl.optim.SGD([w], lr=0.1)
    (w * w).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert w.grad.tolist() == [0, 0]
    optimizer.zero_grad()
    assert w.grad is None


def w():
    return tl.nn.Parameter(tl.ones(2))


computed = w() * 2
shared = w()
REFUSED = [
    (ValueError, "at least one parameter", lambda: tl.optim.SGD([], lr=0.1)),
    (TypeError, "not one tensor", lambda: tl.optim.SGD(shared, lr=0.1)),
    (TypeError, "takes tensors, got str", lambda: tl.optim.SGD(["w"], lr=0.1)),
    (TypeError, "under 'params'", lambda: tl.optim.SGD([{"lr": 0.1}], lr=0.1)),
    (ValueError, "was computed by", lambda: tl.optim.SGD([computed], lr=0.1)),
    (ValueError, "floating point", lambda: tl.optim.SGD([tl.tensor([1])], lr=0.1)),
    (ValueError, "given to the optimizer twice", lambda: tl.optim.SGD([shared, shared], lr=0.1)),
    (ValueError, "given to the optimizer twice", lambda: tl.optim.SGD([{"params": [shared]}, {"params": [shared]}], lr=0.1)),
    (ValueError, "no option 'learning_rate'; its options are lr, momentum", lambda: tl.optim.SGD([{"params": [w()], "learning_rate": 1}])),
    (ValueError, "lr must not be negative, got -1", lambda: tl.optim.SGD([w()], lr=-1)),
    (ValueError, "lr must not be negative, got nan", lambda: tl.optim.AdamW([w()], lr=float("nan"))),
    (ValueError, "momentum must not be negative", lambda: tl.optim.SGD([w()], momentum=-0.1)),
    (ValueError, "nesterov needs momentum", lambda: tl.optim.SGD([w()], nesterov=True)),
    (ValueError, "nesterov needs momentum", lambda: tl.optim.SGD([w()], nesterov=True, momentum=0.9, dampening=0.1)),
    (ValueError, r"betas are two numbers .* got \(0.9, 1.0\)", lambda: tl.optim.Adam([w()], betas=(0.9, 1.0))),
    (ValueError, "AdamW: eps must not be negative", lambda: tl.optim.AdamW([w()], eps=-1e-8)),
    (ValueError, "weight_decay must not be negative", lambda: tl.optim.AdamW([{"params": [w()], "weight_decay": -1}])),
]


@pytest.mark.parametrize(("error", "match", "call"), [pytest.param(*r, id=f"{i}-{r[1]}") for i, r in enumerate(REFUSED)])
def test_invalid_options_are_refused(error, match, call):
    with pytest.raises(error, match=match):
        call()


BAD_STATES = [
    ("groups of", lambda s: s["param_groups"][0].update(params=[0, 1])),
    (r"for parameter 2 of shape \(5,\), exp_avg of shape \(7,\)", lambda s: s["state"][2].update(exp_avg=np.zeros(7))),
    ("'momentum_buffer', which Adam does not keep", lambda s: s["state"][0].update(momentum_buffer=np.zeros((4, 3)))),
    ("for parameter 1 of .* no exp_avg_sq", lambda s: s["state"][1].pop("exp_avg_sq")),
    ("exp_avg of shape .* and dtype <U4", lambda s: s["state"][1].update(exp_avg=np.array("much"))),
    ("a number of steps of -1", lambda s: s["state"][4].update(step=-1)),
    ("no max_exp_avg_sq", lambda s: s["param_groups"][0].update(amsgrad=True)),
    ("betas are two numbers", lambda s: s["param_groups"][0].update(betas=(2, 3))),
    ("no option 'momentum'", lambda s: s["param_groups"][0].update(momentum=0.9)),
]


@pytest.mark.parametrize(("match", "spoil"), [pytest.param(m, s, id=m) for m, s in BAD_STATES])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(match, spoil):
    params, twin = parameters(tl), parameters(tl)
    optimizer, reference = tl.optim.Adam(params, lr=0.02), tl.optim.Adam(twin, lr=0.02)
    run(tl, optimizer, params, range(3))
    run(tl, reference, twin, range(3))
    state = optimizer.state_dict()
    for entry in state["state"].values():
        entry["exp_avg"] += 1
    state["param_groups"][0]["lr"] = 5.0
    spoil(state)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state)
    run(tl, optimizer, params, range(3, 6))
    run(tl, reference, twin, range(3, 6))
    for p, q in zip(params, twin, strict=True):
        np.testing.assert_array_equal(p.array, q.array)


@pytest.mark.parametrize(("name", "options"), [RULES[5], RULES[16], RULES[21]])
def test_slices_in_any_order_are_the_whole_step_bit_for_bit(name, options, monkeypatch):
    """Of two groups, with a parameter that has no gradient in one of the steps."""
    monkeypatch.setattr(optimizer_page, "TILE", 7)

    def updated(make_step):
        params = parameters(tl, np.float32)
        optimizer = getattr(tl.optim, name)([{"params": params[:2]}, {"params": params[2:], "lr": 0.3}], **options)
        for step in range(3):
            for number, p in enumerate(params):
                p.grad = None if (step, number) == (1, 2) else tl.tensor(gradient(step, number).astype(np.float32))
            make_step(optimizer)
        state = optimizer.state_dict()["state"]
        return [p.array.tobytes() for p in params], {number: {**entry, **_as_bytes(entry)} for number, entry in state.items()}

    def in_slices(optimizer):
        spans = optimizer.begin_step()
        for start in (40, 0, 33, 5, 70, 18):
            stop = {0: 5, 5: 18, 18: 33, 33: 40, 40: 70, 70: 10_000}[start]
            optimizer.update_slice(spans, optimizer.flats[0], slice(start, stop))
        optimizer.end_step(spans)

    assert updated(in_slices) == updated(lambda optimizer: optimizer.step())


def _as_bytes(entry):
    return {name: array.tobytes() for name, array in entry.items() if name != "step"}
