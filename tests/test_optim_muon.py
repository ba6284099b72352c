"""Muon against torch's in float64, which rounds to bfloat16 in between: here it is kept from doing that."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite.optim import Muon, MuonWithAuxAdam
from tensorlite.optim.muon import COEFFICIENTS, learning_rate_scale, newton_schulz

SHAPES = [(4, 3), (3, 7), (6, 6), (1, 5)]
OPTIONS = [
    {},
    {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.6, "nesterov": False},
    {"lr": 0.05, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "eps": 1e-3, "ns_coefficients": (1.875, -1.25, 0.375)},
    {"lr": 0.05, "adjust_lr_fn": "original", "weight_decay": 0.0},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


@pytest.fixture
def exact_torch(monkeypatch):
    """torch's Muon without its rounding."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


def parameters(t, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [t.nn.Parameter(t.tensor(rng.standard_normal(shape).astype(dtype))) for shape in SHAPES]


def gradient(step, number):
    rng = np.random.default_rng([step, number])
    return rng.standard_normal(SHAPES[number]) * 10.0 ** rng.integers(-3, 2)


def run(t, optimizer, params, steps, missing=lambda step, number: False):
    for step in steps:
        for number, p in enumerate(params):
            p.grad = None if missing(step, number) else t.tensor(gradient(step, number).astype(str(p.dtype).rpartition(".")[2]))
        optimizer.step()


def assert_near(ours, theirs, tolerance=1e-11):
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.array, q.detach().numpy(), rtol=tolerance, atol=tolerance)


@each_option
def test_many_steps_equal_torchs(options, exact_torch):
    def missing(step, number):
        return (step + number) % 4 == 0

    ours, theirs = parameters(tl), parameters(torch)
    run(tl, Muon(ours, **options), ours, range(12), missing)
    run(torch, torch.optim.Muon(theirs, **options), theirs, range(12), missing)
    assert_near(ours, theirs)


def test_the_defaults_are_torchs():
    theirs = torch.optim.Muon(parameters(torch)).defaults
    assert {name: value for name, value in Muon(parameters(tl)).defaults.items() if name != "split"} == theirs


def test_a_state_goes_to_torch_and_comes_back(exact_torch):
    ours, theirs = parameters(tl), parameters(torch)
    reference = torch.optim.Muon(theirs, lr=0.05, momentum=0.9)
    run(torch, reference, theirs, range(4))
    for p, q in zip(ours, theirs, strict=True):
        p.array[...] = q.detach().numpy()
    optimizer = Muon(ours)
    optimizer.load_state_dict(reference.state_dict())
    run(tl, optimizer, ours, range(4, 8))
    state = optimizer.state_dict()
    state["state"] = {i: {"momentum_buffer": torch.tensor(entry["momentum_buffer"])} for i, entry in state["state"].items()}
    back = [torch.nn.Parameter(torch.tensor(p.array)) for p in ours]
    again = torch.optim.Muon(back)
    again.load_state_dict(state)
    run(torch, again, back, range(8, 12))
    run(torch, reference, theirs, range(4, 12))
    assert_near([tl.tensor(q.detach().numpy()) for q in back], theirs)


def test_newton_schulz_brings_every_singular_value_near_1_and_keeps_the_directions():
    rng = np.random.default_rng(1)
    for n, m in ((8, 20), (20, 8), (8, 8)):
        u, _, vt = np.linalg.svd(rng.standard_normal((n, m)), full_matrices=False)
        values = np.geomspace(1, 2e-3, 8)
        result = newton_schulz((u * values) @ vt * 1e4)
        inner = u.T @ result @ vt.T
        np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-10)
        assert (np.diag(inner) > 0.68).all() and (np.diag(inner) < 1.21).all()


