"""Folders as transformers writes them for GPT-2: its model is the oracle, both ways; and what is refused.

transformers is imported where it is needed: to collect the tests must not take the second that it needs for that.
"""

import json
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

import tensorlite as tl
from data.tokenizer import BpeTokenizer, CharTokenizer
from gpt import generate
from gpt.checkpoints.hugging_face import is_pretrained
from gpt.checkpoints.loading import load_model
from gpt.checkpoints.weights import CheckpointError
from gpt.config import GPTConfig
from gpt.errors import run_main
from gpt.generation.decoder import Decoder
from gpt.generation.stream import stream_tokens
from gpt.model import GPT, build_model
from tensorlite.random import make_generator

SHAPES = {
    "one of each": {"vocab_size": 11, "n_positions": 9, "n_embd": 8, "n_layer": 1, "n_head": 1},
    "deeper": {"vocab_size": 50, "n_positions": 24, "n_embd": 30, "n_layer": 4, "n_head": 5},
    "wide, head of its own": {"vocab_size": 31, "n_positions": 16, "n_embd": 64, "n_layer": 2, "n_head": 2, "tie_word_embeddings": False},
    "exact gelu": {"vocab_size": 20, "n_positions": 12, "n_embd": 24, "n_layer": 2, "n_head": 3, "activation_function": "gelu"},
    "narrow inside": {"vocab_size": 20, "n_positions": 12, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 10},
    "another epsilon": {"vocab_size": 20, "n_positions": 12, "n_embd": 24, "n_layer": 2, "n_head": 3, "layer_norm_epsilon": 0.5},
    "relu": {"vocab_size": 20, "n_positions": 12, "n_embd": 24, "n_layer": 2, "n_head": 4, "activation_function": "relu"},
}


