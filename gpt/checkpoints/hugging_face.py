"""Published weights of GPT-2 and of Llama's family: folders as Hugging Face's transformers writes them.

    config.json                     the shape, under other names than ours
    model.safetensors               the weights; or several files, and
    model.safetensors.index.json      which weight is in which of them
    tokenizer.json                  optional

For Llama and Qwen3, `gpt.checkpoints.llama_layout` has their names and settings. For GPT-2 they are here, and four things differ from
`gpt.model`. All names may begin with ``transformer.``. The layers in the blocks are transposed: transformers calls them "Conv1D" and stores
(in, out). A head that is tied to the embedding is not stored. The scores of attention may be scaled otherwise than by 1/√D: the rest of the
factor goes into the weights of the queries, because a score is a product with a query.

This page knows no model class: `GPT.from_pretrained` and `GPT.save_pretrained` use it. Neither torch nor transformers is needed.
"""

from __future__ import annotations

import json
import math
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
from gpt.checkpoints import llama_layout
from gpt.checkpoints.weights import CheckpointError, Entry, WeightsError, WeightsFile, open_weights, require_shapes, shorten
from gpt.config import GPTConfig

__all__ = ["is_pretrained", "read_pretrained", "write_pretrained"]

CONFIG, WEIGHTS, INDEX, TOKENIZER = "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
PREFIX = "transformer."