def test_the_numbers_of_the_page_hold():
    def five_times(a, b, c):
        s = start
        for _ in range(5):
            s = a * s + b * s**3 + c * s**5
        return s

    start = np.geomspace(1e-4, 1, 100_001)
    ours, classical = five_times(*COEFFICIENTS), five_times(15 / 8, -10 / 8, 3 / 8)
    assert ours[start >= 0.0016].min() > 0.68 and ours.max() < 1.21
    assert classical[start <= 0.035].max() < 0.7


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_newton_schulz_returns_the_dtype_and_does_not_write_to_its_argument(dtype):
    g = np.random.default_rng(2).standard_normal((6, 9)).astype(np.float32) * 1e-3
    given = tl.tensor(g, dtype=getattr(tl, dtype)).array
    before = given.copy()
    result = newton_schulz(given)
    assert result.dtype == given.dtype
    np.testing.assert_array_equal(given, before)
    exact = newton_schulz(given.astype(np.float64))
    np.testing.assert_allclose(result.astype(np.float64), exact, atol={"float32": 2e-5, "float16": 1e-3, "bfloat16": 5e-3}[dtype])


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5)])
def test_on_a_gpu_the_products_are_cublas(shape, standin):
    g = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    given = standin.asarray(g)
    assert newton_schulz.choose(given) is not newton_schulz.book and newton_schulz.choose(g) is newton_schulz.book
    np.testing.assert_allclose(newton_schulz(given).get(), newton_schulz(g), atol=2e-5)


def test_a_gradient_of_zeros_moves_nothing_but_what_decays():
    p = tl.nn.Parameter(tl.ones(3, 4))
    p.grad = tl.zeros(3, 4)
    Muon([p], lr=0.5, weight_decay=0.1).step()
    np.testing.assert_allclose(p.array, 0.95, rtol=1e-6)


def test_the_scale_makes_steps_of_adams_size_for_every_shape():
    rng = np.random.default_rng(3)
    for shape in ((16, 64), (64, 16), (32, 32)):
        update = newton_schulz(rng.standard_normal(shape)) * learning_rate_scale(shape, "match_rms_adamw")
        assert 0.15 < np.sqrt((update**2).mean()) < 0.25
    assert learning_rate_scale((64, 16), None) == learning_rate_scale((64, 16), "original") == 2
    assert learning_rate_scale((16, 64), "original") == 1


def test_split_treats_blocks_of_rows_as_matrices_of_their_own():
    whole, parts = parameters(tl)[2:3], [tl.nn.Parameter(tl.tensor(rows)) for rows in np.split(parameters(tl)[2].array, [1, 4])]
    one, other = Muon(whole, lr=0.1, split=(1, 3, 2)), Muon(parts, lr=0.1)
    for step in range(3):
        g = gradient(step, 2)
        whole[0].grad = tl.tensor(g)
        for p, rows in zip(parts, np.split(g, [1, 4]), strict=True):
            p.grad = tl.tensor(rows)
        one.step()
        other.step()
    np.testing.assert_array_equal(whole[0].array, np.concatenate([p.array for p in parts]))


def both(params, **options):
    """Muon for two matrices, AdamW for the other two."""
    return MuonWithAuxAdam([{"params": params[:2], "use_muon": True}, {"params": params[2:], "weight_decay": 0.01}], lr=0.02, **options)


