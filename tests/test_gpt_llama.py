"""The family after GPT-2: the model against transformers' Llama and Qwen3, folders both ways, training, and what is refused.

transformers computes norms, rotations and the softmax of its eager attention in float32, also in a model of float64. `in_float64` makes
it compute them in float64: then both are the same function, to the last digits.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

import tensorlite as tl
from data.tokenizer import CharTokenizer
from gpt import generate, train
from gpt.checkpoints.hugging_face import is_pretrained
from gpt.checkpoints.loading import load_model
from gpt.checkpoints.weights import CheckpointError, weight_shapes
from gpt.config import GPTConfig, from_preset
from gpt.errors import UserError, run_main
from gpt.microscope.reading import influence, look_at_next
from gpt.model import GPT, build_model
from gpt.plots.attention_maps import attention_weights
from gpt.training.speed import count_work
from tensorlite.op import use_kernels
from tensorlite.random import make_generator, use_generator

SHAPE = {
    "vocab_size": 29,
    "max_position_embeddings": 24,
    "hidden_size": 36,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rope_theta": 500.0,
    "tie_word_embeddings": True,
}
FAMILIES = {
    "a key for three queries": {},
    "a key for each query, head of its own": {"num_key_value_heads": 9, "tie_word_embeddings": False},
    "a key for all queries": {"num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    "QK-norm": {"model_type": "qwen3", "head_dim": 4},
}


def their_model(seed: int = 0, model_type: str = "llama", **changes):
    """A model of transformers with random weights, all far from 0 and 1, in float64."""
    import transformers

    torch.manual_seed(seed)
    settings = {**SHAPE, **changes}
    theta = settings.pop("rope_theta")
    kinds = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}
    config = kinds[model_type](**settings, rope_parameters={"rope_type": "default", "rope_theta": theta}, attn_implementation="sdpa")
    model = transformers.AutoModelForCausalLM.from_config(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return in_float64(model, theta)


def in_float64(model, theta: float):
    def norm(module):
        eps = module.variance_epsilon
        return lambda x: module.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))

    def rotations(x, position_ids):
        D = model.config.head_dim
        angles = position_ids[..., None] * theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
        return torch.cat([angles, angles], -1).cos().to(x.dtype), torch.cat([angles, angles], -1).sin().to(x.dtype)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = norm(module)
    model.model.rotary_emb.forward = rotations
    return model


def difference(ours, theirs: torch.Tensor) -> float:
    """The largest, relative to the largest value."""
    expected = theirs.detach().numpy()
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


def stacked_gradients(ours: GPT, theirs) -> Iterator[tuple[str, np.ndarray, torch.Tensor]]:
    """The name of each weight of ours, its gradient, and theirs; where ours is several of theirs, these one below the other."""
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    whole = {"wte.weight": ["model.embed_tokens.weight"], "ln_f.weight": ["model.norm.weight"], "lm_head.weight": ["lm_head.weight"]}
    for i in range(ours.config.n_layer):
        at, layer = f"h.{i}.", f"model.layers.{i}."
        whole[at + "ln_1.weight"] = [layer + "input_layernorm.weight"]
        whole[at + "ln_2.weight"] = [layer + "post_attention_layernorm.weight"]
        whole[at + "attn.c_attn.weight"] = [f"{layer}self_attn.{part}_proj.weight" for part in "qkv"]
        whole[at + "attn.c_proj.weight"] = [layer + "self_attn.o_proj.weight"]
        whole[at + "mlp.c_fc.weight"] = [layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight"]
        whole[at + "mlp.c_proj.weight"] = [layer + "mlp.down_proj.weight"]
        for part in "qk":
            whole[f"{at}attn.{part}_norm.weight"] = [f"{layer}self_attn.{part}_norm.weight"]
    for name, parameter in ours.named_parameters():
        yield name, parameter.grad.numpy(), torch.cat([grads.pop(part) for part in whole[name]])
    assert not grads


def assert_same_function(ours: GPT, theirs, tolerance: float) -> None:
    """Logits, loss, every gradient (ours are theirs, one below the other), and in float64 20 greedy tokens."""
    ids = np.random.default_rng(0).integers(29, size=(3, 24))
    logits, loss = ours(tl.tensor(ids[:, :-1]), tl.tensor(ids[:, 1:]))
    loss.backward()
    theirs.zero_grad()
    expected = theirs(torch.from_numpy(ids[:, :-1])).logits
    their_loss = torch.nn.functional.cross_entropy(expected.reshape(-1, 29), torch.from_numpy(ids[:, 1:]).reshape(-1))
    their_loss.backward()
    assert difference(logits.detach().numpy(), expected) < tolerance
    assert difference(loss.item(), their_loss) < tolerance
    for name, gradient, expected_gradient in stacked_gradients(ours, theirs):
        assert difference(gradient, expected_gradient) < tolerance, name
    if tolerance > 1e-6:
        return  # in float32 the best two tokens may be closer than that
    text = ids[:1, :3]
    written = ours.generate(tl.tensor(text), 20, temperature=0).numpy()[0].tolist()
    for _ in range(20):
        text = np.concatenate([text, theirs(torch.from_numpy(text)).logits[:, -1].argmax(-1, keepdim=True).numpy()], axis=1)
    assert written == text[0].tolist()


# --- both ways ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_theirs_is_ours(changes: dict, tmp_path: Path):
    theirs = their_model(**changes)
    theirs.save_pretrained(tmp_path)
    assert is_pretrained(tmp_path)
    assert_same_function(GPT.from_pretrained(tmp_path), theirs, 1e-9)
    assert_same_function(GPT.from_pretrained(tmp_path).to(dtype=tl.float32), theirs.float(), 1e-4)


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_ours_is_theirs(changes: dict, tmp_path: Path):
    import transformers

    config = GPTConfig(
        model="llama",
        vocab_size=29,
        block_size=24,
        n_layer=2,
        n_head=9,
        n_embd=36,
        n_inner=40,
        n_kv_head=changes.get("num_key_value_heads", 3),
        tied_head=changes.get("tie_word_embeddings", True),
        layer_norm_epsilon=changes.get("rms_norm_eps", 1e-6),
        qk_norm="head_dim" in changes,
        rope_theta=700.0,
    )
    tl.manual_seed(1)
    ours = build_model(config).to(dtype=tl.float64).eval()
    for parameter in ours.parameters():
        parameter.array[...] += 0.2 * np.random.default_rng(0).standard_normal(parameter.shape)
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="sdpa", output_loading_info=True, dtype=torch.float64
    )
    assert not any(report.values())
    assert_same_function(ours, in_float64(theirs.eval(), 700.0), 1e-9)
    again = GPT.from_pretrained(tmp_path)
    assert again.config == config
    for name, tensor in ours.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), again.state_dict()[name].numpy())


def test_several_files_in_bfloat16(tmp_path: Path):
    theirs = their_model().bfloat16()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = GPT.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in ours.parameters()} == {np.dtype(np.float32)}
    stacked = torch.cat([getattr(theirs.model.layers[1].self_attn, f"{part}_proj").weight for part in "qkv"])
    np.testing.assert_array_equal(ours.h[1].attn.c_attn.weight.array, stacked.float().detach().numpy())


# --- the model ----------------------------------------------------------------------------------------


def test_modern_takes_as_many_operations_as_tiny():
    modern, tiny = (count_work(build_model(from_preset(name, vocab_size=103)[0]), "numpy") for name in ("modern", "tiny"))
    assert modern == tiny


@pytest.mark.parametrize("changes", [{}, {"n_kv_head": 2, "qk_norm": True, "tied_head": False}], ids=["plain", "all at once"])
def test_the_shapes_on_disk_are_those_of_the_model(changes: dict):
    model = build_model(GPTConfig(model="llama", vocab_size=11, block_size=8, n_layer=2, n_head=4, n_embd=24, **changes))
    weights = {name: tensor.shape for name, tensor in model.state_dict().items() if "tied_head" in changes or name != "lm_head.weight"}
    assert dict(weight_shapes(model.config)) == weights


def test_a_position_is_a_distance():
    """The same text after other tokens has the same scores between its own tokens: queries and keys turn alike."""
    model = build_model(GPTConfig(model="llama", vocab_size=11, block_size=40, n_layer=1, n_head=2, n_embd=8)).to(dtype=tl.float64)
    x = tl.randn(1, 5, 8, dtype=tl.float64)
    moved = tl.cat([tl.randn(1, 30, 8, dtype=tl.float64), x], dim=1)
    scores = []
    for rows in (x, moved):
        q, k, _ = model.h[0].attn.queries_keys_values(rows)
        scores.append((q @ k.transpose(-2, -1)).detach().numpy()[..., -5:, -5:])
    np.testing.assert_allclose(*scores, atol=1e-12)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_maps_are_those_of_the_model(qk_norm: bool):
    """The weights, times the values, give what the attention layer gives."""
    config = GPTConfig(model="llama", vocab_size=11, block_size=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, qk_norm=qk_norm)
    model = build_model(config).to(dtype=tl.float64).eval()
    for parameter in model.parameters():
        parameter.array[...] += np.random.default_rng(0).standard_normal(parameter.shape)
    ids = np.array([0, 3, 1, 5, 2])
    maps = attention_weights(model, ids)
    np.testing.assert_allclose(maps.sum(-1), 1)
    with tl.no_grad():
        x = model.h[0].ln_1(model.wte(tl.tensor(ids[None])))
        v = model.h[0].attn.queries_keys_values(x)[2].array
        y = (maps[0] @ np.repeat(v[0], 2, axis=0)).transpose(1, 0, 2).reshape(1, 5, 16)
        np.testing.assert_allclose(model.h[0].attn.c_proj(tl.tensor(y)).array, model.h[0].attn(x).array)
    assert np.isfinite(influence(model, ids, 3)).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"n_kv_head": 3}, "n_head must be a multiple of n_kv_head, so that the groups are equal: 4 is none of 3"),
        ({"n_kv_head": 0}, "n_kv_head must be at least 1"),
        ({"n_embd": 12}, "n_embd / n_head must be even, got 3"),
        ({"bias": True}, "bias is for --model gpt"),
        ({"positions": "sinusoidal"}, "positions is for --model gpt"),
        ({"activation": "relu"}, "activation is for --model gpt"),
        ({"rope_theta": 0.0}, "rope_theta must be a finite number above 0"),
        ({"n_inner": -1}, "n_inner must be at least 1"),
        ({"model": "gpt", "qk_norm": True}, "qk_norm is for --model llama, and this one is gpt"),
        ({"model": "bigram", "n_kv_head": 2, "qk_norm": True}, "n_kv_head, qk_norm are for --model llama, and this one is bigram"),
    ],
)
def test_settings_that_cannot_work(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{"model": "llama", **settings})


# --- the programs -------------------------------------------------------------------------------------

SMALL = "--model llama --n-layer 2 --n-head 4 --n-embd 16 --n-kv-head 2 --qk-norm true --block-size 8 --batch-size 2 --sample-length 3"


def run(text: Path, out: Path, *options: str) -> None:
    argv = ["--data", str(text), "--out", str(out), *SMALL.split(), "--workers", "1", "--eval-iters", "1", *options]
    assert run_main(lambda: train.main(argv)) == 0


def test_a_run_is_saved_resumed_and_read(tmp_path: Path, capsys: pytest.CaptureFixture):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    run(text, tmp_path / "whole", "--steps", "6", "--dropout", "0.1", "--eval-interval", "3")
    run(text, tmp_path / "parts", "--steps", "6", "--dropout", "0.1", "--eval-interval", "3", "--time-limit", "1e-9")
    assert run_main(lambda: train.main(["--resume", str(tmp_path / "parts"), "--time-limit", "9"])) == 0
    whole, tokenizer, config = load_model(tmp_path / "whole")
    parts, _, _ = load_model(tmp_path / "parts")
    assert config.model == "llama" and config.qk_norm
    for name, tensor in whole.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), parts.state_dict()[name].numpy(), err_msg=name)
    capsys.readouterr()
    argv = ["--checkpoint", str(tmp_path / "whole"), "--prompt", "The", "--temperature", "0", "--max-new-tokens", "12"]
    assert run_main(lambda: generate.main(argv)) == 0
    ids = whole.generate(tl.tensor(tokenizer.encode("The").astype(np.int64)[None]), 12, temperature=0).numpy()[0]
    assert capsys.readouterr().out == tokenizer.decode(ids) + "\n"


# --- refused ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    their_model().float().save_pretrained(tmp_path)
    CharTokenizer("abcdefghijklmnopqrstuvwxyz .\n").save(tmp_path / "tokenizer.json")
    return tmp_path


def edit(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_type is 'llama3'"),
        ({"rope_parameters": "none"}, "rope_parameters should be an object"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling is"),
        ({"partial_rotary_factor": 0.5}, "a part of each head is not rotated"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"head_dim": 8}, "head_dim is 8, where only hidden_size / num_attention_heads, 4, is"),
        ({"num_key_value_heads": 2}, "9 is none of 2"),
        ({"num_key_value_heads": "all"}, "n_kv_head must be a whole number or null"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers should be a positive whole number"),
        ({"num_hidden_layers": 3}, "h.2.attn.c_attn.weight, h.2.attn.c_proj.weight, "),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "some of its layers do not see the whole context"),
        ({"vocab_size": 30}, "wte.weight is F32 (29, 36) and should be (30, 36)"),
        ({"tie_word_embeddings": False}, "lm_head.weight missing"),
        ({"model_type": "qwen3"}, "h.0.attn.q_norm.weight, h.0.attn.k_norm.weight"),
        ({"num_key_value_heads": 1}, "model.layers.0.self_attn.k_proj.weight is (12, 36) and should be (4, 36)"),
    ],
)
def test_configs_that_are_refused(folder: Path, fields: dict, message: str):
    edit(folder, **fields)
    with pytest.raises(UserError) as refusal:
        load_model(folder)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("model.layers.1.self_attn.k_proj.weight"), "of the 3 parts of h.1.attn.c_attn.weight only"),
        (lambda w: w.update(extra=np.zeros(3, np.float32)), "extra too many"),
        (lambda w: w.update({"model.norm.weight": np.zeros(35, np.float32)}), "ln_f.weight is F32 (35,) and should be (36,)"),
        (
            lambda w: w.update({"model.layers.0.mlp.up_proj.weight": np.zeros((40, 36), np.float16)}),
            "up_proj.weight has type F16, and model.layers.0.mlp.gate_proj.weight has F32",
        ),
        (
            lambda w: w.update({"model.layers.0.mlp.up_proj.weight": np.zeros(40, np.float32)}),
            "up_proj.weight is (40,) and should be (40, 36)",
        ),
    ],
)
def test_weights_that_are_refused(folder: Path, change, message: str):
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as refusal:
        load_model(folder)
    assert message in str(refusal.value)


def test_old_frequencies_are_no_weights(folder: Path):
    before = GPT.from_pretrained(folder)
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2, np.float32)
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    assert GPT.from_pretrained(folder).num_parameters() == before.num_parameters()


def test_a_gpt_is_no_llama(tmp_path: Path):
    config = dataclasses.replace(from_preset("modern")[0], n_layer=1)
    build_model(config).save_pretrained(tmp_path)
    edit(tmp_path, model_type="gpt2")
    with pytest.raises(CheckpointError, match="n_positions should be a positive whole number"):
        GPT.from_pretrained(tmp_path)


def test_the_last_token_looks_where_the_maps_say():
    """What the server's page shows of one token, beside the maps of all tokens."""
    tl.manual_seed(0)
    for changes in ({"n_kv_head": 2}, {"n_kv_head": 1, "qk_norm": True}):
        config = GPTConfig(model="llama", vocab_size=17, block_size=12, n_layer=2, n_head=4, n_embd=16, **changes)
        model = build_model(config).to(dtype=np.float64).eval()
        for parameter in model.parameters():
            parameter.array[...] *= 10
        ids = np.array([3, 1, 4, 1, 5])
        view = look_at_next(model, ids, 17)
        np.testing.assert_allclose(view.attention, attention_weights(model, ids)[:, :, -1], rtol=0, atol=1e-12)
        assert len(view.guesses) == 2


@pytest.mark.parametrize("kernels", ["book", "fast"])
@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_attention_as_one_op_and_as_several(n_kv_head: int, kernels: str):
    """The same dropout, so the same function: 1e-13 is far above the rounding of float64 in sums of at most 70 numbers."""
    config = GPTConfig(model="llama", vocab_size=11, block_size=70, n_layer=1, n_head=4, n_kv_head=n_kv_head, n_embd=32, dropout=0.2)
    attn = build_model(config).h[0].attn.double()
    x = tl.tensor(np.random.default_rng(0).standard_normal((2, 70, 32)), requires_grad=True)
    found = []
    for fused in (False, True):
        attn.fused = fused
        with use_kernels(kernels), use_generator(make_generator(3)):
            y = attn(x)
            (y * y).sum().backward()
        found.append([y.detach().numpy(), x.grad.numpy(), attn.c_attn.weight.grad.numpy()])
        attn.zero_grad()
        x.grad = None
    for apart, together in zip(*found, strict=True):
        np.testing.assert_allclose(together, apart, rtol=0, atol=1e-13 * abs(apart).max())
