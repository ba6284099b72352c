"""Clipping against torch's, and where torch's float32 overflows, against float64."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite.optim import clip_grad_norm_, clip_grad_value_

SHAPES = [(4, 3), (), (50,), (2, 0)]


def gradients(scale, dtype):
    rng = np.random.default_rng(0)
    return [np.asarray(rng.standard_normal(shape) * scale).astype(dtype) for shape in SHAPES]


def ours_with(arrays, flat):
    parameters = [tl.nn.Parameter(tl.tensor(np.zeros_like(a))) for a in arrays]
    if flat:
        tl.optim.SGD(parameters, lr=0.1)
        for p, a in zip(parameters, arrays, strict=True):
            (p * tl.tensor(a)).sum().backward()
    else:
        for p, a in zip(parameters, arrays, strict=True):
            p.grad = tl.tensor(a)
    return parameters


def theirs_with(arrays):
    """torch refuses to look for the largest of no numbers, so its parameters go without the empty one."""
    parameters = []
    for a in arrays:
        if a.size:
            parameters.append(torch.nn.Parameter(torch.zeros(a.shape, dtype=torch.float64)))
            parameters[-1].grad = torch.tensor(a)
    return parameters


each_home = pytest.mark.parametrize("flat", [False, True], ids=["apart", "flat"])


@each_home
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, 0.5, math.inf])
@pytest.mark.parametrize("max_norm", [0.0, 0.1, 1.0, 1e6])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e10, 1e-30, 1e100, 1e-200, 1e170])
def test_equals_torch_in_float64(scale, max_norm, norm_type, flat):
    """At 1e170 torch's squares overflow; there the norm is scaled up from that of small gradients."""
    arrays = gradients(scale, np.float64)
    expected = torch.nn.utils.clip_grad_norm_(theirs_with(gradients(1.0, np.float64)), math.inf, norm_type).item() * scale
    parameters = ours_with(arrays, flat)
    norm = clip_grad_norm_(parameters, max_norm, norm_type)
    assert norm.shape == ()
    assert norm.dtype == tl.float64
    np.testing.assert_allclose(norm.numpy(), expected, rtol=1e-12)
    factor = min(1.0, max_norm / (expected + 1e-6))
    for p, a in zip(parameters, arrays, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), a * factor, rtol=1e-12)


@each_home
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e3])
def test_flat_and_separate_gradients_are_clipped_as_in_torch(max_norm, flat):
    arrays = gradients(1.0, np.float64)
    theirs = theirs_with(arrays)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    parameters = ours_with(arrays, flat)
    np.testing.assert_allclose(clip_grad_norm_(parameters, max_norm).numpy(), expected.numpy(), rtol=1e-13)
    for p, q in zip(parameters, theirs, strict=False):  # the empty one is not among theirs
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-13)


@each_home
@pytest.mark.parametrize("scale", [1e30, 1e-30, 1.0, 1e-41])
def test_float32_neither_overflows_nor_underflows(scale, flat):
    arrays = gradients(scale, np.float32)
    exact = math.sqrt(sum(float((a.astype(np.float64) ** 2).sum()) for a in arrays))
    parameters = ours_with(arrays, flat)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norm = clip_grad_norm_(parameters, 1.0)
    assert norm.dtype == tl.float32
    assert norm.item() == pytest.approx(exact, rel=1e-6, abs=1e-44)
    for p, a in zip(parameters, arrays, strict=True):
        assert p.grad.dtype == tl.float32
        np.testing.assert_allclose(p.grad.numpy(), a * min(1.0, 1 / (exact + 1e-6)), rtol=3e-6)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
def test_nonfinite_gradients_give_torchs_result(bad, norm_type):
    arrays = gradients(1.0, np.float64)
    arrays[0][1, 1] = bad
    theirs = theirs_with(arrays)
    parameters = ours_with(arrays, flat=False)
    with pytest.raises(RuntimeError, match="cannot be clipped"):
        clip_grad_norm_(parameters, 1.0, norm_type, error_if_nonfinite=True)
    for p, a in zip(parameters, arrays, strict=True):
        np.testing.assert_array_equal(p.grad.array, a)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 1.0, norm_type)
    with np.errstate(invalid="ignore"):
        norm = clip_grad_norm_(parameters, 1.0, norm_type)
    np.testing.assert_equal(norm.numpy(), expected.numpy())
    for p, q in zip(parameters, theirs, strict=False):  # the empty one is not among theirs
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-13)


