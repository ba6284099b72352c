"""Matrices in the order in which a product with one vector is fast: the same numbers, in the same memory, and the same text."""

import numpy as np
import pytest

import tensorlite as tl
from gpt import chat, generate
from gpt.config import GPTConfig
from gpt.generation import memory_order
from gpt.generation.decoders import make_decoder
from gpt.generation.folding import fold_block
from gpt.generation.memory_order import (
    longer_side_contiguous,
    order_for_a_vector,
    order_for_one_text,
    pad_for_two_threads,
    with_padding,
)
from gpt.generation.stream import model_logits, stream_tokens
from gpt.model import GPT, build_model

LLAMA = {"model": "llama", "n_kv_head": 2, "n_inner": 96}


def a_model(**changes):
    tl.manual_seed(0)
    return build_model(GPTConfig(vocab_size=400, block_size=32, n_layer=2, n_head=4, n_embd=64, **changes)).eval()


def columns_are_contiguous(array):
    return array.flags.f_contiguous and not array.flags.c_contiguous


@pytest.mark.parametrize("rows", [128, 255, 256, 700])  # 256 rows are transposed at once
def test_a_high_matrix_gets_contiguous_columns_in_its_own_memory(rows):
    matrix = np.random.default_rng(0).random((rows, 64))
    expected = matrix.copy()
    ordered = order_for_a_vector(matrix)
    np.testing.assert_array_equal(ordered, expected)
    assert columns_are_contiguous(ordered)
    assert ordered.ctypes.data == matrix.ctypes.data


@pytest.mark.parametrize("shape", [(127, 64), (64, 64), (64, 300)])
def test_any_other_matrix_stays_as_it_is(shape):
    matrix = np.ones(shape)
    assert order_for_a_vector(matrix) is matrix


@pytest.mark.parametrize("shape, rows", [
    ((576, 576), 800), ((640, 640), 720), ((96, 4000), 116),
    ((799, 576), 800), ((800, 576), 800), ((533, 576), 533), ((534, 576), 800), ((64, 64), 64),
])  # fmt: skip
def test_a_matrix_that_is_a_little_too_small_for_two_threads_gets_rows_of_zeros(shape, rows, monkeypatch):
    monkeypatch.setattr(memory_order, "available_cores", lambda: 2)
    matrix = np.random.default_rng(0).random(shape, np.float32)
    padded = pad_for_two_threads(matrix)
    np.testing.assert_array_equal(padded, matrix)
    whole = with_padding(padded)
    assert whole.shape == (rows, shape[1]) and not whole[shape[0] :].any()
    assert (padded is matrix) == (rows == shape[0])
    x = np.ones(shape[1], np.float32)
    np.testing.assert_allclose(whole.dot(x)[: shape[0]], matrix.astype(np.float64).sum(axis=1), rtol=1e-5)  # sums of 4000 numbers below 1


def test_one_core_gains_nothing_from_rows_of_zeros(monkeypatch):
    monkeypatch.setattr(memory_order, "available_cores", lambda: 1)
    matrix = np.ones((576, 576), np.float32)
    assert pad_for_two_threads(matrix) is matrix


def test_padding_is_found_only_behind_the_whole_rows_of_a_matrix():
    large = np.ones((6, 4))
    for part in (large, large[1:3], large[:3, :2], large[:3].T, large[::2], large[:5], np.ones((6, 4)).reshape(4, 6)):
        assert with_padding(part) is part  # the first five rows have another number behind them, and no zeros
    large[3:] = 0
    assert with_padding(large[:5]) is large
    part = large[:3]
    assert with_padding(part) is part, "more zeros than pad_for_two_threads puts there"


def test_the_longer_side_is_contiguous():
    for shape in ((3, 7), (7, 3)):
        matrix = np.arange(21.0).reshape(shape)
        for given in (matrix, np.asfortranarray(matrix)):
            ordered = longer_side_contiguous(given)
            np.testing.assert_array_equal(ordered, matrix)
            assert ordered.strides[int(np.argmax(shape))] == ordered.itemsize