def test_muon_with_adamw_for_the_rest_equals_torchs_two_optimizers(exact_torch):
    ours, theirs = parameters(tl), parameters(torch)
    run(tl, both(ours, betas=(0.9, 0.99), weight_decay=0.2), ours, range(8))
    muon = torch.optim.Muon(theirs[:2], lr=0.02, weight_decay=0.2, adjust_lr_fn="match_rms_adamw", eps=1e-8)
    adamw = torch.optim.AdamW(theirs[2:], lr=0.02, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(8):
        for number, p in enumerate(theirs):
            p.grad = torch.tensor(gradient(step, number))
        muon.step()
        adamw.step()
    assert_near(ours, theirs)


def test_a_saved_run_continues_bit_by_bit():
    straight, resumed = parameters(tl, np.float32), parameters(tl, np.float32)
    optimizer = both(straight)
    assert len(optimizer.flats) == 1
    run(tl, optimizer, straight, range(8))
    first = both(resumed)
    run(tl, first, resumed, range(5))
    state = first.state_dict()
    assert [sorted(entry) for entry in state["state"].values()] == [["exp_avg", "step"]] * 2 + [["exp_avg", "exp_avg_sq", "step"]] * 2
    fresh = [tl.nn.Parameter(tl.tensor(p.array)) for p in resumed]
    second = both(fresh)
    second.load_state_dict(state)
    third_params, third = copy.deepcopy((fresh, second))
    for params, one in ((fresh, second), (third_params, third)):
        run(tl, one, params, range(5, 8))
        for p, q in zip(straight, params, strict=True):
            np.testing.assert_array_equal(p.array, q.array)


def test_a_gradient_factor_and_rounded_weights():
    """Both are what the GPU's steps ask an optimizer for."""
    plain, fused = parameters(tl, np.float32), parameters(tl, np.float32)
    one, other = both(plain), both(fused)
    rounded = other.flats[0].round_to(np.dtype("float16"))
    for step in range(3):
        for number, (p, q) in enumerate(zip(plain, fused, strict=True)):
            g = gradient(step, number).astype(np.float32)
            p.grad, q.grad = tl.tensor(g * np.float32(0.25)), tl.tensor(g)
        one.step()
        other.step(gradient_factor=np.asarray(0.25, np.float32))
    for number, (p, q) in enumerate(zip(plain, fused, strict=True)):
        np.testing.assert_array_equal(p.array, q.array)
        np.testing.assert_array_equal(other.flats[0].view(rounded, number), q.array.astype(np.float16))


def test_slices_that_cut_no_matrix_are_the_whole_step():
    whole, sliced = parameters(tl), parameters(tl)
    one, other = both(whole), both(sliced)
    run(tl, one, whole, range(1))
    for number, p in enumerate(sliced):
        p.grad = tl.tensor(gradient(0, number))
    spans, flat = other.begin_step(), other.flats[0]
    with pytest.raises(ValueError, match=r"MuonWithAuxAdam updates whole matrices, and the slice 0:5 ends within one: cut between two"):
        other.update_slice(spans, flat, slice(0, 5))
    for part in (slice(flat.starts[1], flat.starts[2] + 7), slice(0, flat.starts[1]), slice(flat.starts[2] + 7, flat.starts[-1])):
        other.update_slice(spans, flat, part)
    other.end_step(spans)
    for p, q in zip(whole, sliced, strict=True):
        np.testing.assert_array_equal(p.array, q.array)


REFUSED = [
    ("takes matrices, got a parameter of shape (5,): leave it to AdamW", lambda: Muon([tl.nn.Parameter(tl.ones(5))])),
    ("Muon takes matrices, got a parameter of shape (2, 3, 4)", lambda: Muon([tl.nn.Parameter(tl.ones(2, 3, 4))])),
    ("lr must not be negative, got -1", lambda: Muon(parameters(tl), lr=-1)),
    ("momentum is at least 0 and below 1, got 1.0", lambda: Muon(parameters(tl), momentum=1.0)),
    ("ns_steps is a number from 0 to 99, got 100", lambda: Muon(parameters(tl), ns_steps=100)),
    ("ns_coefficients are three numbers, got (1, 2)", lambda: Muon(parameters(tl), ns_coefficients=(1, 2))),
    ("adjust_lr_fn is original or match_rms_adamw, got 'both'", lambda: Muon(parameters(tl), adjust_lr_fn="both")),
    ("split (2, 3) does not add up to the rows of a parameter of shape (6, 6)", lambda: Muon(parameters(tl)[2:3], split=(2, 3))),
    ("betas are two numbers from 0 up to but without 1", lambda: both(parameters(tl), betas=(0.9, 1.0))),
    ("MuonWithAuxAdam takes matrices", lambda: MuonWithAuxAdam([{"params": [tl.nn.Parameter(tl.ones(5))], "use_muon": True}])),
]


@pytest.mark.parametrize(("match", "call"), REFUSED, ids=[match for match, _ in REFUSED])
def test_what_cannot_work_is_refused(match, call):
    with pytest.raises(ValueError, match=re.escape(match)):
        call()
