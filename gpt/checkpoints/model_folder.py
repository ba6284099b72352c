"""What a training run leaves behind, and how to get it back.

    runs/<name>/
        model.safetensors   the weights; its metadata holds the model's config and the tokenizer
        config.json         for people: the settings of model and training, and the versions
        tokenizer.json      for people and other programs: the tokenizer

`load_model` reads model.safetensors and nothing else. All that is needed to write text sits in one file, which is replaced
in one step, so weights can never meet the tokenizer or the config of another run, and which has a checksum of all that
(`gpt.checkpoints.weights`). The format can hold numbers and text but no code: a checkpoint from a stranger may be wrong, not dangerous.
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
import safetensors
import safetensors.numpy
from threadpoolctl import threadpool_info

import tensorlite as tl
from data.files import explain, write_atomically
from data.paths import expand_path
from data.tokenizer import Tokenizer, tokenizer_from_dict
from gpt.checkpoints.weights import WeightsError, WeightsFile, is_broken, named, require_fit, sealed
from gpt.config import GPTConfig
from gpt.errors import UserError
from gpt.model import LanguageModel, build_model
from tensorlite import random
from tensorlite.backend import Device
from tensorlite.op import kernel_mode

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
METADATA = "gpt"  # our entry in the metadata of model.safetensors


class CheckpointError(UserError):
    """A checkpoint that cannot be written, or cannot be read; the message says why, and what to do."""


def save_model(folder: str | os.PathLike[str], model: LanguageModel, tokenizer: Tokenizer, training: Any = None, **facts: Any) -> Path:
    """Write ``model`` and all that is needed to use it into ``folder``, which is made if need be; returns the folder.

    Args:
        training: the training config, a dataclass or a mapping; for the record.
        facts: anything else for config.json, such as the step or the loss.

    Raises:
        CheckpointError: if the folder cannot be written to. Each file that was there is then still whole.
    """
    folder = Path(folder)
    config = dataclasses.asdict(model.config)
    record = {"model": config, "training": _as_dict(training), **facts, "tokenizer_hash": tokenizer.hash, "versions": versions()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, model_bytes(model, tokenizer))
        write_atomically(folder / CONFIG, json.dumps(record, indent=2, default=str) + "\n")
        write_atomically(folder / TOKENIZER, json.dumps(tokenizer.to_dict()) + "\n")
    except OSError as error:
        raise CheckpointError(f"the checkpoint cannot be saved: {explain(error, folder)}") from error
    return folder


def load_model(path: str | os.PathLike[str], device: Device | str = "numpy") -> tuple[LanguageModel, Tokenizer, GPTConfig]:
    """The model in ``path``, a folder of `save_model` or the safetensors file alone, ready to write text (in eval mode).

    Raises:
        CheckpointError: if there is none, or it is damaged, or it does not fit together.
        DeviceUnavailableError: if there is no such device.
    """
    file = _find(expand_path(path))
    stored = open_weights(file)
    ours, config, tokenizer = _understood(stored.metadata, file)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{file} does not fit together: its tokenizer has {tokenizer.vocab_size:,} ids, but its model knows {config.vocab_size:,}."
        )
    try:
        require_fit(config, stored.entries)  # before there is a model of whatever size the config asks for
        weights = stored.read_all()
    except WeightsError as error:
        raise CheckpointError(f"the weights in {file} {error}.") from error
    with random.use_generator(random.make_generator(0)):  # the first weights are thrown away, and cost the caller's stream nothing
        model = build_model(config)
    if any(array.dtype == np.float64 for array in weights.values()):
        model.to(dtype=np.float64)
    fill_model(model, dict(weights), file)
    if is_broken(ours, weights):
        raise CheckpointError(f"{file} is damaged: it does not hold what was written; use a copy, or train again.")
    return model.to(device=device).eval(), tokenizer, config


def model_bytes(model: LanguageModel, tokenizer: Tokenizer) -> bytes:
    """The content of model.safetensors; the same model gives the same bytes."""
    # One entry, not three: safetensors writes entries in a random order.
    ours = {"config": dataclasses.asdict(model.config), "tokenizer": tokenizer.to_dict(), "versions": versions()}
    weights = _weights(model)
    return safetensors.numpy.save(weights, {METADATA: json.dumps(sealed(ours, weights))})


def fill_model(model: LanguageModel, weights: dict[str, np.ndarray], file: str | os.PathLike[str]) -> None:
    """Copy the weights into the model, after checking that each has its place.

    Raises:
        CheckpointError: if some are missing, too many, or of another shape.
    """
    own = model.state_dict()
    first_name: dict[int, str] = {}
    for name, tensor in own.items():
        stored_as = first_name.setdefault(id(tensor.array), name)
        if stored_as in weights:
            weights.setdefault(name, weights[stored_as])
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    misshapen = [
        f"{name} is {weights[name].dtype} {weights[name].shape} and should be {tensor.dtype} {tensor.shape}"
        for name, tensor in own.items()
        if name in weights and (weights[name].shape != tensor.shape or weights[name].dtype.kind != np.dtype(tensor.dtype).kind)
    ]
    complaints = [f"{named(names)} {verb}" for names, verb in ((missing, "missing"), (unexpected, "too many")) if names]
    complaints += [named(misshapen)] if misshapen else []
    if complaints:
        raise CheckpointError(f"the weights in {file} do not fit its config: {'; '.join(complaints)}.")
    model.load_state_dict(weights)


def open_weights(file: Path, remedy: str = "use a copy, or train again") -> WeightsFile:
    """A file of weights, of which nothing but the header is read.

    Args:
        remedy: what to do if it is damaged.

    Raises:
        CheckpointError: if it is something else, or damaged.
    """
    try:
        if file.exists() and not file.is_file():  # who opens a pipe waits for ever
            raise CheckpointError(f"{file} is not a file, but a folder, a pipe or a device.")
        with open(file, "rb") as opened:
            start = opened.read(16)
        return WeightsFile(file)
    except OSError as error:
        raise CheckpointError(f"there is no reading {file}: {(error.strerror or str(error)).lower()}.") from error
    except WeightsError as error:
        raise CheckpointError(f"{file} {error}; {remedy}.") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{file} {_what_instead(start, file.stat().st_size, remedy)} ({error}).") from error


def is_pickle(start: bytes) -> bool:
    """Whether a file that starts so is a pickle, or one of torch's, which is an archive with a pickle in it."""
    return start[:1] == b"\x80" or start[:2] == b"PK"