def test_parameters_without_a_gradient_are_ignored_and_shared_ones_count_once():
    a, b, c = (tl.nn.Parameter(tl.zeros(2)) for _ in range(3))
    a.grad, b.grad = tl.tensor([3.0, 0.0]), tl.tensor([0.0, 4.0])
    assert clip_grad_norm_(iter([a, b, c, a]), 10.0).item() == 5.0
    assert a.grad.tolist() == [3, 0]
    assert clip_grad_norm_(a, 10.0).item() == 3.0
    assert clip_grad_norm_([c], 1.0).item() == 0.0
    assert clip_grad_norm_([], 1.0).shape == ()


@np.errstate(invalid="ignore")
def test_one_gradient_that_is_not_a_number_does_not_outlive_its_step():
    """Between the parameters in a flat buffer there are gaps, which no gradient overwrites."""
    norms = {}
    for t in (tl, torch):
        weights = [t.tensor([1.0, -2.0], requires_grad=True), t.tensor([3.0], requires_grad=True)]
        optimizer, norms[t] = t.optim.SGD(weights, lr=0.1), []
        for factor in (1.0, math.nan, 1.0, 1.0):
            optimizer.zero_grad()
            sum((w * w * factor).sum() for w in weights).backward()
            norms[t].append(t.nn.utils.clip_grad_norm_(weights, 1.0).item())
            if math.isfinite(factor):
                optimizer.step()
    np.testing.assert_allclose(norms[tl], norms[torch], rtol=1e-6)


def test_zero_gradients_stay_zero():
    a = tl.nn.Parameter(tl.zeros(2))
    a.grad = tl.zeros(2)
    assert clip_grad_norm_([a], 1.0).item() == 0.0
    assert a.grad.tolist() == [0, 0]


def test_the_flat_buffer_is_clipped_as_one_and_is_what_the_step_uses():
    parameters = ours_with(gradients(1.0, np.float32), flat=True)
    base = parameters[0].grad.array.base
    clip_grad_norm_(parameters, 0.5)
    assert all(p.grad.array.base is base for p in parameters)
    assert float(np.linalg.norm(base.astype(np.float64))) == pytest.approx(0.5, rel=1e-5)


def test_clip_value_equals_torch():
    arrays = gradients(2.0, np.float64)
    theirs = theirs_with(arrays)
    torch.nn.utils.clip_grad_value_(theirs, 0.7)
    for flat in (False, True):
        parameters = ours_with(arrays, flat)
        clip_grad_value_(parameters, 0.7)
        for p, q in zip(parameters, theirs, strict=False):  # the empty one is not among theirs
            np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())


def test_invalid_limits_are_refused():
    for call in (
        lambda: clip_grad_norm_([], -1.0),
        lambda: clip_grad_norm_([], math.nan),
        lambda: clip_grad_norm_([], 1.0, norm_type=0),
        lambda: clip_grad_value_([], -1.0),
    ):
        with pytest.raises(ValueError, match="clip_grad"):
            call()


def test_one_group_is_clipped_alone_as_in_torch():
    arrays = gradients(3.0, "float64")
    clipped = []
    for t in (tl, torch):
        parameters = [t.nn.Parameter(t.tensor(np.zeros_like(a))) for a in arrays]
        optimizer = t.optim.SGD([{"params": parameters[:2]}, {"params": parameters[2:3]}], lr=0.1)
        optimizer.add_param_group({"params": parameters[3:]})
        for p, a in zip(parameters, arrays, strict=True):
            (p * t.tensor(a)).sum().backward()
        norm = t.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0) if t is torch else clip_grad_norm_(parameters[:2], 1.0)
        optimizer.step()
        clipped.append([norm.numpy(), *(p.detach().numpy() for p in parameters)])
    for ours, theirs in zip(*clipped, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_squares_are_added_in_blocks(monkeypatch):
    """Also those of a last block that is not full."""
    monkeypatch.setattr("tensorlite.optim.clip.BLOCK", 8)
    parameter = tl.nn.Parameter(tl.zeros(1004))
    parameter.grad = tl.tensor([4096.0, *[0.0] * 7, *[1.0] * 996])
    assert clip_grad_norm_([parameter], math.inf).item() == pytest.approx(math.sqrt(2**24 + 996), rel=1e-7)
