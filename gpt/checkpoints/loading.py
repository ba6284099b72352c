"""A trained model from whichever kind of folder it is in: ours, one of Hugging Face's, or LoRA's corrections to another."""

from __future__ import annotations

import os
from pathlib import Path

from data.paths import expand_path
from data.tokenizer import Tokenizer, load_tokenizer
from gpt.checkpoints.hugging_face import TOKENIZER, is_pretrained, load_pretrained
from gpt.checkpoints.model_folder import CheckpointError, load_model
from gpt.config import GPTConfig
from gpt.finetuning import lora
from gpt.model import LanguageModel
from tensorlite.backend import Device


def open_model(path: str | os.PathLike[str], device: Device | str = "numpy") -> tuple[LanguageModel, Tokenizer, GPTConfig]:
    """The model and tokenizer in ``path``, whichever kind of folder it is: ours, transformers', or one with LoRA's corrections alone.

    Corrections are merged into the model that they belong to.

    Raises:
        CheckpointError, DataError: if it cannot be used; the message says why.
        DeviceUnavailableError: if there is no such device.
    """
    adapters: list[Path] = []
    while base := lora.base_of(path):
        if expand_path(path).resolve() in adapters:
            raise CheckpointError(f"the adapter in {path} belongs, by way of others, to itself: there is no model to open.")
        adapters.append(expand_path(path).resolve())
        path = base
    model, tokenizer, config = _open_whole(path, device)
    for folder in reversed(adapters):
        lora.load_adapter(folder, model)
        model = lora.merged(model).eval()
    return model, tokenizer, config


def _open_whole(path: str | os.PathLike[str], device: Device | str) -> tuple[LanguageModel, Tokenizer, GPTConfig]:
    if not is_pretrained(path):
        return load_model(path, device)
    folder = expand_path(path)
    if not (folder / TOKENIZER).exists():
        raise CheckpointError(f"{folder} has no {TOKENIZER}, so its model can read no text; save one there.")
    tokenizer = load_tokenizer(folder / TOKENIZER)
    model = load_pretrained(folder, device=device)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{folder} does not fit together: its tokenizer has {tokenizer.vocab_size:,} ids, "
            f"but its model knows {model.config.vocab_size:,}."
        )
    return model, tokenizer, model.config
