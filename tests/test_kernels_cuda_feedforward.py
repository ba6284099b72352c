"""The feed-forward network on the GPU: gelu in the products' epilogues, and apart where these are not to be had."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import tensorlite as tl
from gpt.config import GPTConfig
from gpt.finetuning.lora import add_lora
from gpt.model import build_model
from tensorlite import nn
from tensorlite.backend import to_numpy
from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda import cublaslt
from tensorlite.kernels.cuda import feedforward as ff
from tensorlite.op import observe
from tensorlite.ops.feedforward import feedforward
from tensorlite.precision import use_precision
from tests.compare import relative_error
from tests.standin import cublas, machine

ERRORS = {"float32": 1e-6, "float16": 3e-3, "bfloat16": 2.5e-2}  # a few roundings of a number each
SHAPES = [(10, 24), (32, 24), (32,), (24, 32), (24,)]  # x, and the parameters
HALVES = ["float16", "bfloat16"]


def draw(dtype):
    """x and the parameters in numbers that the half precision has, and dy."""
    half = bfloat16_dtype() if dtype == "bfloat16" else np.dtype(dtype)
    rng = np.random.default_rng(0)
    arrays = [(rng.standard_normal(shape) / shape[-1] ** 0.5).astype(half).astype(np.float32) for shape in (*SHAPES, (10, 24))]
    return [arrays[0].astype(half), *arrays[1:5]], arrays[5].astype(half)


def run(xp, dtype):
    """(what, found, right) of the output and of each gradient; right is the book's in float64."""
    arrays, dy = draw(dtype)
    with use_precision(dtype):
        y, saved = ff.feedforward_forward(*map(xp.asarray, arrays), approximate="tanh")
        found = [y, *ff.feedforward_backward(xp.asarray(dy), saved)]
    right, right_saved = feedforward.book.forward(*(x.astype(np.float64) for x in arrays), approximate="tanh")
    rights = [right, *feedforward.book.backward(dy.astype(np.float64), right_saved)]
    return list(zip(("y", "dx", "dhidden_weight", "dhidden_bias", "dweight", "dbias"), map(to_numpy, found), rights, strict=True))


@pytest.mark.parametrize("dtype", ERRORS)
def test_values_and_gradients(dtype, any_cupy, record_property):
    for what, found, right in run(any_cupy, dtype):
        error = relative_error(found.astype(np.float64), right)
        record_property("cuda pair", ("feedforward", dtype, error))
        assert error <= ERRORS[dtype], f"{what} is off by {error:.2g} of its largest number"


@pytest.mark.parametrize("dtype", HALVES)
def test_gelu_and_its_slope_are_epilogues_of_two_of_the_six_products(dtype, standin):
    run(standin, dtype)
    assert [call.get("epilogue") for call in machine.machine.products] == [
        cublas.EPILOGUE_GELU_AUX_BIAS, cublas.EPILOGUE_BIAS, None, cublas.EPILOGUE_DGELU, None, None,
    ]  # fmt: skip
    assert machine.machine.launches == ["cast"] * 4 + ["sum_rows"] * 2, "the weights and biases, which nobody has rounded here"


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("lacking", ["a GPU before Hopper", "algorithms", "rows of eight numbers"])
def test_where_there_are_no_epilogues_gelu_is_a_kernel(lacking, dtype, standin, monkeypatch):
    if lacking == "a GPU before Hopper":
        machine.machine.compute_capability = (8, 6)
    elif lacking == "algorithms":
        monkeypatch.setattr(cublaslt.get_cublaslt(standin)._library, "knows", (cublas.EPILOGUE_BIAS,))
    else:
        monkeypatch.setattr(ff, "EIGHT", 64)
    for what, found, right in run(standin, dtype):
        assert relative_error(found.astype(np.float64), right) <= ERRORS[dtype], what
    assert {"activation_forward", "activation_backward"} <= set(machine.machine.launches)


