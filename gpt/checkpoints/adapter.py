"""LoRA's corrections in files of their own, some kilobytes in the place of a whole model.

    runs/<name>/
        adapter.safetensors     A and B of every corrected layer
        adapter.json            rank, alpha, the layers, the model that they belong to, and a checksum

A folder with these two files and nothing else is loaded as the model that the corrections belong to, with the corrections merged
(`gpt.checkpoints.loading`). The model is named by where it was found and by a fingerprint of its weights: on another one the corrections
would mean nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

import tensorlite as tl
from data.files import write_atomically
from data.paths import expand_path
from gpt.checkpoints.peft_adapter import base_of_peft_adapter, is_peft_adapter
from gpt.checkpoints.weights import CHECKSUM, WeightsFile, checksum_differs, with_checksum
from gpt.config import require_type
from gpt.finetuning.lora import LoraError, add_lora, lora_layers
from gpt.model import LanguageModel
from tensorlite import Tensor

__all__ = ["load_adapter", "save_adapter"]

WEIGHTS, CONFIG = "adapter.safetensors", "adapter.json"


def save_adapter(folder: str | os.PathLike[str], model: LanguageModel, **extra: Any) -> None:
    """Write the corrections of ``model`` alone.

    Args:
        extra: further entries for adapter.json.

    Raises:
        OSError: if they cannot be written.
    """
    folder, layers = Path(folder), lora_layers(model)
    weights = {f"{name}.{part}": _to_numpy(getattr(layer, part)) for name, layer in layers for part in ("lora_a", "lora_b")}
    rank, alpha = layers[0][1].rank, layers[0][1].alpha
    record = {"rank": rank, "alpha": alpha, "targets": [name for name, _ in layers], "base_fingerprint": fingerprint(model)}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, safetensors.numpy.save(weights))
    write_atomically(folder / CONFIG, json.dumps({**with_checksum(record, weights), **extra}, indent=2) + "\n")


def load_adapter(folder: str | os.PathLike[str], model: LanguageModel) -> None:
    """Add the corrections in ``folder`` to ``model``, which becomes the model that was finetuned.

    Raises:
        LoraError: if there are none, if they are damaged, or if they were trained on another model.
    """
    folder = expand_path(folder)
    try:
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = WeightsFile(folder / WEIGHTS).read_all()
        targets, rank, alpha, base = (record[name] for name in ("targets", "rank", "alpha", "base_fingerprint"))
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise ValueError(f"its targets must be names, got {targets!r}")
        require_type(int, "the rank", rank)
        require_type(float, "alpha", alpha)
    except FileNotFoundError as error:
        raise LoraError(f"{folder} has no adapter: there is no {Path(error.filename or WEIGHTS).name}.") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, safetensors.SafetensorError) as error:
        raise LoraError(f"the adapter in {folder} cannot be read ({error}).") from error
    checksum = {CHECKSUM: record[CHECKSUM]} if CHECKSUM in record else {}
    if checksum_differs({"rank": rank, "alpha": alpha, "targets": targets, "base_fingerprint": base, **checksum}, weights):
        raise LoraError(f"the adapter in {folder} is damaged: its checksum is not that of its contents.")
    if base != fingerprint(model):
        raise LoraError(f"the adapter in {folder} was trained on another model: it corrects weights that this one does not have.")
    with tl.random.use_generator(tl.random.make_generator(0)):  # the initial values are overwritten
        try:
            add_lora(model, targets, rank, alpha)
        except ValueError as error:
            raise LoraError(f"the adapter in {folder} cannot be used: {error}") from error
    own = {f"{name}.{part}": getattr(layer, part) for name, layer in lora_layers(model) for part in ("lora_a", "lora_b")}
    if weights.keys() != own.keys() or any(weights[name].shape != tensor.shape for name, tensor in own.items()):
        raise LoraError(f"the weights of the adapter in {folder} do not fit what its {CONFIG} says.")
    for name, tensor in own.items():
        tensor.array[...] = tl.tensor(weights[name], device=tensor.device).array


def base_of_adapter(folder: str | os.PathLike[str]) -> str | None:
    """Where the model is that the corrections in ``folder`` belong to; None if the folder is not one with corrections alone.

    A folder that `gpt.finetune` has written also holds the merged model, and needs no other.

    Raises:
        LoraError: for corrections that do not say which model they belong to.
    """
    folder = expand_path(folder)
    if any(folder.glob("model*.safetensors")):
        return None
    if not (folder / CONFIG).exists():
        if is_peft_adapter(folder):
            return base_of_peft_adapter(folder)
        if (folder / WEIGHTS).exists():
            raise LoraError(f"{folder} has an {WEIGHTS} but no {CONFIG}, which names the model that it corrects: copy both files.")
        return None
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["finetuned_from"]
        require_type(str, "the model that it belongs to", base)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise LoraError(f"the adapter in {folder} cannot be read ({error}).") from error
    return base


def fingerprint(model: LanguageModel) -> str:
    """SHA-256 of a model's names and weights, without corrections."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.endswith((".lora_a", ".lora_b")):
            digest.update(f"{name.replace('.linear.', '.')} {tensor.dtype} {tensor.shape}\n".encode())
            digest.update(_to_numpy(tensor).tobytes())
    return digest.hexdigest()


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().numpy(), order="C")
