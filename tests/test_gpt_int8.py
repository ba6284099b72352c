"""Matrices in 8 bits: what rounding does to them, and that the model is the one of float32 with the rounded weights."""

import gguf
import numpy as np
import pytest

import tensorlite as tl
from gpt.config import GPTConfig
from gpt.errors import UserError
from gpt.generation.decoders import make_batch_decoder, make_decoder
from gpt.generation.stream import model_logits, stream_tokens
from gpt.int8 import Int8Matrix, to_int8
from gpt.model import GPT, build_model
from tensorlite import nn

SHAPE = {"model": "llama", "vocab_size": 40, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 64, "n_inner": 96}
CONFIGS = {
    "a key for two queries, tied": {"n_kv_head": 2},
    "QK-norm, a head of its own": {"n_kv_head": 1, "qk_norm": True, "tied_head": False},
}


def make(**changes) -> GPT:
    tl.manual_seed(0)
    model = build_model(GPTConfig(**{**SHAPE, **changes}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_a_number_moves_by_half_a_scale_at_most():
    weight = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    weight[1], weight[2, 32:64] = 0, 0
    weight[3] *= 1e-3
    matrix = Int8Matrix(weight)
    error = abs(matrix[:] - weight).reshape(5, 3, 32).max(-1)
    assert (error <= 0.5001 * matrix.scales).all()
    assert error.max() > 0.4 * matrix.scales.max()
    np.testing.assert_array_equal(matrix[np.array([3, 1])], matrix[:][[3, 1]])


def test_blocks_of_a_file_are_kept():
    """What a file has in Q8_0 is not rounded a second time."""
    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    stored = gguf.dequantize(gguf.quantize(weight, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(Int8Matrix(stored)[:], stored)


def test_a_product_is_that_of_the_widened_matrix(monkeypatch):
    monkeypatch.setattr("gpt.int8._TILE", 7 * 64)  # the last tile is smaller
    whole = np.random.default_rng(0).integers(-127, 128, (45, 64))
    whole[:, ::32] = 127
    matrix = Int8Matrix(whole.astype(np.float32))  # every scale is 1, and so every sum exact
    x = np.random.default_rng(1).integers(-9, 10, (64, 3))
    np.testing.assert_array_equal(matrix.dot(x.astype(np.float32)), whole @ x)
    np.testing.assert_array_equal(matrix.dot(x[:, 0].astype(np.float32)), whole @ x[:, 0])


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_it_is_the_model_of_float32_with_the_rounded_weights(changes):
    rounded = make(**changes)
    for parameter in rounded.parameters():
        if parameter.ndim == 2:
            parameter.array[...] = Int8Matrix(parameter.array)[:]
    model = to_int8(make(**changes))
    assert sum(parameter.ndim == 2 for parameter in model.parameters()) == 0
    ids = np.random.default_rng(0).integers(40, size=(2, 24))
    expected = rounded(tl.tensor(ids))[0].detach().numpy()
    np.testing.assert_allclose(model(tl.tensor(ids))[0].detach().numpy(), expected, rtol=0, atol=2e-5 * abs(expected).max())
    assert abs(make(**changes)(tl.tensor(ids))[0].detach().numpy() - expected).max() > 1e-3 * abs(expected).max(), (
        "the weights were rounded"
    )


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_the_decoders_write_what_the_whole_model_writes(changes):
    model = to_int8(make(**changes))
    decoder, several = make_decoder(model), make_batch_decoder(model, 2)
    ids = np.random.default_rng(0).integers(40, size=24)
    for end in (9, 10, 11, 24):
        expected, found = model_logits(model, ids[None, :end]), decoder(ids[None, :end])
        assert abs(found - expected).max() < decoder.rounding(found)
        both = several({0: ids[:end], 1: ids[: end - 3]})
        assert abs(both[0] - expected[0]).max() < several.rounding(both)
    for sampling in ({"temperature": 0}, {"temperature": 0.8, "top_k": 9}):
        texts = [
            np.array([*stream_tokens(model, ids[:5], 40, use_cache=use_cache, generator=np.random.default_rng(0), **sampling)])
            for use_cache in (True, False)
        ]
        np.testing.assert_array_equal(*texts)


@pytest.mark.parametrize(
    "make_bad, message",
    [
        (lambda: Int8Matrix(np.zeros((3, 40), np.float32)), "a multiple of 32 numbers, and this model has one of 3 x 40"),
        (lambda: Int8Matrix(np.full((3, 32), np.inf, np.float32)), "not finite or above 8 million"),
        (lambda: Int8Matrix(np.full((3, 32), 1e8, np.float32)), "not finite or above 8 million"),
        (lambda: to_int8(build_model(GPTConfig(vocab_size=9, block_size=4, n_layer=1, n_head=1, n_embd=32))), "of Llama's family"),
    ],
)
def test_what_8_bits_cannot_hold(make_bad, message):
    with pytest.raises(UserError, match=message):
        make_bad()
