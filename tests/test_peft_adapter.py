"""PEFT's files of LoRA's corrections: what is written is the same function, what is read too, and what is refused.

PEFT itself is no dependency of the tests, because it brings accelerate. Its layer is one line, which stands here: W x + s · B (A x), where
s is alpha / r. `scripts/compare_peft.py` opens the files with PEFT.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

import tensorlite as tl
from gpt.checkpoints.loading import load_model
from gpt.checkpoints.model_folder import save_model
from gpt.checkpoints.peft_adapter import CONFIG, WEIGHTS, has_peft_form, merge_peft_adapter, save_peft_adapter
from gpt.config import GPTConfig
from gpt.errors import UserError
from gpt.finetuning.lora import LoraError, add_lora
from gpt.model import GPT, build_model
from tests.test_gguf import tokenizer

GPT2 = GPTConfig(vocab_size=270, block_size=8, n_layer=2, n_head=2, n_embd=16, bias=True)
LLAMA = GPTConfig(model="llama", vocab_size=270, block_size=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, n_inner=24, tied_head=False)
IDS = np.random.default_rng(0).integers(270, size=(2, 8))


def model(config: GPTConfig) -> GPT:
    tl.manual_seed(3)
    built = build_model(config).eval()
    assert isinstance(built, GPT)
    return built


def corrected(config: GPTConfig, targets=("c_attn", "c_proj", "c_fc"), rank: int = 3) -> GPT:
    """A model whose corrections are no longer 0."""
    learnt = model(config)
    add_lora(learnt, targets, rank, alpha=5.0)
    rng = np.random.default_rng(1)
    for name, parameter in learnt.named_parameters():
        if name.endswith("lora_b"):
            parameter.array[...] = rng.normal(size=parameter.shape)
    return learnt


def logits(of: GPT) -> np.ndarray:
    with tl.no_grad():
        return of(tl.tensor(IDS))[0].numpy()


def with_corrections(folder: Path, adapter: Path) -> torch.nn.Module:
    """transformers' model in ``folder``, its weights corrected as PEFT would."""
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    record, weights = json.loads((adapter / CONFIG).read_text()), safetensors.numpy.load_file(adapter / WEIGHTS)
    assert {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in weights} == set(record["target_modules"])
    for name in record["target_modules"]:
        a, b = (torch.from_numpy(weights[f"base_model.model.{name}.lora_{part}.weight"]) for part in "AB")
        assert len(a) == b.shape[1] == record["r"]
        change = record["lora_alpha"] / record["r"] * (b @ a)
        with torch.no_grad():
            theirs.get_submodule(name).weight += change.T if record["fan_in_fan_out"] else change
    return theirs


@pytest.mark.parametrize("config, targets", [(GPT2, ["c_attn", "c_proj", "c_fc"]), (LLAMA, ["c_attn", "c_proj", "c_fc", "lm_head"])])
def test_what_is_written_is_the_same_function_in_transformers(config: GPTConfig, targets: list[str], tmp_path: Path):
    model(config).save_pretrained(tmp_path / "base", tokenizer())
    learnt = corrected(config, targets)
    save_peft_adapter(tmp_path / "peft", learnt, base=str(tmp_path / "base"))
    with torch.no_grad():
        expected = with_corrections(tmp_path / "base", tmp_path / "peft")(torch.from_numpy(IDS)).logits.numpy()
    assert abs(expected - logits(model(config))).max() > 0.1
    np.testing.assert_allclose(logits(learnt), expected, atol=1e-4 * abs(expected).max())
    read, _, _ = load_model(tmp_path / "peft")  # and back
    assert isinstance(read, GPT)
    np.testing.assert_allclose(logits(read), expected, atol=1e-4 * abs(expected).max())