# Their name of an activation -> ours. Of several names for one activation, the first is written.
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python": "gelu"}
_REQUIRED = {"vocab_size": "vocab_size", "block_size": "n_positions", "n_embd": "n_embd", "n_layer": "n_layer", "n_head": "n_head"}
# Settings that would change the arithmetic, and the only value that is supported, which is also the default.
_FIXED = {
    "add_cross_attention": False,
    "is_decoder": None,
    "quantization_config": None,
}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_SCALES = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}  # and their defaults
_TRANSPOSED = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
# older files store the causal mask, or the frequencies of rotary positions
_NOT_WEIGHTS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def is_pretrained(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a folder of transformers: its config.json names a model_type."""
    try:
        return "model_type" in json.loads((expand_path(path) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read_pretrained(folder: str | os.PathLike[str], dropout: float | None = None) -> tuple[GPTConfig, dict[str, np.ndarray]]:
    """The config and the weights in a folder of transformers, under our names and in our layout. A tied head has no weight of its own.

    Args:
        dropout: replaces the dropout of the config.

    Raises:
        CheckpointError: for a model of another family, or one with a setting that is not supported, naming the setting; and for
            weights that are missing, too many, or of another shape.
    """
    folder = expand_path(folder)
    theirs = _read_json(folder / CONFIG)
    config = _our_config(theirs, folder / CONFIG, dropout)
    try:
        stored = _stored_weights(folder, config)
        require_shapes(config, {name: weight.entry for name, weight in stored.items()})  # before the weights are read
        weights = {name: weight.read() for name, weight in stored.items()}
    except WeightsError as error:
        raise CheckpointError(f"the weights in {folder} {error}.") from error
    if config.model == "gpt":
        _scale_queries(weights, config, theirs)
    return config, weights


def write_pretrained(
    folder: str | os.PathLike[str], config: GPTConfig, weights: Mapping[str, np.ndarray], tokenizer: Tokenizer | None = None
) -> Path:
    """Write weights, under our names, so that transformers' ``AutoModelForCausalLM.from_pretrained(folder)`` opens them; return the folder.

    Where a GPT has no biases, zeros are written: the function is the same.

    Raises:
        CheckpointError: for a model that no such format has a place for, or a folder that cannot be written to.
    """
    folder = Path(folder)
    obstacles = {
        "model is bigram": config.model == "bigram",
        "positions are sinusoidal": config.positions != "learned",
        "head_bias is on": config.head_bias,
    }
    if any(obstacles.values()):
        raise CheckpointError(f"this model cannot be written as a GPT-2: {', '.join(name for name, is_so in obstacles.items() if is_so)}.")
    translated = llama_layout.their_weights if config.model == "llama" else _their_weights
    try:
        folder.mkdir(parents=True, exist_ok=True)
        theirs = {name: np.array(array, order="C") for name, array in translated(config, weights)}  # safetensors needs C order
        write_atomically(folder / WEIGHTS, safetensors.numpy.save(theirs, {"format": "pt"}))
        write_atomically(folder / CONFIG, json.dumps(_their_config(config, tokenizer, theirs), indent=2, sort_keys=True) + "\n")
        if tokenizer is not None:
            write_atomically(folder / TOKENIZER, json.dumps(tokenizer.to_dict()) + "\n")
    except OSError as error:
        raise CheckpointError(f"the model cannot be saved: {explain(error, folder)}") from error
    return folder


# --- configs ------------------------------------------------------------------------------------------


def _our_config(theirs: Any, file: Path, dropout: float | None) -> GPTConfig:
    def unsupported(what: str) -> CheckpointError:
        return CheckpointError(f"{file} describes a model that is not supported: {what}.")

    if not isinstance(theirs, dict):
        raise CheckpointError(f"{file} is not a config: it should be a JSON object.")
    theirs = {name: value for name, value in theirs.items() if value is not None}  # transformers writes null for "not set"
    if theirs.get("model_type") in tuple(llama_layout.QK_NORM):  # a tuple: it may be anything, even a list
        return llama_layout.our_config(theirs, dropout, unsupported)
    if theirs.get("model_type") != "gpt2":
        known = ", ".join(map(repr, ("gpt2", *llama_layout.QK_NORM)))
        raise unsupported(f"model_type is {theirs.get('model_type')!r}, and only {known} are known")
    for name, value in _FIXED.items():
        if theirs.get(name, value) not in ((value, False) if value is None else (value,)):
            raise unsupported(f"{name} is {theirs[name]!r}, where only {json.dumps(value)} is")
    activation = theirs.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise unsupported(f"activation_function is {activation!r}, and known are {', '.join(_ACTIVATIONS)}")
    theirs = {"n_positions": theirs.get("n_ctx"), **theirs}
    for name in _REQUIRED.values():
        if not isinstance(theirs.get(name), int) or isinstance(theirs[name], bool) or theirs[name] < 1:
            raise unsupported(f"{name} should be a positive whole number, got {theirs.get(name)!r}")
    for name, default in _SCALES.items():
        if not isinstance(theirs.get(name, default), bool):
            raise unsupported(f"{name} should be true or false, got {theirs[name]!r}")
    if dropout is None:
        dropouts = [theirs.get(name, 0.1) for name in _DROPOUTS]
        if not all(isinstance(value, int | float) for value in dropouts):
            raise unsupported(f"{', '.join(_DROPOUTS)} should be numbers, got {', '.join(map(repr, dropouts))}")
        if len(set(dropouts)) > 1:
            raise unsupported(f"{', '.join(_DROPOUTS)} differ ({', '.join(map(str, sorted(set(dropouts))))}), where one dropout is for all")
        dropout = dropouts[0]
    try:
        return GPTConfig(
            **{ours: theirs[name] for ours, name in _REQUIRED.items()},
            n_inner=None if theirs.get("n_inner") == 4 * theirs["n_embd"] else theirs.get("n_inner"),
            dropout=dropout,
            bias=True,
            layer_norm_epsilon=theirs.get("layer_norm_epsilon", 1e-5),
            activation=_ACTIVATIONS[activation],
            tied_head=theirs.get("tie_word_embeddings", True) is not False,
        )
    except (ValueError, TypeError) as error:
        raise unsupported(str(error).rstrip(".")) from error


def _their_config(config: GPTConfig, tokenizer: Tokenizer | None, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    end_of_text = tokenizer.end_of_text if tokenizer is not None else None
    shared = {
        "bos_token_id": end_of_text,  # GPT-2 begins and ends texts with the same token
        "eos_token_id": end_of_text,
        "torch_dtype": str(next(iter(weights.values())).dtype),
    }
    if config.model == "llama":
        return llama_layout.their_config(config) | shared
    return shared | {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{name: getattr(config, ours) for ours, name in _REQUIRED.items()},
        "n_inner": config.n_inner,
        "activation_function": next(name for name, ours in _ACTIVATIONS.items() if ours == config.activation),
        **dict.fromkeys(_DROPOUTS, config.dropout),
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "tie_word_embeddings": config.tied_head,
    }


# --- weights ------------------------------------------------------------------------------------------


class _StoredPart(NamedTuple):
    """Where a weight is: its file, its name there, and whether it is stored as (in, out)."""

    file: WeightsFile
    name: str
    transposed: bool

    @property
    def entry(self) -> Entry:
        """The entry that a file of ours would have."""
        entry = self.file.entries[self.name]
        return entry._replace(shape=entry.shape[::-1]) if self.transposed else entry

    def read(self) -> np.ndarray:
        array = self.file.read(self.name)
        return array.T if self.transposed else array


class _StoredWeight(NamedTuple):
    """A weight of ours: the parts that lie one below the other in it."""

    parts: list[_StoredPart]

    @property
    def entry(self) -> Entry:
        """The entry that a file of ours would have."""
        first = self.parts[0].entry
        rows = sum(part.entry.shape[0] for part in self.parts) if len(self.parts) > 1 else 0
        return first._replace(shape=(rows, *first.shape[1:])) if rows else first

    def read(self) -> np.ndarray:
        return np.concatenate([part.read() for part in self.parts]) if len(self.parts) > 1 else self.parts[0].read()


def _stored_weights(folder: Path, config: GPTConfig) -> dict[str, _StoredWeight]:
    """The weights of the model, by our names; masks and a tied head are left out."""
    found: dict[str, dict[int, _StoredPart]] = {}
    counts: dict[str, int] = {}
    for file in _open_files(folder):
        for theirs in file.entries:
            if config.model == "llama":
                name, number, counts[name] = llama_layout.our_place(theirs)
            else:
                name, number = theirs.removeprefix(PREFIX), 0
            if _NOT_WEIGHTS.fullmatch(name) or (name == "lm_head.weight" and config.tied_head):
                continue
            parts = found.setdefault(name, {})
            if number in parts:
                raise WeightsError(f"cannot be used: {theirs if config.model == 'llama' else name} is there twice")
            transposed = config.model == "gpt" and bool(_TRANSPOSED.fullmatch(name))
            parts[number] = _StoredPart(file, theirs, transposed)
    for name in counts:  # of a llama
        if name in found:
            _require_parts(config, name, found[name], counts[name])
    return {name: _StoredWeight([part for _, part in sorted(parts.items())]) for name, parts in found.items()}


def _require_parts(config: GPTConfig, name: str, parts: Mapping[int, _StoredPart], count: int) -> None:
    """Raise WeightsError unless all parts of a weight are there, each of the size that it should have."""
    if len(parts) < count:
        raise WeightsError(
            f"do not fit its config: of the {count} parts of {name} only {shorten([p.name for p in parts.values()])} are there"
        )
    for size, part in zip(llama_layout.part_sizes(config, name) or (), (part for _, part in sorted(parts.items())), strict=False):
        if part.entry.shape != (size, config.n_embd):
            raise WeightsError(f"do not fit its config: {part.name} is {part.entry.shape} and should be {(size, config.n_embd)}")
        if part.entry.kind != parts[0].entry.kind:
            raise WeightsError(f"cannot be used: {part.name} has type {part.entry.kind}, and {parts[0].name} has {parts[0].entry.kind}")


def _scale_queries(weights: dict[str, np.ndarray], config: GPTConfig, theirs: Mapping[str, Any]) -> None:
    """Where their scores are not q · k / √D, multiply the weights and biases of the queries with what makes them so."""
    unscaled = math.sqrt(config.n_embd // config.n_head) if theirs.get("scale_attn_weights") is False else 1.0
    for i in range(config.n_layer):
        factor = unscaled / (i + 1) if theirs.get("scale_attn_by_inverse_layer_idx") else unscaled
        if factor != 1:
            for name in (f"h.{i}.attn.c_attn.weight", f"h.{i}.attn.c_attn.bias"):
                scaled = np.array(weights[name], np.result_type(weights[name], np.float32))
                scaled[: config.n_embd] *= factor
                weights[name] = scaled


def _their_weights(config: GPTConfig, weights: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in weights.items():
        if name == "lm_head.weight":
            if not config.tied_head:
                yield name, array
            continue
        yield PREFIX + name, array.T if _TRANSPOSED.fullmatch(name) else array
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer.startswith(("h.", "ln_f")) and f"{layer}.bias" not in weights:
            yield f"{PREFIX}{layer}.bias", np.zeros(len(array), array.dtype)


def _open_files(folder: Path) -> list[WeightsFile]:
    """The one file of weights, or all files that the index names."""
    remedy = "download it again"
    if (folder / WEIGHTS).exists():
        return [open_weights(folder / WEIGHTS, remedy)]
    if not (folder / INDEX).exists():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        instead = (
            f", only {pickles[0]}: a pickle, which can run code and is therefore not read; convert it to safetensors" if pickles else ""
        )
        raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}{instead}.")
    index = _read_json(folder / INDEX)
    file_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(file_of, dict) or not all(isinstance(name, str) for name in file_of.values()):
        raise CheckpointError(f"{folder / INDEX} is not an index: it has no weight_map from names to files.")
    files = []
    for name in sorted(set(file_of.values())):
        if Path(name).name != name or not name.isprintable():
            raise CheckpointError(f"{folder / INDEX} names a file outside of its folder, {name!r}; it is not read.")
        file = open_weights(folder / name, remedy)
        missing = [weight for weight, its_file in file_of.items() if its_file == name and weight not in file.entries]
        if missing:
            raise CheckpointError(f"{folder / name} does not have {shorten(missing)}, which {INDEX} says it has.")
        files.append(file)
    return files


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: it does not hold JSON ({error}).") from error
