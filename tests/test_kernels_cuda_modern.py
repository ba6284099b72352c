"""The ops of a Llama on the GPU: ragged sizes, precisions, far numbers, more than one round of the grid."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from gpt.config import GPTConfig
from gpt.model import build_model
from tensorlite import random
from tensorlite.backend import to_numpy
from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda import attention as cuda_attention
from tensorlite.kernels.cuda import rotary as cuda_rotary
from tensorlite.kernels.cuda import rotary_self_attention as cuda_rotary_self_attention
from tensorlite.kernels.cuda import swiglu as cuda_swiglu
from tensorlite.kernels.cuda.graph import Recorder
from tensorlite.ops.rotary import rotary_embedding
from tensorlite.ops.rotary_self_attention import rotary_self_attention
from tensorlite.ops.swiglu import swiglu
from tests.compare import relative_error
from tests.standin import machine

ERRORS = {"float32": 5e-7, "float16": 1e-3, "bfloat16": 8e-3}  # a unit in the last place of the half precisions


def draw(dtype, *shape):
    numbers = 2 * np.random.default_rng(0).standard_normal(shape)
    return numbers.astype(bfloat16_dtype() if dtype == "bfloat16" else dtype)


def compare(op, kernels, cupy, x, dy, error, **options):
    """Value and gradient against the book's in float64."""
    assert kernels.supports(cupy.asarray(x), **options)
    pair = next(pair for pair in op.faster if pair.name == "cuda")
    y, saved = pair.forward(cupy.asarray(x), **options)
    dx = pair.backward(cupy.asarray(dy), saved)
    right_y, right_saved = op.book.forward(x.astype(np.float64), **options)
    right_dx = op.book.backward(dy.astype(np.float64), right_saved)
    assert y.dtype == dx.dtype == x.dtype
    for found, right in ((y, right_y), (dx, right_dx)):
        assert found.shape == right.shape
        assert relative_error(to_numpy(found).astype(np.float64), right) <= error


@pytest.mark.parametrize("order", ["ascending", "shuffled"])
@pytest.mark.parametrize("shape", [(1, 2), (2, 3, 40, 6)])
@pytest.mark.parametrize("dtype", ERRORS)
def test_rotations(dtype, shape, order, any_cupy):
    machine.machine.order = order
    compare(rotary_embedding, cuda_rotary, any_cupy, draw(dtype, *shape), draw(dtype, *shape), ERRORS[dtype], base=500.0, start=3000)


@pytest.mark.parametrize("n_head, n_kv_head, D, T", [(4, 2, 16, 9), (3, 1, 8, 70), (2, 2, 64, 65), (6, 2, 24, 2)])
@pytest.mark.parametrize("dtype", ERRORS)
def test_attention_of_groups_with_rotary_positions(dtype, n_head, n_kv_head, D, T, any_cupy):
    qkv, dy = draw(dtype, 2, T, (n_head + 2 * n_kv_head) * D), draw(dtype, 2, T, n_head * D)
    error = {"float32": 3e-6, "float16": 3e-3, "bfloat16": 2e-2}[dtype]  # as for attention alone
    heads = {"n_head": n_head, "n_kv_head": n_kv_head}
    compare(rotary_self_attention, cuda_rotary_self_attention, any_cupy, qkv, dy, error, **heads, base=500.0)