def test_of_a_llama_some_parts_may_be_corrected_each_in_its_own_way(tmp_path: Path):
    rng, D = np.random.default_rng(0), LLAMA.n_embd // LLAMA.n_head
    rows = {"q": slice(0, 4 * D), "v": slice(6 * D, 8 * D)}
    parts = {name: (rng.normal(size=(2, 16)), rng.normal(size=(of.stop - of.start, 2))) for name, of in rows.items()}
    weights = {
        f"base_model.model.model.layers.1.self_attn.{name}_proj.lora_{which}.weight": array.astype(np.float32)
        for name, pair in parts.items()
        for which, array in zip("AB", pair, strict=True)
    }
    (tmp_path / WEIGHTS).write_bytes(safetensors.numpy.save(weights))
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    merged, before = model(LLAMA), model(LLAMA).h[1].attn.c_attn.weight.array
    merge_peft_adapter(tmp_path, merged)
    change = merged.h[1].attn.c_attn.weight.array - before
    for name, (a, b) in parts.items():
        np.testing.assert_allclose(change[rows[name]], 3 * b @ a, atol=1e-4)
    assert not change[4 * D : 6 * D].any()
    np.testing.assert_array_equal(merged.h[0].attn.c_attn.weight.array, model(LLAMA).h[0].attn.c_attn.weight.array)


def test_which_models_have_this_form():
    assert has_peft_form(GPT2) and has_peft_form(LLAMA)
    for changes in ({"model": "bigram"}, {"positions": "sinusoidal"}, {"head_bias": True}):
        assert not has_peft_form(GPTConfig(**changes))


# --- refused ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "base", model(LLAMA), tokenizer())
    save_peft_adapter(tmp_path / "peft", corrected(LLAMA), base=str(tmp_path / "base"))
    return tmp_path / "peft"


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as found:
        load_model(folder)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"peft_type": "IA3"}, "of a kind that is not supported: peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"rank_pattern": {"q_proj": 3}}, "rank_pattern is"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
        ({"lora_alpha": 0}, "lora_alpha of 0, which must be above 0"),
        ({"r": 4}, "do not fit the model: model.layers.0"),
        ({"r": "3"}, "r must be a whole number"),
        ({"base_model_name_or_path": "HuggingFaceTB/none"}, "belongs to HuggingFaceTB/none, which is not on this machine"),
        ({"base_model_name_or_path": None}, "does not say which model it belongs to"),
    ],
)
def test_configs_that_are_refused(folder: Path, changes: dict, message: str):
    (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), **changes}))
    assert message in refusal(folder)


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop(f"{LAYER}.lora_A.weight"), "there is only one of lora_A and lora_B"),
        (lambda w: w.update(extra=w[f"{LAYER}.lora_A.weight"]), "extra is neither a lora_A nor a lora_B"),
        (lambda w: w.update({f"{LAYER}.lora_A.weight": np.zeros((3, 15), np.float32)}), "q_proj has A (3, 15) and B (16, 3)"),
        (lambda w: w.update({f"{LAYER}.lora_B.weight": np.zeros(3, np.float32)}), "q_proj has A (3, 16) and B (3,)"),
        (lambda w: [w.update({key.replace("layers.1", "layers.7"): w.pop(key)}) for key in list(w) if "layers.1" in key],
         "it has no linear layer model.layers.7.mlp.down_proj"),
        (lambda w: [w.update({key.replace("self_attn.q_proj", "input_layernorm"): w.pop(key)}) for key in list(w) if "q_proj" in key],
         "it has no linear layer model.layers.0.input_layernorm"),
        (lambda w: w.clear(), "the file is empty"),
    ],
)  # fmt: skip
def test_weights_that_are_refused(folder: Path, change, message: str):
    weights = safetensors.numpy.load_file(folder / WEIGHTS)
    change(weights)
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save(weights))
    assert message in refusal(folder)


def test_files_that_are_damaged(folder: Path):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])
    assert "cannot be read" in refusal(folder)
    (folder / WEIGHTS).unlink()
    assert f"there is no {WEIGHTS}" in refusal(folder)
    for content in ("[]", "{", "[" * 10**5):
        (folder / CONFIG).write_text(content)
        assert "cannot be read" in refusal(folder)


def test_a_head_that_is_the_embedding_cannot_be_corrected(tmp_path: Path):
    save_peft_adapter(tmp_path, corrected(LLAMA, ["lm_head"]), base="")
    with pytest.raises(LoraError, match="lm_head, which shares its weight with the embedding"):
        merge_peft_adapter(tmp_path, model(GPTConfig(**{**vars(LLAMA), "tied_head": True})))
