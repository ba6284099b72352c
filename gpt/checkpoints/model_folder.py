"""A trained model in a folder: written by training, read by every program that uses a model.

    runs/<name>/
        model.safetensors   the weights; its metadata holds the model's config and the tokenizer
        config.json         for people: the settings of model and training, and the versions
        tokenizer.json      for people and other programs: the tokenizer

`load_model_folder` reads model.safetensors and nothing else. That one file holds all that is needed to write text. It is replaced in one
step, so the weights cannot meet the tokenizer or the config of another run. It carries a checksum of its contents
(`gpt.checkpoints.weights`). The format holds numbers and text but no code: a checkpoint from a stranger may be wrong, but not dangerous.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from threadpoolctl import threadpool_info

import tensorlite as tl
from data.files import explain, write_atomically
from data.paths import expand_path
from data.tokenizer import Tokenizer, tokenizer_from_dict
from gpt.checkpoints.weights import (
    CheckpointError,
    WeightsError,
    assign_weights,
    checksum_differs,
    describe_mismatch,
    open_weights,
    require_shapes,
    with_checksum,
)
from gpt.config import GPTConfig
from gpt.model import LanguageModel, build_model_for
from tensorlite.backend import Device
from tensorlite.op import kernel_mode

__all__ = ["load_model_folder", "save_model"]

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
METADATA = "gpt"  # our entry in the metadata of model.safetensors


def save_model(folder: str | os.PathLike[str], model: LanguageModel, tokenizer: Tokenizer, training: Any = None, **extra: Any) -> Path:
    """Write ``model`` and all that is needed to use it into ``folder``, which is made if needed; return the folder.

    Args:
        training: the training config, a dataclass or a mapping; for the record.
        extra: further entries for config.json, such as the step or the loss.

    Raises:
        CheckpointError: if the folder cannot be written to. Each file that was there is then still complete.
    """
    folder = Path(folder)
    config = dataclasses.asdict(model.config)
    record = {"model": config, "training": _as_dict(training), **extra, "tokenizer_hash": tokenizer.hash, "versions": versions()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, model_bytes(model, tokenizer))
        write_atomically(folder / CONFIG, json.dumps(record, indent=2, default=str) + "\n")
        write_atomically(folder / TOKENIZER, json.dumps(tokenizer.to_dict()) + "\n")
    except OSError as error:
        raise CheckpointError(f"the checkpoint cannot be saved: {explain(error, folder)}") from error
    return folder


def load_model_folder(path: str | os.PathLike[str], device: Device | str = "numpy") -> tuple[LanguageModel, Tokenizer, GPTConfig]:
    """The model in ``path``, a folder that `save_model` wrote or its safetensors file alone, in eval mode.

    Raises:
        CheckpointError: if there is none, if it is damaged, or if its parts do not fit together.
        DeviceUnavailableError: if there is no such device.
    """
    file = _find(expand_path(path))
    stored = open_weights(file)
    metadata, config, tokenizer = _read_metadata(stored.metadata, file)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{file} does not fit together: its tokenizer has {tokenizer.vocab_size:,} ids, but its model knows {config.vocab_size:,}."
        )
    try:
        require_shapes(config, stored.entries)  # before a model of the size that the config asks for is built
        weights = stored.read_all()
    except WeightsError as error:
        raise CheckpointError(f"the weights in {file} {error}.") from error
    model = build_model_for(config, weights)
    load_weights(model, dict(weights), file, assign=True)
    if checksum_differs(metadata, weights):
        raise CheckpointError(f"{file} is damaged: its checksum is not that of its contents; use a copy, or train again.")
    return model.to(device=device).eval(), tokenizer, config


def model_bytes(model: LanguageModel, tokenizer: Tokenizer) -> bytes:
    """The content of model.safetensors; the same model gives the same bytes."""
    # One entry instead of three: safetensors writes the entries of the metadata in a random order.
    metadata = {"config": dataclasses.asdict(model.config), "tokenizer": tokenizer.to_dict(), "versions": versions()}
    weights = _unique_weights(model)
    return safetensors.numpy.save(weights, {METADATA: json.dumps(with_checksum(metadata, weights))})


def load_weights(model: LanguageModel, weights: dict[str, np.ndarray], file: str | os.PathLike[str], assign: bool = False) -> None:
    """Copy ``weights`` into ``model``, after checking that every weight has exactly one place.

    Args:
        assign: as `assign_weights` does, instead of copying.

    Raises:
        CheckpointError: if some are missing, too many, or of another shape.
    """
    own = model.state_dict()
    first_name: dict[int, str] = {}
    for name, tensor in own.items():  # a shared weight is stored under the first of its names
        stored_as = first_name.setdefault(id(tensor.array), name)
        if stored_as in weights:
            weights.setdefault(name, weights[stored_as])
    missing = [name for name in own if name not in weights]
    unknown = [name for name in weights if name not in own]
    misshapen = [
        f"{name} is {weights[name].dtype} {weights[name].shape} and should be {tensor.dtype} {tensor.shape}"
        for name, tensor in own.items()
        if name in weights and (weights[name].shape != tensor.shape or weights[name].dtype.kind != np.dtype(tensor.dtype).kind)
    ]
    if problems := describe_mismatch(missing, unknown, misshapen):
        raise CheckpointError(f"the weights in {file} do not fit its config: {problems}.")
    if assign:
        assign_weights(model, weights)
    else:
        model.load_state_dict(weights)


def versions() -> dict[str, str]:
    """The versions of everything that the numbers may depend on."""
    return {"tensorlite": tl.__version__, "numpy": np.__version__, "python": platform.python_version(), "platform": platform.platform()}


def arithmetic() -> dict[str, str]:
    """What the last bits of a number depend on besides `versions`, and what may change between two starts of a program."""
    return {"BLAS": _blas(), "TENSORLITE_KERNELS": kernel_mode()}


@functools.cache
def _blas() -> str:
    """NumPy's library for matrix products. Each library, version and kernel adds in an order of its own."""
    found = next((library for library in threadpool_info() if library["user_api"] == "blas"), None)
    return " ".join(str(found[name]) for name in ("internal_api", "version", "architecture") if found.get(name)) if found else "not known"