def their_model(seed: int = 0, **settings):
    """A GPT2LMHeadModel with random weights, all far from 0 and 1."""
    import transformers

    torch.manual_seed(seed)
    end = settings["vocab_size"] - 1
    config = transformers.GPT2Config(**settings, bos_token_id=end, eos_token_id=end, attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small one, as transformers writes it, with a tokenizer of ours beside it."""
    model = their_model(**SHAPES["relu"])
    model.save_pretrained(tmp_path)
    CharTokenizer("abcdefghijklmnopqrs\n").save(tmp_path / "tokenizer.json")
    return tmp_path


def difference(ours, theirs: torch.Tensor) -> float:
    """The largest, relative to the largest value."""
    expected = theirs.detach().numpy()
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


def assert_same_function(ours: GPT, theirs, tolerance: float = 1e-4) -> None:
    """Logits, loss, every gradient, and 20 greedy tokens."""
    config = ours.config
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(3, config.block_size))
    logits, loss = ours(tl.tensor(ids[:, :-1]), tl.tensor(ids[:, 1:]))
    loss.backward()
    theirs.zero_grad()
    expected = theirs(torch.from_numpy(ids[:, :-1])).logits
    their_loss = torch.nn.functional.cross_entropy(expected.reshape(-1, config.vocab_size), torch.from_numpy(ids[:, 1:]).reshape(-1))
    their_loss.backward()
    assert difference(logits.detach().numpy(), expected) < tolerance
    assert difference(loss.item(), their_loss) < tolerance
    gradients = {name.removeprefix("transformer."): parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        gradient = gradients.pop(name)
        transposed = parameter.ndim == 2 and name.startswith("h.")
        assert difference(parameter.grad.numpy(), gradient.T if transposed else gradient) < tolerance, name
    assert not gradients

    room = min(20, config.block_size - 2)
    written = ours.generate(tl.tensor(ids[:1, :2]), room, temperature=0).numpy()[0].tolist()
    text = torch.from_numpy(ids[:1, :2])
    for _ in range(room):
        text = torch.cat([text, theirs(text).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert written == text[0].tolist()


# --- both ways ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_transformers_models_can_be_loaded(settings: dict, tmp_path: Path):
    theirs = their_model(**settings)
    theirs.save_pretrained(tmp_path)
    assert is_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    assert not ours.training
    assert ours.config.dropout == 0.1
    assert_same_function(ours, theirs)


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_transformers_loads_our_models(settings: dict, tmp_path: Path):
    import transformers

    names = {"n_positions": "block_size", "tie_word_embeddings": "tied_head", "activation_function": "activation"}
    config = GPTConfig(bias=True, **{"activation": "gelu_tanh", **{names.get(name, name): value for name, value in settings.items()}})
    tl.manual_seed(1)
    ours = build_model(config)
    for parameter in ours.parameters():
        parameter.array[...] += 0.2 * np.random.default_rng(0).standard_normal(parameter.shape)
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_same_function(ours, theirs.eval())
    again = GPT.from_pretrained(tmp_path)
    assert again.config == config
    for name, tensor in ours.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), tensor.numpy())


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("by_width", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_with_other_attention_scales_is_read_and_written(by_layer: bool, by_width: bool, dtype, tmp_path: Path):
    """The factor is in the weights of the queries, so the model, its decoder and what is written know nothing of it."""
    import transformers

    settings = {"scale_attn_by_inverse_layer_idx": by_layer, "scale_attn_weights": by_width}
    their_model(**SHAPES["deeper"], **settings).to(dtype).save_pretrained(tmp_path / "theirs")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "theirs", attn_implementation="eager", dtype=torch.float32).eval()
    ours = GPT.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    ids = np.random.default_rng(0).integers(50, size=(2, 24))
    expected = theirs(torch.from_numpy(ids)).logits
    assert difference(ours(tl.tensor(ids))[0].detach().numpy(), expected) < 1e-4
    assert difference(again(torch.from_numpy(ids)).logits.detach().numpy(), expected) < 1e-4
    assert difference(Decoder(ours)(ids), expected[:, -1]) < 1e-4


def test_a_model_without_biases_is_saved_with_zero_biases(tmp_path: Path):
    import transformers

    ours = build_model(GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=8)).eval()
    ours.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = np.arange(8)[None]
    assert difference(ours(tl.tensor(ids))[0].detach().numpy(), theirs(torch.from_numpy(ids)).logits) < 1e-4


def test_sharded_and_without_prefix(tmp_path: Path):
    theirs = their_model(**SHAPES["deeper"])
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    whole = {name.removeprefix("transformer."): array for name, array in weights_of(tmp_path / "sharded").items()}
    (tmp_path / "plain").mkdir()
    whole["h.0.attn.bias"] = np.tri(24, dtype=np.float32)[None, None]  # older files have the mask
    safetensors.numpy.save_file(whole, tmp_path / "plain" / "model.safetensors")
    (tmp_path / "plain" / "config.json").write_text((tmp_path / "sharded" / "config.json").read_text())
    for name in ("sharded", "plain"):
        assert_same_function(GPT.from_pretrained(tmp_path / name), theirs)


def test_half_precision_is_widened(tmp_path: Path):
    their_model(**SHAPES["relu"]).half().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in GPT.from_pretrained(tmp_path).parameters()} == {np.dtype(np.float32)}


def test_dropout_can_be_given(folder: Path):
    assert GPT.from_pretrained(folder, dropout=0.0).config.dropout == 0
    edit(folder, attn_pdrop=0.3)
    assert GPT.from_pretrained(folder, dropout=0.2).config.dropout == 0.2


def test_torch_and_transformers_are_not_needed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    _, tokenizer, config = load_model(folder)
    assert tokenizer.vocab_size == config.vocab_size == 20


def test_generate_takes_such_a_folder(folder: Path, capsys: pytest.CaptureFixture):
    assert (
        run_main(lambda: generate.main(["--checkpoint", str(folder), "--prompt", "abc", "--temperature", "0", "--max-new-tokens", "5"]))
        == 0
    )
    model, tokenizer, _ = load_model(folder)
    ids = model.generate(tl.tensor(tokenizer.encode("abc").astype(np.int64)[None]), 5, temperature=0).numpy()[0]
    assert capsys.readouterr().out == tokenizer.decode(ids) + "\n"


def test_a_byte_level_tokenizer_streams_whole_characters(tmp_path: Path, capsys: pytest.CaptureFixture):
    """What is shown piece by piece is what decoding everything at once gives; the end of text ends it."""
    tokenizer = BpeTokenizer.train(["naïve 😀 – " * 50], vocab_size=270)
    settings = {**SHAPES["relu"], "vocab_size": tokenizer.vocab_size}
    their_model(**settings).save_pretrained(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    model, tokenizer, _ = load_model(tmp_path)
    for seed in range(3):
        argv = ["--checkpoint", str(tmp_path), "--prompt", "naïve 😀", "--max-new-tokens", "40", "--seed", str(seed), "--completion-only"]
        assert run_main(lambda argv=argv: generate.main(argv)) == 0
        ids = [int(id) for id in stream_tokens(model, tokenizer.encode("naïve 😀"), 40, generator=make_generator(seed, 0))]
        end = ids.index(tokenizer.end_of_text) if tokenizer.end_of_text in ids else None
        assert capsys.readouterr().out == tokenizer.decode(ids[:end]) + "\n"


# --- refused ------------------------------------------------------------------------------------------


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for file in folder.glob("*.safetensors") for name, array in safetensors.numpy.load_file(file).items()}


def edit(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def edit_weights(folder: Path, change: Callable[[dict], object]) -> None:
    weights = weights_of(folder)
    change(weights)
    safetensors.numpy.save_file(weights, folder / "model.safetensors")


def hostile(folder: Path, header: bytes, length: int | None = None) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + bytes(64))


def refusal(folder: Path, capsys: pytest.CaptureFixture) -> str:
    """One sentence, exit code 2, by the program that a user would run."""
    assert run_main(lambda: generate.main(["--checkpoint", str(folder), "--max-new-tokens", "1"])) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model_type": "mamba"}, "model_type is 'mamba', and only 'gpt2', 'llama', 'qwen3' are known"),
        ({"model_type": "llama"}, "max_position_embeddings should be a positive whole number, got None"),
        ({"activation_function": "swish"}, "activation_function is 'swish'"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be positive, got 0"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon must be a number, got '1e-5'"),
        ({"scale_attn_by_inverse_layer_idx": 1}, "scale_attn_by_inverse_layer_idx should be true or false, got 1"),
        ({"scale_attn_weights": "no"}, "scale_attn_weights should be true or false, got 'no'"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"n_inner": 0}, "n_inner must be at least 1, got 0"),
        ({"n_inner": 9.5}, "n_inner must be a whole number or null, got 9.5"),
        ({"n_head": 5}, "n_embd must be divisible by n_head"),
        ({"n_layer": 0}, "n_layer should be a positive whole number, got 0"),
        ({"n_embd": "many"}, "n_embd should be a positive whole number, got 'many'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"embd_pdrop": 0.0}, "resid_pdrop, embd_pdrop, attn_pdrop differ (0.0, 0.1)"),
        ({"resid_pdrop": 1.5, "embd_pdrop": 1.5, "attn_pdrop": 1.5}, "dropout must be at least 0"),
        (
            {"n_layer": 1},
            "h.1.attn.c_attn.bias, h.1.attn.c_attn.weight, h.1.attn.c_proj.bias, h.1.attn.c_proj.weight and 8 more too many",
        ),
        ({"vocab_size": 21}, "wte.weight is F32 (20, 24) and should be (21, 24)"),
        ({"vocab_size": 19}, "its tokenizer has 20 ids, but its model knows 19"),
        ({"tie_word_embeddings": False}, "lm_head.weight missing"),
    ],
)
def test_configs_that_are_refused(folder: Path, capsys: pytest.CaptureFixture, fields: dict, message: str):
    edit(folder, **fields)
    if fields == {"vocab_size": 19}:
        edit_weights(folder, lambda weights: weights.update({"transformer.wte.weight": np.zeros((19, 24), np.float32)}))
    assert message in refusal(folder, capsys)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("transformer.h.1.ln_2.weight"), "h.1.ln_2.weight missing"),
        (lambda w: w.update({"score.weight": np.zeros((2, 24), np.float32)}), "score.weight too many"),
        (lambda w: w.update({"transformer.ln_f.bias": np.zeros(25, np.float32)}), "ln_f.bias is F32 (25,) and should be (24,)"),
        (
            lambda w: w.update({"transformer.h.0.mlp.c_fc.weight": np.zeros((96, 24), np.float32)}),
            "c_fc.weight is F32 (24, 96) and should be (96, 24)",
        ),
        (
            lambda w: w.update({"transformer.ln_f.bias": np.zeros(24, np.int64)}),
            "ln_f.bias is I64 (24,) and should be (24,) of F64, F32, F16, BF16",
        ),
    ],
)
def test_weights_that_are_refused(folder: Path, capsys: pytest.CaptureFixture, change: Callable, message: str):
    edit_weights(folder, change)
    assert message in refusal(folder, capsys)


ENTRY = '{"a":{"dtype":"F32","shape":[4],"data_offsets":[%d,%d]}%s}'


@pytest.mark.parametrize(
    "header, length",
    [
        (b"{}", 2**62),
        (b"{" * 90, None),
        ((ENTRY % (0, 1 << 40, "")).encode(), None),
        ((ENTRY % (0, 16, ',"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}')).encode(), None),
        (b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}', None),
        (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[-8,8]}}', None),
        (b"", None),
    ],
    ids=["huge header", "no JSON", "beyond the end", "overlapping", "negative shape", "negative place", "empty"],
)
def test_hostile_headers_are_refused(folder: Path, capsys: pytest.CaptureFixture, header: bytes, length: int | None):
    hostile(folder, header, length)
    assert re.search(r"model.safetensors is (cut short|damaged or cut short|not a safetensors file)", refusal(folder, capsys))


def test_a_duplicate_name_is_refused(folder: Path, capsys: pytest.CaptureFixture):
    """Of the same shape and place: a reader that took either would be content."""
    content = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    name, entry = next(item for item in json.loads(content[8 : 8 + size]).items() if item[0] != "__metadata__")
    header = content[8 : 8 + size].rstrip()[:-1] + f', "{name}": {json.dumps(entry)}}}'.encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    assert f"its header has '{name}' twice" in refusal(folder, capsys)


def test_other_faults_are_refused(folder: Path, capsys: pytest.CaptureFixture):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    assert "cut short" in refusal(folder, capsys)
    (folder / "model.safetensors").unlink()
    assert "has neither model.safetensors nor model.safetensors.index.json" in refusal(folder, capsys)
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    assert "only pytorch_model.bin: a pickle" in refusal(folder, capsys)
    for content, message in [
        ("[]", "it has no weight_map"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "names a file outside of its folder"),
        ('{"weight_map": {"a": "a.safetensors"}}', "cannot be read"),
        ("{", "does not hold JSON"),
    ]:
        (folder / "model.safetensors.index.json").write_text(content)
        assert message in refusal(folder, capsys)
    (folder / "part.safetensors").write_bytes(weights)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"b": "part.safetensors"}}')
    assert "part.safetensors does not have b, which model.safetensors.index.json says it has" in refusal(folder, capsys)
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(folder, capsys)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "bigram"}, "model is bigram"),
        ({"positions": "sinusoidal"}, "positions are sinusoidal"),
        ({"head_bias": True}, "head_bias is on"),
    ],
)
def test_models_other_than_gpt2_are_refused(tmp_path: Path, changes: dict, message: str):
    model = build_model(GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=4, **changes))
    with pytest.raises(CheckpointError, match=message):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_our_folders_are_not_taken_for_transformers_folders(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model": {}}')
    assert not is_pretrained(tmp_path)
    assert not is_pretrained(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert not is_pretrained(tmp_path)
