"""The wider world's weights: folders as Hugging Face's transformers writes them for GPT-2.

    config.json                     the shape, under other names than ours
    model.safetensors               the weights; or several files, and
    model.safetensors.index.json      which weight is in which of them
    tokenizer.json                  optional

Three things differ from `gpt.model`. All names may begin with ``transformer.``. The layers in the blocks are transposed: theirs is a
"Conv1D", (in, out). And a head that is tied to the embedding is not stored at all. Nothing here needs torch or transformers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from data.files import explain, write_atomically
from data.paths import expand_path
from data.tokenizer import Tokenizer
from gpt.checkpoints.model_folder import CheckpointError, open_weights
from gpt.checkpoints.weights import Entry, WeightsError, WeightsFile, named, require_fit
from gpt.config import GPTConfig
from gpt.model import GPT, LanguageModel, build_model
from tensorlite import random
from tensorlite.backend import Device

CONFIG, WEIGHTS, INDEX, TOKENIZER = "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
PREFIX = "transformer."

# Their name of an activation -> ours; of several, the first is what we write.
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python": "gelu"}
_REQUIRED = {"vocab_size": "vocab_size", "block_size": "n_positions", "n_embd": "n_embd", "n_layer": "n_layer", "n_head": "n_head"}
# What would change the arithmetic, and the only value for which ours is the same; it is also the value when nothing is said.
_FIXED = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "is_decoder": None,
    "quantization_config": None,
}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_TRANSPOSED = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # older files store the causal mask


def is_pretrained(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a folder of transformers' making: its config.json names a model_type."""
    try:
        return "model_type" in json.loads((expand_path(path) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def load_pretrained(folder: str | os.PathLike[str], dropout: float | None = None, device: Device | str = "numpy") -> GPT:
    """The model in a folder of transformers' making, in float32 (float64 if that is how it is stored) and in eval mode.

    Args:
        dropout: instead of that in the config.

    Raises:
        CheckpointError: for a model that is no GPT-2 or one of a kind that is not supported, naming the field of its config; and for
            weights that are missing, too many, or of another shape.
    """
    folder = expand_path(folder)
    config = _our_config(_json(folder / CONFIG), folder / CONFIG, dropout)
    try:
        places = _places(folder, config)
        require_fit(config, {name: place.entry for name, place in places.items()})  # before there is a model of the size that it asks for
        weights = {name: place.read() for name, place in places.items()}
    except WeightsError as error:
        raise CheckpointError(f"the weights in {folder} {error}.") from error
    with random.use_generator(random.make_generator(0)):  # the first weights are thrown away, and cost the caller's stream nothing
        model = build_model(config)
    assert isinstance(model, GPT)
    if any(array.dtype == np.float64 for array in weights.values()):
        model.to(dtype=np.float64)
    model.load_state_dict(weights, strict=False)  # a tied head has no weight of its own
    return model.to(device=device).eval()


def save_pretrained(model: LanguageModel, folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> Path:
    """Write ``model``, and its tokenizer if given, so that transformers' ``GPT2LMHeadModel.from_pretrained(folder)`` opens it.

    Where the model has no biases, zeros are written: the same function.

    Raises:
        CheckpointError: for a model that GPT-2's format has no place for, or a folder that cannot be written to.
    """
    config, folder = model.config, Path(folder)
    problems = {
        "model is bigram": config.model != "gpt",
        "positions are sinusoidal": config.positions != "learned",
        "head_bias is on": config.head_bias,
    }
    if any(problems.values()):
        raise CheckpointError(f"this model cannot be written as a GPT-2: {', '.join(name for name, is_so in problems.items() if is_so)}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: np.array(array, order="C") for name, array in _their_names(model)}  # safetensors needs the memory in order
        write_atomically(folder / WEIGHTS, safetensors.numpy.save(weights, {"format": "pt"}))
        write_atomically(folder / CONFIG, json.dumps(_their_config(config, tokenizer, weights), indent=2, sort_keys=True) + "\n")
        if tokenizer is not None:
            write_atomically(folder / TOKENIZER, json.dumps(tokenizer.to_dict()) + "\n")
    except OSError as error:
        raise CheckpointError(f"the model cannot be saved: {explain(error, folder)}") from error
    return folder


# --- configs ------------------------------------------------------------------------------------------


def _our_config(theirs: Any, file: Path, dropout: float | None) -> GPTConfig:
    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"{file} describes a model that is not supported: {what}.")

    if not isinstance(theirs, dict):
        raise CheckpointError(f"{file} is not a config: it should be a JSON object.")
    theirs = {name: value for name, value in theirs.items() if value is not None}  # null is what transformers writes for "not said"
    if theirs.get("model_type") != "gpt2":
        raise refuse(f"model_type is {theirs.get('model_type')!r}, and only 'gpt2' is known")
    for name, value in _FIXED.items():
        if theirs.get(name, value) not in ((value, False) if value is None else (value,)):
            raise refuse(f"{name} is {theirs[name]!r}, where only {json.dumps(value)} is")
    activation = theirs.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise refuse(f"activation_function is {activation!r}, and known are {', '.join(_ACTIVATIONS)}")
    theirs = {"n_positions": theirs.get("n_ctx"), **theirs}
    for name in _REQUIRED.values():
        if not isinstance(theirs.get(name), int) or isinstance(theirs[name], bool) or theirs[name] < 1:
            raise refuse(f"{name} should be a positive whole number, got {theirs.get(name)!r}")
    if theirs.get("n_inner") not in (None, 4 * theirs["n_embd"]):
        raise refuse(f"n_inner is {theirs['n_inner']!r}, and should be 4 times n_embd")
    if dropout is None:
        dropouts = [theirs.get(name, 0.1) for name in _DROPOUTS]
        if not all(isinstance(value, int | float) for value in dropouts):
            raise refuse(f"{', '.join(_DROPOUTS)} should be numbers, got {', '.join(map(repr, dropouts))}")
        if len(set(dropouts)) > 1:
            raise refuse(f"{', '.join(_DROPOUTS)} differ ({', '.join(map(str, sorted(set(dropouts))))}), where one dropout is for all")
        dropout = dropouts[0]
    try:
        return GPTConfig(
            **{ours: theirs[name] for ours, name in _REQUIRED.items()},
            dropout=dropout,
            bias=True,
            activation=_ACTIVATIONS[activation],
            tied_head=theirs.get("tie_word_embeddings", True) is not False,
        )
    except (ValueError, TypeError) as error:
        raise refuse(str(error).rstrip(".")) from error


def _their_config(config: GPTConfig, tokenizer: Tokenizer | None, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    end = tokenizer.end_of_text if tokenizer is not None else None
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{name: getattr(config, ours) for ours, name in _REQUIRED.items()},
        "n_inner": None,
        "activation_function": next(name for name, ours in _ACTIVATIONS.items() if ours == config.activation),
        **dict.fromkeys(_DROPOUTS, config.dropout),
        "layer_norm_epsilon": _FIXED["layer_norm_epsilon"],
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": end,  # GPT-2 begins and ends texts with the same one
        "eos_token_id": end,
        "torch_dtype": str(next(iter(weights.values())).dtype),
    }


# --- weights ------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a weight is, under its own name, and whether it lies there as (in, out)."""

    file: WeightsFile
    name: str
    transposed: bool

    @property
    def entry(self) -> Entry:
        """As it would be in a file of ours."""
        entry = self.file.entries[self.name]
        return entry._replace(shape=entry.shape[::-1]) if self.transposed else entry

    def read(self) -> np.ndarray:
        array = self.file.read(self.name)
        return array.T if self.transposed else array


def _places(folder: Path, config: GPTConfig) -> dict[str, _Place]:
    """Every weight that matters, by our name."""
    places: dict[str, _Place] = {}
    for file in _stored(folder):
        for theirs in file.entries:
            name = theirs.removeprefix(PREFIX)
            if _MASKS.fullmatch(name) or (name == "lm_head.weight" and config.tied_head):
                continue
            if name in places:
                raise WeightsError(f"cannot be used: {name} is there twice")
            places[name] = _Place(file, theirs, bool(_TRANSPOSED.fullmatch(name)))
    return places


def _their_names(model: LanguageModel) -> Iterator[tuple[str, np.ndarray]]:
    state = model.state_dict()
    for name, tensor in state.items():
        if name == "lm_head.weight":
            if not model.config.tied_head:
                yield name, tensor.numpy()
            continue
        array = tensor.numpy()
        yield PREFIX + name, array.T if _TRANSPOSED.fullmatch(name) else array
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer.startswith(("h.", "ln_f")) and f"{layer}.bias" not in state:
            yield f"{PREFIX}{layer}.bias", np.zeros(len(array), array.dtype)


def _stored(folder: Path) -> list[WeightsFile]:
    """The one file of weights, or all that the index names."""
    remedy = "get it anew"
    if (folder / WEIGHTS).exists():
        return [open_weights(folder / WEIGHTS, remedy)]
    if not (folder / INDEX).exists():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        instead = (
            f", only {pickles[0]}: a pickle, which can run code and is therefore not read; convert it to safetensors" if pickles else ""
        )
        raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}{instead}.")
    index = _json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{folder / INDEX} is not an index: it has no weight_map from names to files.")
    files = []
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.isprintable():
            raise CheckpointError(f"{folder / INDEX} names a file outside of its folder, {name!r}; it is not read.")
        file = open_weights(folder / name, remedy)
        missing = [weight for weight, place in places.items() if place == name and weight not in file.entries]
        if missing:
            raise CheckpointError(f"{folder / name} should have {named(missing)}, says {INDEX}, and has not.")
        files.append(file)
    return files


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"there is no reading {file}: {(error.strerror or str(error)).lower()}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: it does not hold JSON ({error}).") from error
