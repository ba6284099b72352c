"""Mixed precision as torch's programs write it, beside torch: a loss scale that grows and shrinks, and what is switched off."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite.missing import sentence

SETTINGS = {"init_scale": 8.0, "growth_factor": 4.0, "backoff_factor": 0.5, "growth_interval": 2}
LOSSES = [1.0, math.inf, 1.0, 1.0, 1.0, math.nan, 1.0, math.inf, 1.0, 1.0]  # what the loss is multiplied with in each step


@np.errstate(invalid="ignore")  # inf - inf is nan, and that is looked for
def train(t, scaler, clips, steps=LOSSES, weight=None):
    """Steps of SGD; the weight and the scale after each of them."""
    w = t.tensor([1.0, -2.0], requires_grad=True) if weight is None else weight
    optimizer = t.optim.SGD([w], lr=0.1)
    seen = []
    for factor in steps:
        scaler.scale((w * w).sum() * factor).backward()
        if clips:
            scaler.unscale_(optimizer)
            t.nn.utils.clip_grad_norm_([w], 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        seen.append((w.detach().tolist(), scaler.get_scale()))
    return seen


@pytest.mark.parametrize("clips", [False, True])
def test_a_scaled_loss_takes_torchs_steps(clips):
    ours, theirs = (train(t, t.amp.GradScaler("cpu", **SETTINGS), clips) for t in (tl, torch))
    np.testing.assert_allclose([w for w, _ in ours], [w for w, _ in theirs], rtol=1e-6)
    assert [scale for _, scale in ours] == [scale for _, scale in theirs]
    assert len({scale for _, scale in ours}) == 3


def test_the_state_of_a_scaler_is_torchs():
    ours, theirs = tl.amp.GradScaler("cpu", **SETTINGS), torch.amp.GradScaler("cpu", **SETTINGS)
    train(tl, ours, False, LOSSES[:3])
    train(torch, theirs, False, LOSSES[:3])
    assert ours.state_dict() == theirs.state_dict()
    resumed = tl.amp.GradScaler("cpu")
    resumed.load_state_dict(theirs.state_dict())
    assert train(tl, resumed, False, LOSSES[3:]) == train(tl, ours, False, LOSSES[3:])
    with pytest.raises(RuntimeError, match="that of a scaler with enabled=False"):
        ours.load_state_dict({})


def test_a_scaler_takes_several_losses_and_a_new_scale():
    for t in (tl, torch):
        scaler = t.amp.GradScaler("cpu", **SETTINGS)
        assert [x.item() for x in scaler.scale([t.ones(()), t.full((), 2.0)])] == [8, 16]
        scaler.update(2.0)
        assert scaler.scale(t.ones(())).item() == 2


def test_the_order_of_the_calls_is_torchs():
    for t in (tl, torch):
        w = t.ones(2, requires_grad=True)
        optimizer, scaler = t.optim.SGD([w], lr=0.1), t.amp.GradScaler("cpu")
        scaler.scale(w.sum()).backward()
        scaler.unscale_(optimizer)
        with pytest.raises(RuntimeError, match="unscale_"):
            scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"update\(\) follows step"):
        tl.amp.GradScaler("cpu").update()


def test_a_scaler_that_is_off_does_nothing():
    for t in (tl, torch):
        scaler = t.amp.GradScaler("cpu", enabled=False)
        assert not scaler.is_enabled()
        assert scaler.state_dict() == {}
        scaler.load_state_dict({"scale": 3})
        assert train(t, scaler, True, [1.0])[0][1] == 1


def test_for_a_gpu_where_there_is_none_all_is_off_and_a_warning_says_so(monkeypatch):
    monkeypatch.setattr("tensorlite.amp.Device", no_gpu)
    with pytest.warns(UserWarning, match="GradScaler: there is no cuda here"):
        scaler = tl.cuda.amp.GradScaler(init_scale=2.0)
    assert not scaler.is_enabled()
    for make in (lambda: tl.autocast("cuda", dtype=tl.float16), tl.cuda.amp.autocast):
        with pytest.warns(UserWarning, match="autocast: there is no cuda here"), make():
            assert (tl.ones(2, 2) @ tl.ones(2, 2)).dtype == tl.float32


def no_gpu(device):
    raise tl.DeviceUnavailableError(device)


def test_autocast_that_is_off_is_a_block_and_a_decorator():
    @tl.amp.autocast("cpu", enabled=False)
    def product():
        return tl.ones(2, 2) @ tl.ones(2, 2)

    with tl.cuda.amp.autocast(enabled=False):
        assert product().dtype == tl.float32
    with pytest.raises(NotImplementedError, match=sentence("tensorlite.autocast").replace("(", r"\(").replace(")", r"\)")):  # noqa: SIM117
        with tl.autocast("cpu", dtype=tl.float16):
            pass


def test_switches_at_the_top_of_a_program_may_be_imported_and_set():
    import tensorlite.backends.cudnn as cudnn

    cudnn.benchmark = tl.backends.cuda.matmul.allow_tf32 = True
    assert tl.backends.cudnn.benchmark
    cudnn.benchmark = tl.backends.cuda.matmul.allow_tf32 = False
    assert not cudnn.is_available()
    assert cudnn.version() is None
