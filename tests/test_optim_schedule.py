"""Schedules against torch's, step by step, and what a pure function of the step promises."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite.optim.schedule import cosine, linear, warmup_cosine


def optimizer_of(t):
    parameters = [t.nn.Parameter(t.zeros(2)) for _ in range(2)]
    return t.optim.SGD([{"params": [parameters[0]]}, {"params": [parameters[1]], "lr": 0.3}], lr=0.1)


def pure(step):
    return 0.95**step


SCHEDULES = [
    ("ConstantLR", {"factor": 0.5, "total_iters": 4}),
    ("ConstantLR", {}),
    ("LinearLR", {"start_factor": 0.1, "end_factor": 0.7, "total_iters": 8}),
    ("LinearLR", {}),
    ("CosineAnnealingLR", {"T_max": 10}),
    ("CosineAnnealingLR", {"T_max": 7, "eta_min": 0.02}),
    ("LambdaLR", {"lr_lambda": pure}),
    ("LambdaLR", {"lr_lambda": [pure, lambda step: 1 / (step + 1)]}),
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [9, 2, 2], "gamma": 0.5}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("PolynomialLR", {"total_iters": 8, "power": 2.0}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3}),
    ("CosineAnnealingWarmRestarts", {"T_0": 2, "T_mult": 2, "eta_min": 0.01}),
    ("OneCycleLR", {"max_lr": [0.5, 1.0], "total_steps": 25, "cycle_momentum": False}),
    (
        "OneCycleLR",
        {"max_lr": 0.5, "epochs": 6, "steps_per_epoch": 5, "anneal_strategy": "linear", "pct_start": 0.5, "cycle_momentum": False},
    ),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 21, "three_phase": True, "cycle_momentum": False}),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 22}),
]
each = pytest.mark.parametrize(("name", "options"), SCHEDULES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(SCHEDULES)])


def rates(t, name, options, steps):
    optimizer = optimizer_of(t)
    module = t.optim.lr_scheduler
    schedule = getattr(module, name)(optimizer, **options)
    seen = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        assert schedule.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        seen.append(schedule.get_last_lr())
    return seen


@each
def test_equals_torchs(name, options):
    np.testing.assert_allclose(rates(tl, name, options, 20), rates(torch, name, options, 20), rtol=1e-9, atol=1e-15)


MOMENTA = {
    "as it comes": {},
    "in a straight line": {"anneal_strategy": "linear", "pct_start": 0.4},
    "one for each group": {"base_momentum": [0.6, 0.7], "max_momentum": [0.8, 0.9]},
    "three phases": {"three_phase": True},
    "all the way up": {"pct_start": 1.0},
    "down at once": {"pct_start": 0.0},
    "as it was": {"cycle_momentum": False},
}
MAKES = {
    "AdamW": lambda t, groups: t.optim.AdamW(groups, betas=(0.5, 0.9)),
    "SGD": lambda t, groups: t.optim.SGD(groups, momentum=0.3),
    "SGD, nesterov": lambda t, groups: t.optim.SGD(groups, momentum=0.3, nesterov=True),
    "SGD without momentum": lambda t, groups: t.optim.SGD(groups),
}


def one_cycle(t, make, options, steps=20):
    """What the schedule sets, and the weights, after each step."""
    weights = [t.tensor([1.0, -2.0], dtype=t.float64, requires_grad=True), t.tensor([0.5], dtype=t.float64, requires_grad=True)]
    optimizer = make(t, [{"params": [w], "lr": 0.1} for w in weights])
    schedule = t.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps, **options)
    seen = []
    for step in range(steps):
        sum((w**4).sum() for w in weights).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step < steps - 1:
            schedule.step()
        seen.extend([group["lr"], group["betas"][0] if "betas" in group else group["momentum"]] for group in optimizer.param_groups)
        seen.extend([w.item(), w.item()] for weight in weights for w in weight.detach())
    return seen


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("options", MOMENTA.values(), ids=MOMENTA)
def test_one_cycle_moves_rate_momentum_and_weights_as_torchs(make, options):
    np.testing.assert_allclose(one_cycle(tl, make, options), one_cycle(torch, make, options), rtol=1e-9)


def test_an_optimizer_goes_on_from_torchs_under_a_one_cycle_schedule():
    """torch's schedule writes its own numbers into the groups; ours keeps them itself."""
    saved = []
    for t in (torch, tl):
        optimizer = t.optim.AdamW([t.ones(2, requires_grad=True)], lr=0.1)
        if t is tl:
            optimizer.load_state_dict(saved[0])
        t.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
        saved.append({name: optimizer.state_dict()["param_groups"][0][name] for name in ("lr", "betas")})
        saved[0] = optimizer.state_dict() if t is torch else saved[0]
    theirs = saved[0]["param_groups"][0]
    assert saved[1]["lr"] == pytest.approx(theirs["lr"], rel=1e-12)
    assert saved[1]["betas"] == theirs["betas"]


