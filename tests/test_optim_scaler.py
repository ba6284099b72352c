"""Loss scaling: torch's rule for S, steps that are not made, and a run in float16 that finds its S and can be resumed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import tensorlite as tl
from data.tokenizer import CharTokenizer
from gpt.checkpoints.training_state import TRAINING
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import UserError
from gpt.model import build_model
from gpt.training.resume import checkpoint_files
from gpt.training.stepper import WARM_UP
from gpt.training.trainer import RunRecord, Trainer
from tensorlite import Tensor, nn, optim
from tensorlite.op import use_kernels
from tensorlite.precision import use_precision
from tensorlite.random import make_generator, use_generator
from tests.standin.machine import forbid_host_reads

# Gradients of twelve steps: the 2nd, 3rd, 8th and 12th overflow.
GRADIENTS = np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32)
GRADIENTS[[1, 2, 7, 11], [3, 0, 15, 1]] = [np.inf, np.nan, -np.inf, np.nan]
SETTINGS = {"init_scale": 64.0, "growth_factor": 2.0, "backoff_factor": 0.25, "growth_interval": 3}
START = np.linspace(-1, 1, 16, dtype=np.float32)
ROUNDING = float(np.finfo(np.float32).eps)  # of a weight between 1 and 2, in each step and on each side; one that crosses 0 keeps it


def scaled_steps(weight, optimizer, asarray=np.asarray, max_norm=1.0):
    """S and the weights after each of the steps."""
    scaler = optim.GradScaler(optimizer, **SETTINGS)
    found = []
    for gradient in GRADIENTS:
        (weight * Tensor.wrap(asarray(gradient))).sum().backward(Tensor.wrap(scaler.scale * 1))
        scaler.unscale_([weight])
        scaler.step(optim.clip_grad_norm_([weight], max_norm))
        optimizer.zero_grad()
        found.append((scaler.state_dict()["scale"], tl.backend.to_numpy(weight.array).copy()))
    scaler.finalize_step_count()
    return found, optimizer.state_dict()["state"][0]


def torchs_steps(make, max_norm=1.0):
    weight = torch.nn.Parameter(torch.tensor(START))
    optimizer, scaler = make([weight]), torch.amp.GradScaler("cpu", **SETTINGS)
    found = []
    for gradient in GRADIENTS:
        scaler.scale((weight * torch.tensor(gradient)).sum()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([weight], max_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        found.append((scaler.get_scale(), weight.detach().numpy().copy()))
    return found


@np.errstate(all="ignore")
@pytest.mark.parametrize("max_norm", [1.0, 100.0], ids=["always clipped", "never clipped"])
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_scales_and_steps_equal_torchs(kind, max_norm):
    """SGD's steps are as long as its gradients: one that is not unscaled is seen where nothing is clipped."""
    weight = nn.Parameter(START.copy())
    ours, state = scaled_steps(weight, getattr(optim, kind)([weight], lr=0.1), max_norm=max_norm)
    theirs = torchs_steps(lambda parameters: getattr(torch.optim, kind)(parameters, lr=0.1), max_norm)
    assert [scale for scale, _ in ours] == [scale for scale, _ in theirs]
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=8 * ROUNDING)
    assert state["step"] == 8


@pytest.mark.parametrize("kernels", ["fast", "book"])
def test_on_a_gpu_scales_are_the_same_and_only_made_steps_are_counted(any_cupy, kernels):
    weight = nn.Parameter(any_cupy.asarray(START))
    with use_kernels(kernels):
        ours, state = scaled_steps(weight, optim.AdamW([weight], lr=0.1), any_cupy.asarray)
    theirs = torchs_steps(lambda parameters: torch.optim.AdamW(parameters, lr=0.1))
    assert [scale for scale, _ in ours] == [scale for scale, _ in theirs]
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=8 * ROUNDING)
    assert state["step"] == 8


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind, dtype", [("SGD", "float32"), ("AdamW", "float64")])
def test_rules_that_cannot_skip_a_step_on_the_device_read_the_norm(kind, dtype, any_cupy):
    """The book's rules would take a step 0 for a step, and divide by zero."""
    weight = nn.Parameter(any_cupy.asarray(START.astype(dtype)))
    optimizer = getattr(optim, kind)([weight], lr=0.1)
    ours, _ = scaled_steps(weight, optimizer, lambda x: any_cupy.asarray(x.astype(dtype)))
    theirs = torchs_steps(lambda parameters: getattr(torch.optim, kind)(parameters, lr=0.1))
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)
    (weight * weight).sum().backward()
    with pytest.raises(RuntimeError, match=f"{kind} cannot be held back on the device here"):
        optim.GradScaler(optimizer).step_with(optimizer.device_scalars(), tl.zeros((), device="cupy"))