def versions() -> dict[str, str]:
    """Of everything that the numbers may depend on."""
    return {"tensorlite": tl.__version__, "numpy": np.__version__, "python": platform.python_version(), "platform": platform.platform()}


@functools.cache
def _blas() -> str:
    """NumPy's matrix products: each library, version and kernel adds in an order of its own."""
    found = next((library for library in threadpool_info() if library["user_api"] == "blas"), None)
    return " ".join(str(found[name]) for name in ("internal_api", "version", "architecture") if found.get(name)) if found else "not known"


def arithmetic() -> dict[str, str]:
    """On what the last bits of a number depend besides `versions`, and what may change from one start of a program to the next."""
    return {"BLAS": _blas(), "TENSORLITE_KERNELS": kernel_mode()}


# --- writing ------------------------------------------------------------------------------------------


def _weights(model: LanguageModel) -> dict[str, np.ndarray]:
    """The weights by name. One with two names (a tied head) is stored once, under the first."""
    weights = {}
    stored = set()
    for name, tensor in model.state_dict().items():
        if id(tensor.array) not in stored:
            stored.add(id(tensor.array))
            # safetensors writes the memory as it lies: of a transposed array, the wrong numbers, and no warning.
            weights[name] = np.asarray(tensor.numpy(), order="C")
    return weights


def _as_dict(settings: Any) -> Any:
    return dataclasses.asdict(settings) if dataclasses.is_dataclass(settings) and not isinstance(settings, type) else settings


# --- reading ------------------------------------------------------------------------------------------


def _find(path: Path) -> Path:
    """The file of weights that ``path`` means."""
    try:
        if path.is_dir():
            return _in_folder(path)
        if path.exists():
            return path
        siblings = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"there is no reading {path}: {(error.strerror or str(error)).lower()}.") from error
    nearest = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    if nearest:
        raise CheckpointError(f"there is no checkpoint {path}; did you mean {path.parent / nearest[0]}?")
    runs = [name for name in siblings if (path.parent / name / WEIGHTS).exists()]
    there = f"{path.parent} has {', '.join(runs[:5])}" if runs else "train a model first: python -m gpt.train"
    raise CheckpointError(f"there is no checkpoint {path}; {there}.")


def _in_folder(folder: Path) -> Path:
    if (folder / WEIGHTS).exists():
        return folder / WEIGHTS
    runs = sorted(entry.name for entry in folder.iterdir() if (entry / WEIGHTS).exists())
    there = f"; did you mean {folder / runs[0]}?" if runs else ": its training has not saved any weights yet, or this is no run's folder."
    raise CheckpointError(f"{folder} has no {WEIGHTS}{there}")


def _what_instead(start: bytes, size: int, remedy: str) -> str:
    if not start:
        return f"is empty: it was not written to its end; {remedy}"
    if is_pickle(start):
        return "is a pickle or a torch file, which can run code when it is opened and is therefore not read; convert it to safetensors"
    if start[8:9] == b"{" and size < 8 + int.from_bytes(start[:8], "little"):
        return f"is cut short, within its header; {remedy}"
    if start[8:9] == b"{":
        return f"is damaged or cut short; {remedy}"
    return "is not a safetensors file; name a folder that python -m gpt.train or transformers has written"


def _understood(metadata: Mapping[str, str], file: Path) -> tuple[dict[str, Any], GPTConfig, Tokenizer]:
    """Our entry in the metadata, and the config and the tokenizer in it."""
    if METADATA not in metadata:
        raise CheckpointError(f"{file} holds weights but no config and tokenizer: it was not written by python -m gpt.train.")
    try:
        ours = json.loads(metadata[METADATA])
        return ours, GPTConfig(**ours["config"]), tokenizer_from_dict(ours["tokenizer"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"the config or tokenizer in {file} is not one that this version knows ({_said(error)}).") from error


def _said(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
