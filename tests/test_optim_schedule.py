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
]
each = pytest.mark.parametrize(("name", "options"), SCHEDULES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(SCHEDULES)])


def rates(t, name, options, steps):
    optimizer = optimizer_of(t)
    module = tl.optim if t is tl else torch.optim.lr_scheduler
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


@each
def test_a_saved_schedule_continues_exactly(name, options):
    straight = rates(tl, name, options, 12)
    first = getattr(tl.optim, name)(optimizer_of(tl), **options)
    for _ in range(5):
        first.step()
    optimizer = optimizer_of(tl)
    optimizer.load_state_dict(first.optimizer.state_dict())
    second = getattr(tl.optim, name)(optimizer, **options)
    second.load_state_dict(first.state_dict())
    for expected in straight[5:]:
        assert second.get_last_lr() == expected
        second.step()


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


def test_schedules_of_no_length_are_at_their_end():
    assert linear(0, 0.1, 0.7, 0) == 0.7
    assert cosine(0, 0, 0.2) == pytest.approx(0.2)
    assert warmup_cosine(5, 5, 5, 0.3) == pytest.approx(0.3)
    assert math.isfinite(warmup_cosine(3, 5, 2))


def test_nonsense_is_refused():
    optimizer = optimizer_of(tl)
    with pytest.raises(ValueError, match="1 functions for 2 parameter groups"):
        tl.optim.LambdaLR(optimizer, [pure])
    with pytest.raises(ValueError, match="T_max must be positive"):
        tl.optim.CosineAnnealingLR(optimizer, 0)
    with pytest.raises(ValueError, match="factors are between 0 and 1"):
        tl.optim.LinearLR(optimizer, start_factor=0)
    with pytest.raises(ValueError, match="is for 1 groups"):
        tl.optim.LambdaLR(optimizer, pure).load_state_dict({"last_epoch": 3, "base_lrs": [0.1]})