WRONG = [{"init_scale": 0.0}, {"init_scale": 1e39}, {"init_scale": math.nan}, {"growth_factor": 1.0}, {"backoff_factor": 1.0}]


def test_the_first_scale_is_torchs():
    scaler = optim.GradScaler(optim.SGD([nn.Parameter(START)], lr=0.1))
    assert scaler.state_dict()["scale"] == torch.amp.GradScaler("cpu").get_scale()


@pytest.mark.parametrize("scale", [2.0**-126, 2.0**126])
def test_the_ends_of_the_range_of_scales_are_allowed(scale):
    scaler = optim.GradScaler(optim.SGD([nn.Parameter(START)], lr=0.1), init_scale=scale)
    assert scaler.state_dict()["scale"] == scale


@pytest.mark.parametrize("wrong", [*WRONG, {"growth_interval": 0}])
def test_invalid_factors_are_refused(wrong):
    with pytest.raises(ValueError, match="GradScaler: init_scale must be between"):
        optim.GradScaler(optim.SGD([nn.Parameter(START)], lr=0.1), **wrong)


@pytest.mark.parametrize(("scale", "good"), [(0.0, 1), (math.inf, 1), (4.0, -1), (math.nan, 1)])
def test_an_invalid_state_is_refused(scale, good):
    with pytest.raises(ValueError, match="a loss scale is between"):
        optim.GradScaler(optim.SGD([nn.Parameter(START)], lr=0.1)).load_state_dict({"scale": scale, "good_steps": good})


# --- a run in float16 --------------------------------------------------------------------------------------

MODEL = GPTConfig(vocab_size=20, block_size=8, n_layer=1, n_head=2, n_embd=16)
TOKENS = np.tile(np.random.default_rng(0).permutation(20), 25).astype(np.uint16)


def trainer(precision="float16", init_scale=None, **settings):
    settings = {"batch_size": 4, "learning_rate": 1e-2, "schedule": "constant", "eval_iters": 1, "cuda_graph": False, **settings}
    with use_generator(make_generator(1)):
        model = build_model(MODEL).to(device="cupy").train()
    run = Trainer(model, TrainConfig(backend="cupy", precision=precision, **settings), TOKENS[:400], TOKENS[400:])
    if init_scale:
        run.stepper.scaler.scale[...] = init_scale
    return run


def state_of(run):
    run.stepper.finalize_step_count()
    arrays = {f"{number} {name}": value for number, entry in run.optimizer.state_dict()["state"].items() for name, value in entry.items()}
    return {**arrays, **{name: p.array.get() for name, p in run.model.named_parameters()}, "trainer": run.state_dict()["scaler"]}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_only_float16_with_kernels_is_scaled(standin):
    enabled = [trainer(precision).stepper.scaler.is_enabled() for precision in ("float32", "tf32", "bfloat16", "float16")]
    assert enabled == [False, False, False, True]
    with use_kernels("book"):
        assert not trainer().stepper.scaler.is_enabled()


def test_too_large_a_scale_skips_only_the_first_steps(any_cupy):
    """From 2⁴⁰ S halves until nothing overflows; until then the weights stay as they were, and the optimizer's count at 0."""
    run = trainer(init_scale=2.0**40)
    before = [p.array.get() for p in run.model.parameters()]
    with use_precision("float16"):
        run.update()
        for p, was in zip(run.model.parameters(), before, strict=True):
            np.testing.assert_array_equal(p.array.get(), was)
        assert not state_of(run).keys() & {"0 step"} and run.state_dict()["scaler"]["scale"] == 2.0**39
        losses = [run.update().item() for _ in range(40)]
    scale, made = run.state_dict()["scaler"]["scale"], state_of(run)["0 step"]
    assert 1 < scale < 2.0**39 and made == 41 - (40 - math.log2(scale))
    assert losses[-1] < losses[0] - 0.1