@each
def test_a_saved_schedule_continues_exactly(name, options):
    straight = rates(tl, name, options, 12)
    first = getattr(tl.optim.lr_scheduler, name)(optimizer_of(tl), **options)
    for _ in range(5):
        first.step()
    optimizer = optimizer_of(tl)
    optimizer.load_state_dict(first.optimizer.state_dict())
    second = getattr(tl.optim.lr_scheduler, name)(optimizer, **options)
    second.load_state_dict(first.state_dict())
    for expected in straight[5:]:
        assert second.get_last_lr() == expected
        second.step()


def with_a_late_group(t, name, options, late=0.3, steps=6):
    optimizer = optimizer_of(t)
    module = t.optim.lr_scheduler
    schedule = getattr(module, name)(optimizer, **options)
    seen = []
    for step in range(steps):
        if step == 2:
            optimizer.add_param_group({"params": [t.nn.Parameter(t.ones(2))], "lr": late})
        optimizer.step()
        schedule.step()
        seen.append([group["lr"] for group in optimizer.param_groups])
    return seen


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ConstantLR", {"factor": 0.5, "total_iters": 4}),
        ("LinearLR", {"start_factor": 0.5, "total_iters": 4}),
        ("CosineAnnealingLR", {"T_max": 10}),
        ("CosineAnnealingLR", {"T_max": 7, "eta_min": 0.02}),
    ],
)
def test_a_group_that_is_added_later_follows_as_in_torch(name, options):
    ours, theirs = (with_a_late_group(t, name, options) for t in (tl, torch))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9)


def test_with_one_function_for_all_a_later_group_follows_too():
    """torch's LambdaLR ends in "zip() argument 2 is shorter"; the other schedules of torch say what it should do."""
    seen = with_a_late_group(tl, "LambdaLR", {"lr_lambda": lambda step: 0.5**step})
    assert [rates[-1] for rates in seen[2:]] == pytest.approx([0.3 / 2, 0.3 / 4, 0.3 / 8, 0.3 / 16])
    assert [len(rates) for rates in seen] == [2, 2, 3, 3, 3, 3]


def test_a_later_group_where_the_schedule_stands_at_zero_keeps_its_rate_as_the_base():
    seen = with_a_late_group(tl, "LambdaLR", {"lr_lambda": lambda step: float(step != 2)})
    assert [rates[-1] for rates in seen[2:]] == [0.3] * 4


def test_a_list_of_functions_needs_one_for_a_new_group():
    optimizer = optimizer_of(tl)
    schedule = tl.optim.LambdaLR(optimizer, [pure, pure])
    optimizer.add_param_group({"params": [tl.nn.Parameter(tl.ones(2))], "lr": 0.3})
    with pytest.raises(ValueError, match="LambdaLR has 2 functions for 3 parameter groups: append one to lr_lambdas"):
        schedule.step()
    schedule.lr_lambdas.append(lambda step: 1.0)
    schedule.step()
    assert schedule.get_last_lr()[2] == 0.3
    assert schedule.last_epoch == 1


def test_groups_and_states_of_schedules_that_do_not_fit_are_named():
    optimizer = optimizer_of(tl)
    schedule = tl.optim.LambdaLR(optimizer, pure)
    state = schedule.state_dict()
    optimizer.add_param_group({"params": [tl.nn.Parameter(tl.ones(2))], "lr": 0.3})
    with pytest.raises(ValueError, match="the schedule's state is for 2 groups, the optimizer has 3"):
        schedule.load_state_dict(state)
    grown = schedule.state_dict()
    again = tl.optim.LambdaLR(optimizer, pure)
    again.load_state_dict(grown)
    assert again.base_lrs == schedule.base_lrs
    del optimizer.param_groups[1:]
    with pytest.raises(ValueError, match="the schedule is for 3 parameter groups, the optimizer has 1"):
        schedule.step()


def test_warmup_cosine_rises_to_one_and_falls_to_the_end():
    factors = [warmup_cosine(step, 10, 100, 0.1) for step in range(130)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 11)
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.55)  # half way down
    assert all(a > b for a, b in itertools.pairwise(factors[10:101]))
    assert factors[100:] == pytest.approx([0.1] * 30)


def test_warmup_cosine_without_warmup_is_torchs_cosine():
    theirs = rates(torch, "CosineAnnealingLR", {"T_max": 20, "eta_min": 0.0}, 20)
    np.testing.assert_allclose(
        [0.1 * warmup_cosine(step, 0, 20) for step in range(21)], [rate for rate, _ in theirs], rtol=1e-9, atol=1e-15
    )


def test_schedules_of_length_0_are_at_their_end():
    assert linear(0, 0.1, 0.7, 0) == 0.7
    assert cosine(0, 0, 0.2) == pytest.approx(0.2)
    assert warmup_cosine(5, 5, 5, 0.3) == pytest.approx(0.3)
    assert math.isfinite(warmup_cosine(3, 5, 2))