FAULTS = {
    "aux is gelu(h)": lambda epilogue, a, b, out, bias, aux: (epilogue, a, b, out, bias, out if epilogue == cublaslt.DGELU else aux),
    "no slope": lambda epilogue, a, b, out, bias, aux: (cublaslt.BIAS, a, b, out, out[0] * 0, None) if epilogue == cublaslt.DGELU else None,
    "h before its bias": lambda epilogue, a, b, out, bias, aux: (
        (epilogue, a, b, out, bias * 0, aux) if epilogue == cublaslt.GELU_AUX_BIAS else None
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault, standin, monkeypatch):
    right_one = ff.gemm_with_epilogue

    def wrong(epilogue, a, b, out, bias=None, aux=None):
        return right_one(*(FAULTS[fault](epilogue, a, b, out, bias, aux) or (epilogue, a, b, out, bias, aux)))

    monkeypatch.setattr(ff, "gemm_with_epilogue", wrong)
    assert any(not relative_error(found.astype(np.float64), right) <= ERRORS["float16"] for _, found, right in run(standin, "float16"))


def test_gradients_are_written_at_home_and_added_there(standin):
    arrays, dy = draw("bfloat16")
    homes = [None, *(standin.ones(x.shape, "float32") for x in arrays[1:])]
    with use_precision("bfloat16"):
        _, saved = ff.feedforward_forward(*map(standin.asarray, arrays), approximate="tanh")
        alone = ff.feedforward_backward(standin.asarray(dy), saved)
        found = ff.feedforward_backward(standin.asarray(dy), saved, out=tuple(homes), add=(False, *[True] * 4))
    for home, one, other in zip(homes[1:], found[1:], alone[1:], strict=True):
        assert one is home
        np.testing.assert_allclose(to_numpy(one), to_numpy(other) + 1, rtol=1e-5, atol=1e-5)


# --- in the model ------------------------------------------------------------------------------------------

CONFIG = GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=1, n_embd=8, bias=True, activation="gelu_tanh")
IDS = np.random.default_rng(0).integers(0, 11, (2, 9))


def gradients(model, device):
    """The loss and every parameter's gradient."""
    x, y = (tl.tensor(ids, device=device) for ids in (IDS[:, :-1], IDS[:, 1:]))
    model.zero_grad()
    loss = model(x, y)[1]
    loss.backward()
    return [loss.item(), *(to_numpy(p.grad.array) for p in model.parameters())]


@functools.cache
def weights():
    tl.manual_seed(1)
    return build_model(CONFIG).state_dict()


def model_on(device, fused=True):
    model = build_model(CONFIG)
    model.load_state_dict(weights())
    if not fused:
        model.h[0].mlp.activation.register_forward_hook(lambda *seen: None)
    return model.to(device=device)


@pytest.mark.parametrize("precision, error", [("float32", 2e-6), ("float16", 2e-2), ("bfloat16", 1e-1)])
def test_the_mlp_as_one_op_and_as_three(precision, error, any_cupy):
    with use_precision(precision):
        one, three = (gradients(model_on("cupy", fused), "cupy") for fused in (True, False))
    for found, right in zip(one, three, strict=True):
        assert relative_error(np.asarray(found), np.asarray(right)) <= error


def test_the_three_modules_run_where_one_op_cannot_stand_for_them(standin):
    def ops_of(model, device="cupy"):
        seen = []
        with observe(lambda name, pair: seen.append(name) or pair):
            model.h[0].mlp(tl.zeros(2, 8, device=device))
        return seen

    apart = ["linear", "gelu", "linear"]
    assert ops_of(model_on("cupy")) == ["feedforward"] and ops_of(model_on("numpy"), "numpy") == apart
    assert ops_of(model_on("cupy", fused=False)) == apart
    exact, adapted = model_on("cupy"), model_on("cupy")
    exact.h[0].mlp.activation = nn.GELU()
    add_lora(adapted, targets=("c_proj",), rank=2)
    assert ops_of(exact) == apart and ops_of(adapted)[:2] == apart[:2]
