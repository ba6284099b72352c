"""LoRA's corrections in the files of Hugging Face's library PEFT.

    adapter_config.json         rank, alpha, the layers, and the model that they belong to
    adapter_model.safetensors   base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight (r, in), ….lora_B.weight (out, r)

GPT-2's layers are the same there. Of Llama's, ours are several of theirs, one below the other: W = [W_q; W_k; W_v]. A correction of ours,
s · B · A, has one A for all rows, so written it is three of theirs with the same A, each with its rows of B: the same function, exactly.
Theirs may have an A each, or none for some part. So what is read is added to the rows of the weight that it corrects, and not kept apart.

Nothing of the format says which weights were corrected. Only the names and shapes can be compared with the model's.

Source: https://huggingface.co/docs/peft, "Checkpoint format".
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from data.files import write_atomically
from data.paths import expand_path
from gpt.checkpoints import llama_layout
from gpt.checkpoints.gguf_model import SMOLLM2
from gpt.checkpoints.hugging_face import PREFIX
from gpt.checkpoints.weights import WeightsError, WeightsFile, shorten
from gpt.config import GPTConfig, require_type
from gpt.finetuning.lora import MAX_ALPHA, LoraError, lora_layers
from gpt.model import LanguageModel
from tensorlite.backend import device_of

__all__ = ["base_of_peft_adapter", "has_peft_form", "is_peft_adapter", "merge_peft_adapter", "save_peft_adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BEFORE = "base_model.model."
# Settings that change what the files mean, and the values that are supported.
_FIXED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
}


def is_peft_adapter(folder: str | os.PathLike[str]) -> bool:
    """Whether ``folder`` has corrections of PEFT's format."""
    return (expand_path(folder) / CONFIG).is_file()


def has_peft_form(config: GPTConfig) -> bool:
    """Whether transformers has such models, so that PEFT can correct them."""
    return config.model != "bigram" and config.positions == "learned" and not config.head_bias


def save_peft_adapter(folder: str | os.PathLike[str], model: LanguageModel, base: str) -> None:
    """Write the corrections of ``model`` so that ``PeftModel.from_pretrained(model of transformers, folder)`` opens them.

    Args:
        base: where the model is that they belong to.

    Raises:
        OSError: if they cannot be written.
    """
    folder, layers, config = Path(folder), lora_layers(model), model.config
    weights: dict[str, np.ndarray] = {}
    targets = []
    for name, layer in layers:
        a, b = (np.asarray(tensor.detach().numpy(), order="C") for tensor in (layer.lora_a, layer.lora_b))
        for theirs, part in _their_layers(config, name, b):
            targets.append(theirs)
            weights[f"{_BEFORE}{theirs}.lora_A.weight"] = a
            weights[f"{_BEFORE}{theirs}.lora_B.weight"] = np.array(part, order="C")
    record = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": layers[0][1].rank,
        "lora_alpha": layers[0][1].alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(targets),
        "fan_in_fan_out": config.model == "gpt",  # GPT-2's layers are stored (in, out) there
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, safetensors.numpy.save(weights, {"format": "pt"}))
    write_atomically(folder / CONFIG, json.dumps(record, indent=2) + "\n")


def base_of_peft_adapter(folder: str | os.PathLike[str]) -> str:
    """Where the model is that the corrections in ``folder`` belong to.

    Raises:
        LoraError: if that is not on this machine, or not said.
    """
    base = _read_config(expand_path(folder)).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise LoraError(f"the adapter in {folder} does not say which model it belongs to: base_model_name_or_path is {base!r}.")
    if base != SMOLLM2 and not expand_path(base).exists():
        raise LoraError(
            f"the adapter in {folder} belongs to {base}, which is not on this machine: "
            f"write the path of that model into base_model_name_or_path of its {CONFIG}."
        )
    return base