def test_small_gradients_underflow_without_scaling(any_cupy):
    """The gradient of a loss that is 10⁻⁶ times as large is 10⁻⁶ times as large: in float16, scaled, and not if it is not."""
    run = trainer(grad_clip=0.0)
    x, y = (tl.tensor(TOKENS[start : start + 32].reshape(4, 8).astype(np.int64), device="cupy") for start in (0, 1))

    def gradient(scale):
        run.model(x, y)[1].backward(Tensor.wrap(any_cupy.full((), 1e-6 * scale, "float32")))
        found = run.model.h[0].mlp.c_fc.weight.grad.numpy().copy() / (1e-6 * scale)
        run.optimizer.zero_grad()
        return found

    truth = gradient(1.0)
    with use_precision("float16"):
        errors = [np.linalg.norm(gradient(scale) - truth) / np.linalg.norm(truth) for scale in (1.0, 2.0**16)]
    assert errors[0] > 0.1 and errors[1] < 5e-3


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_recorded_step_is_skipped_like_a_plain_one(any_cupy, accumulation):
    plain, captured = (trainer(init_scale=2.0**34, cuda_graph=graph, accumulation=accumulation) for graph in (False, True))
    with use_precision("float16"):
        for _ in range(WARM_UP + 20):
            assert plain.update().item() == captured.update().item()
    assert captured.stepper.graph_memory > 0
    assert_same(state_of(plain), state_of(captured))


def test_nothing_is_read_from_the_device_in_a_step(standin):
    run = trainer(init_scale=2.0**40)
    with use_precision("float16"):
        run.update()
        with forbid_host_reads():
            run.update()


def test_a_resumed_run_continues_with_its_scale(any_cupy):
    whole, first, second = trainer(init_scale=2.0**34), trainer(init_scale=2.0**34), trainer()
    with use_precision("float16"):
        for _ in range(24):
            whole.update()
        for _ in range(12):
            first.update()
        first.stepper.finalize_step_count()
        for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
            q.array[...] = p.array
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.load_state_dict(first.state_dict())
        for _ in range(12):
            second.update()
    assert_same(state_of(whole), state_of(second))


def test_a_checkpoint_counts_only_the_made_steps(standin):
    run = trainer(init_scale=2.0**40)
    with use_precision("float16"):
        for _ in range(40):
            run.update()
    skipped = 40 - round(math.log2(run.state_dict()["scaler"]["scale"]))
    run.stepper.finalize_step_count()
    files = dict(checkpoint_files(run, run.optimizer.state_dict(), CharTokenizer.train("abcdefghijklmnopqrst"), "gpt.train", {}))
    record = json.loads(files[TRAINING])
    assert skipped > 5 and set(record["steps"].values()) == {40 - skipped}
    assert record["trainer"]["step"] == 40 and record["trainer"]["scaler"]["scale"] < 2.0**35


def test_a_gradient_that_always_overflows_ends_the_run(standin):
    run = trainer(init_scale=0.5)
    with pytest.raises(UserError, match="overflows float16 again and again"):
        run.log(1.0, RunRecord(), progress=None)


@pytest.mark.parametrize("growth_factor", [2.0, 1000.0])
def test_s_stays_finite_and_shrinks_again_at_an_overflow(growth_factor):
    scaler = optim.GradScaler(optim.SGD([nn.Parameter(START)], lr=0.1), init_scale=2.0**120, growth_factor=growth_factor, growth_interval=1)
    seen = []
    for norm in [1.0] * 12 + [math.inf] * 3:
        scaler.step(tl.tensor(norm))
        seen.append(scaler.state_dict()["scale"])
    assert seen[11] == 2.0**126
    assert seen[12:] == [2.0**125, 2.0**124, 2.0**123]


def test_s_does_not_underflow_and_grows_again():
    """In torch it ends at 0, and stays there."""
    scaler = optim.GradScaler(optim.SGD([nn.Parameter(START)], lr=0.1), init_scale=2.0**-124, growth_interval=1)
    seen = []
    for norm in [math.nan] * 4 + [1.0]:
        scaler.step(tl.tensor(norm))
        seen.append(scaler.state_dict()["scale"])
    assert seen == [2.0**-125, 2.0**-126, 2.0**-126, 2.0**-126, 2.0**-125]