def test_a_model_of_llamas_family_keeps_its_numbers_and_shares_its_head():
    model = a_model(**LLAMA, tied_head=True)
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    memory = {name: tensor.array.ctypes.data for name, tensor in model.state_dict().items()}
    assert order_for_one_text(model) is model
    assert model.lm_head.weight is model.wte.weight
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name], err_msg=name)
        assert tensor.array.ctypes.data == memory[name], name
    changed = {name for name, tensor in model.state_dict().items() if tensor.array.ndim == 2 and columns_are_contiguous(tensor.array)}
    assert changed >= {"lm_head.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight"}
    assert not any("c_proj" in name for name in changed)


def test_of_a_gpt_only_the_head_is_changed_for_the_rest_is_folded():
    model = order_for_one_text(a_model())
    assert columns_are_contiguous(model.lm_head.weight.array)
    assert model.h[0].mlp.c_fc.weight.array.flags.c_contiguous
    folded = fold_block(model.h[0])
    assert folded.c_fc.weight.strides[1] == folded.mlp_c_proj.weight.strides[0] == folded.c_fc.weight.itemsize


def test_a_padded_model_writes_the_same(monkeypatch):
    monkeypatch.setattr(memory_order, "available_cores", lambda: 2)
    monkeypatch.setattr(memory_order, "_ONE_THREAD_BELOW", 80 * 64)  # c_proj is (64, 64)
    plain, padded = (a_model(**LLAMA).to(dtype=np.float64) for _ in range(2))
    order_for_one_text(padded)
    assert with_padding(padded.h[0].attn.c_proj.weight.array).shape == (80, 64)
    ids = np.random.default_rng(1).integers(0, 400, (1, 20))
    decoder = make_decoder(padded)
    for end in (18, 19, 20):
        np.testing.assert_allclose(decoder(ids[:, :end]), model_logits(plain, ids[:, :end]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("family", [{}, LLAMA, {**LLAMA, "tied_head": False}, {**LLAMA, "qk_norm": True}])
def test_logits_and_text_are_the_same(family):
    plain, ordered = (a_model(**family).to(dtype=np.float64) for _ in range(2))
    order_for_one_text(ordered)
    ids = np.random.default_rng(1).integers(0, 400, (1, 20))
    expected = model_logits(plain, ids)
    np.testing.assert_allclose(model_logits(ordered, ids), expected, rtol=0, atol=1e-13)
    decoder = make_decoder(ordered)
    np.testing.assert_allclose(decoder(ids), expected, rtol=0, atol=1e-13)  # many rows at once
    after = np.concatenate([ids, [[7]]], axis=1)
    np.testing.assert_allclose(decoder(after), model_logits(plain, after), rtol=0, atol=1e-13)  # one row
    cached, whole = (
        list(stream_tokens(model, ids[0], 20, temperature=1.0, generator=np.random.default_rng(2), use_cache=use_cache))
        for model, use_cache in ((ordered, True), (plain, False))
    )
    assert cached == whole


@pytest.mark.parametrize(("program", "options", "is_ordered"), [
    (generate, ["--prompt", "a"], True), (generate, ["--prompt", "a", "--num-samples", "2"], False), (chat, [], True),
])  # fmt: skip
def test_programs_that_write_one_text_order_their_model(monkeypatch, capsys, program, options, is_ordered):
    from data.tokenizer import CharTokenizer

    model = a_model(**LLAMA)
    assert isinstance(model, GPT)
    monkeypatch.setattr(program, "load_model", lambda *args: (model, CharTokenizer.train("abc"), model.config))
    for name in ("refuse_classifier", "find_template"):
        monkeypatch.setattr(program, name, lambda path: None)
    monkeypatch.setattr("builtins.input", lambda *args: (_ for _ in ()).throw(EOFError))
    program.main(["--checkpoint", "runs/none", "--max-new-tokens", "2", "--backend", "numpy", *options])
    assert columns_are_contiguous(model.lm_head.weight.array) == is_ordered