def merge_peft_adapter(folder: str | os.PathLike[str], model: LanguageModel) -> None:
    """Add the corrections in ``folder`` to the weights of ``model``.

    Raises:
        LoraError: if they are damaged, of another kind, or for another model.
    """
    folder = expand_path(folder)
    record = _read_config(folder)
    for name, known in _FIXED.items():
        if record.get(name, known[0]) not in known:
            raise LoraError(f"the adapter in {folder} is of a kind that is not supported: {name} is {record[name]!r}.")
    try:
        require_type(float, "lora_alpha", record.get("lora_alpha"))
        require_type(int, "r", record.get("r"))
        stored = WeightsFile(folder / WEIGHTS)
        pairs = _pairs(stored)
        corrections = [(*_place(model, name), name, parts) for name, parts in pairs.items()]
        for weight, _, name, _ in corrections:
            if name == "lm_head" and weight is model.state_dict()["wte.weight"].array:
                raise WeightsError("correct lm_head, which shares its weight with the embedding")
        alpha = float(record["lora_alpha"])
        if not 0 < alpha <= MAX_ALPHA:
            raise WeightsError(f"have a lora_alpha of {alpha:g}, which must be above 0 and at most {MAX_ALPHA:g}")
        for weight, rows, name, (key_a, key_b) in corrections:
            shape_a, shape_b, (out, inside) = stored.entries[key_a].shape, stored.entries[key_b].shape, weight[rows].shape
            if len(shape_a) != 2 or shape_a[0] != record["r"] or shape_a[1] != inside or shape_b != (out, shape_a[0]):
                raise WeightsError(f"do not fit the model: {name} has A {shape_a} and B {shape_b}, for a weight of {(out, inside)}")
        for weight, rows, _, (key_a, key_b) in corrections:
            weight[rows] += weight.dtype.type(alpha / record["r"]) * _on_device(weight, stored.read(key_b)).dot(
                _on_device(weight, stored.read(key_a))
            )
    except FileNotFoundError:
        raise LoraError(f"{folder} has no adapter: there is no {WEIGHTS}.") from None
    except WeightsError as error:
        raise LoraError(f"the corrections in {folder} {error}.") from error
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise LoraError(f"the adapter in {folder} cannot be read ({error}).") from error


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoraError(f"the adapter in {folder} cannot be read ({error}).") from error
    if not isinstance(record, dict):
        raise LoraError(f"the adapter in {folder} cannot be read ({CONFIG} is no JSON object).")
    return record


def _pairs(stored: WeightsFile) -> dict[str, tuple[str, str]]:
    """The names of A and of B for each of their layers."""
    found: dict[str, dict[str, str]] = {}
    for key in stored.entries:
        layer, _, part = key.removeprefix(_BEFORE).removesuffix(".weight").rpartition(".")
        if not key.startswith(_BEFORE) or not key.endswith(".weight") or part not in ("lora_A", "lora_B"):
            raise WeightsError(f"cannot be used: {key} is neither a lora_A nor a lora_B")
        found.setdefault(layer, {})[part] = key
    if incomplete := [layer for layer, parts in found.items() if len(parts) < 2]:
        raise WeightsError(f"are not complete: of {shorten(incomplete)} there is only one of lora_A and lora_B")
    if not found:
        raise WeightsError("are none: the file is empty")
    return {layer: (parts["lora_A"], parts["lora_B"]) for layer, parts in found.items()}


def _place(model: LanguageModel, layer: str) -> tuple[Any, slice]:
    """The weight of ours that one of their layers is in, and its rows there."""
    if model.config.model == "llama":
        name, number, _ = llama_layout.our_place(f"{layer}.weight")
        sizes = llama_layout.part_sizes(model.config, name)
    else:
        name, number, sizes = f"{layer.removeprefix(PREFIX)}.weight", 0, None
    tensor = model.state_dict().get(name)
    if tensor is None or tensor.ndim != 2 or name in ("wte.weight", "wpe.weight"):
        raise WeightsError(f"do not fit the model: it has no linear layer {layer}")
    begin = sum(sizes[:number]) if sizes else 0
    return tensor.array, slice(begin, begin + sizes[number] if sizes else len(tensor.array))


def _their_layers(config: GPTConfig, name: str, b: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Their names of our layer, and the rows of B of each."""
    if name == "lm_head":
        return [(name, b)]
    if config.model == "gpt":
        return [(PREFIX + name, b)]
    return [(theirs.removesuffix(".weight"), rows) for theirs, rows in llama_layout.their_weights(config, {f"{name}.weight": b})]


def _on_device(weight: Any, array: np.ndarray) -> Any:
    return device_of(weight).asarray(array.astype(weight.dtype, copy=False))
