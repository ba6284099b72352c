"""Llama's names, shapes and settings in transformers, and ours.

    model.embed_tokens.weight                            wte.weight
    model.layers.0.input_layernorm.weight                h.0.ln_1.weight
    model.layers.0.self_attn.{q,k,v}_proj.weight         h.0.attn.c_attn.weight     one below the other
    model.layers.0.self_attn.o_proj.weight               h.0.attn.c_proj.weight
    model.layers.0.self_attn.{q,k}_norm.weight           h.0.attn.{q,k}_norm.weight in Qwen3
    model.layers.0.post_attention_layernorm.weight       h.0.ln_2.weight
    model.layers.0.mlp.{gate,up}_proj.weight             h.0.mlp.c_fc.weight        one below the other
    model.layers.0.mlp.down_proj.weight                  h.0.mlp.c_proj.weight
    model.norm.weight                                    ln_f.weight
    lm_head.weight                                       lm_head.weight             not stored if it is tied

Nothing is transposed. This page translates; `gpt.checkpoints.hugging_face` reads and writes the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gpt.config import GPTConfig

QK_NORM = {"llama": False, "qwen3": True}  # by architecture

_REQUIRED = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
}
# Settings that would change the arithmetic, and the only values that are supported. The first is transformers' default.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "rope_scaling": (None,),
    "rope_interleaved": (False,),
    "quantization_config": (None,),
}
_OUTSIDE = {"model.embed_tokens.weight": "wte.weight", "model.norm.weight": "ln_f.weight"}
_IN_BLOCK = {
    "ln_1": ("input_layernorm",),
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.o_proj",),
    "attn.q_norm": ("self_attn.q_norm",),
    "attn.k_norm": ("self_attn.k_norm",),
    "ln_2": ("post_attention_layernorm",),
    "mlp.c_fc": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.c_proj": ("mlp.down_proj",),
}
_PARTS = {theirs: (ours, number) for ours, parts in _IN_BLOCK.items() for number, theirs in enumerate(parts)}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.weight")


def our_config(theirs: Mapping[str, Any], dropout: float | None, unsupported: Callable[[str], Exception]) -> GPTConfig:
    """The config of a model of transformers whose model_type is in `QK_NORM`.

    Args:
        theirs: config.json, without its nulls.
        unsupported: makes the exception for what is not supported.

    Raises:
        what ``unsupported`` makes, for a setting that is missing, or that would change the arithmetic.
    """
    rope = theirs.get("rope_parameters", {})  # since transformers 5; before, rope_theta stands alone
    if not isinstance(rope, dict):
        raise unsupported(f"rope_parameters should be an object, got {rope!r}")
    if rope.get("rope_type", "default") != "default":
        raise unsupported(f"rope_type is {rope['rope_type']!r}, and only 'default' is")
    if rope.get("partial_rotary_factor", theirs.get("partial_rotary_factor", 1.0)) != 1.0:
        raise unsupported("a part of each head is not rotated (partial_rotary_factor)")
    for name, known in _FIXED.items():
        if theirs.get(name, known[0]) not in known:
            raise unsupported(f"{name} is {theirs[name]!r}, where only {json.dumps(known[0])} is")
    if any(kind != "full_attention" for kind in theirs.get("layer_types", ())):
        raise unsupported("some of its layers do not see the whole context (layer_types)")
    for name in _REQUIRED.values():
        if not isinstance(theirs.get(name), int) or isinstance(theirs[name], bool) or theirs[name] < 1:
            raise unsupported(f"{name} should be a positive whole number, got {theirs.get(name)!r}")
    size = theirs["hidden_size"] // theirs["num_attention_heads"]
    if theirs.get("head_dim", 128 if theirs["model_type"] == "qwen3" else size) != size:
        raise unsupported(f"head_dim is {theirs.get('head_dim', 128)!r}, where only hidden_size / num_attention_heads, {size}, is")
    if dropout is None and theirs.get("attention_dropout", 0.0):
        raise unsupported(
            f"attention_dropout is {theirs['attention_dropout']!r}, which no other layer has; say which dropout all shall have"
        )
    try:
        return GPTConfig(
            model="llama",
            **{ours: theirs[name] for ours, name in _REQUIRED.items()},
            n_kv_head=theirs.get("num_key_value_heads"),
            rope_theta=rope.get("rope_theta", theirs.get("rope_theta", 10000.0)),
            layer_norm_epsilon=theirs.get("rms_norm_eps", 1e-6),
            qk_norm=QK_NORM[theirs["model_type"]],
            tied_head=theirs.get("tie_word_embeddings", False) is True,
            dropout=dropout or 0.0,
        )
    except (ValueError, TypeError) as error:
        raise unsupported(str(error).rstrip(".")) from error


def their_config(config: GPTConfig) -> dict[str, Any]:
    """What transformers needs to know of a model of ours."""
    model_type, name = ("qwen3", "Qwen3ForCausalLM") if config.qk_norm else ("llama", "LlamaForCausalLM")
    shape = {theirs: getattr(config, ours) for ours, theirs in _REQUIRED.items()}
    return {
        "model_type": model_type,
        "architectures": [name],
        **shape,
        "intermediate_size": config.mlp_width,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.n_embd // config.n_head,
        "hidden_act": "silu",
        "rms_norm_eps": config.layer_norm_epsilon,
        "rope_theta": config.rope_theta,  # for transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tied_head,
    }


def our_place(theirs: str) -> tuple[str, int, int]:
    """Our name of the weight that ``theirs`` is a part of, which part it is, and of how many. An unknown name stays as it is."""
    found = _BLOCK.fullmatch(theirs)
    if found and found[2] in _PARTS:
        ours, number = _PARTS[found[2]]
        return f"h.{found[1]}.{ours}.weight", number, len(_IN_BLOCK[ours])
    return _OUTSIDE.get(theirs, theirs), 0, 1


def part_sizes(config: GPTConfig, name: str) -> list[int] | None:
    """How many rows each part of our weight ``name`` has; None where there is but one."""
    if name.endswith("attn.c_attn.weight"):
        D = config.n_embd // config.n_head
        return [config.n_head * D, config.kv_heads * D, config.kv_heads * D]
    return [config.mlp_width, config.mlp_width] if name.endswith("mlp.c_fc.weight") else None


def their_weights(config: GPTConfig, weights: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Our weights under their names, cut into their parts."""
    outside = {ours: theirs for theirs, ours in _OUTSIDE.items()}
    for ours, array in weights.items():
        if ours in outside:
            yield outside[ours], array
        elif ours == "lm_head.weight":
            if not config.tied_head:
                yield ours, array
        else:
            _, block, name = ours.removesuffix(".weight").split(".", 2)
            sizes = part_sizes(config, ours)
            parts = np.split(array, np.cumsum(sizes)[:-1]) if sizes else [array]
            for theirs, part in zip(_IN_BLOCK[name], parts, strict=True):
                yield f"model.layers.{block}.{theirs}.weight", part
