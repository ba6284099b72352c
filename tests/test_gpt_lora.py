"""LoRA: corrections start at 0 and are trained; the merged model is the same; and they are saved separately."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import tensorlite as tl
from gpt.checkpoints.adapter import fingerprint, load_adapter, save_adapter
from gpt.checkpoints.loading import load_model
from gpt.config import GPTConfig
from gpt.finetuning.lora import LoraError, LoraLinear, add_lora, merge_lora
from gpt.model import build_model
from tensorlite import nn
from tensorlite.testing import gradcheck

CONFIG = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16, bias=True)
IDS = np.random.default_rng(0).integers(11, size=(3, 8))


def model(config=CONFIG, dtype=tl.float32):
    tl.manual_seed(3)
    return build_model(config).to(dtype=dtype).eval()


def learnt(config=CONFIG, dtype=tl.float32, **settings):
    """A model whose corrections are no longer 0."""
    corrected = model(config, dtype)
    add_lora(corrected, **{"targets": ["c_attn", "c_proj", "c_fc"], "rank": 3, "alpha": 5.0, **settings})
    rng = np.random.default_rng(1)
    for name, parameter in corrected.named_parameters():
        if name.endswith("lora_b"):
            parameter.array[...] = rng.normal(size=parameter.shape)
    return corrected


def logits(model):
    with tl.no_grad():
        return model(tl.tensor(IDS))[0].numpy()


def test_a_new_correction_does_not_change_the_model():
    before = logits(model())
    corrected = model()
    add_lora(corrected)
    assert np.array_equal(logits(corrected), before)


def test_a_layer_computes_its_formula():
    rng = np.random.default_rng(2)
    layer = LoraLinear(nn.Linear(5, 4, dtype=tl.float64), rank=2, alpha=6.0)
    layer.lora_b.array[...] = rng.normal(size=(4, 2))
    x = rng.normal(size=(7, 5))
    w, b, la, lb = (p.array for p in (layer.linear.weight, layer.linear.bias, layer.lora_a, layer.lora_b))
    np.testing.assert_allclose(layer(tl.tensor(x)).detach().numpy(), x @ (w + 3.0 * lb @ la).T + b, rtol=1e-12)


def test_the_gradients_of_both_matrices():
    x = tl.randn(3, 5, dtype=tl.float64)
    layer = LoraLinear(nn.Linear(5, 4, dtype=tl.float64), rank=2, alpha=2.0)

    def with_matrices(a, b):
        layer.lora_a.array, layer.lora_b.array = a.array, b.array
        return nn.functional.linear(nn.functional.linear(x, a), b) * layer.scale

    a, b = (tl.randn(*shape, dtype=tl.float64, requires_grad=True) for shape in ((2, 5), (4, 2)))
    gradcheck(with_matrices, (a, b))
    dy = tl.randn(3, 4, dtype=tl.float64)
    layer.lora_a.array, layer.lora_b.array = a.array, b.array
    layer(x).backward(dy)
    np.testing.assert_allclose(layer.lora_b.grad.numpy(), dy.numpy().T @ (x.numpy() @ a.array.T), rtol=1e-12)
    np.testing.assert_allclose(layer.lora_a.grad.numpy(), (dy.numpy() @ b.array).T @ x.numpy(), rtol=1e-12)


def test_only_the_corrections_are_trained():
    corrected = learnt()
    _, loss = corrected(tl.tensor(IDS), tl.tensor(IDS))
    loss.backward()
    assert {name.rpartition(".")[2] for name, p in corrected.named_parameters() if p.requires_grad} == {"lora_a", "lora_b"}
    for name, parameter in corrected.named_parameters():
        assert (parameter.grad is not None) == name.endswith(("lora_a", "lora_b")), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(tl.float32, 2e-6), (tl.float64, 1e-14)])
def test_merged_equals_unmerged_to_rounding(dtype, tolerance):
    corrected = learnt(dtype=dtype)
    plain = merge_lora(corrected)
    assert not any(isinstance(module, LoraLinear) for module in plain.modules())
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in model().named_parameters()]
    ours, theirs = logits(corrected), logits(plain)
    assert abs(ours - theirs).max() <= tolerance * abs(ours).max()
    assert abs(ours - logits(model(dtype=dtype))).max() > 0.01, "the correction corrects nothing"


def test_merging_does_not_change_the_corrected_model():
    corrected = learnt()
    before = logits(corrected)
    merge_lora(corrected)
    assert np.array_equal(logits(corrected), before)


def test_targets_are_ends_of_names():
    assert add_lora(model(), ["attn.c_proj", "h.1.mlp.c_fc"], 2) == ["h.0.attn.c_proj", "h.1.attn.c_proj", "h.1.mlp.c_fc"]
    assert len(add_lora(model(), ["c_proj"], 2)) == 4


def test_an_adapter_can_be_saved_and_loaded(tmp_path):
    corrected = learnt()
    save_adapter(tmp_path, corrected)
    again = model()
    load_adapter(tmp_path, again)
    assert np.array_equal(logits(again), logits(corrected))
    assert (tmp_path / "adapter.safetensors").stat().st_size < 4 * 3 * 16 * 2 * (4 + 2 + 5 + 5) + 4000


def test_an_adapter_of_a_single_layer_can_be_saved(tmp_path):
    one = learnt(dataclasses.replace(CONFIG, n_layer=1), targets=("attn.c_attn",))
    save_adapter(tmp_path, one)
    again = model(dataclasses.replace(CONFIG, n_layer=1))
    load_adapter(tmp_path, again)
    np.testing.assert_array_equal(logits(again), logits(one))


def test_the_fingerprint_is_that_of_the_base():
    assert fingerprint(learnt()) == fingerprint(model())
    other = model()
    other.ln_f.weight.array[0] += 1e-3
    assert fingerprint(other) != fingerprint(model())


def test_an_adapter_of_another_model_is_refused(tmp_path):
    save_adapter(tmp_path, learnt())
    other = model()
    other.wte.weight.array[0, 0] += 1
    with pytest.raises(LoraError, match="trained on another model"):
        load_adapter(tmp_path, other)


def test_a_missing_or_damaged_adapter_is_refused(tmp_path):
    with pytest.raises(LoraError, match=r"there is no adapter\.json"):
        load_adapter(tmp_path, model())
    save_adapter(tmp_path, learnt())
    file = tmp_path / "adapter.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(LoraError, match="cannot be read"):
        load_adapter(tmp_path, model())
    file.write_bytes(whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:])
    with pytest.raises(LoraError, match="is damaged: its checksum is not that of its contents"):
        load_adapter(tmp_path, model())


def test_an_adapter_that_does_not_say_what_it_corrects_is_refused(tmp_path):
    save_adapter(tmp_path, learnt())
    (tmp_path / "adapter.json").unlink()
    with pytest.raises(LoraError, match=r"has an adapter\.safetensors but no adapter\.json, which names the model that it corrects"):
        load_model(tmp_path)


def test_layers_that_cannot_be_corrected_are_refused():
    with pytest.raises(LoraError, match=r"no linear layer 'c_atn'.*c_attn, c_proj, c_fc, lm_head"):
        add_lora(model(), ["c_atn"])
    with pytest.raises(LoraError, match="lm_head shares its weight with wte"):
        add_lora(model(), ["lm_head"])
    with pytest.raises(ValueError, match="at most 16"):
        add_lora(model(), ["c_attn"], rank=17)
    with pytest.raises(ValueError, match="at least 1"):
        add_lora(model(), ["c_attn"], rank=0)
    with pytest.raises(ValueError, match="alpha must be above 0"):
        add_lora(model(), ["c_attn"], alpha=float("nan"))
    with pytest.raises(ValueError, match=r"alpha must be above 0 and at most 1e\+09, got 1000000001\.0"):
        add_lora(model(), ["c_attn"], alpha=1e9 + 1)
    add_lora(model(), ["c_attn"], alpha=1e9)