# --- writing ------------------------------------------------------------------------------------------


def _unique_weights(model: LanguageModel) -> dict[str, np.ndarray]:
    """The weights by name. A weight with two names (a tied head) is stored once, under the first."""
    weights = {}
    stored = set()
    for name, tensor in model.state_dict().items():
        if id(tensor.array) not in stored:
            stored.add(id(tensor.array))
            # safetensors writes the memory as it lies: for a transposed array that is the wrong order, without a warning.
            weights[name] = np.asarray(tensor.numpy(), order="C")
    return weights


def _as_dict(settings: Any) -> Any:
    return dataclasses.asdict(settings) if dataclasses.is_dataclass(settings) and not isinstance(settings, type) else settings


# --- reading ------------------------------------------------------------------------------------------


def _find(path: Path) -> Path:
    """The file of weights that ``path`` means."""
    try:
        if path.is_dir():
            return _find_in_folder(path)
        if path.exists():
            return path
        siblings = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    nearest = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    if nearest:
        raise CheckpointError(f"there is no checkpoint {path}; did you mean {path.parent / nearest[0]}?")
    runs = [name for name in siblings if (path.parent / name / WEIGHTS).exists()]
    advice = f"{path.parent} has {', '.join(runs[:5])}" if runs else "train a model first: python -m gpt.train"
    raise CheckpointError(f"there is no checkpoint {path}; {advice}.")


def _find_in_folder(folder: Path) -> Path:
    if (folder / WEIGHTS).exists():
        return folder / WEIGHTS
    runs = sorted(entry.name for entry in folder.iterdir() if (entry / WEIGHTS).exists() or entry.suffix == ".gguf")
    advice = f"; did you mean {folder / runs[0]}?" if runs else ": its training has not saved any weights yet, or this is no run's folder."
    raise CheckpointError(f"{folder} has no {WEIGHTS}{advice}")


def _read_metadata(metadata: Mapping[str, str], file: Path) -> tuple[dict[str, Any], GPTConfig, Tokenizer]:
    """Our entry in the metadata of a file, and the config and the tokenizer in it."""
    if METADATA not in metadata:
        raise CheckpointError(f"{file} holds weights but no config and tokenizer: it was not written by python -m gpt.train.")
    try:
        ours = json.loads(metadata[METADATA])
        return ours, GPTConfig(**ours["config"]), tokenizer_from_dict(ours["tokenizer"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise CheckpointError(f"the config or tokenizer in {file} is not one that this version knows ({reason}).") from error