def test_invalid_arguments_are_refused():
    optimizer = optimizer_of(tl)
    with pytest.raises(ValueError, match="1 functions for 2 parameter groups"):
        tl.optim.LambdaLR(optimizer, [pure])
    with pytest.raises(ValueError, match="T_max must be positive"):
        tl.optim.CosineAnnealingLR(optimizer, 0)
    with pytest.raises(ValueError, match="factors are between 0 and 1"):
        tl.optim.LinearLR(optimizer, start_factor=0)
    with pytest.raises(ValueError, match="is for 1 groups"):
        tl.optim.LambdaLR(optimizer, pure).load_state_dict({"last_epoch": 3, "base_lrs": [0.1]})


# --- schedules that are not a function of the step, or are made of others -----------------------------------------


def test_one_schedule_after_the_other_equals_torchs():
    seen = []
    for t in (tl, torch):
        optimizer, of = optimizer_of(t), t.optim.lr_scheduler
        parts = [of.LinearLR(optimizer, 0.1, total_iters=4), of.ConstantLR(optimizer, 0.5, 2), of.CosineAnnealingLR(optimizer, 8)]
        schedule = of.SequentialLR(optimizer, parts, [4, 7])
        rates = [[group["lr"] for group in optimizer.param_groups]]
        for _ in range(14):
            optimizer.step()
            schedule.step()
            rates.append([group["lr"] for group in optimizer.param_groups])
        seen.append(rates)
    np.testing.assert_allclose(*seen, rtol=1e-9)


LOSSES = [5, 4, 4.1, 4.2, 3.9999, 4.3, 4.4, 4.5, 2, 2.1, 2.2, 2.3, 2.4, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9]
PLATEAUS = [
    {"patience": 2},
    {"patience": 1, "factor": 0.5, "cooldown": 2},
    {"patience": 0, "threshold": 0.3, "threshold_mode": "abs", "min_lr": 0.01},
    {"patience": 2, "mode": "max"},
    {"patience": 1, "mode": "max", "threshold_mode": "abs", "threshold": 0.05, "eps": 0.02},
]


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_a_plateau_is_detected_as_in_torch(options):
    seen = []
    for t in (tl, torch):
        optimizer = optimizer_of(t)
        schedule = t.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
        rates = []
        for i, loss in enumerate(LOSSES):
            schedule.step(t.tensor(loss))
            rates.append(schedule.get_last_lr())
            if t is tl and i == 9:  # saved and resumed on the way
                state = schedule.state_dict()
                schedule = t.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
                schedule.load_state_dict(state)
        seen.append(rates)
    np.testing.assert_allclose(*seen, rtol=1e-12)
    assert seen[0][0] != seen[0][-1]


@pytest.mark.parametrize("name", ["StepLR", "MultiStepLR", "ExponentialLR", "PolynomialLR", "CosineAnnealingWarmRestarts"])
def test_a_group_added_later_follows_every_schedule(name):
    options = dict(SCHEDULES)[name]
    optimizer = optimizer_of(tl)
    schedule = getattr(tl.optim.lr_scheduler, name)(optimizer, **options)
    schedule.step()
    optimizer.add_param_group({"params": [tl.nn.Parameter(tl.zeros(1))], "lr": optimizer.param_groups[0]["lr"]})
    for _ in range(6):
        schedule.step()
        assert optimizer.param_groups[2]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-15)


def test_impossible_schedules_are_refused():
    of, optimizer = tl.optim.lr_scheduler, optimizer_of(tl)
    for said, make in [
        ("T_0 and T_mult must be at least 1", lambda: of.CosineAnnealingWarmRestarts(optimizer, 0)),
        ("2 groups need one value or as many, got 3", lambda: of.OneCycleLR(optimizer_of(tl), [0.1, 0.2, 0.3], 5)),
        (
            "this optimizer has no momentum",
            lambda: of.OneCycleLR(tl.optim.Optimizer([tl.ones(1, requires_grad=True)], {"lr": 0.1}), 0.1, 5),
        ),
        ("give total_steps", lambda: of.OneCycleLR(optimizer, 0.1)),
        ("anneal_strategy is", lambda: of.OneCycleLR(optimizer, 0.1, 5, anneal_strategy="x")),
        ("one milestone less", lambda: of.SequentialLR(optimizer, [], [1])),
        ("factor below 1", lambda: of.ReduceLROnPlateau(optimizer, factor=1.0)),
        ("it has 3 steps, and this is step 4", lambda: [(s := of.OneCycleLR(optimizer, 0.1, 3)), [s.step() for _ in range(3)]]),
    ]:
        with pytest.raises(ValueError, match=said):
            make()


@pytest.mark.parametrize("name", ["LinearLR", "ConstantLR"])
def test_the_default_factors_are_torchs(name):
    rates = []
    for t in (tl, torch):
        optimizer = t.optim.SGD([t.nn.Parameter(t.ones(1))], lr=1.0)
        schedule = getattr(t.optim.lr_scheduler, name)(optimizer)
        found = []
        for _ in range(8):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        rates.append(found)
    np.testing.assert_allclose(*rates, rtol=1e-12)
