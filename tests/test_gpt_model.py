"""The whole model against its torch twin: logits, loss, and the gradient of every parameter."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import tensorlite as tl
from gpt.config import GPTConfig, from_preset
from gpt.model import GPT, CausalSelfAttention, build_model
from tests.torch_gpt import twin_of

SMALL = GPTConfig(vocab_size=13, block_size=10, n_layer=3, n_head=3, n_embd=12)
CONFIGS = {
    "no bias, tied, gelu": {},
    "bias, untied, relu": {"bias": True, "tied_head": False, "head_bias": True, "activation": "relu", "scaled_init": False},
    "bias, tied, gelu_tanh": {"bias": True, "activation": "gelu_tanh"},
    "tied, with a bias on the head": {"head_bias": True},
    "bias, untied, sinusoidal": {"bias": True, "tied_head": False, "positions": "sinusoidal"},
    "one head, one layer": {"n_head": 1, "n_layer": 1},
    "bigram": {"model": "bigram"},
}


def drawn(config: GPTConfig, dtype, std: float = 0.3, seed: int = 0):
    """A model whose weights are all far from 0 and 1, so that no term of any gradient is negligible."""
    rng = tl.manual_seed(seed)
    model = build_model(config).to(dtype=dtype)
    for parameter in model.parameters():
        parameter.array[...] += std * rng.standard_normal(parameter.shape)
    return model


def batch(config: GPTConfig, B: int, T: int, seed: int = 1):
    rng = np.random.default_rng(seed)
    return rng.integers(config.vocab_size, size=(B, T)), rng.integers(config.vocab_size, size=(B, T))


def largest_error(ours: np.ndarray, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    expected = theirs.detach().numpy()
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("T", [10, 7, 1])
@pytest.mark.parametrize("dtype, tolerance", [(tl.float64, 1e-9), (tl.float32, 1e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_the_model_equals_its_torch_twin(changes, dtype, tolerance, T):
    config = dataclasses.replace(SMALL, **changes)
    model = drawn(config, dtype)
    twin = twin_of(model)
    x, y = batch(config, 5, T)

    logits, loss = model(tl.tensor(x), tl.tensor(y))
    loss.backward()
    their_logits, their_loss = twin(torch.from_numpy(x), torch.from_numpy(y))
    their_loss.backward()

    assert logits.dtype == dtype
    assert logits.shape == (5, T, config.vocab_size)
    assert largest_error(logits.detach().numpy(), their_logits) <= tolerance
    assert largest_error(loss.item(), their_loss) <= tolerance
    theirs = dict(twin.named_parameters())
    ours = dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    wrong = {name: error for name in ours if (error := largest_error(ours[name].grad.numpy(), theirs[name].grad)) > tolerance}
    assert not wrong


def test_the_preset_tiny_equals_its_torch_twin():
    """At full size, in float32: what the trainer really runs."""
    config, _ = from_preset("tiny", vocab_size=65)
    tl.manual_seed(0)
    model = build_model(config)
    twin = twin_of(model)
    x, y = batch(config, 4, config.block_size)
    model(tl.tensor(x), tl.tensor(y))[1].backward()
    twin(torch.from_numpy(x), torch.from_numpy(y))[1].backward()
    theirs = dict(twin.named_parameters())
    errors = {name: largest_error(p.grad.numpy(), theirs[name].grad) for name, p in model.named_parameters()}
    assert max(errors.values()) <= 1e-5, max(errors.items(), key=lambda item: item[1])


def test_the_loss_of_a_new_model_is_log_of_the_vocabulary():
    config, _ = from_preset("tiny", vocab_size=65)
    x, y = batch(config, 8, 64)
    _, loss = build_model(config)(tl.tensor(x), tl.tensor(y))
    assert abs(loss.item() - np.log(65)) < 0.1


def test_no_token_sees_a_later_one():
    model = drawn(SMALL, tl.float64)
    x, _ = batch(SMALL, 2, 10)
    before = model(tl.tensor(x))[0].detach().numpy()
    x[:, 6] = (x[:, 6] + 1) % SMALL.vocab_size
    after = model(tl.tensor(x))[0].detach().numpy()
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] != after[:, 6:]).any(axis=-1).all()


# --- how it starts ------------------------------------------------------------------------------------


def test_initial_weights():
    config, _ = from_preset("gpt2", vocab_size=500, n_layer=8, n_embd=192)
    tl.manual_seed(0)
    for name, parameter in build_model(config).named_parameters():
        values = parameter.detach().numpy()
        if name.endswith("bias"):
            assert (values == 0).all(), name
        elif values.ndim == 1:
            assert (values == 1).all(), name
        else:
            expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert abs(values.std() / expected - 1) < 0.02, name
            assert abs(values.mean()) < 0.05 * expected, name


def test_the_courses_initialisation_is_the_same_for_all_matrices():
    config, _ = from_preset("course", vocab_size=65, n_layer=2)
    for name, parameter in build_model(config).named_parameters():
        if parameter.ndim == 2:
            assert abs(parameter.detach().numpy().std() / 0.02 - 1) < 0.03, name


def test_a_seed_fixes_the_weights():
    first, again, other = (drawn(SMALL, tl.float32, seed=seed).h[2].mlp.c_fc.weight.detach().numpy() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_tied_head_is_the_embedding():
    tied, untied = (GPT(dataclasses.replace(SMALL, tied_head=tied)) for tied in (True, False))
    assert tied.lm_head.weight is tied.wte.weight
    assert untied.lm_head.weight is not untied.wte.weight
    assert untied.num_parameters() - tied.num_parameters() == SMALL.vocab_size * SMALL.n_embd


def test_published_names():
    names = set(dict(GPT(dataclasses.replace(SMALL, bias=True, n_layer=1)).named_parameters()))
    layers = {f"h.0.{layer}.{part}" for layer in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
              for part in ("weight", "bias")}  # fmt: skip
    assert names == {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"} | layers


# --- dropout ------------------------------------------------------------------------------------------


def test_dropout_acts_only_in_training():
    model = drawn(dataclasses.replace(SMALL, dropout=0.3), tl.float64)
    x, y = (tl.tensor(array) for array in batch(SMALL, 4, 10))
    model.eval()
    assert model(x, y)[1].item() == model(x, y)[1].item()
    plain = drawn(SMALL, tl.float64)
    assert model(x, y)[1].item() == plain(x, y)[1].item()
    model.train()
    assert model(x, y)[1].item() != model(x, y)[1].item()


def test_dropout_repeats_with_the_seed():
    model = drawn(dataclasses.replace(SMALL, dropout=0.3), tl.float64)
    x, y = (tl.tensor(array) for array in batch(SMALL, 4, 10))
    losses = []
    for _ in range(2):
        tl.manual_seed(5)
        losses.append(model(x, y)[1].item())
    assert losses[0] == losses[1]


def test_dropout_does_not_change_the_expectation_of_a_layer():
    """Of the layers where it acts linearly: after the embedding and after each projection."""
    config = dataclasses.replace(SMALL, dropout=0.25, n_layer=1)
    model = drawn(config, tl.float64)
    x = tl.randn(2, 10, 12, dtype=tl.float64)
    block = model.h[0]
    tl.manual_seed(3)
    for layer in (block.mlp, block.attn.resid_dropout, model.drop):
        layer.eval()
        expected = layer(x).detach().numpy()
        layer.train()
        draws = np.array([layer(x).detach().numpy() for _ in range(3000)])
        deviation = np.abs(draws.mean(axis=0) - expected) / (draws.std(axis=0) / np.sqrt(len(draws)))
        assert deviation.max() < 5
        assert (draws.std(axis=0) > 0).all()


def test_attention_weights_are_dropped_too():
    model = drawn(dataclasses.replace(SMALL, dropout=0.5, n_layer=1), tl.float64)
    attn = model.h[0].attn
    attn.resid_dropout.eval()  # what is left is the dropout inside
    x = tl.randn(1, 10, 12, dtype=tl.float64)
    attn.train(True)
    attn.resid_dropout.eval()
    assert (attn(x).detach().numpy() != attn(x).detach().numpy()).any()


# --- writing ------------------------------------------------------------------------------------------


def test_generate_appends_and_crops_to_the_block():
    model = drawn(SMALL, tl.float32).eval()
    start = tl.tensor([[1, 2, 3], [4, 5, 6]])
    out = model.generate(start, 25, rng=np.random.default_rng(0))
    assert out.shape == (2, 28)
    np.testing.assert_array_equal(out.numpy()[:, :3], start.numpy())
    assert out.numpy().min() >= 0
    assert out.numpy().max() < SMALL.vocab_size
    again = model.generate(start, 25, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(out.numpy(), again.numpy())


def test_greedy_generation_takes_the_largest_logit():
    model = drawn(SMALL, tl.float64).eval()
    ids = model.generate(tl.tensor([[0]]), 30, temperature=0).numpy()[0]
    for t in range(1, 31):
        context = ids[max(0, t - SMALL.block_size) : t]
        logits, _ = model(tl.tensor(context[None]))
        assert logits.detach().numpy()[0, -1].argmax() == ids[t]
    for options in ({"top_k": 1}, {"top_p": 1e-9}):
        np.testing.assert_array_equal(model.generate(tl.tensor([[0]]), 30, **options).numpy()[0], ids)


def test_generate_records_nothing_on_the_tape():
    model = drawn(SMALL, tl.float32)
    assert not model.generate(tl.tensor([[0]]), 3).requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


# --- what it refuses ----------------------------------------------------------------------------------


def test_more_tokens_than_block_size_are_refused():
    model = build_model(SMALL)
    with pytest.raises(ValueError, match="11 tokens are more than block_size, 10: crop them to the last ones"):
        model(tl.zeros(1, 11, dtype=tl.int64))


@pytest.mark.parametrize("changes", [{}, {"model": "bigram"}], ids=["gpt", "bigram"])
@pytest.mark.parametrize("wrong", [13, -1, 10**6])
def test_ids_and_targets_that_are_not_in_the_vocabulary(changes, wrong):
    model = build_model(dataclasses.replace(SMALL, **changes))
    good, bad = tl.tensor([[1, 2, 3]]), tl.tensor([[1, wrong, 3]])
    with pytest.raises(IndexError, match=str(wrong)):
        model(bad)
    with pytest.raises(IndexError, match=str(wrong)):
        model(good, bad)


def test_ids_of_another_shape():
    model = build_model(SMALL)
    with pytest.raises(ValueError, match=r"ids of shape \(B, T\), got \(3,\)"):
        model(tl.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"targets need the shape of the ids, \(1, 3\), got \(1, 2\)"):
        model(tl.tensor([[1, 2, 3]]), tl.tensor([[1, 2]]))


# --- attention on the model's page, and the fused op -------------------------------------------------------


def attention_by(module, qkv, dy, fused):
    """y and dqkv of an attention module whose two linear layers do nothing."""
    module.fused = fused
    x = tl.tensor(qkv, requires_grad=True)
    y = module(x)
    y.backward(tl.tensor(dy))
    return y.detach().numpy(), x.grad.numpy()


def rounding_bounds(qkv, dy, H):
    """How far y and dqkv can be from the exact ones, for sums added in any order. u is half a unit in the last place.

    A sum of n products is off by n·u times the sum of their magnitudes. So a score is off by D·u·Q, Q = √D·max|q|·max|k|, and its
    exponential by the relative error e = D·u·Q + 4u; a weight, a quotient of two such, by p = 2e + T·u. A weighted mean of
    the values is then off by (p + T·u)·max|v|. Backward, with A = D·max|dy|·max|v| >= |dP|: a row of dS = P∘(dP - Σ dP∘P) is off by
    (2p + (D + T)·u)·2A in sum, and has the sum 2A at most. A key or a value collects from T rows.
    """
    _, T, C3 = qkv.shape
    D = C3 // 3 // H
    u = np.finfo(qkv.dtype).eps / 2
    q, k, v = (float(abs(part).max()) for part in np.split(qkv, 3, axis=2))
    g = float(abs(dy).max())
    p = 2 * (D * u * math.sqrt(D) * q * k + 4 * u) + T * u
    A = D * g * v
    row = ((2 * p + (D + T) * u) + T * u) * 2 * A / math.sqrt(D)
    return (p + T * u) * v, (row * k, T * row * q, T * g * (p + T * u))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kernels", ["fast", "book"])
@pytest.mark.parametrize("T", [1, 2, 7, 80])
def test_the_pages_attention_equals_the_fused_op(dtype, kernels, T):
    H, C = 3, 12
    module = CausalSelfAttention(GPTConfig(vocab_size=5, block_size=80, n_layer=1, n_head=H, n_embd=C))
    module.c_attn = module.c_proj = tl.nn.Identity()
    rng = np.random.default_rng(T)
    qkv, dy = rng.standard_normal((2, T, 3 * C)).astype(dtype), rng.standard_normal((2, T, C)).astype(dtype)
    with tl.use_kernels(kernels):
        (y, dqkv), (fused_y, fused_dqkv) = (attention_by(module, qkv, dy, fused) for fused in (False, True))
    assert y.dtype == fused_y.dtype == dqkv.dtype == fused_dqkv.dtype == dtype
    y_bound, bounds = rounding_bounds(qkv, dy, H)
    assert abs(y - fused_y).max() <= 2 * y_bound < 1e-3
    for name, ours, fused, bound in zip("qkv", np.split(dqkv, 3, axis=2), np.split(fused_dqkv, 3, axis=2), bounds, strict=True):
        assert abs(ours - fused).max() <= 2 * bound, f"d{name}"


@pytest.mark.parametrize("config", [CONFIGS["bias, untied, relu"], CONFIGS["bias, tied, gelu_tanh"]])
def test_a_model_trains_the_same_with_either_attention(config):
    """Loss and the gradient of every parameter, in float64."""
    config = dataclasses.replace(SMALL, **config)
    found = []
    for fused in (True, False):
        model = drawn(config, "float64")
        for block in model.h:
            block.attn.fused = fused
        ids, targets = batch(config, 2, 9)
        _, loss = model(tl.tensor(ids), tl.tensor(targets))
        loss.backward()
        found.append([loss.detach().numpy(), *(p.grad.numpy() for p in model.parameters())])
    for fused, shown in zip(*found, strict=True):
        assert abs(fused - shown).max() <= 1e-12 * max(1, abs(fused).max())


def test_dropout_on_the_weights_drops_whole_tokens_and_keeps_the_order():
    """With equal scores and values of 1, y[t] is 2/(t + 1) times the number of weights that were kept; of a power of 2 it is exact."""
    module = CausalSelfAttention(GPTConfig(vocab_size=5, block_size=8, n_layer=1, n_head=1, n_embd=4, dropout=0.5))
    module.c_attn = module.c_proj = module.resid_dropout = tl.nn.Identity()
    module.fused = False
    qkv = np.zeros((1, 8, 12))
    qkv[..., 8:] = 1
    rows = np.array([0, 1, 3, 7])
    tl.manual_seed(0)
    kept = np.stack([module(tl.tensor(qkv)).numpy()[0, rows, 0] for _ in range(50)]) * (rows + 1) / 2
    assert np.array_equal(kept, kept.round()) and (kept <= rows + 1).all() and len(np.unique(kept[:, 3])) > 3
    assert np.array_equal(module.eval()(tl.tensor(qkv)).numpy()[0, rows, 0], np.ones(4))