def test_as_one_op_and_as_three_with_the_same_dropout(any_cupy):
    B, T, H, KV, D = 2, 20, 4, 2, 16
    qkv = any_cupy.asarray(draw("float32", B, T, (H + 2 * KV) * D))
    options = {"dropout_p": 0.3, "generator": random.make_generator(5)}
    y, _ = cuda_rotary_self_attention.rotary_self_attention_forward(qkv, H, KV, **options)

    heads = qkv.reshape(B, T, H + 2 * KV, D).swapaxes(1, 2)
    qk, _ = cuda_rotary.rotary_embedding_forward(heads[:, : H + KV])
    q, k, v = qk[:, :H].reshape(B, KV, H // KV, T, D), qk[:, H:, None], heads[:, H + KV :, None]
    options["generator"] = random.make_generator(5)
    apart, _ = cuda_attention.attention_forward(q, k, v, is_causal=True, **options)
    apart = apart.reshape(B, H, T, D).swapaxes(1, 2).reshape(B, T, H * D)
    np.testing.assert_array_equal(to_numpy(y), to_numpy(apart))


def test_nothing_is_copied_around_attention(standin):
    qkv = standin.asarray(draw("float32", 2, 20, 8 * 16))
    before = len(machine.machine.launches)
    y, saved = cuda_rotary_self_attention.rotary_self_attention_forward(qkv, 4, 2)
    cuda_rotary_self_attention.rotary_self_attention_backward(y, saved)
    launches = [name for name in machine.machine.launches[before:] if name != "empty_like"]
    of_tables = launches.index("rotate")  # the cosines and sines are computed once
    backward = ["attention_delta", "attention_backward_q", "attention_backward_kv", "rotate"]
    assert launches[of_tables:] == ["rotate", "attention_forward", *backward]

    before = len(machine.machine.launches)
    cuda_rotary_self_attention.rotary_self_attention_forward(qkv, 4, 2)
    assert machine.machine.launches[before:] == ["rotate", "attention_forward"]


@pytest.mark.parametrize("order", ["ascending", "shuffled"])
@pytest.mark.parametrize("shape", [(2,), (3, 2, 14), (13, 48)])
@pytest.mark.parametrize("dtype", ERRORS)
def test_gates(dtype, shape, order, any_cupy):
    machine.machine.order = order
    compare(swiglu, cuda_swiglu, any_cupy, draw(dtype, *shape), draw(dtype, *shape[:-1], shape[-1] // 2), ERRORS[dtype])


def test_a_rotation_in_a_capture_computes_its_own_tables(standin):
    """Tables that are kept may be read by work outside of the graph, so they must have been computed."""
    x = standin.asarray(draw("float32", 7, 10))
    recorder = Recorder()
    recording = recorder.record(lambda: cuda_rotary.rotary_embedding_forward(x, 77.0)[0])
    recording.launch()
    y, _ = cuda_rotary.rotary_embedding_forward(x, 77.0)
    np.testing.assert_array_equal(to_numpy(recording.result), to_numpy(y))


def test_every_number_is_taken_where_the_grid_goes_round(any_cupy, monkeypatch):
    monkeypatch.setattr(cuda_rotary, "MOST_BLOCKS", 1)
    monkeypatch.setattr(cuda_swiglu, "MOST_BLOCKS", 1)
    compare(rotary_embedding, cuda_rotary, any_cupy, draw("float32", 3, 70, 8), draw("float32", 3, 70, 8), ERRORS["float32"])
    for F in (32, 33):
        compare(swiglu, cuda_swiglu, any_cupy, draw("float32", 70, 2 * F), draw("float32", 70, F), ERRORS["float32"])


def test_far_gates(any_cupy):
    x = np.array([[-3e38, -100, -20, 0, 100, 3e38, 1, 2, 3, 4, 5, 1]], np.float32)
    y, saved = cuda_swiglu.swiglu_forward(any_cupy.asarray(x))
    right = [0, -200 * np.exp(-100.0), -60 / (1 + np.exp(20.0)), 0, 500, 3e38]
    np.testing.assert_allclose(to_numpy(y)[0], right, rtol=1e-5, atol=1e-37)
    assert np.isfinite(to_numpy(cuda_swiglu.swiglu_backward(any_cupy.asarray(np.full((1, 6), 0.1, np.float32)), saved))).all()


def test_a_models_heads_are_rotated_by_the_kernel_although_they_lie_apart(standin):
    model = build_model(GPTConfig(model="llama", vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=16)).to("cupy")
    model(tl.tensor(np.zeros((2, 8), np.int64), device="cupy"))
    assert machine.machine.launches.count("rotate") == 1


def test_what_is_not_on_the_gpu_or_not_contiguous_is_the_books(any_cupy):
    groups = cuda_rotary_self_attention.supports
    assert groups(any_cupy.zeros((1, 2, 64), "float16"), 4, 2)
    assert not groups(any_cupy.zeros((1, 64, 2), "float16").swapaxes(1, 2), 4, 2)
    assert not groups(any_cupy.zeros((1, 2, 64), "float16"), 3, 2)  # the book refuses it
    assert not groups(any_cupy.zeros((1, 1, 64), "float16"), 4, 2)
    assert not groups(any_cupy.zeros((1, 2, 32), "float16"), 4, 2)  # heads of 4
    assert not groups(np.zeros((1, 2, 64), "float32"), 4, 2)
    for kernels in (cuda_rotary, cuda_swiglu):
        assert kernels.supports(any_cupy.zeros((3, 4), "float16"))
        assert kernels.supports(any_cupy.zeros((4, 2), "float32").T) == (kernels is cuda_rotary)
        assert not kernels.supports(any_cupy.zeros((3, 4), "float64"))
        assert not kernels.supports(np.zeros((3, 4), "float32"))
        assert not kernels.supports(any_cupy.zeros((3, 5), "float32"))
